"""Memory and open files of a process, as Linux counts them."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")


def memory_of(pid: int, field: str) -> int:
    """VmRSS, VmHWM or VmSize of a process in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def clear_peak(pid: int) -> int:
    """Let VmHWM start anew, and return VmRSS."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory_of(pid, "VmRSS")


def open_files(pid: int) -> int:
    """Number of open file descriptors of a process, network connections aside: those are the client's."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += not os.readlink(entry).startswith("socket:")
    return count


def peak_of(action: Callable[[], Result]) -> tuple[Result, float]:
    """What an action returns, and the most memory in MB that it held beside what was resident before."""
    before = clear_peak(os.getpid())
    result = action()
    return result, (memory_of(os.getpid(), "VmHWM") - before) / 2**20
