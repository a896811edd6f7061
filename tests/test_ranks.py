"""Ranks that are started wrongly or do not agree: said by the rank it is about, before a step."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from started import Rank, environment_of, kaizen

from kaizen_dist.config import load
from kaizen_dist.distributed.context import start
from kaizen_dist.stream.manifest import Stream
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.training.agreement import agree, differing

QUICK = [
    "train.max_steps=2",
    "train.threads=1",
    "ssl.hidden=32",
    "ssl.predictor_hidden=32",
    "eval.forward_transfer=false",
    "eval.knn=false",
    "model.backbone=tiny_backbone:Tiny",
]


def ends(port: int, *commands: list[str], **changes: str) -> list[tuple[int, str]]:
    """Exit code and words of ranks that are each started by a command of their own."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(Rank(command, environment_of(r, len(commands), port, **changes)))
            for r, command in enumerate(commands)
        ]
        return [rank.end() for rank in ranks]


@pytest.fixture(scope="module")
def config(configs):
    return configs / "digits.yaml"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Stream:
    """The digits with their tasks in another order."""
    return prepare("digits", tmp_path_factory.mktemp("other") / "digits", seed=6, progress=False)


@pytest.mark.parametrize("rank", ["0", "1", "7"])
def test_every_rank_says_its_usage_error(tmp_path, rank):
    environment = environment_of(int(rank), 8, 1)
    with Rank(kaizen("resume", tmp_path / "nothing"), environment) as process:
        code, said = process.end()
    assert code == 2
    assert said.startswith(f"error: rank {rank}: ")
    assert "holds no run" in said


def test_the_first_rank_says_it_in_full_and_the_others_in_a_line(tmp_path, config, digits):
    arguments = ("--stream", digits.root, "--out", tmp_path / "run")
    command = kaizen("train", config, "train.epochs=x", "optim.lr=y", *arguments)
    (_, first), (_, second) = (Rank(command, environment_of(rank, 2, 1)).end() for rank in range(2))
    assert first.startswith("error: rank 0: ")
    assert len(first.splitlines()) > 2
    assert len(second.splitlines()) == 1
    for key in ("train.epochs", "optim.lr"):
        assert key in first
        assert key in second


@pytest.mark.parametrize("verb", ["train", "doctor", "demo", "sweep"])
def test_ranks_do_not_start_ranks(tmp_path, config, digits, verb):
    arguments = {
        "train": ["train", config, "--stream", digits.root, "--out", tmp_path / "run"],
        "doctor": ["doctor"],
        "sweep": ["sweep", tmp_path / "sweep.yaml", "--out", tmp_path / "run"],
        "demo": ["demo", "--config", config, "--out", tmp_path / "run"],
    }
    (tmp_path / "sweep.yaml").write_text(
        f"base: {config}\nprepare: {{source: digits}}\nseeds: [0]\n"
    )
    with Rank(kaizen(*arguments[verb], "--procs", 2), environment_of(1, 4, 1)) as process:
        code, said = process.end()
    assert code == 2
    assert "leave --procs out" in said
    assert "RANK=1" in said
    assert not (tmp_path / "run").exists()


def test_another_order_of_tasks_on_one_rank_is_refused(tmp_path, config, digits, other, free_port):
    run = tmp_path / "run"
    codes, said = zip(
        *ends(
            free_port,
            kaizen("train", config, *QUICK, "--stream", digits.root, "--out", run),
            kaizen("train", config, *QUICK, "--stream", other.root, "--out", run),
        ),
        strict=True,
    )
    assert codes == (3, 3)
    for words in said:
        assert "rank 1 has another stream" in words
        assert str(other.root) in words
        assert "Traceback" not in words
    assert not run.exists()


def test_another_seed_on_one_rank_is_refused_also_when_a_run_is_resumed(
    tmp_path, config, digits, free_port
):
    run = tmp_path / "run"
    arguments = (*QUICK, "--stream", digits.root, "--out", run)
    with Rank(kaizen("train", config, *arguments, "--until", 1), environment_of(0, 1, 1)) as one:
        assert one.end()[0] == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    change = ["train.epochs=7", "--allow"]
    answers = ends(free_port, kaizen("resume", run, "--allow"), kaizen("resume", run, *change))
    for code, words in answers:
        assert code == 2
        assert "rank 1 has another configuration" in words
        assert "train.epochs=7 instead of 10" in words
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def agreed(config: str, place: str, odd: int, change: str) -> str:
    """What a rank of several hears where `odd` has made a change."""
    with start(load(Path(config)).parallel, threads=1) as process:
        settings = load(Path(config), [change] if process.rank == odd else [])
        try:
            agree(settings, Stream.open(place, settings.stream), process, until=None)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "agreed"


def test_rank_0_is_named_where_the_others_agree(ranks, config, digits):
    for words in ranks(agreed, 3, str(config), str(digits.root), 0, "train.seed=9"):
        assert words.startswith("UsageError: rank 0 has another configuration")
        assert "train.seed=9 instead of 5" in words


def test_what_a_node_sets_for_itself_may_differ(ranks, config, digits):
    assert ranks(agreed, 2, str(config), str(digits.root), 1, "views.workers=9") == ["agreed"] * 2


def test_the_minority_differs_and_of_two_the_second():
    assert differing(["a", "b", "b"]) == [0]
    assert differing(["a", "b"]) == [1]
    assert differing(["a", "a"]) == []
