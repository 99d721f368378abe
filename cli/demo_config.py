"""What `ft2 demo` runs: which presets, how much of each, and where its bounds are."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ft2.config import Config

STAGE_PRESETS = (
    *("critic", "nsq", "generate", "expert-motion", "expert-lip", "expert-quality", "fusion"),
)


class WorldConfig(Config):
    """How many puppet clips and conditions the demo makes."""

    train_ratings: int = Field(900, ge=2)
    """Rated clips to train the critic on."""
    dev_ratings: int = Field(160, ge=2)
    """Rated clips for the critic's thresholds."""
    test_ratings: int = Field(300, ge=2)
    """Rated clips to measure the critic on: other faces, voices and sentences."""
    own_train_conditions: int = Field(60, ge=2)
    """Conditions whose clips, made by the base generator, are rated for the critic's training."""
    own_dev_conditions: int = Field(16, ge=2)
    """The same for the critic's thresholds."""
    own_test_conditions: int = Field(16, ge=2)
    """The same to measure the critic on generated clips; these are no part of the ratings."""
    own_seeds: int = Field(4, ge=1)
    """Clips of each of those conditions."""
    train_conditions: int = Field(120, ge=2)
    """Portraits with speech that the generator makes candidates for."""
    test_conditions: int = Field(48, ge=2)
    """Portraits with speech, unseen by every training, to measure policies on."""
    workers: int = Field(2, ge=1)
    """Processes that render."""


class DemoConfig(Config):
    """The whole loop at one scale."""

    family: Literal["nano", "full"] = "nano"
    """Family of the stage presets."""
    seed: int = Field(0, ge=0)
    """Seed of every stage."""
    threads: int = Field(2, ge=1)
    """Processor threads of the models; another count may round differently."""
    portrait: str | None = None
    """A picture of your own, beside the shipped faces."""
    audio: str | None = None
    """Speech of your own, with `portrait`."""
    world: WorldConfig = WorldConfig()
    """Ratings and conditions."""
    overrides: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """KEY=VALUE changes of the stage presets, by preset: ``{critic: [steps=100]}``."""
    samples: int = Field(6, ge=1)
    """Clips of base and policy shown in the report."""
    test_seeds: int = Field(1, ge=1)
    """Clips that each policy makes of a test condition."""
    merges: tuple[float, ...] = (0.3333333333, 0.6666666667, 1.0)
    """Constant strengths of all three experts to compare the gate with."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.portrait is None) != (self.audio is None):
            raise ValueError("portrait and audio go together: give both or none")
        unknown = set(self.overrides) - set(STAGE_PRESETS)
        if unknown:
            raise ValueError(
                f"overrides of {', '.join(sorted(unknown))}: choose from {', '.join(STAGE_PRESETS)}"
            )
        if self.samples > self.world.test_conditions:
            raise ValueError(
                f"samples is {self.samples}, but world.test_conditions only "
                f"{self.world.test_conditions}"
            )
        return self
