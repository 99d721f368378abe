"""What a report shows, as plain frozen records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """A measured number with its confidence interval."""

    value: float
    low: float | None = None
    """Lower end of the 95 % interval, None where there is none."""
    high: float | None = None
    n: int | None = None
    """What was counted: clips, pairs or conditions."""


@dataclass(frozen=True)
class Trained:
    """One thing that was trained: what, on what, how much."""

    name: str
    trained_on: str
    size: str
    """Parameters and steps, in words."""
    seconds: float | None
    """Training time in this run; None for weights that came with the package."""


@dataclass(frozen=True)
class ClipShown:
    """A clip on the page."""

    label: str
    video: str
    """Path relative to the page."""
    poster: str = ""
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """Clips of one condition side by side."""

    title: str
    detail: str
    clips: Sequence[ClipShown]


@dataclass(frozen=True)
class ScoreRow:
    """One row of scores, by dimension."""

    label: str
    values: Mapping[str, Estimate]
    highlight: bool = False
    delta: Mapping[str, Estimate] = field(default_factory=dict)
    """Paired difference to the base on the same conditions."""

    @property
    def clips(self) -> str:
        """Return how many clips the values stand on: one number, or the range of several."""
        counts = sorted({value.n for value in self.values.values() if value.n})
        return "\u2013".join(str(n) for n in (counts[:1] + counts[1:][-1:])) or "\u2013"


@dataclass(frozen=True)
class PairExample:
    """A chosen and a rejected clip of one dimension."""

    dimension: str
    chosen: ClipShown
    rejected: ClipShown


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Expert:
    """Training of one expert."""

    dimension: str
    losses: Sequence[Curve]
    accuracies: Sequence[Curve]
    heldout: Estimate | None
    """Implicit accuracy on held-out pairs after training."""
    summary: str = ""


@dataclass(frozen=True)
class GateMap:
    """Gate weights over timestep and layer."""

    timesteps: Sequence[float]
    """[T] in [0, 1000], 1000 is pure noise."""
    weights: Mapping[str, Sequence[Sequence[float]]]
    """Per dimension [L][T]."""


@dataclass(frozen=True)
class FileEntry:
    """Where something is."""

    path: str
    what: str


@dataclass(frozen=True)
class Command:
    """A command that runs one stage alone."""

    what: str
    line: str


@dataclass(frozen=True)
class Stage:
    """Time and memory of one stage of the run."""

    name: str
    seconds: float
    peak_mb: float
    found: str


@dataclass(frozen=True)
class Report:
    """Everything on the page, in the order of the page."""

    title: str
    lead: str
    headline: Sequence[ScoreRow]
    """Two rows: the base and the policy; the policy's `delta` is the claim of the page."""
    stages: Sequence[Stage]
    trained: Sequence[Trained]
    samples: Sequence[Sample]
    critic: Sequence[ScoreRow]
    critic_note: str
    pairs: Sequence[Mapping[str, object]]
    """One row a split: split, conditions, clips, motion, lip, quality, all."""
    pair_examples: Sequence[PairExample]
    experts: Sequence[Expert]
    gate: GateMap | None
    scores: Sequence[ScoreRow]
    scores_note: str
    judges: Mapping[str, str]
    """Per column of `scores`: what the number is, with its unit and direction."""
    files: Sequence[FileEntry]
    commands: Sequence[Command]
    notes: Sequence[str]
