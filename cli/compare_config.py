"""Config of `ft2 tlpo compare`."""

from pathlib import Path

from pydantic import Field, model_validator

from ft2.config import Config
from ft2.pairs import DIMENSIONS
from ft2.tlpo.methods import METHODS

EXPERTS = tuple(f"expert-{dimension}" for dimension in DIMENSIONS)


class CompareConfig(Config):
    """Methods against each other on one dataset."""

    family: str = "nano"
    """Presets of experts, gate and sampling."""
    dataset: Path = Path("runs/nsq")
    """Talking-NSQ directory to train on (`ft2 nsq build`)."""
    cache: Path | None = None
    """Encoded dataset; None is `cache` in the output."""
    validation: Path = Path("runs/validation-conditions.jsonl")
    """Conditions on which what is swept is chosen."""
    test: Path = Path("runs/test-conditions.jsonl")
    """Conditions of the table; none may be in training or validation."""
    methods: tuple[str, ...] = tuple(METHODS)
    """What is compared."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Training seeds; every method is trained anew for each."""
    samples: tuple[int, ...] = Field((0,), min_length=1)
    """Noise seeds of every condition."""
    critic: Path | None = None
    """A trained critic (RUN/adapter) whose scores are shown beside the judges'; None is none."""
    sweep: dict[str, list[dict[str, str | int | float | bool | list[float]]]] = Field(
        default_factory=dict
    )
    """For a method or an expert (expert-motion, expert-lip, expert-quality), sets of config keys of
    which the best on validation is taken, with the first seed. An expert takes `loop.num_steps` up
    to those of its preset, one LoRA up to those of the three experts and the gate."""
    overrides: dict[str, list[str]] = Field(default_factory=dict)
    """KEY=VALUE changes by preset: expert-motion, expert-lip, expert-quality, fusion, generate."""

    @model_validator(mode="after")
    def _check(self) -> "CompareConfig":
        unknown = [n for n in self.methods if n not in METHODS]
        unknown += [n for n in self.sweep if n not in (*METHODS, *EXPERTS)]
        if unknown:
            names = ", ".join((*METHODS, *EXPERTS))
            raise ValueError(f"unknown method {unknown[0]!r}; one of {names}")
        for key in ("methods", "seeds", "samples"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise ValueError(f"{key} has something twice: {list(given)}")
        presets = (*EXPERTS, "fusion", "generate")
        wrong = [name for name in self.overrides if name not in presets]
        if wrong:
            raise ValueError(f"no preset {wrong[0]!r} in a comparison; one of {', '.join(presets)}")
        return self
