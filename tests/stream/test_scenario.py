import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen_dist.common.errors import DataError, UsageError
from kaizen_dist.stream.files.file_tree import SourceFiles
from kaizen_dist.stream.manifest_entries import Settings
from kaizen_dist.stream.scenario import Past, class_order, hold_out, keep_labels, plan
from kaizen_dist.stream.sources.base import Source

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "class_split.json").read_text())
"""The reference implementation's split of 100 and of 10 classes under seed 5."""


def make_source(labels, domains_of=None, is_val=None) -> Source:
    labels = np.asarray(labels)
    domains_of = np.full(len(labels), -1) if domains_of is None else np.asarray(domains_of)
    return Source(
        spec="test",
        classes=[f"class {c}" for c in range(labels.max() + 1)],
        domains=[f"domain {d}" for d in range(domains_of.max() + 1)],
        labels=labels,
        domains_of=domains_of,
        is_val=np.zeros(len(labels), bool) if is_val is None else np.asarray(is_val, bool),
        images=SourceFiles(Path("/"), [""] * len(labels)),
    )


def wanted(scenario="class", tasks=5, **given) -> Settings:
    return Settings(source="test", scenario=scenario, tasks_wanted=tasks, **given)


# ---- class order ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_classes_come_as_in_the_reference(name):
    split = GOLDEN[name]
    classes = sum(map(len, split))
    source = make_source(np.repeat(np.arange(classes), 3))
    tasks = plan(source, wanted(tasks=len(split), seed=5))
    assert [list(task.class_of) for task in tasks] == split
    # Names come as in the reference; numbers in the order of arrival.
    assert [task.new_classes for task in tasks] == [[f"class {c}" for c in part] for part in split]
    numbers = [number for task in tasks for number in task.class_of.values()]
    assert numbers == list(range(classes))
    for task, its_classes in zip(tasks, split, strict=True):
        assert set(source.labels[task.train.source]) == set(its_classes)
        assert set(task.train.labels) == set(task.class_of.values())


def test_chunks_of_classes_differ_by_one_at_most():
    tasks = plan(make_source(np.repeat(np.arange(11), 3)), wanted(tasks=4))
    assert [len(task.class_of) for task in tasks] == [3, 3, 3, 2]
    assert [label for task in tasks for label in task.class_of] == class_order(11, 5)


@given(st.integers(0, 500), st.integers(0, 2**63 - 1))
def test_the_order_of_classes_is_torchs(classes, seed):
    generator = torch.Generator().manual_seed(seed)
    assert class_order(classes, seed) == torch.randperm(classes, generator=generator).tolist()


def test_the_classes_of_each_task_as_a_person_says():
    source = make_source(np.repeat(np.arange(4), 3))
    said = [["class 3", "class 0"], ["class 2"]]
    first, second = plan(source, wanted(tasks=2, classes=said))
    assert (first.class_of, second.class_of) == ({3: 0, 0: 1}, {2: 2})
    assert [first.new_classes, second.new_classes] == said
    assert set(source.labels[second.train.source]) == {2}
    with pytest.raises(UsageError, match="the source test has no class class 9, lion"):
        plan(source, wanted(tasks=1, classes=[["class 9", "class 1", "lion"]]))
    with pytest.raises(ValueError, match="name 'class 1' twice"):
        wanted(tasks=2, classes=[["class 1"], ["class 2", "class 1"]])


# ---- what comes after other tasks -------------------------------------------------------


def test_known_classes_keep_their_numbers_and_new_ones_get_the_next():
    past = Past(tasks=3, images=100, classes=["class 2", "other"])
    source = make_source(np.repeat(np.arange(4), 10))
    taken = np.arange(40) >= 35
    (task,) = plan(source, wanted(tasks=1), past, taken)
    assert task.name == "task 3"
    assert task.class_of == {0: 2, 1: 3, 2: 0, 3: 4}
    assert task.new_classes == ["class 0", "class 1", "class 3"]
    ids = np.concatenate([task.train.ids, task.val.ids])
    assert sorted(ids) == list(range(100, 135))
    assert sorted(np.concatenate([task.train.source, task.val.source])) == list(range(35))
    assert plan(source, wanted(tasks=1), past, np.ones(40, bool)) == []
    of_class_3 = wanted(tasks=1, classes=[["class 3"]])
    assert plan(source, of_class_3, past, source.labels == 3) == []


