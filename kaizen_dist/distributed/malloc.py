"""Memory that a step frees and the next one needs again, on CPUs.

The C library gives a large block back to the system as soon as it is freed, and every step
then asks for its activations anew: the system finds the pages, clears them and maps them, a
page at a time. That is a fifth of the time of a convolutional step. Told to keep what it has,
the library hands the same pages out again. (On GPUs torch keeps memory by itself.)
"""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
"""Names of mallopt(3)."""
_NEVER = -1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; False where the C library is not glibc."""
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})


def return_freed_memory() -> bool:
    """Let this process free memory as glibc does by itself once it has freed large blocks."""
    largest = 32 * 1024**2
    usual = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: largest, _M_TRIM_THRESHOLD: 2 * largest}
    return _set(usual)


def _set(options: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    answers = [library.mallopt(name, value) for name, value in options.items()]
    return answers == [1] * len(options)
