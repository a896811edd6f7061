import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.images import BadImageError
from kaizen_dist.stream.prepare import prepare
from kaizen_dist.stream.sources import open_source, resolve_spec

LAYOUT = {"train/dog": 3, "train/cat": 2, "test/cat": 1, "test/dog": 2}


def opened(spec, tmp_path):
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return open_source(str(spec), work, progress=False)


def pack(root, path, prefix="", mode="w"):
    with tarfile.open(path, mode) as tar:
        tar.add(root, arcname=prefix or ".", recursive=True)
    return path


# ---- digits -----------------------------------------------------------------------------


def test_digits_are_scikit_learns_without_loss(tmp_path):
    source, digits = opened("digits", tmp_path), load_digits()
    assert (len(source), source.classes, source.has_val) == (1797, list("0123456789"), False)
    assert np.array_equal(source.labels, np.sort(digits.target))
    seen = {}
    for i in range(len(source)):
        original = int(source.name_of(i).removeprefix("digit "))
        image = Image.open(io.BytesIO(source.read(i)))
        assert (image.format, image.mode) == ("PNG", "L")
        seen[original] = np.asarray(image)
        assert source.labels[i] == digits.target[original]
    pixels = np.stack([seen[n] for n in range(1797)]).astype(float)
    assert np.abs(pixels / 255 * 16 - digits.images).max() < 0.05
    assert (pixels.min(), pixels.max()) == (0, 255)


# ---- folders ----------------------------------------------------------------------------


def check_layout(source, root):
    names = [
        *("train/cat/000.jpg", "train/cat/001.jpg"),
        *("train/dog/000.jpg", "train/dog/001.jpg", "train/dog/002.jpg"),
        *("test/cat/000.jpg", "test/dog/000.jpg", "test/dog/001.jpg"),
    ]
    assert source.classes == ["cat", "dog"]
    assert [source.name_of(i) for i in range(len(source))] == names
    assert source.labels.tolist() == [0, 0, 1, 1, 1, 0, 1, 1]
    assert source.is_val.tolist() == [False] * 5 + [True] * 3
    assert [source.read(i) for i in range(8)] == [(root / name).read_bytes() for name in names]