def test_a_name_that_a_data_set_has_twice_is_two_classes_again():
    """Two of ImageNet's classes are called "crane"."""
    source = replace(make_source(np.repeat(np.arange(3), 5)), classes=["crane", "b", "crane"])
    (task,) = plan(source, wanted(tasks=1), Past(1, 15, ["b", "crane"]))
    assert (task.class_of, task.new_classes) == ({0: 1, 1: 0, 2: 2}, ["crane"])
    (task,) = plan(source, wanted(tasks=1), Past(1, 15, ["crane", "crane", "b"]))
    assert (task.class_of, task.new_classes) == ({0: 0, 1: 2, 2: 1}, [])


# ---- every scenario ---------------------------------------------------------------------


@st.composite
def sources(draw):
    count = draw(st.integers(30, 200))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    labels = np.sort(np.concatenate([np.arange(6), rng.integers(0, 6, count - 6)]))
    domains_of = rng.permutation(np.arange(count) % 3)
    is_val = np.arange(count) >= count - draw(st.sampled_from([0, 9]))
    return make_source(labels, domains_of, is_val)


@given(sources(), st.sampled_from(["class", "data", "domain"]), st.floats(0, 0.5))
@settings(max_examples=60, deadline=None)
def test_every_image_is_in_one_task_once(source, scenario, fraction):
    cut = plan(source, wanted(scenario, tasks=3, val_fraction=fraction))
    train = np.concatenate([task.train.source for task in cut])
    val = np.concatenate([task.val.source for task in cut])
    assert sorted(np.concatenate([train, val])) == list(range(len(source)))
    if source.has_val:
        assert sorted(val) == np.flatnonzero(source.is_val).tolist()
    first = 0
    for task in cut:
        assert (np.diff(task.val.source) > 0).all()
        # Ids are numbered task after task, within one in the order of the source.
        source_of = dict(zip(task.train.ids, task.train.source, strict=True))
        source_of |= dict(zip(task.val.ids, task.val.source, strict=True))
        assert sorted(source_of) == list(range(first, first + len(source_of)))
        assert [source_of[id] for id in sorted(source_of)] == sorted(source_of.values())
        first += len(source_of)


def test_training_images_are_shuffled_once_by_the_seed():
    source = make_source(np.repeat(np.arange(4), 100))
    first, again = (plan(source, wanted(tasks=2, seed=1))[0].train.source for _ in range(2))
    other = plan(source, wanted("data", tasks=1, seed=2, val_fraction=0))[0].train.source
    assert np.array_equal(first, again)
    assert not np.array_equal(other, np.arange(400))
    # A shuffled range has about half of its steps upwards.
    assert 0.35 < (np.diff(other) > 0).mean() < 0.65


def test_data_incremental_deals_out_both_parts_equally():
    source = make_source(np.arange(103) % 4, is_val=np.arange(103) >= 80)
    tasks = plan(source, wanted("data", tasks=3))
    assert [len(task.train) for task in tasks] == [27, 27, 26]
    assert [len(task.val) for task in tasks] == [8, 8, 7]
    # Random parts: none holds a stretch of the source.
    assert all(len(set(source.labels[task.train.source])) == 4 for task in tasks)


def test_each_domain_is_a_task_by_name_or_in_the_order_given():
    source = make_source(np.arange(30) % 2, domains_of=np.arange(30) % 3)
    by_name = plan(source, wanted("domain", None, val_fraction=0))
    assert [task.name for task in by_name] == ["domain 0", "domain 1", "domain 2"]
    order = ["domain 2", "domain 0", "domain 1"]
    tasks = plan(source, wanted("domain", None, val_fraction=0, domain_order=order))
    assert [task.name for task in tasks] == order
    assert [set(source.domains_of[task.train.source]) for task in tasks] == [{2}, {0}, {1}]


# ---- validation images ------------------------------------------------------------------


