"""The node's cache: whole files only, within its limit, shared by threads and processes."""

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fuzzing import survive
from loopback import serving

from kaizen_dist.common.errors import DataError, UsageError, WriteError
from kaizen_dist.config.schema import StreamConfig
from kaizen_dist.stream import manifest, remote
from kaizen_dist.stream.cache import Cache, CachedFolder, default_cache_dir
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.reader import Facts, Folder, StoredFile
from kaizen_dist.stream.remote import Remote

SIZE = 1000
FINGERPRINT = "a" * 64
FILES = {f"train-{n:06d}.tar": np.random.default_rng(n).bytes(SIZE) for n in range(10)}
FACTS = {name: Facts(SIZE, hashlib.sha256(data).hexdigest()) for name, data in FILES.items()}
NAMES = list(FILES)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "sleep", lambda _: None)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www" / "task-00"
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    with serving(tmp_path / "www") as running:
        yield running


@pytest.fixture
def folder(server, tmp_path):
    def make(limit: int = 10 * SIZE) -> CachedFolder:
        cache = Cache(tmp_path / "cache", limit)
        return CachedFolder(cache, Remote(server.url), FINGERPRINT, "task-00")

    return make


def read(folder: CachedFolder, name: str) -> bytes:
    return StoredFile(folder, name, FACTS[name]).read(0, 10 * SIZE)


def cached(tmp_path: Path) -> set[str]:
    """The names in the cache; those on their way begin with a dot."""
    return {path.name for path in (tmp_path / "cache").glob("*/*/*")}


def times(server, name: str) -> int:
    return server.times(f"/task-00/{name}")


# ---- one reader -------------------------------------------------------------------------