def test_a_folder_is_numbered_by_part_class_and_name(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    check_layout(opened(f"folder:{root}", tmp_path), root)
    (root / "test").rename(root / "val")
    assert opened(f"folder:{root}", tmp_path).is_val.sum() == 3


@pytest.mark.parametrize("prefix", [".", "/"])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_tar_of_it_is_the_same(make_folder, tmp_path, prefix, mode, format):
    root = make_folder(LAYOUT)
    with tarfile.open(tmp_path / "images.tgz", mode, format=format) as tar:
        for path in sorted(root.rglob("*"), reverse=True):
            header = tar.gettarinfo(path)
            header.name = f"{prefix}/{path.relative_to(root)}"
            with path.open("rb") if path.is_file() else io.BytesIO() as data:
                tar.addfile(header, data)
    source = opened(f"folder:{tmp_path / 'images.tgz'}", tmp_path)
    check_layout(source, root)
    check_layout(pickle.loads(pickle.dumps(source)), root)


def test_links_in_a_tar_are_followed(make_folder, tmp_path):
    root = make_folder({"a": 1, "b": 1})
    os.link(root / "a/000.jpg", root / "a/hard.jpg")
    (root / "b/soft.jpg").symlink_to("../a/000.jpg")
    for source in (
        opened(f"folder:{root}", tmp_path),
        opened(f"folder:{pack(root, tmp_path / 'links.tar')}", tmp_path),
    ):
        image = (root / "a/000.jpg").read_bytes()
        assert [source.read(i) == image for i in range(4)] == [True, True, False, True]


def test_classes_alone_have_no_validation_part(make_folder, tmp_path):
    source = opened(f"folder:{make_folder({'dog': 2, 'cat': 1, 'train': 1})}", tmp_path)
    assert source.classes == ["cat", "dog", "train"]
    assert not source.has_val


def test_what_is_no_image_is_passed_over_and_counted(make_folder, save_image, tmp_path):
    root = make_folder(LAYOUT)
    (root / "classes.tsv").write_text("cat\tKatze")
    (root / "train/cat/Thumbs.db").write_text("x")
    (root / "train/cat/._000.jpg").write_text("a resource fork, not an image")
    (root / ".git/objects/deep").mkdir(parents=True)
    (root / ".git/objects/deep/x.jpg").write_text("x")
    save_image(root / "montage.png", 1)
    (root / "train/dog/000.jpg").rename(root / "train/dog/000.JPEG")
    for source in (
        opened(f"folder:{root}", tmp_path),
        opened(f"folder:{pack(root, tmp_path / 'images.tar')}", tmp_path),
    ):
        assert (len(source), source.ignored) == (8, 5)
        assert "train/dog/000.JPEG" in [source.name_of(i) for i in range(8)]


def test_names_that_are_no_unicode_can_be_read_and_shown(make_folder, tmp_path):
    root = make_folder({"cat": 1})
    (root / "cat/000.jpg").rename(root / "cat" / os.fsdecode(b"\xff.jpg"))
    source = opened(f"folder:{root}", tmp_path)
    assert source.name_of(0) == "cat/\\xff.jpg"
    assert source.read(0)


def test_domains(make_folder, tmp_path):
    root = make_folder({"sketch/cat": 2, "photo/cat": 1, "photo/dog": 2})
    source = opened(f"domains:{root}", tmp_path)
    assert (source.classes, source.domains) == (["cat", "dog"], ["photo", "sketch"])
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.domains_of.tolist() == [0, 1, 1, 0, 0]
    assert not source.has_val


def test_a_changed_source_has_another_fingerprint(make_folder, tmp_path):
    root = make_folder(LAYOUT)
    before = opened(f"folder:{root}", tmp_path).fingerprint()
    assert opened(f"folder:{root}", tmp_path).fingerprint() == before
    with (root / "train/cat/000.jpg").open("ab") as file:
        file.write(b"\0")
    assert opened(f"folder:{root}", tmp_path).fingerprint() != before


# ---- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "source: '' is unknown; Known: digits, domains, folder, hf, images, parquet, table, "),
        ("digit", "source: 'digit' is unknown; did you mean digits"),
        ("digits:x", "'digits:x' is no source; give digits"),
        ("folder", "'folder' is no source; give folder:PATH"),
        ("folder:", "'folder:' is no source; give folder:PATH"),
        ("torchvision:MNIST", "is no source; give torchvision:NAME:ROOT"),
        ("nowhere:Mine:x", "source: 'nowhere:Mine' cannot be imported"),
        ("pathlib:Path:x", "source: 'pathlib:Path' is no subclass of .*SourceKind"),
    ],
)
def test_a_spec_that_is_none(spec, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        opened(spec, tmp_path)


MINE = """
import numpy as np
from PIL import Image
from kaizen_dist.stream.sources.base import NO_DOMAIN, Source, SourceKind, encode_png

class Grey:
    def read(self, i):
        return encode_png(Image.new("L", (4, 4), 9 * i))
    def name_of(self, i):
        return f"grey {i}"

class Greys(SourceKind):
    usage = "greys:Greys:COUNT"
    pattern = r"[0-9]+"
    def open(self, spec, argument, work, progress):
        count = int(argument)
        labels, none = np.arange(count) % 2, np.full(count, NO_DOMAIN)
        classes = ["even", "odd"]
        return Source(spec, classes, [], labels, none, np.zeros(count, bool), Grey())
"""


def test_a_source_of_another_package_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "greys.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    stream = prepare("greys:Greys:20", tmp_path / "out", tasks=2, progress=False)
    assert stream.classes == ["odd", "even"]  # as seed 5 has them come
    assert (len(stream), stream.source) == (2, "greys:Greys:20")
    assert prepare("greys:Greys:20", tmp_path / "out", tasks=2, progress=False).fingerprint
    with pytest.raises(UsageError, match="give greys:Greys:COUNT"):
        resolve_spec("greys:Greys:many")


def test_a_spec_is_resolved_to_an_absolute_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_spec("folder:a:b") == f"folder:{tmp_path}/a:b"
    assert resolve_spec("torchvision:MNIST:data") == f"torchvision:MNIST:{tmp_path}/data"
    assert resolve_spec("digits") == "digits"


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "no class folders with images"),
        ({"train/cat": 1, "train/dog": 0}, r"class folders without images \(1\): train/dog"),
        ({"train/cat": 1, "test/cat": 0}, r"class folders without images \(1\): test/cat"),
        ({"cat": 0}, r"class folders without images \(1\): cat"),
        ({"top/train/cat": 1}, r"top holds a training part; give folder:.*top"),
        ({"val/cat": 1, "more/cat": 1}, r"holds val/ with class folders, but no train/"),
        ({"train/cat": 1, "val/cat": 1, "Valid/cat": 1}, "both Valid/ and val/"),
        ({"train/cat": 1, "TRAIN/cat": 1}, "both TRAIN/ and train/"),
        (
            {"train/cat": 1, "test/cow": 1},
            r"folders of test/ without a counterpart in train/ \(1\): test/cow",
        ),
    ],
)
def test_a_layout_that_would_lose_images(make_folder, tmp_path, layout, message):
    root = make_folder(layout)
    root.mkdir(exist_ok=True)
    for spec in (root, pack(root, tmp_path / "images.tar")):
        with pytest.raises(DataError, match=message):
            opened(f"folder:{spec}", tmp_path)


