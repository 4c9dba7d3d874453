"""How fast this CPU's time-stamp counter runs.

A guest reads the host's counter and finds out its rate while it boots, against emulated timers. On
a busy host that goes wrong without a word: its seconds were seen to last a quarter of ours, and so
were its deadlines and retransmission timers. So we measure, and tell it.
"""

import ctypes
import mmap
import time

READ_COUNTER = bytes.fromhex("0f31"      # rdtsc
                             "48c1e220"  # shl rdx, 32
                             "4809d0"    # or rax, rdx
                             "c3")       # ret


def counter_khz():
    """None where code may not be made at run time: then the guest has to find out by itself."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(READ_COUNTER)
    read_counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    time_0, count_0 = _together(read_counter)
    time.sleep(0.1)
    time_1, count_1 = _together(read_counter)
    return round((count_1 - count_0) * 1e6 / (time_1 - time_0))


def _together(read_counter):
    """(nanoseconds, counter) at the same moment: of several pairs the one that took least time."""
    pairs = []
    for _ in range(20):
        before = time.monotonic_ns()
        count = read_counter()
        after = time.monotonic_ns()
        pairs.append((after - before, (before + after) // 2, count))
    return min(pairs)[1:]
