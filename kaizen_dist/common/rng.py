"""Random numbers that are functions of their keys, never of a generator with memory.

Everything random in a run (splits, order, views, replay) is drawn here, from a key that
says what it is for and counters that say which one: the same question always has the same
answer, on any rank, in any order, after any interruption.

The generator is Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC'11), vectorised over numpy arrays. A permutation of a range is a Feistel
network over it with cycle walking, so that one position of a shuffled range costs constant
time and no memory.
"""

import hashlib
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Key: TypeAlias = tuple[int, int]
"""Two 32-bit words, made by `key`."""

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLY = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_ROUNDS = np.arange(10, dtype=np.uint64)[:, None]
_FEISTEL_ROUNDS = 8
_AT_ONCE = 1 << 14
"""Counters that are drawn from together, where many are, for each takes some 100 bytes."""


def key(*parts: int | str) -> Key:
    """The key for a purpose, e.g. `key("order", seed, task, epoch)`.

    Different parts give unrelated keys (BLAKE2b over their unambiguous spelling).
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def words(key: Key, *counters: ArrayLike) -> NDArray[np.uint32]:
    """Four random 32-bit words for every counter.

    `counters` are one to four arrays of integers in [0, 2^32), broadcast together to a
    shape S; missing ones are 0. Returns uint32 of shape S + (4,).
    """
    asked = [np.asarray(c, dtype=np.uint64) for c in counters]
    shape = np.broadcast_shapes(*(c.shape for c in asked))
    even, odd = np.zeros((2, 2, *shape), dtype=np.uint64)
    for number, counter in enumerate(asked):
        (even, odd)[number % 2][number // 2] = counter
    even, odd = _philox(key, even.reshape(2, -1), odd.reshape(2, -1))
    drawn = np.empty((even.shape[1], 4), dtype=np.uint32)
    for word, values in enumerate((even[0], odd[0], even[1], odd[1])):
        drawn[:, word] = values
    return drawn.reshape(*shape, 4)


def _philox(
    key: Key, even: NDArray[np.uint64], odd: NDArray[np.uint64]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Words 0 and 2, and words 1 and 3, of every counter; each pair of shape [2, n].

    Both are overwritten: without new memory in its inner loop this is several times as fast.
    """
    product = np.empty_like(even)
    for round_key in (np.array(key, dtype=np.uint64) + _ROUNDS * _WEYL) & _LOW:
        np.multiply(even, _MULTIPLY, out=product)
        odd ^= round_key[:, None]
        odd ^= np.right_shift(product, _HALF, out=even)[::-1]
        product &= _LOW
        even, odd, product = odd, product[::-1], even
    return even, odd


def uniform(key: Key, count: int, *counters: ArrayLike) -> NDArray[np.float64]:
    """`count` numbers in the open interval (0, 1) for every counter.

    Up to three counters, broadcast to a shape S (the fourth numbers the blocks drawn).
    Returns float64 of shape S + (count,), each a multiple of 2^-33.
    """
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    spread = [np.asarray(c, dtype=np.uint64)[..., None] for c in counters]
    spread += [np.zeros((1,), np.uint64)] * (3 - len(spread))
    drawn = words(key, *spread, blocks)
    flat = drawn.reshape(*drawn.shape[:-2], -1)[..., :count]
    return (flat.astype(np.float64) + 0.5) * 2.0**-32


def shuffle(key: Key, size: int) -> NDArray[np.int64]:
    """A random permutation of range(size), whole, in memory; 20 bytes for each meanwhile."""
    drawn = np.empty(size, np.uint64)
    for start in range(0, size, _AT_ONCE):
        index = np.arange(start, min(start + _AT_ONCE, size), dtype=np.uint64)
        of_index = words(key, index & _LOW, index >> _HALF)[:, :2].copy()
        drawn[start : start + len(index)] = of_index.view(np.uint64)[:, 0]
    return np.argsort(drawn, kind="stable")


def permute(
    key: Key, position: ArrayLike, size: ArrayLike, domain: ArrayLike = 0
) -> NDArray[np.int64]:
    """Where a random permutation of range(size) sends `position`; constant time and memory.

    Each `domain` (an integer below 2^32) has a permutation of its own. The arguments
    broadcast, and so every lane of a step can be asked at once, each with its own size.
    """
    asked = np.broadcast_arrays(*(np.asarray(a, np.uint64) for a in (position, size, domain)))
    value, limit, domain = (a.reshape(-1) for a in asked)
    if np.any(value >= limit):
        raise IndexError("a position lies outside the range it is permuted in")
    # The range fills a rectangle that is nearly a square, row by row. What of the last row lies
    # beyond it is walked over; of a large range that is next to nothing. The shape is each
    # element's own: an answer must not depend on what is asked beside it.
    columns = np.ceil(np.sqrt(limit.astype(np.float64))).astype(np.uint64)
    rows = (limit + columns - np.uint64(1)) // columns
    value, walking = value.copy(), np.arange(value.size)
    while walking.size:
        walked = (a[walking] for a in (value, domain, rows, columns))
        value[walking] = _feistel(key, *walked)
        walking = walking[value[walking] >= limit[walking]]
    return value.reshape(asked[0].shape).astype(np.int64)


def _feistel(
    key: Key,
    value: NDArray[np.uint64],
    domain: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """A keyed bijection of the cells of a rectangle, numbered row by row; all shapes [n].

    Row and column are turned by turns, each by as much as the other one says.
    """
    row, column = np.divmod(value, columns)
    turned, by, sides = row, column, (rows, columns)
    even, odd = np.empty((2, 2, len(value)), dtype=np.uint64)
    for number in range(_FEISTEL_ROUNDS):
        even[0], even[1], odd[0], odd[1] = by, number, domain, 0
        side = sides[number % 2]
        # 32 random bits scaled down to a number below the side.
        turned += _philox(key, even, odd)[0][0] * side >> _HALF
        turned -= side * (turned >= side)
        turned, by = by, turned
    return row * columns + column