def test_what_is_missing_or_neither_folder_nor_tar(tmp_path):
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        opened(f"folder:{tmp_path / 'nowhere'}", tmp_path)
    (tmp_path / "text.tar").write_text("hello" * 1000)
    with pytest.raises(DataError, match=r"text\.tar: not a tar"):
        opened(f"folder:{tmp_path / 'text.tar'}", tmp_path)
    os.mkfifo(tmp_path / "pipe.tar")
    for special in (tmp_path / "pipe.tar", "/dev/zero"):
        with pytest.raises(DataError, match="cannot be read: not a regular file"):
            opened(f"folder:{special}", tmp_path)


def test_a_truncated_tar_is_found_wherever_it_ends(make_folder, tmp_path):
    whole = pack(make_folder({"cat": 2, "dog": 2}), tmp_path / "images.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    for length in range(1, len(whole.rstrip(b"\0")), 211):
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar: .*cut short"):
            opened(f"folder:{cut}", tmp_path)


def test_a_damaged_header_does_not_end_a_tar_in_silence(make_folder, tmp_path):
    path = pack(make_folder({"cat": 2, "dog": 2}), tmp_path / "images.tar")
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[-1].offset
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=f"damaged or cut short at byte {offset}"):
        opened(f"folder:{path}", tmp_path)


def test_a_damaged_compressed_tar(make_folder, tmp_path):
    path = pack(make_folder({"cat": 5}), tmp_path / "images.tar.gz", mode="w:gz")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:-4], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"images\.tar\.gz: damaged or cut short"):
            opened(f"folder:{path}", tmp_path)
        assert list((tmp_path / "work").iterdir()) == []


def test_an_odd_member_counts_as_an_image_that_does_not_decode_or_not_at_all(make_folder, tmp_path):
    path = pack(make_folder({"cat": 2}), tmp_path / "odd.tar")
    with tarfile.open(path, "a") as tar:
        for name in ("cat/pipe.jpg", "cat/pipe", ".hidden/pipe.jpg"):
            header = tarfile.TarInfo(name)
            header.type = tarfile.FIFOTYPE
            tar.addfile(header)
        for name in ("cat/gone.jpg", "cat/gone"):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = tarfile.SYMTYPE, "nowhere"
            tar.addfile(header)
    source = opened(f"folder:{path}", tmp_path)
    assert [source.name_of(i) for i in range(len(source))] == [
        *("cat/000.jpg", "cat/001.jpg", "cat/gone.jpg", "cat/pipe.jpg")
    ]
    for i in (2, 3):
        with pytest.raises(BadImageError, match="neither a plain file, nor a link"):
            source.read(i)
    assert source.ignored == 3


def test_a_class_that_a_tar_has_as_a_link_to_a_folder_is_refused(make_folder, tmp_path):
    root = make_folder({"cat": 2})
    (root / "a").symlink_to("cat")
    with pytest.raises(DataError, match=r"a is a link to a folder; .* `tar --dereference`"):
        opened(f"folder:{pack(root, tmp_path / 'images.tar')}", tmp_path)
    (root / "a").rename(root / "cat/a")
    assert len(opened(f"folder:{pack(root, tmp_path / 'images.tar')}", tmp_path)) == 2


def test_a_file_that_vanishes_is_named(make_folder, tmp_path):
    root = make_folder({"cat": 2})
    source = opened(f"folder:{root}", tmp_path)
    (root / "cat/001.jpg").unlink()
    with pytest.raises(DataError, match=r"cat/001\.jpg: cannot be read"):
        source.read(1)


# ---- torchvision ------------------------------------------------------------------------


