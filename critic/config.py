"""What trains a critic: ratings, questions, adapter, optimiser."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from ft2.config import Config, DeviceName, EngineConfig
from ft2.critic.names import PAIR_OBJECTIVES, Negative, Objective
from ft2.critic.rows import FACTS
from ft2.qwen.spec import QwenSpec

QUESTIONS = {
    "motion": "Is the motion natural?",
    "lip": "Is the lip synchronized?",
    "quality": "Is the visual quality good?",
}
"""The questions of FantasyTalking2's annotation, answered Yes or No."""

MAX_DIMENSIONS = 8


def check_questions(questions: Mapping[str, str]) -> None:
    """Refuse no question, too many, or names that ratings cannot have as keys.

    Raises:
        ValueError: With the questions.
    """
    if not 1 <= len(questions) <= MAX_DIMENSIONS:
        raise ValueError(f"there must be 1 to {MAX_DIMENSIONS} questions, got {dict(questions)}")
    if any(not name.isidentifier() or not asked for name, asked in questions.items()):
        raise ValueError(f"a dimension is a name with its question, got {dict(questions)}")
    if taken := sorted(FACTS & set(questions)):
        raise ValueError(f"a dimension cannot be called '{taken[0]}': ratings have that key")


class SplitConfig(Config):
    """How rated clips are dealt into splits."""

    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Wanted shares of train, dev and test; whole groups of clips are dealt, so they are met
    roughly."""
    seed: int = Field(0, ge=0)
    """Order of groups of equal size."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6 or not self.shares[0]:
            raise ValueError(f"shares must sum to 1, with some to train; got {list(self.shares)}")
        return self


class AnnotationConfig(Config):
    """The annotation page."""

    questions: dict[str, str] = QUESTIONS
    """What raters are asked, by dimension."""
    raters_per_item: int = Field(1, ge=1)
    """How many people see each clip; those with a gold answer go to all."""
    release_minutes: float = Field(30, ge=0, le=1e6)
    """After so long without an answer a clip that somebody opened goes to others as well; he may
    still answer it, so that a clip gets more raters than wanted rather than fewer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_questions(self.questions)
        return self


class LoraSpec(Config):
    """The adapter on the language model; the towers stay as they are."""

    rank: int = Field(16, ge=1)
    """Rank r of every adapted linear."""
    alpha: float = Field(32, gt=0)
    """Scale: the adapter acts with ``alpha / rank``."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""


class CriticConfig(Config):
    """Training of Talking-Critic on ratings."""

    model: QwenSpec = QwenSpec()
    """The Thinker and the clips it takes."""
    objective: Objective = "yes_no"
    """``yes_no`` (cross-entropy on the answer), ``regression`` on opinion scores, or of pairs:
    ``bradley_terry``, ``margin``, ``soft``, ``rao_kupper``, ``davidson``; see `ft2.critic.losses`.
    Ratings of single clips serve a pair objective too: Yes beats No, equal answers tie."""
    questions: dict[str, str] = QUESTIONS
    """Question of each dimension, 1 to 8; the ratings' keys. Pairs for tlpo need the three."""
    ratings: str
    """Path of a ``ratings.jsonl``."""
    lora: LoraSpec = LoraSpec()
    """Adapter."""
    engine: EngineConfig = EngineConfig(
        learning_rate=1.5e-3, micro_batch_size=16, warmup_steps=20, betas=(0.9, 0.98)
    )
    """Optimiser; `decay_steps` is filled in as `steps` when 0."""
    steps: int = Field(400, ge=1)
    """Optimiser steps."""
    smoothing: float = Field(0.05, ge=0, lt=0.5)
    """Probability that `yes_no` leaves to the other answer, so that scores do not saturate."""
    copies: int = Field(1, ge=0)
    """Varied copies of every training clip: mirrored, other light, tint and sharpness."""
    texture: float = Field(0.0, ge=0, le=1)
    """Share of the varied copies that are mixed with a random convolution of themselves: where few
    faces were rated, the critic otherwise learns their skin."""
    swap: float = Field(0.15, ge=0, le=0.5)
    """Share of clips that are shown with another clip's voice, their lip answer then being No;
    0 for ratings of pairs and for `regression`."""
    negatives: dict[Negative, float] = Field(default_factory=dict)
    """Share of the training clips that also come with a controlled defect, by kind:
    ``audio_shift``, ``silence``, ``shuffle``, ``freeze``, ``blur``, ``bitrate``; see
    `ft2.critic.negatives`. For ratings of single clips by Yes and No."""
    balance: bool = True
    """Give every source of ratings (known defects, judges, people) the same share of the steps."""
    cache_features: bool = True
    """Run the frozen towers once a clip and keep their tokens; off where those are too large."""
    device: DeviceName = "cpu"
    """Where the model runs: ``cpu``, ``cuda``, ``cuda:1``."""
    gradient_checkpointing: bool = False
    """Keep one activation a decoder layer and compute the others again: less memory, slower."""
    checkpoint_steps: int = Field(200, ge=1)
    """Steps between checkpoints."""
    keep: Literal["best", "last"] = "best"
    """Whose adapter is written: that of the checkpoint with the best accuracy on the dev split, or
    the last one. Without a dev split both are the last."""
    seed: int = Field(0, ge=0)
    """Seed of the adapter, the order and the swaps."""

    @property
    def remarks(self) -> list[str]:
        """What of the config has no effect, in words."""
        if self.swap and self.objective == "yes_no" and "lip" not in self.questions:
            return [f"swap={self.swap} has no effect: no question is called lip"]
        return []

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_questions(self.questions)
        if self.objective == "regression" and (self.swap or self.negatives):
            raise ValueError(
                f"objective regression needs swap=0 and no negatives, got swap={self.swap}, "
                f"negatives={self.negatives}"
            )
        if not all(0 <= share <= 1 for share in self.negatives.values()):
            raise ValueError(f"shares of negatives lie in [0, 1], got {self.negatives}")
        if self.objective in PAIR_OBJECTIVES and self.engine.micro_batch_size % 2:
            raise ValueError(
                f"objective {self.objective} takes clips two by two: "
                f"engine.micro_batch_size {self.engine.micro_batch_size} must be even"
            )
        return self
