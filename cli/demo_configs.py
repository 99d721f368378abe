"""The configs of the demo's stages: presets, the demo's paths and seed, and given overrides."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ft2.cli.demo_config import DemoConfig
from ft2.config import load_config
from ft2.critic.config import CriticConfig
from ft2.generator.checks import load_sampling
from ft2.generator.config import GenerateConfig
from ft2.nsq.config import NsqConfig
from ft2.pairs import DIMENSIONS, Dimension
from ft2.tlpo.config import ExpertConfig, FusionConfig

GENERATE_FILE = "generate.yaml"
"""How the demo samples, written into its directory for the single commands."""

AGAIN = "again"
"""Folder for what the single commands write, beside what the demo wrote."""


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
        "critic": [f"ratings={output / 'ratings' / 'ratings.jsonl'}", f"seed={seed}"],
        "nsq": [
            f"conditions={world / 'conditions.jsonl'}",
            f"critic={output / 'critic'}",
            f"generator={output / GENERATE_FILE}",
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
        generate=load_sampling(names["generate"], changes["generate"]),
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
    """Return the command line that runs each stage alone, with the very same config.

    Each reads what the demo wrote and writes a directory of its own.
    """
    verbs = {"critic": "critic train", "nsq": "nsq build"}
    lines = {}
    for preset, given in changes.items():
        if preset == "generate":
            continue
        verb = verbs.get(preset, "tlpo train")
        words = ["ft2", *verb.split(), names[preset], *given, "-o", str(output / AGAIN / preset)]
        lines[preset] = shlex.join(words)
    return lines
