"""The start of a stage's run: what is looked at before, and what a refusal leaves behind."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ft2.engine import local_device
from ft2.errors import UsageError
from ft2.lora import install_experts
from ft2.runs import RunDir
from ft2.tlpo.config import ExpertConfig, StageConfig
from ft2.wan.weights import meta_dit


def check_start(config: StageConfig, output: Path) -> None:
    """Refuse a device that is not there, a file as cache, LoRA targets that match nothing.

    A run that is complete needs neither.

    Raises:
        UsageError: One of them, or no weights.
    """
    if (output / "result.json").exists():
        return
    local_device(config.device)
    cache = config.cache_dir(output)
    for place in (cache, *cache.parents):
        if place.is_file():
            raise UsageError(f"the cache '{place}' is a file", "set cache=DIR")
    if isinstance(config, ExpertConfig):
        lora = config.lora
        install_experts(meta_dit(config.model), lora.targets, 1, lora.rank, lora.alpha)


@contextmanager
def opened_run(config: StageConfig, output: Path, *, resume: bool) -> Iterator[RunDir]:
    """Open a run directory for a block; what the block refuses at once leaves none.

    A wrong value that only shows when weights or pairs are there (no mask is large enough) would
    otherwise stand in the way of the corrected command. A run that has logged a step stays.

    Raises:
        UsageError: As of `RunDir.open`, and what the block refuses.
    """
    fresh, was_there = not (output / "config.yaml").exists(), output.exists()
    run = RunDir.open(output, config=config, resume=resume)
    try:
        yield run
    except UsageError:
        started = (run.path / "metrics.jsonl").exists() or run.latest() is not None
        if run.writes and fresh and not started:
            _discard(run.path, keep_folder=was_there)
        raise


def _discard(path: Path, *, keep_folder: bool) -> None:
    """Remove a run that has not begun; hidden files of others stay with their directory."""
    for entry in list(path.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            shutil.rmtree(entry)
        elif not entry.name.startswith(".") or entry.name == ".lock":
            entry.unlink()
    if not keep_folder and not any(path.iterdir()):
        path.rmdir()
