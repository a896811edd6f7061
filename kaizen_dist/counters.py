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
_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_FEISTEL_ROUNDS = 6


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
    lanes = np.broadcast_arrays(*(np.asarray(c, dtype=np.uint64) for c in counters))
    c = [*lanes, *(np.zeros_like(lanes[0]) for _ in range(4 - len(lanes)))]
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c[0] * _MULTIPLY[0], c[2] * _MULTIPLY[1]
        c = [
            (p1 >> _HALF) ^ c[1] ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c[3] ^ np.uint64(k1),
            p0 & _LOW,
        ]
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


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
    """A random permutation of range(size), whole, in memory."""
    index = np.arange(size, dtype=np.uint64)
    drawn = words(key, index & _LOW, index >> _HALF)
    return np.argsort(drawn[..., :2].copy().view(np.uint64)[..., 0], kind="stable")


def permute(
    key: Key, position: ArrayLike, size: ArrayLike, domain: ArrayLike = 0
) -> NDArray[np.int64]:
    """Where a random permutation of range(size) sends `position`; constant time and memory.

    Each `domain` (an integer below 2^32) has a permutation of its own. The arguments
    broadcast, and so every lane of a step can be asked at once, each with its own size.
    """
    shapes = np.broadcast_arrays(position, size, domain)
    value, limit, domain = (np.array(a, dtype=np.uint64) for a in shapes)
    if value.size == 0:
        return value.astype(np.int64)
    if np.any(value >= limit):
        raise IndexError("a position lies outside the range it is permuted in")
    # The least power of two that holds the range, so that less than half of it is walked over.
    # It is each element's own: an answer must not depend on what is asked beside it.
    bits = np.maximum(np.frexp((limit - np.uint64(1)).astype(np.float64))[1], 2).astype(np.uint64)
    inside = np.zeros(value.shape, dtype=bool)
    while not inside.all():
        walking = ~inside
        value[walking] = _feistel(key, value[walking], domain[walking], bits[walking])
        inside = value < limit
    return value.astype(np.int64)


def _feistel(
    key: Key, value: NDArray[np.uint64], domain: NDArray[np.uint64], bits: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A keyed bijection of [0, 2^bits); the halves trade widths in every one of an even number
    of rounds."""
    one = np.uint64(1)
    right_width = bits >> one
    left_width = bits - right_width
    left, right = value >> right_width, value & ((one << right_width) - one)
    for number in range(_FEISTEL_ROUNDS):
        mixed = words(key, right, domain, number)[..., 0].astype(np.uint64)
        left, right = right, left ^ (mixed & ((one << left_width) - one))
        left_width, right_width = right_width, left_width
    return (left << right_width) | right
