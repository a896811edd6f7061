"""Damage to documents (JSON, JSON lines, YAML), seeded, and what a reader must make of it.

    for what, data in mutations(document, CASES):
        path.write_bytes(data)
        outcome = survive(lambda: read(path))     # an expected error, or what `read` returned

A mutation either changes one value of the document's tree (another type, a bound crossed, a key
gone, a name that is a path or a command) or its bytes (cut, bits flipped, lines repeated).
"""

import copy
import json
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import yaml

from kaizen_dist.common.errors import KaizenError

T = TypeVar("T")

CASES = 500
SECONDS = 20.0
"""No reader takes longer over a small document, on however busy a machine."""

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**40,
    0.5,
    -1.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x" * 100_000,
    "[/]",
    "[bold]x[/bold]",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines",
    "nul\0",
    "\ud800",
    "\u202eturned",
    "../../../etc/passwd",
    "/dev/zero",
    "~",
    "http://127.0.0.1:9/x",
    "$(touch hacked)",
    "<script>alert(1)</script>",
    [],
    {},
    [None],
    {"": None},
    {"__class__": "x"},
    DEEP,
)


def mutations(document: bytes, count: int = CASES, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies, each with the words for what was done to it."""
    for number in range(count):
        chance = random.Random(1000 * seed + number)
        damage = chance.choice([_in_tree, _in_tree, _in_tree, _in_bytes])
        what, data = damage(document, chance)
        yield f"{number}: {what}", data


def survive(read: Callable[[], T], seconds: float = SECONDS) -> T | KaizenError:
    """What `read` returns, or the expected error it raises; anything else fails, and so does
    taking longer than `seconds`."""

    def too_long(*_: object) -> None:
        raise AssertionError(f"not done after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return read()
    except KaizenError as error:
        if not str(error).strip():
            raise AssertionError("an error without a word") from error
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _in_tree(document: bytes, chance: random.Random) -> tuple[str, bytes]:
    """One value of the document changed (of one line, where it is JSON lines)."""
    text = document.decode()
    lines = text.splitlines(keepends=True)
    if len(lines) > 1 and all(line.startswith("{") for line in lines):
        number = chance.randrange(len(lines))
        what, changed = _change(json.loads(lines[number]), chance)
        lines[number] = json.dumps(changed) + "\n"
        return f"line {number + 1}: {what}", "".join(lines).encode()
    try:
        what, changed = _change(json.loads(text), chance)
    except ValueError:
        what, changed = _change(yaml.safe_load(text), chance)
        try:
            return what, yaml.safe_dump(changed, sort_keys=False).encode()
        except (UnicodeEncodeError, yaml.YAMLError):
            pass  # JSON has an escape for it, and is YAML too
    return what, json.dumps(changed).encode()


def _change(tree: Any, chance: random.Random) -> tuple[str, Any]:
    """A copy of a tree with one value replaced, removed, renamed or doubled."""
    tree = {"root": copy.deepcopy(tree)}
    places = list(_places(tree["root"], tree, "root", ""))
    holder, key, path = chance.choice(places)
    how = chance.randrange(8)
    if how == 0 and path:
        del holder[key]
        return f"{path} removed", tree["root"]
    if how == 1 and path and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
        return f"{path} renamed", tree["root"]
    if how == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
        return f"{path} twice", tree["root"]
    if how == 3 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        step = chance.choice([-1, 1, 1000, 0.5])
        holder[key] += step
        return f"{path} changed by {step}", tree["root"]
    if how == 4 and isinstance(holder[key], str) and holder[key]:
        where = chance.randrange(len(holder[key]))
        text = holder[key]
        holder[key] = text[:where] + chance.choice("/.%\\\n\x1b 0é") + text[where + 1 :]
        return f"{path} with another letter", tree["root"]
    other_holder, other, other_path = chance.choice(places)
    if how == 5:
        holder[key] = copy.deepcopy(other_holder[other])
        return f"{path} as {other_path}", tree["root"]
    value = chance.choice(VALUES)
    holder[key] = value
    return f"{path} = {str(value)[:40]!r}", tree["root"]


def _places(value: Any, holder: Any, key: Any, path: str) -> Iterator[tuple[Any, Any, str]]:
    """Every value of a tree, as (what holds it, its key there, its path)."""
    yield holder, key, path
    if isinstance(value, (dict, list)):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(child, value, name, f"{path}.{name}")


def _in_bytes(document: bytes, chance: random.Random) -> tuple[str, bytes]:
    """The bytes changed, whatever they mean."""
    data = bytearray(document)
    how = chance.randrange(7)
    if how == 0:
        length = chance.randrange(len(data))
        return f"cut to {length} bytes", bytes(data[:length])
    if how == 1:
        place = chance.randrange(8 * len(data))
        data[place // 8] ^= 1 << place % 8
        return f"bit {place} flipped", bytes(data)
    if how == 2:
        place = chance.randrange(len(data))
        return f"bytes put in at {place}", bytes(data[:place]) + b"\0\xff\xfe" + bytes(data[place:])
    if how == 3:
        lines = document.splitlines(keepends=True)
        number = chance.randrange(len(lines))
        lines.insert(chance.randrange(len(lines) + 1), lines[number])
        return f"line {number + 1} repeated", b"".join(lines)
    if how == 4:
        lines = document.splitlines(keepends=True)
        number = chance.randrange(len(lines))
        del lines[number]
        return f"line {number + 1} removed", b"".join(lines)
    if how == 5:
        return "nested deeply", b"[" * 100_000
    place = chance.randrange(len(data))
    return f"doubled from {place}", document + bytes(data[place:])
