"""The stages of the demo, wired from the same functions and configs as the single commands."""

import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.cli.demo_config import DemoConfig
from ft2.config import load_config
from ft2.critic.config import CriticConfig
from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig
from ft2.nsq.config import NsqConfig
from ft2.pairs import DIMENSIONS, Dimension
from ft2.runs import Progress
from ft2.tlpo.config import ExpertConfig, FusionConfig

if TYPE_CHECKING:
    from ft2.wan.model import TalkingModel

Results = Mapping[str, Any]
Stage = Callable[["Demo", Results], tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class StageConfigs:
    """The configs of all stages, and the command line of each."""

    critic: CriticConfig
    nsq: NsqConfig
    generate: GenerateConfig
    experts: Mapping[Dimension, ExpertConfig]
    fusion: FusionConfig
    commands: Mapping[str, str]


def stage_configs(settings: DemoConfig, output: Path) -> StageConfigs:
    """Return what each stage runs: its preset, the demo's paths and seed, the given overrides.

    Raises:
        UsageError: an override does not fit its preset.
    """
    family, seed = settings.family, settings.seed
    world = output / "world"
    changes: dict[str, list[str]] = {
        "critic": [f"ratings={world / 'ratings.jsonl'}", f"seed={seed}"],
        "nsq": [
            f"conditions={world / 'conditions.jsonl'}",
            f"critic={output / 'critic'}",
            f"seed={1000 * seed}",
        ],
        "generate": [f"seed={seed}"],
    }
    for dimension in DIMENSIONS:
        changes[f"expert-{dimension}"] = [
            f"dataset={output / 'nsq'}", f"cache={output / 'cache'}", f"loop.seed={seed}",
        ]  # fmt: skip
    changes["fusion"] = [
        f"dataset={output / 'nsq'}", f"cache={output / 'cache'}", f"loop.seed={seed}",
        *(f"experts.{d}={output / f'expert-{d}'}" for d in DIMENSIONS),
    ]  # fmt: skip
    for preset, given in settings.overrides.items():
        changes[preset] += given
    names = {preset: f"{family}/{preset}" for preset in changes}
    return StageConfigs(
        critic=load_config(CriticConfig, names["critic"], changes["critic"]),
        nsq=load_config(NsqConfig, names["nsq"], changes["nsq"]),
        generate=load_config(GenerateConfig, names["generate"], changes["generate"]),
        experts={
            d: load_config(ExpertConfig, names[f"expert-{d}"], changes[f"expert-{d}"])
            for d in DIMENSIONS
        },
        fusion=load_config(FusionConfig, names["fusion"], changes["fusion"]),
        commands=_commands(names, changes, output),
    )


def _commands(
    names: Mapping[str, str], changes: Mapping[str, list[str]], output: Path
) -> dict[str, str]:
    """Return the command line that runs each stage alone, with the very same config."""
    verbs = {"critic": "critic train", "nsq": "nsq build"}
    lines = {}
    for preset, given in changes.items():
        if preset == "generate":
            continue
        verb = verbs.get(preset, "tlpo train")
        lines[preset] = f"ft2 {verb} {names[preset]} {' '.join(given)} -o {output / preset}"
    return lines


@dataclass
class Demo:
    """One run of the demo: its settings, and what stays loaded between stages."""

    settings: DemoConfig
    output: Path
    configs: StageConfigs
    progress: Progress
    found: list[str] = field(default_factory=list)

    @cached_property
    def model(self) -> "TalkingModel":
        """The talking model, loaded once."""
        from ft2.wan.weights import load_talking_model

        return load_talking_model(self.configs.generate.model, self.configs.generate.device)

    def timed(self, stage: Stage, results: Results) -> dict[str, Any]:
        """Run a stage and return its record: seconds, peak memory, finding, result."""
        import torch

        torch.set_num_threads(self.settings.threads)
        _reset_peak()
        start = time.monotonic()
        found, result = stage(self, results)
        return {
            "seconds": round(time.monotonic() - start, 1),
            "peak_mb": round(_peak_mb(), 1),
            "found": found,
            "result": result,
        }


def _reset_peak() -> None:
    """Let the kernel count the peak memory anew, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_mb() -> float:
    """Return the peak memory of this process and of its largest finished child, in MB."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        own = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), own)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 1024 if os.uname().sysname == "Linux" else 1024**2
    return (own + children) / unit
