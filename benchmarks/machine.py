"""The machine a benchmark ran on, for the header of its result file."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def header() -> dict[str, str | int | None]:
    """Return command, date, processor, its cores and Python's version."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return {
        "command": " ".join(["python", script, *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
