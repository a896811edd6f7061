"""Keep memory that a step frees for the next step, on CPUs.

The C library returns a large freed block to the system, and every step then allocates its
activations anew: the system finds, clears and maps the pages one by one. That is a fifth of the
time of a convolutional step. Told to keep freed memory, the library reuses the same pages. (On GPUs
torch's allocator does so.)
"""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
"""Names of mallopt(3)."""
_NEVER = -1


def keep_freed_memory() -> bool:
    """Make this process keep freed memory; False if the C library is not glibc."""
    return _set({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER})


def return_freed_memory() -> bool:
    """Make this process free memory as glibc does by default after freeing large blocks."""
    largest = 32 * 1024**2
    usual = {_M_MMAP_MAX: 65_536, _M_MMAP_THRESHOLD: largest, _M_TRIM_THRESHOLD: 2 * largest}
    return _set(usual)


def _set(options: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    answers = [library.mallopt(name, value) for name, value in options.items()]
    return answers == [1] * len(options)
