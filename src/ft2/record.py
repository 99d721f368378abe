"""The record of the command that made a run: ``command.json``."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ft2.files import SCHEMA_VERSION, read_json, write_json

_PACKAGES = ("torch", "transformers", "diffusers", "peft", "deepspeed", "numpy", "safetensors")


def record_command(path: Path, argv: list[str]) -> None:
    """Write ``command.json``; a resume is added to the first command's record."""
    now = {
        "argv": ["ft2", *argv[1:]] if argv[:1] and argv[0].endswith("__main__.py") else argv,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "directory": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "git": _git_commit(),
        "device": _device(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1") or 1),
    }
    if path.exists():
        record = read_json(path)
        record.setdefault("resumed", []).append(now)
    else:
        record = {"schema": SCHEMA_VERSION, **now}
    write_json(path, record)


def packages() -> dict[str, str]:
    """Return the versions of ft2 and of the packages that its figures depend on."""
    return {name: v for name in ("ft2", *_PACKAGES) if (v := _version(name))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Return the commit of ft2's own source tree, with ``+`` when it has changes; else None."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
        dirty = subprocess.run(
            [*command, "status", "--porcelain", "-uno"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")


def _device() -> str:
    torch_module = sys.modules.get("torch")
    if torch_module is not None and torch_module.cuda.is_available():
        return str(torch_module.cuda.get_device_name(0))
    return f"cpu ({os.cpu_count()} cores)"
