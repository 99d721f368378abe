"""Score clips in three lines: `TalkingCritic.from_pretrained(...)`, `.score(...)`, `.compare(...)`.

critic = TalkingCritic.from_pretrained("runs/critic/adapter")
print(critic.score(videos=["a.mp4", "b.mp4"])[0].p)
print(critic.compare(a="a.mp4", b="b.mp4")["lip"])
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ft2.critic.cache import ScoreCache, clip_hash
from ft2.critic.checkpoint import FILES, read_card
from ft2.critic.losses import outcome_log_probabilities
from ft2.critic.reference import Reference, make_reference, parse_reference
from ft2.critic.score import CriticScorer
from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec
from ft2.runs import Progress

PathLike = str | Path


@dataclass(frozen=True)
class ClipScore:
    """What the critic says about one file; compare scores of one critic only."""

    path: Path
    p: dict[str, float] = field(default_factory=dict)
    """P(yes) in [0, 1] per dimension; 0.5 is the threshold fitted on the dev split."""
    log_odds: dict[str, float] = field(default_factory=dict)
    """logit P(yes) before the threshold."""
    z: dict[str, float] | None = None
    """Standard deviations above the reference set's mean; None without a reference set."""
    percentile: dict[str, float] | None = None
    """Share of the reference set below, 0..100; None without a reference set."""
    sha256: str = ""
    """Hash of the file."""
    error: str | None = None
    """Why the file has no scores."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON row; a file without scores has only its path and the reason."""
        if self.error is not None:
            return {"clip": str(self.path), "error": self.error}
        scale = {} if self.z is None else {"z": self.z, "percentile": self.percentile}
        facts = {"log_odds": self.log_odds, **scale, "sha256": self.sha256}
        return {"clip": str(self.path), **self.p, **facts}


@dataclass(frozen=True)
class Comparison:
    """How likely each outcome is; the three sum to 1."""

    a: float
    tie: float
    b: float