def write_mnist(root, parts) -> None:
    """The idx files of http://yann.lecun.com/exdb/mnist, from pixels and labels."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part, (pixels, labels) in parts.items():
        header = struct.pack(">IIII", 0x803, *pixels.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 0x801, len(labels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def test_a_torchvision_data_set_of_pixels(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    labels = rng.permutation(np.arange(30) % 10).astype(np.uint8)
    parts = {"train": (pixels[:20], labels[:20]), "t10k": (pixels[20:], labels[20:])}
    write_mnist(tmp_path, parts)
    source = opened(f"torchvision:MNIST:{tmp_path}", tmp_path)
    assert source.classes[3] == "3 - three"
    assert source.is_val.tolist() == [False] * 20 + [True] * 10
    name = f"torchvision's MNIST in {tmp_path}"
    assert source.told == (
        f"{name} is the training part: 20 images",
        f"{name} is the validation part: 10 images",
    )
    order = [*np.argsort(labels[:20], kind="stable"), *20 + np.argsort(labels[20:], kind="stable")]
    assert source.labels.tolist() == labels[order].tolist()
    again = pickle.loads(pickle.dumps(source))
    for i, original in enumerate(order):
        image = Image.open(io.BytesIO(again.read(i)))
        assert image.format == "PNG"
        assert np.array_equal(image, pixels[original])
    assert again.name_of(25).startswith("torchvision's MNIST")


def test_a_torchvision_data_set_of_files_keeps_their_bytes(make_folder, tmp_path):
    root = make_folder({"dog": 2, "cat": 3})
    source = opened(f"torchvision:ImageFolder:{root}", tmp_path)
    assert (source.classes, source.labels.tolist()) == (["cat", "dog"], [0, 0, 0, 1, 1])
    assert not source.has_val
    names = ["cat/000.jpg", "cat/001.jpg", "cat/002.jpg", "dog/000.jpg", "dog/001.jpg"]
    assert [source.read(i) for i in range(5)] == [(root / name).read_bytes() for name in names]


def test_a_torchvision_data_set_with_splits(make_folder, save_image, tmp_path):
    """GTSRB: `split=`, pairs of file and label in `_samples`; its test part lists a csv file."""
    make_folder({"Training/00000": 2, "Training/00001": 1}, name="gtsrb/GTSRB", suffix="ppm")
    root = tmp_path / "gtsrb/gtsrb"
    (tmp_path / "gtsrb/GTSRB").rename(tmp_path / "gtsrb/x")
    root.mkdir()
    (tmp_path / "gtsrb/x").rename(root / "GTSRB")
    save_image(root / "GTSRB/Final_Test/Images/00000.ppm", 77)
    (root / "GT-final_test.csv").write_text("Filename;ClassId\n00000.ppm;1\n")
    source = opened(f"torchvision:GTSRB:{tmp_path / 'gtsrb'}", tmp_path)
    assert (source.labels.tolist(), source.is_val.sum()) == ([0, 0, 1, 1], 1)
    assert source.read(3) == (root / "GTSRB/Final_Test/Images/00000.ppm").read_bytes()


def test_cifar_keeps_its_own_class_numbers(tmp_path, monkeypatch):
    """The class order of the reference is an order of CIFAR's own numbers."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
    batch = {"data": pixels.reshape(10, -1), "labels": [9 - n for n in range(10)]}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = pickle.dumps({"label_names": list("zyxwvutsrq")})
    (folder / "batches.meta").write_bytes(meta)
    digest = hashlib.md5(meta).hexdigest()
    monkeypatch.setitem(torchvision.datasets.CIFAR10.meta, "md5", digest)
    source = opened(f"torchvision:CIFAR10:{tmp_path}", tmp_path)
    assert source.classes == list("zyxwvutsrq")
    assert source.labels[~source.is_val].tolist() == np.repeat(np.arange(10), 5).tolist()
    image = np.asarray(Image.open(io.BytesIO(source.read(0))))
    assert np.array_equal(image, pixels[9].transpose(1, 2, 0))


def test_an_unknown_data_set_gets_the_nearest_name(tmp_path):
    with pytest.raises(UsageError, match=r"did you mean CIFAR100\?"):
        opened(f"torchvision:CIFAR1000:{tmp_path}", tmp_path)
    with pytest.raises(UsageError, match="no data set 'FakeData' that is read from a root"):
        opened(f"torchvision:FakeData:{tmp_path}", tmp_path)


def test_what_is_not_there_is_downloaded_or_the_cure_is_told(tmp_path, monkeypatch):
    def no_network(self):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", no_network)
    with pytest.raises(DataError, match=r"MNIST.*the download failed.*unreachable.*put the data"):
        opened(f"torchvision:MNIST:{tmp_path}", tmp_path)
    pixels, labels = np.zeros((2, 28, 28), np.uint8), np.arange(2, dtype=np.uint8)
    parts = {"train": (pixels, labels), "t10k": (pixels, labels)}
    monkeypatch.setattr(
        torchvision.datasets.MNIST, "download", lambda self: write_mnist_once(tmp_path, parts)
    )
    assert len(opened(f"torchvision:MNIST:{tmp_path}", tmp_path)) == 4


def write_mnist_once(root, parts) -> None:
    if not (root / "MNIST").exists():
        write_mnist(root, parts)


def test_a_data_set_without_a_training_split_or_class_labels(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="EMNIST has no split named train"):
        opened(f"torchvision:EMNIST:{tmp_path}", tmp_path)
    with pytest.raises(DataError, match=r"ImageNet train.*knows no download"):
        opened(f"torchvision:ImageNet:{tmp_path}", tmp_path)


def test_a_gzip_file_that_is_no_tar(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"hello"))
    with pytest.raises(DataError, match=r"x\.tar\.gz: not a tar"):
        opened(f"folder:{tmp_path / 'x.tar.gz'}", tmp_path)