@given(sources(), st.floats(0, 0.9), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_each_class_of_each_domain_holds_out_its_share_and_trains_on_something(
    source, fraction, seed
):
    group = source.domains_of * 6 + source.labels
    held = hold_out(group, fraction, seed, task=2)
    for number in np.unique(group):
        size, out = np.sum(group == number), held[group == number].sum()
        assert out < size
        assert abs(out - fraction * size) <= 1 or out == size - 1
        assert out <= fraction * size + 1


def test_numbers_of_groups_say_only_who_is_together():
    group = np.repeat(np.arange(7), 3)
    held = [hold_out(group - less, 0.5, seed=3, task=0) for less in (0, 1, 6, 7)]
    assert held[0].any()
    assert all(np.array_equal(held[0], other) for other in held)


def test_tiny_classes_together_hold_out_the_fraction():
    held = hold_out(np.repeat(np.arange(100), 2), 0.2, seed=3, task=0)
    assert held.sum() == 40
    assert max(np.bincount(np.repeat(np.arange(100), 2)[held])) == 1


def test_the_only_image_of_a_class_is_trained_on():
    assert not hold_out(np.arange(50), 0.5, seed=0, task=0).any()


def test_no_fraction_holds_out_nothing_and_another_seed_something_else():
    group = np.repeat(np.arange(5), 40)
    assert not hold_out(group, 0, seed=5, task=0).any()
    held = hold_out(group, 0.2, seed=5, task=0)
    assert not np.array_equal(held, hold_out(group, 0.2, seed=6, task=0))
    assert not np.array_equal(held, hold_out(group, 0.2, seed=5, task=1))


def test_the_fraction_is_not_taken_where_the_source_has_its_own_part():
    source = make_source(np.repeat(np.arange(5), 40), is_val=np.arange(200) % 10 == 0)
    cut = plan(source, wanted(val_fraction=0.5))
    assert sum(len(task.val) for task in cut) == 20


# ---- labels -----------------------------------------------------------------------------


def test_a_share_of_each_class_keeps_its_label_and_validation_images_all():
    labels = np.repeat([0, 1, 2], [100, 40, 3])
    is_val = np.zeros(143, bool)
    is_val[:20] = True
    stored = keep_labels(labels, is_val, 0.1, seed=5, task=0)
    assert np.array_equal(stored[is_val], labels[is_val])
    train = stored[~is_val]
    # a tenth of 80 and of 40, and at least one of 3
    assert [np.sum(train == c) for c in range(3)] == [8, 4, 1]
    assert set(train) == {-1, 0, 1, 2}
    assert np.array_equal(stored[stored >= 0], labels[stored >= 0])


def test_fewer_labels_are_a_subset_of_more():
    labels, is_val = np.repeat(np.arange(10), 50), np.zeros(500, bool)
    few, many = (keep_labels(labels, is_val, share, seed=1, task=0) >= 0 for share in (0.1, 0.5))
    assert few.sum() == 50
    assert many.sum() == 250
    assert not (few & ~many).any()
    assert not np.array_equal(few, keep_labels(labels, is_val, 0.1, seed=1, task=1) >= 0)


def test_all_labels_or_none():
    labels, is_val = np.repeat(np.arange(4), 5), np.arange(20) % 5 == 0
    assert np.array_equal(keep_labels(labels, is_val, 1.0, 0, 0), labels)
    none = keep_labels(labels, is_val, 0.0, 0, 0)
    assert (none[~is_val] == -1).all()
    assert np.array_equal(none[is_val], labels[is_val])


# ---- errors -----------------------------------------------------------------------------


def test_more_tasks_than_classes():
    with pytest.raises(UsageError, match="6 tasks, but the source has only 5 classes"):
        plan(make_source(np.repeat(np.arange(5), 4)), wanted(tasks=6))


def test_a_task_without_training_images_is_named():
    with pytest.raises(DataError, match="task 4 has no training images"):
        plan(make_source(np.zeros(4, int)), wanted("data", tasks=5, val_fraction=0))
    source = make_source([0, 0, 0], domains_of=[0, 0, 1], is_val=[False, False, True])
    with pytest.raises(DataError, match="domain 1 has no training images"):
        plan(source, wanted("domain", None))


def test_domains_of_a_source_without_any():
    with pytest.raises(UsageError, match="no domains; give domains:PATH"):
        plan(make_source(np.arange(5)), wanted("domain", None))


def test_a_number_of_tasks_that_is_not_that_of_the_domains():
    source = make_source([0, 0, 0, 0], domains_of=[0, 0, 1, 1])
    with pytest.raises(UsageError, match="3 tasks, but the source has 2 domains"):
        plan(source, wanted("domain", 3))
    assert len(plan(source, wanted("domain", 2))) == 2


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["domain 0"], "domain 1 is missing"),
        (["domain 0", "domain 1", "domain 7"], "domain 7 is no domain"),
        (["domain 0", "domain 1", "domain 1"], "domain 1 comes 2 times"),
    ],
)
def test_an_order_that_is_none(order, message):
    source = make_source([0, 0, 0, 0], domains_of=[0, 0, 1, 1])
    with pytest.raises(UsageError, match=message):
        plan(source, wanted("domain", None, domain_order=order))
