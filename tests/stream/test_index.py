"""The index is the array that numpy reads, and nothing else is one."""

import io

import numpy as np
import pytest

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.index import INDEX, max_index_bytes, read_index, write_index
from kaizen_dist.stream.reader import Facts, Folder, StoredFile


def random_rows(count: int) -> np.ndarray:
    raw = np.random.default_rng(count).bytes(count * INDEX.itemsize)
    return np.frombuffer(raw, INDEX)


def open_index(path, **facts) -> np.ndarray:
    return read_index(StoredFile(Folder(path.parent), path.name, Facts(**facts)))


@pytest.fixture
def rows() -> np.ndarray:
    return random_rows(70_001)  # more than are read at a time


@pytest.fixture
def index(tmp_path, rows):
    write_index(tmp_path, "train", rows)
    return open_index(tmp_path / "train.index.npy")


def test_it_is_a_npy_file_that_numpy_maps(index, rows, tmp_path):
    mapped = np.load(tmp_path / "train.index.npy", mmap_mode="r")
    assert mapped.dtype == INDEX
    assert mapped.tobytes() == np.asarray(index).tobytes() == rows.tobytes()


def test_rows_columns_slices_and_masks(index, rows):
    assert len(index) == len(rows)
    for row in (0, 1, 69_999, 70_000, -1, np.int64(5)):
        assert index[row] == rows[row]
        assert int(index[row]["id"]) == int(rows[row]["id"])
    for name in INDEX.names:
        assert np.array_equal(index[name], rows[name])
    mask = rows["label"] > 2_140_000_000
    for key in (slice(3, 9), slice(None, None, -7000), np.array([5, 70_000, 5, -2]), mask):
        assert index[key].tobytes() == rows[key].tobytes()
    assert index[np.array([[1, 2], [3, 4]])].shape == (2, 2)
    assert len(index[np.array([], dtype=np.int64)]) == 0


@pytest.mark.parametrize("key", [70_001, -70_002, np.array([0, 70_001]), np.array([-70_002])])
def test_there_is_no_row_beyond(index, key):
    with pytest.raises(IndexError):
        index[key]


def test_an_empty_index(tmp_path):
    write_index(tmp_path, "val", np.empty(0, INDEX))
    index = open_index(tmp_path / "val.index.npy")
    assert len(index) == len(index["id"]) == len(np.asarray(index)) == 0


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_every_version_of_the_npy_format_that_fits(tmp_path, rows, version):
    encoded = io.BytesIO()
    np.lib.format.write_array(encoded, rows[:5], version=version)
    (tmp_path / "x.npy").write_bytes(encoded.getvalue())
    assert np.asarray(open_index(tmp_path / "x.npy")).tobytes() == rows[:5].tobytes()


def test_every_cut_is_named_and_no_header_makes_anything_else_of_it(tmp_path):
    write_index(tmp_path, "train", random_rows(3))
    path = tmp_path / "train.index.npy"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"train\.index\.npy: not an index"):
            open_index(path)
    chance = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.integers(0, len(whole) - 3 * INDEX.itemsize)] = chance.integers(0, 256)
        path.write_bytes(damaged)
        named = pytest.raises(DataError, match=r"train\.index\.npy: not an index")
        try:
            rows = len(open_index(path))
        except Exception:
            with named:
                open_index(path)
        else:
            assert rows <= 3


def test_an_index_costs_its_rows_and_is_not_read_beyond_what_the_manifest_allows(tmp_path, rows):
    write_index(tmp_path, "train", rows)
    path = tmp_path / "train.index.npy"
    assert path.stat().st_size <= max_index_bytes(len(rows))
    assert open_index(path, most=max_index_bytes(len(rows))).nbytes == 36 * len(rows)
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole, of which reading would never see the end
    with pytest.raises(DataError, match=r"train\.index\.npy: larger than stream\.json lets it be"):
        open_index(path, most=max_index_bytes(len(rows)))


def test_a_header_that_claims_objects_or_too_many_rows_is_refused(tmp_path):
    path = tmp_path / "train.index.npy"
    for array in (np.array([{}], dtype=object), np.zeros((2, 2), INDEX), np.zeros(3)):
        np.save(path, array)
        with pytest.raises(DataError, match=r"train\.index\.npy: not an index"):
            open_index(path)
    header = io.BytesIO()
    told = {"descr": INDEX.descr, "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, told)
    path.write_bytes(header.getvalue())
    with pytest.raises(DataError, match=r"train\.index\.npy: not an index"):
        open_index(path)
