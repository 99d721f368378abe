"""Configuration of a Talking-NSQ build."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ft2.config import ClipFormat, Config


class Thresholds(Config):
    """P(yes) from which an answer counts as Yes, per dimension."""

    motion: float = Field(0.5, gt=0, lt=1)
    """Threshold of motion naturalness, in (0, 1)."""
    lip: float = Field(0.5, gt=0, lt=1)
    """Threshold of lip synchronisation, in (0, 1)."""
    quality: float = Field(0.5, gt=0, lt=1)
    """Threshold of visual quality, in (0, 1)."""

    def as_tuple(self) -> tuple[float, float, float]:
        """Return (motion, lip, quality)."""
        return (self.motion, self.lip, self.quality)


class PairingConfig(Config):
    """How scored candidates of one condition become pairs."""

    thresholds: Thresholds = Thresholds()
    """Where Yes begins; tune on a held-out split of ratings."""
    yes_from: Literal["threshold", "median"] = "threshold"
    """``threshold``: Yes begins at `thresholds`; ``median``: at the median score of a split's
    clips, for a critic that finds nearly all clips good, or bad, but still ranks them."""
    min_margin: float = Field(0.0, ge=0, lt=1)
    """Least difference in P(yes) between chosen and rejected."""
    max_per_condition: int = Field(4, ge=1)
    """Most pairs that one condition gives to one store."""
    prefer: Literal["random", "margin"] = "random"
    """Which pairs stay where the cap cuts: a seeded choice, or the clearest."""


class CardConfig(Config):
    """Facts for the dataset card that no file can tell."""

    pretty_name: str = "Talking-NSQ"
    """Title of the card."""
    license: str = "other"
    """Licence identifier of the Hugging Face Hub."""
    language: tuple[str, ...] = ("en",)
    """Languages of the speech, BCP-47."""
    consent: str = "Not stated: add who appears and speaks, and under which permission."
    """Who is shown and heard, and under which permission."""


class NsqConfig(Config):
    """Everything that `ft2 nsq build` needs: conditions, generator, critic, pairing, files."""

    conditions: str
    """Path of conditions.jsonl: what to generate from, with splits."""
    generator: str
    """Preset or YAML file of the generate config that makes the candidates."""
    policy: str | None = None
    """Directory of the policy that generates; null is the base model."""
    critic: str
    """Directory of a trained critic (the output of `ft2 critic train`)."""
    critic_batch_size: int = Field(16, ge=1)
    """Clips that the critic judges together."""
    critic_device: str = "cpu"
    """Where the critic runs: ``cpu``, ``cuda``, ``cuda:1``."""
    clip: ClipFormat = ClipFormat()
    """Format that every candidate must have; others are dropped and counted."""
    num_candidates: int = Field(8, ge=2)
    """Clips generated for each condition, seeds `seed`, `seed + 1`, ..."""
    seed: int = Field(0, ge=0)
    """First generation seed; also seeds the pairing."""
    chunk_conditions: int = Field(16, ge=1)
    """Conditions generated and scored between two saves: what an interruption can cost."""
    pairing: PairingConfig = PairingConfig()
    """From scores to pairs."""
    clips_per_shard: int = Field(2000, ge=1)
    """Clips in one Arrow file."""
    pairs_per_shard: int = Field(100_000, ge=1)
    """Pairs in one Arrow file."""
    card: CardConfig = CardConfig()
    """Facts for the dataset card."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        possible = (self.num_candidates // 2) * ((self.num_candidates + 1) // 2)
        if self.pairing.max_per_condition > possible:
            raise ValueError(
                f"pairing.max_per_condition {self.pairing.max_per_condition} is out of reach: "
                f"{self.num_candidates} candidates give at most {possible} decided pairs"
            )
        return self
