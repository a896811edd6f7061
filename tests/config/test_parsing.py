"""YAML from others: plain data, each key once, and never more than a moment's work."""

import os

import pytest

from kaizen_dist.common.errors import UsageError
from kaizen_dist.config.parsing import DEPTH_LIMIT, FILE_LIMIT, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 8)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {seed: 1}\noptim: {lr: 1}\ntrain: {epochs: 3}\n", "line 3.*'train'.*line 1"),
        ("optim:\n  lr: 1\n  'lr': 2\n", "line 3.*'lr' stands here a second time"),
        ("x: " + "[" * 300 + "]" * 300, "nested more than"),
        ("x: " + "[" * 100_000, "nested more than"),
        ("- " * 100_000, "nested more than"),
        ("{a: " * 5_000, "nested more than"),
        ("a: &a [*a]", "nested more than"),
        ("a: &a {b: *a}", "nested more than"),
        (BOMB, "more than 100,000 values"),
        (MERGES, "more than 100,000 values"),
        ("x: !!python/object/apply:os.system [true]", "which has no place here"),
        ("x: !!binary aGk=", "which has no place here"),
        ("x: !!set {a, b}", "which has no place here"),
        ("x: !!int nothing", "not valid YAML"),
        ("x: !!bool nothing", "not valid YAML"),
        ("x: 0b_", "not valid YAML"),
        ("x: " + "9" * 5000, "not valid YAML"),
        ('x: "\\ud800"', "half a character"),
        ('x: "a\\0b"', "a control character"),
        ('"x\\e[31m": 1', "a control character"),
        ("? [a]\n: 1", "a key is a name"),
        ("--- a\n--- b\n", "single document"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_what_is_no_plain_data_is_refused_with_its_place(text, said, as_text):
    if as_text and "no place" not in said and "not valid" not in said:
        with pytest.raises(UsageError, match=f"(?s)^f: .*{said}"):
            parse_yaml(text, "f", as_text=True)
    elif not as_text:
        with pytest.raises(UsageError, match=f"(?s)^f: .*{said}"):
            parse_yaml(text, "f")


def test_what_people_write_is_read():
    text = "a: &a {x: 1e-5, y: [1, .5]}\nb: {<<: *a, x: 2}\nday: 2026-01-31\nnone: null\n"
    assert parse_yaml(text, "f") == {
        "a": {"x": 1e-5, "y": [1, 0.5]},
        "b": {"x": 2, "y": [1, 0.5]},
        "day": "2026-01-31",
        "none": None,
    }
    deep = "[" * (DEPTH_LIMIT - 1) + "]" * (DEPTH_LIMIT - 1)
    assert repr(parse_yaml(deep, "f")) == deep
    assert parse_yaml("time: 1:30:00", "f", as_text=True) == {"time": "1:30:00"}


def test_only_a_regular_file_of_some_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (FILE_LIMIT + 1))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    for name in ("pipe", "zero", "folder", "large", "latin", "none"):
        with pytest.raises(UsageError, match=f"cannot read the profile .*{name}.yaml"):
            read_yaml(tmp_path / f"{name}.yaml", "profile")
