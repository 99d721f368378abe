"""What a stage took: processor time and peak memory, as the operating system counts them."""

import resource
import sys
from pathlib import Path

_RSS_UNIT = 1024 if sys.platform != "darwin" else 1024**2
"""Units of `ru_maxrss` in a MB: it counts kB on Linux, bytes on macOS."""


def cpu_seconds() -> float:
    """Return the processor time of this process and its finished children, in s."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def reset_peak() -> None:
    """Let the kernel count the peak memory anew, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_mb() -> float:
    """Return the peak memory of this process since the last reset, in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_UNIT