def test_the_default_folder_is_the_users_own(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/kaizen_dist")
    monkeypatch.setenv("HOME", "/home/anna")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache_dir() == Path("/home/anna/.cache/kaizen_dist")


def test_a_file_is_fetched_once_and_then_is_there(server, folder, tmp_path):
    first = folder()
    assert not first.is_ready(NAMES[0])
    assert [read(first, NAMES[0]) for _ in range(3)] == [FILES[NAMES[0]]] * 3
    assert first.is_ready(NAMES[0])
    assert read(folder(), NAMES[0]) == FILES[NAMES[0]]
    assert times(server, NAMES[0]) == 1
    assert cached(tmp_path) == {NAMES[0]}


def test_what_cannot_be_fetched_is_named_and_leaves_nothing(server, folder, tmp_path):
    server.faults[f"/task-00/{NAMES[0]}"] = ["other"] * 100
    with pytest.raises(DataError, match=rf"{server.url}/task-00/{NAMES[0]} cannot be fetched"):
        read(folder(), NAMES[0])
    assert cached(tmp_path) == set()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_copy_is_fetched_again_once(server, folder, tmp_path, capsys, damage):
    read(folder(), NAMES[0])
    (path,) = (tmp_path / "cache").glob("*/*/*")
    data = bytearray(FILES[NAMES[0]])
    data[500] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": data[:400], "empty": b""}[damage])
    assert read(folder(), NAMES[0]) == FILES[NAMES[0]]
    assert times(server, NAMES[0]) == 2
    assert f"{path}: the cached copy is damaged; fetching it again" in capsys.readouterr().err


def test_a_copy_that_is_damaged_or_removed_under_its_reader(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("kaizen_dist.stream.reader.RECHECK_SECONDS", 0.0)
    file = StoredFile(folder(), NAMES[0], FACTS[NAMES[0]])
    file.read(0, 10)
    (path,) = (tmp_path / "cache").glob("*/*/*")
    path.write_bytes(b"x" * SIZE)
    assert file.read(0, SIZE) == FILES[NAMES[0]]
    shutil.rmtree(tmp_path / "cache")
    assert file.read(0, SIZE) == FILES[NAMES[0]]
    assert times(server, NAMES[0]) == 3


def test_a_cache_that_cannot_be_written_is_a_write_error(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(WriteError, match=r"the cache .* cannot be used: .*stream\.cache_dir"):
        read(folder(), NAMES[0])


def test_a_full_disk_is_a_write_error_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"No space left on device; free space"):
        read(folder(), NAMES[0])
    assert cached(tmp_path) == set()


def test_in_a_pickle_it_is_its_place(folder):
    again = pickle.loads(pickle.dumps(folder()))
    assert read(again, NAMES[0]) == FILES[NAMES[0]]


# ---- the limit --------------------------------------------------------------------------


def test_what_was_opened_longest_ago_goes_first(server, folder, tmp_path):
    reader = folder(4 * SIZE)
    for name in NAMES[:4]:
        read(reader, name)
    read(reader, NAMES[0])
    read(reader, NAMES[4])
    assert cached(tmp_path) == {NAMES[0], NAMES[2], NAMES[3], NAMES[4]}
    assert read(folder(), NAMES[1]) == FILES[NAMES[1]]


def test_it_never_holds_more_than_its_limit(folder, tmp_path):
    reader = folder(3 * SIZE)
    for number in np.random.default_rng(0).integers(0, 10, 100).tolist():
        assert read(reader, NAMES[number]) == FILES[NAMES[number]]
        held = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*/*"))
        assert held <= 3 * SIZE


def test_what_is_open_stays_and_the_limit_gives_way_with_a_word(server, folder, tmp_path, capsys):
    reader = folder(3 * SIZE)
    held = [StoredFile(reader, name, FACTS[name]) for name in NAMES[:4]]
    for file in held:
        file.read(0, 1)
    assert cached(tmp_path) == set(NAMES[:4])
    assert capsys.readouterr().err.count("GB over stream.cache_gb=3e-06, all of it in use") == 1
    del held, file
    read(reader, NAMES[5])
    assert len(cached(tmp_path)) == 3


def test_a_cache_too_small_to_be_one_is_told_of_once(folder, capsys):
    reader = folder(2 * SIZE)
    for name in NAMES * 3:
        read(reader, name)
    said = capsys.readouterr().err
    assert said.count("for the second time") == 1
    assert "does not fit into stream.cache_gb=2e-06; raise it" in said


def test_a_file_is_read_even_where_others_evict_everything_at_once(server, folder, monkeypatch):
    reader = folder(SIZE)
    for name in NAMES * 2:
        assert read(reader, name) == FILES[name]
    assert {times(server, name) for name in NAMES} == {2}


def test_what_is_not_the_caches_own_is_never_touched(folder, tmp_path):
    mine = [tmp_path / "cache/thesis.tar", tmp_path / "cache/photos/2020/a.jpg"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(100 * SIZE))
    reader = folder(2 * SIZE)
    for name in NAMES:
        read(reader, name)
    assert all(path.stat().st_size == 100 * SIZE for path in mine)


def test_a_file_larger_than_the_whole_cache_is_not_begun(server, folder, tmp_path):
    with pytest.raises(UsageError, match=r"stream\.cache_gb=9\.99e-07 is too little"):
        read(folder(SIZE - 1), NAMES[0])
    assert (server.asked, cached(tmp_path)) == ([], set())


# ---- links in it, which may be anybody's ------------------------------------------------


@pytest.fixture
def mine(tmp_path) -> Path:
    """A folder of the reader's own, with names as in a cache."""
    place = tmp_path / "mine/task-00"
    place.mkdir(parents=True)
    for name in (*NAMES, f".{NAMES[0]}.part"):
        (place / name).write_bytes(b"mine" * 100)
        os.utime(place / name, (0, 0))
    return place


@pytest.mark.parametrize("link", ["fingerprint", "other fingerprint", "task", "other task"])
def test_nothing_behind_a_linked_folder_is_evicted_read_or_written(folder, tmp_path, mine, link):
    """Of this stream's folders a link is an error, of others it is as good as not there."""
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    root = tmp_path / "cache"
    if "fingerprint" in link:
        root.mkdir()
        (root / ("b" * 64 if "other" in link else FINGERPRINT)).symlink_to(mine.parent)
    else:
        (root / FINGERPRINT).mkdir(parents=True)
        (root / FINGERPRINT / ("task-01" if "other" in link else "task-00")).symlink_to(mine)
    reader = folder(2 * SIZE)
    for name in NAMES[:4]:
        if "other" in link:
            assert read(reader, name) == FILES[name]
        else:
            with pytest.raises(WriteError, match=r"(task-00|a{64}) is a link or a file; remove it"):
                read(reader, name)
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before


@pytest.mark.parametrize("kind", ["symlink", "dangling", "pipe", "device", "hard link"])
@pytest.mark.parametrize("place", [NAMES[0], f".{NAMES[0]}.part"])
def test_what_is_no_file_of_the_cache_gives_way_to_one(folder, tmp_path, mine, kind, place):
    inside = tmp_path / "cache" / FINGERPRINT / "task-00"
    inside.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(inside / place)
    elif kind == "hard link":
        (inside / place).hardlink_to(mine / NAMES[1])
    else:
        targets = {"symlink": mine / NAMES[1], "dangling": mine / "new", "device": "/dev/zero"}
        (inside / place).symlink_to(targets[kind])
    assert survive(lambda: read(folder(), NAMES[0])) == FILES[NAMES[0]]
    assert (mine / NAMES[1]).read_bytes() == b"mine" * 100
    assert not (mine / "new").exists()
    assert not (inside / NAMES[0]).is_symlink()


def test_a_lock_that_is_a_link_is_named_and_its_target_stays(folder, tmp_path, mine):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/.lock").symlink_to(mine / NAMES[0])
    with pytest.raises(WriteError, match=r"cache/\.lock is a link or no file; remove it"):
        read(folder(), NAMES[0])
    assert (mine / NAMES[0]).read_bytes() == b"mine" * 100


def test_only_what_is_named_as_in_a_cache_is_evicted(folder, tmp_path):
    """Other programs have folders that are named by a sha256 too."""
    layer = tmp_path / "cache" / ("b" * 64) / "diff"
    layer.mkdir(parents=True)
    for name in ("link", "train-1.tar", "other-000000.tar", "model.part"):
        (layer / name).write_bytes(bytes(100 * SIZE))
        os.utime(layer / name, (0, 0))
    reader = folder(2 * SIZE)
    for name in NAMES:
        read(reader, name)
    assert len(list(layer.iterdir())) == 4


def test_the_cache_itself_may_be_a_link_of_its_users(folder, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    assert read(folder(), NAMES[0]) == FILES[NAMES[0]]
    assert cached(tmp_path) == {NAMES[0]}


def test_what_a_killed_fetcher_left_is_cleared_away_or_taken_over(server, folder, tmp_path):
    read(folder(), NAMES[0])
    place = next((tmp_path / "cache").glob("*/*"))
    for name in NAMES[1:3]:
        (place / f".{name}.part").write_bytes(b"half" * 600)
    assert read(folder(4 * SIZE), NAMES[1]) == FILES[NAMES[1]]
    assert cached(tmp_path) <= {NAMES[0], NAMES[1], f".{NAMES[2]}.part"}
    read(folder(2 * SIZE), NAMES[3])
    assert not any(name.startswith(".") for name in cached(tmp_path))


# ---- several readers --------------------------------------------------------------------


def test_threads_that_want_one_file_fetch_it_once(server, folder):
    server.faults[f"/task-00/{NAMES[0]}"] = ["slow"]
    # Each keeps it open, as a rank does: who waits for its coming must not wait for its closing.
    files = [StoredFile(folder(), NAMES[0], FACTS[NAMES[0]]) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: file.read(0, SIZE), files))
    assert found == [FILES[NAMES[0]]] * 8
    assert times(server, NAMES[0]) == 1


RANK = """
import hashlib, pickle, random, sys
from kaizen_dist.stream.reader import StoredFile
folder, facts = pickle.loads(bytes.fromhex(sys.argv[1]))
names = list(facts) * int(sys.argv[2])
random.Random(int(sys.argv[3])).shuffle(names)
for name in names:
    data = StoredFile(folder, name, facts[name]).read(0, 10**6)
    assert hashlib.sha256(data).hexdigest() == facts[name].sha256, name
"""


def start(folder: CachedFolder, rounds: int, seed: int) -> subprocess.Popen:
    told = pickle.dumps((folder, FACTS)).hex()
    arguments = [sys.executable, "-c", RANK, told, str(rounds), str(seed)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def test_ranks_that_start_together_fetch_each_file_once(server, folder):
    ranks = [start(folder(), 2, seed) for seed in range(4)]
    for rank in ranks:
        _, said = rank.communicate(timeout=60)
        assert rank.returncode == 0, said
    assert {times(server, name) for name in NAMES} == {1}


def test_ranks_that_evict_each_others_files_all_read_right(folder, tmp_path):
    ranks = [start(folder(3 * SIZE), 20, seed) for seed in range(3)]
    for rank in ranks:
        _, said = rank.communicate(timeout=60)
        assert rank.returncode == 0, said
    read(folder(3 * SIZE), NAMES[0])
    held = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*/*")]
    assert sum(held) <= 3 * SIZE


def test_a_rank_killed_while_it_fetches_keeps_nobody_waiting(server, folder):
    server.faults[f"/task-00/{NAMES[0]}"] = ["slow"] * 2
    victim = start(folder(), 1, seed=0)
    deadline = time.monotonic() + 60
    while not server.asked:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    reader = folder()
    assert [read(reader, name) for name in NAMES] == list(FILES.values())


# ---- a stream through it ----------------------------------------------------------------


@pytest.fixture
def prepared(make_folder, tmp_path) -> Stream:
    source = make_folder({"train/cat": 12, "train/dog": 12})
    out = tmp_path / "stream"
    return prepare(f"folder:{source}", out, tasks=2, shard_size=5, progress=False)


def contents(stream: Stream) -> list[tuple]:
    found = []
    for task in range(len(stream)):
        for part in ("train", "val"):
            split = stream.split(task, part)
            found += [(split.sample(row), split.read(row)) for row in range(len(split))]
    return found


def test_a_stream_is_the_same_from_a_path_a_url_and_a_cache_of_a_path(prepared, tmp_path):
    config = StreamConfig(cache_dir=str(tmp_path / "cache"))
    with serving(prepared.root) as running:
        streams = [Stream.open(running.url, config), Stream.open(prepared.root, config)]
        for stream in streams:
            assert stream.fingerprint == prepared.fingerprint
            assert stream.manifest == prepared.manifest
            assert contents(stream) == contents(prepared)
        assert len(running.asked) == len(set(running.asked))
        assert str(streams[0].root) == running.url
        where = streams[0].split(1, "train").where(0)
        assert where.startswith(f"{running.url}/task-01/train-000000.tar: sample 0")
    for task, fingerprint in zip(prepared.tasks, prepared.manifest.task_fingerprints, strict=True):
        kept = tmp_path / "cache" / fingerprint / task.folder
        used = [*(prepared.root / task.folder).glob("*.tar")]
        used += (prepared.root / task.folder).glob("*.npy")
        assert {path.name for path in kept.iterdir() if path.suffix != ".lock"} >= {
            path.name for path in used
        }
        for path in used:
            assert (kept / path.name).read_bytes() == path.read_bytes()


def test_once_in_the_cache_only_the_manifest_is_asked_for(prepared, tmp_path):
    config = StreamConfig(cache_dir=str(tmp_path / "cache"))
    with serving(prepared.root) as running:
        contents(Stream.open(running.url, config))
        running.asked.clear()
        contents(Stream.open(running.url, config))
        assert running.asked == ["/stream.json"]


def test_a_stream_that_is_not_whole_at_its_url(prepared, tmp_path):
    config = StreamConfig(cache_dir=str(tmp_path / "cache"))
    with serving(prepared.root) as running:
        with pytest.raises(DataError, match=rf"{running.url}/none/stream\.json cannot be fetched"):
            Stream.open(f"{running.url}/none", config)
        stream = Stream.open(running.url, config)
        (prepared.root / "task-01/train-000001.tar").unlink()
        with pytest.raises(DataError, match=rf"{running.url}/task-01/train-000001\.tar.*no such"):
            contents(stream)
        (prepared.root / "task-00/val.index.npy").write_bytes(b"something else")
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(DataError, match=r"task-00/val\.index\.npy cannot be fetched.*sha256"):
            Stream.open(running.url, config)


@pytest.mark.parametrize(
    "name", ["stream.json", "task-01/val.index.npy", "task-00/train-000000.tar"]
)
@pytest.mark.parametrize("fault", ["endless", "bomb"])
def test_an_answer_without_end_fills_neither_memory_nor_cache(
    prepared, tmp_path, monkeypatch, name, fault
):
    monkeypatch.setattr(manifest, "DOCUMENT_LIMIT", 1 << 20)
    config = StreamConfig(cache_dir=str(tmp_path / "cache"), cache_gb=0.01)
    with serving(prepared.root) as running:
        running.faults[f"/{name}"] = [fault] * 100
        with pytest.raises(DataError, match=rf"/{name} cannot be fetched: more than [0-9,]+ bytes"):
            contents(Stream.open(running.url, config))
        # Six attempts; what is on its way by then is not much more than what may be taken.
        assert running.sent < 6 * (64 << 20)
    held = [path.stat().st_size for path in (tmp_path / "cache").glob("*/*/*")]
    assert sum(held) <= 1e7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"task-00"', '"../../evil"'),
        ('"task-00"', '"/tmp/evil"'),
        ("train-000000.tar", "../train-000000.tar"),
        ("train-000000.tar", ".bashrc"),
    ],
)
def test_a_manifest_cannot_name_a_place_outside_the_cache(prepared, tmp_path, old, new):
    path = prepared.root / "stream.json"
    path.write_text(path.read_text().replace(old, new))
    with serving(prepared.root) as running:
        with pytest.raises(DataError, match=r"stream\.json: damaged: tasks\.0\."):
            Stream.open(running.url, StreamConfig(cache_dir=str(tmp_path / "cache")))
        assert running.asked == ["/stream.json"]
    assert not (tmp_path / "cache").exists()


def test_a_local_stream_has_no_cache_unless_it_is_asked_for(prepared, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    split = Stream.open(prepared.root).split(0, "train")
    assert not split.remote
    assert isinstance(split._storage, Folder)
    assert split.read(0)
    assert not (tmp_path / "xdg").exists()
