"""Memory that XLA frees on a CPU is kept, because the next update asks for it again."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
"""Options of glibc's `mallopt`, from its malloc.h."""


def keep_freed_memory() -> bool:
    """Tell glibc not to hand freed memory back to the kernel.

    XLA:CPU asks for all buffers of a program at every call. Those are large, which
    glibc maps and unmaps each time, and the kernel has to clear every page once more:
    up to a third of an update (docs/results.md). The process keeps its peak memory.

    Returns:
        Whether it could be told; False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = (
        (_M_MMAP_MAX, 0),  # large blocks come from the heap, too
        (_M_TRIM_THRESHOLD, -1),  # which never shrinks
        (_M_TOP_PAD, 64 * 2**20),  # and grows by so many bytes
        (_M_ARENA_MAX, 1),  # other heaps could not hold blocks above 64 MB
    )
    return all([mallopt(option, value) == 1 for option, value in wanted])
