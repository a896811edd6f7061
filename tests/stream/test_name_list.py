"""Names in little memory, and patterns of names."""

import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaizen_dist.common.errors import DataError
from kaizen_dist.stream.files import name_list
from kaizen_dist.stream.files.name_list import (
    NameColumn,
    NameList,
    PickedNames,
    renumbered,
    sort_in_groups,
)
from kaizen_dist.stream.files.patterns import fixed_folder, is_gone, matching_files

NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8))


@given(NAMES)
def test_a_list_is_what_was_put_in(names):
    held = NameList(names)
    assert list(held) == names == list(pickle.loads(pickle.dumps(held)))
    assert len(held) == len(names)
    assert [held[-n] for n in range(1, len(names) + 1)] == names[::-1]
    assert list(held[1:7:2]) == names[1:7:2]
    numbers = np.arange(len(names))[::-1]
    picked = PickedNames(held, numbers)
    assert (list(picked), list(picked[:2])) == (names[::-1], names[::-1][:2])
    assert list(pickle.loads(pickle.dumps(picked[:2]))) == names[::-1][:2]
    with pytest.raises(IndexError):
        held[len(names)]


@given(NAMES)
def test_a_list_of_more_bytes_than_4_can_count(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(name_list, "_MOST_IN_4_BYTES", 20)
        assert list(NameList(names)) == names


def test_a_pickle_of_a_few_names_has_no_others():
    held = NameList(f"{n:020d}" for n in range(10_000))
    assert len(pickle.dumps(PickedNames(held, np.arange(10)))) < 1000


def test_a_name_need_not_be_unicode():
    assert NameList([os.fsdecode(b"\xff.jpg")])[0] == os.fsdecode(b"\xff.jpg")


def test_a_name_takes_its_bytes_and_few_more():
    held = NameList(f"train/n{n % 1000:08d}/{n:08d}.JPEG" for n in range(100_000))
    taken = sum(map(sys.getsizeof, (held._bytes, held._ends)))
    assert taken < 100_000 * (29 + 4) * 1.2


@given(NAMES)
def test_a_column_numbers_its_names(names):
    column = NameColumn()
    for name in names:
        column.append(name)
    for in_order_of_arrival in (False, True):
        different, numbers = column.numbered(in_order_of_arrival)
        assert [different[n] if n >= 0 else "" for n in numbers] == names
        assert len(set(different)) == len(different)


@pytest.mark.parametrize(
    ("names", "sorted_names", "arrived"),
    [
        (["10", "9", "", "-1"], ["-1", "9", "10"], ["-1", "9", "10"]),
        (["b", "a", "", "b"], ["a", "b"], ["b", "a"]),
        (["10", "x", "9"], ["10", "9", "x"], ["10", "x", "9"]),
        ([], [], []),
    ],
)
def test_numbers_are_in_their_order_and_names_in_theirs(names, sorted_names, arrived):
    column = NameColumn()
    for name in names:
        column.append(name)
    assert column.numbered()[0] == sorted_names
    assert column.numbered(in_order_of_arrival=True)[0] == arrived


def test_only_the_names_in_use_are_kept():
    names, numbers = renumbered(["a", "b", "c", "d"], np.array([3, -1, 1, 3]))
    assert (names, numbers.tolist()) == (["b", "d"], [1, -1, 0, 1])


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3))))
def test_sorting_in_groups(pairs):
    group, names = np.array([g for g, _ in pairs], np.int64), [name for _, name in pairs]
    with pytest.MonkeyPatch.context() as patch:
        for at_once in (2, 1 << 14):
            patch.setattr(name_list, "AT_ONCE", at_once)
            order = sort_in_groups(group, names.__getitem__)
            assert [pairs[n] for n in order] == sorted(pairs)
            assert sorted(order) == list(range(len(pairs)))


# ---- patterns ---------------------------------------------------------------------------


def test_patterns_with_braces_and_globs(tmp_path):
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-09.tar"):
        (tmp_path / name).touch()

    def matched(pattern):
        return [path.name for path in matching_files(f"{tmp_path}/{pattern}")]

    assert matched("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert matched("{b,a}-09.tar") == ["b-09.tar", "a-09.tar"]
    assert matched("{a,b}-*.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "b-09.tar"]
    assert matched("{a,?}-{09..09}.tar") == ["a-09.tar", "b-09.tar"]  # each once
    assert matched("c-{1..2}.tar") == ["c-1.tar", "c-2.tar"]  # whether they are there or not
    with pytest.raises(DataError, match="there is no file that matches"):
        matched("c*.tar")
    assert [is_gone(f"{tmp_path}/{p}") for p in ("c*", "c-{1..2}.tar", "a*")] == [True, True, False]
    for pattern in ("x/y/a-{1..2}.tar", "x/y/*/z.tar", "x/y/a.tar"):
        assert fixed_folder(f"{tmp_path}/{pattern}") == tmp_path / "x/y"