class TalkingCritic:
    """A trained critic, ready to score."""

    def __init__(
        self, scorer: CriticScorer, reference: Reference | None, cache_dir: Path | None
    ) -> None:
        """Wrap a scorer; use `from_pretrained`."""
        self.scorer = scorer
        self.reference = reference
        self._cache = ScoreCache(cache_dir, scorer.fingerprint)

    @classmethod
    def from_pretrained(
        cls,
        path: PathLike,
        *,
        model: QwenSpec | None = None,
        device: str = "cpu",
        batch_size: int = 16,
        reference: Reference | None = None,
        cache_dir: Path | None = None,
        calibrated: bool = True,
        progress: Progress | None = None,
    ) -> "TalkingCritic":
        """Return the critic of a directory that `ft2 critic train` wrote, or of a Hub repository.

        Args:
            path: ``RUN/adapter``, ``RUN``, or a repository id such as ``name/critic``.
            model: The Thinker; None takes the one in the adapter's card.
            device: Where to run.
            batch_size: Clip windows a forward pass; it does not change the scores.
            reference: What z and percentile are against; None takes the adapter's dev clips.
            cache_dir: Where scores are kept by content; None keeps none.
            calibrated: Give the calibrated P(yes) of the card, or without calibration one that
                is 0.5 at the threshold fitted on the dev split; False leaves the model's own.
            progress: Told of every batch.

        Raises:
            UsageError: No critic there, or it does not fit its base.
        """
        folder = _folder(path)
        card = read_card(folder)
        own = None
        if reference is None and card.reference is not None:
            own = parse_reference(card.reference, f"reference of {folder / FILES[2]}")
            own.check_dimensions(tuple(card.questions))
        scorer = CriticScorer(
            folder, model=model, calibrated=calibrated, batch_size=batch_size, device=device,
            progress=progress,
        )  # fmt: skip
        if reference is not None and reference.critic != scorer.fingerprint:
            raise UsageError(
                f"the reference set '{reference.name}' was scored by another critic",
                "score its clips again: ft2 critic score CLIPS --write-reference FILE",
            )
        return cls(scorer, reference or own, cache_dir)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the questions, in their order."""
        return self.scorer.dimensions

    def score(self, *, videos: Sequence[PathLike]) -> list[ClipScore]:
        """Return what the critic says about each file, in order.

        Equal files are decoded once; a file that cannot be read is a row with its reason.

        Args:
            videos: Paths of clips with sound, a face in view.

        Raises:
            UsageError: `videos` is one path instead of a list.
        """
        if isinstance(videos, str | Path):
            raise UsageError(
                f"videos is one path: {str(videos)!r}", f"give a list: videos=[{str(videos)!r}]"
            )
        paths = [Path(video) for video in videos]
        hashes = [clip_hash(path) if _is_there(path) else "" for path in paths]
        known = {h: self._cache.get(h, self.dimensions) for h in hashes if h}
        todo = {h: path for path, h in zip(paths, hashes, strict=True) if h and known[h] is None}
        failed: dict[str, str] = {}
        for clip, odds in zip(todo, self.scorer.clip_odds(list(todo.values())), strict=True):
            if isinstance(odds, UsageError):
                failed[clip] = str(odds)
            else:
                known[clip] = odds.tolist()
                self._cache.put(clip, dict(zip(self.dimensions, odds.tolist(), strict=True)))
        return [
            self._row(path, clip, known.get(clip), failed.get(clip, "there is no such file"))
            for path, clip in zip(paths, hashes, strict=True)
        ]

    def _row(self, path: Path, clip: str, odds: list[float] | None, why: str) -> ClipScore:
        if odds is None:
            return ClipScore(path, sha256=clip, error=why)
        found = dict(zip(self.dimensions, odds, strict=True))
        p = self.scorer.chances(torch.tensor(odds))
        chances = dict(zip(self.dimensions, p.tolist(), strict=True))
        if self.reference is None:
            return ClipScore(path, chances, found, sha256=clip)
        places = {d: self.reference.place(d, x) for d, x in found.items()}
        z = {d: place[0] for d, place in places.items()}
        percentile = {d: place[1] for d, place in places.items()}
        return ClipScore(path, chances, found, z, percentile, clip)

    def compare(self, *, a: PathLike, b: PathLike) -> dict[str, Comparison]:
        """Return per dimension how likely A, a tie and B are.

        A critic that was trained on choices says so itself, by the model it was trained with
        (`ft2.critic.losses`). One that was trained on answers follows FantasyTalking2's rule, Yes
        beats No and equal answers make no pair: with independent answers
        P(A) = p_a (1 - p_b), P(B) = p_b (1 - p_a), and the rest is a tie. Where `ft2 critic
        calibrate` has fitted a tie width on people's choices, that counts instead of either.

        Raises:
            UsageError: A file cannot be read.
        """
        one, other = self.score(videos=[a, b])
        for found in (one, other):
            if found.error is not None:
                raise UsageError(f"{found.path}: {found.error}", "give two clips that play")
        return {d: self._outcome(d, one, other) for d in self.dimensions}

    def _outcome(self, dimension: str, one: ClipScore, other: ClipScore) -> Comparison:
        card = self.scorer.card
        gap = one.log_odds[dimension] - other.log_odds[dimension]
        ties = card.calibration.ties if card and card.calibration else {}
        if dimension in ties:
            fitted = ties[dimension]
            return choice(fitted.scale * gap, "rao_kupper", fitted.k)
        if card is None or card.objective in ("yes_no", "regression"):
            return outcome(one.p[dimension], other.p[dimension])
        return choice(gap, card.objective, (card.tie_widths or {}).get(dimension))

    def make_reference(self, name: str, scores: Sequence[ClipScore]) -> Reference:
        """Return a named reference set of scored clips; unreadable ones are left out.

        Raises:
            UsageError: Fewer than two clips have scores.
        """
        odds = [[s.log_odds[d] for d in self.dimensions] for s in scores if s.error is None]
        if len(odds) < 2:
            raise UsageError(
                f"{len(odds)} of {len(scores)} clips have scores; a reference set needs two or more"
            )
        return make_reference(name, self.scorer.fingerprint, self.dimensions, odds)


def outcome(p_a: float, p_b: float) -> Comparison:
    """Return the outcome of two independent Yes/No answers; see `TalkingCritic.compare`.

    >>> found = outcome(0.9, 0.2)
    >>> round(found.a, 2), round(found.tie, 2), round(found.b, 2)
    (0.72, 0.26, 0.02)
    """
    for_a, for_b = p_a * (1 - p_b), p_b * (1 - p_a)
    return Comparison(for_a, p_a * p_b + (1 - p_a) * (1 - p_b), for_b)


def choice(gap: float, objective: str, width: float | None) -> Comparison:
    """Return the outcome at a score difference for a critic that was trained on choices."""
    if width is None:
        return Comparison(_sigmoid(gap), 0.0, _sigmoid(-gap))
    chances = outcome_log_probabilities(
        torch.tensor(gap, dtype=torch.float64), objective, torch.tensor(width)
    )
    return Comparison(*chances.double().softmax(-1).tolist())


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # such as a name too long for any file
        return False


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _folder(path: PathLike) -> Path:
    """Return the adapter's directory: the path, its ``adapter``, or a download from the Hub."""
    folder = Path(path)
    inner = folder / "adapter"
    if not (folder / "critic.json").is_file() and (inner / "critic.json").is_file():
        return inner
    text = str(path)
    if folder.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"there is no critic in '{text}', and the Hub gave none: {type(error).__name__}",
            "give the directory that `ft2 critic train` wrote: RUN/adapter",
        ) from error
