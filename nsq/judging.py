"""From candidates to judged rows: inspected, filtered, scored, each clip once for each critic."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ft2.config import ClipFormat
from ft2.errors import RunError, UsageError
from ft2.nsq.candidates import Candidate
from ft2.nsq.config import FilterConfig
from ft2.nsq.filters import Facts, Inspect, near_duplicates
from ft2.nsq.protocols import Scorer
from ft2.nsq.store import Key, ScoreStore, Verdict
from ft2.nsq.tables import content_hash
from ft2.nsq.workers import Workers, cut_batches
from ft2.pairs import DIMENSIONS, Scores
from ft2.runs import hash_file

FAILURES = ("missing", "format", "not-judged")
"""Reasons that are failures; the others are filters that did their work."""

Row = dict[str, Any]


class LazyScorer:
    """A `Scorer` that is loaded when the first clip needs it, in whichever process that is."""

    def __init__(self, name: str, load: Any) -> None:
        """Keep the name, and `load`: a picklable function without arguments that gives a Scorer."""
        self._name, self._load = name, load
        self._loaded: Scorer | None = None

    @property
    def name(self) -> str:
        """What judges: a fingerprint that changes whenever its answers may."""
        return self._name

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        """Return the scores of mp4 files with sound, in order."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded.score(paths)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the loaded model."""
        return {**self.__dict__, "_loaded": None}


class StoredOnly:
    """A `Scorer` that never judges: every clip must have its scores in the store already."""

    def __init__(self, name: str) -> None:
        """Keep the name of the critic whose scores count."""
        self.name = name

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        """Refuse.

        Raises:
            RunError: always, with how many clips have no scores.
        """
        raise RunError(
            f"{self.name!r} has no scores in the store for {len(paths)} clips, "
            f"such as {paths[0].name}",
            "judge them where the critic is, with the same store=FILE, or set critic=DIR",
        )


@dataclass(frozen=True)
class Judge:
    """The scoring stage: a batch of files in, verdicts out. Runs in any process."""

    scorer: Scorer

    def __call__(self, paths: list[Path]) -> list[Verdict]:
        """Return the scores of each file, or why it has none: a bad clip spoils no batch."""
        try:
            return list(self._ask(paths))
        except UsageError as error:
            if len(paths) == 1:
                return [error.message.replace(str(paths[0]), paths[0].name)]
        return [verdict for path in paths for verdict in self([path])]

    def _ask(self, paths: list[Path]) -> list[Scores]:
        scores = self.scorer.score(paths)
        if len(scores) != len(paths):
            raise RunError(f"the scorer returned {len(scores)} scores for {len(paths)} clips")
        return scores


@dataclass
class Bench:
    """What judges the chunks of a build, and what it has found so far."""

    scorer: Scorer
    store: ScoreStore
    workers: Workers
    clip: ClipFormat
    filters: FilterConfig
    batch: int
    output: Path
    conditions_dir: Path
    drops: Counter[str] = field(default_factory=Counter)

    def judge(self, candidates: Sequence[Candidate]) -> list[Row]:
        """Return a row of `scored.SCHEMA` for each candidate, in order."""
        paths = [c.video for c in candidates]
        inspect = Inspect(self.clip, self.filters)
        facts: list[Facts] = []
        for part in self.workers.map(inspect, cut_batches(paths, self.batch)):
            facts += part
        facts = self._drop_duplicates(candidates, facts)
        keys = [
            (fact.sha256, _sound_hash(c.condition.audio))
            for c, fact in zip(candidates, facts, strict=True)
        ]
        asked = [i for i, fact in enumerate(facts) if fact.dropped is None]
        verdicts = self._verdicts([keys[i] for i in asked], [paths[i] for i in asked])
        answers = dict(zip(asked, verdicts, strict=True))
        return [
            self._row(c, fact, answers.get(i))
            for i, (c, fact) in enumerate(zip(candidates, facts, strict=True))
        ]

    def _drop_duplicates(
        self, candidates: Sequence[Candidate], facts: Sequence[Facts]
    ) -> list[Facts]:
        groups: dict[str, list[int]] = {}
        for index, candidate in enumerate(candidates):
            groups.setdefault(candidate.condition.condition_id, []).append(index)
        result = list(facts)
        for rows in groups.values():
            twins = near_duplicates([facts[i] for i in rows], self.filters.max_duplicate_bits)
            for row, twin in zip(rows, twins, strict=True):
                if twin is not None:
                    other = candidates[rows[twin]]
                    detail = f"of model {other.model}, seed {other.seed}"
                    result[row] = replace(facts[row], dropped="duplicate", detail=detail)
        return result

    def _verdicts(self, keys: Sequence[Key], paths: Sequence[Path]) -> list[Verdict]:
        """Return verdicts, from the store where they are known; new ones are kept at once."""
        critic = self.scorer.name
        known = self.store.get(critic, keys)
        new: dict[Key, Path] = {
            k: p for k, p, v in zip(keys, paths, known, strict=True) if v is None
        }
        batches = list(cut_batches(list(new), self.batch))
        files = [[new[key] for key in batch] for batch in batches]
        for batch, verdicts in zip(
            batches, self.workers.map(Judge(self.scorer), files), strict=True
        ):
            self.store.put(critic, zip(batch, verdicts, strict=True))
        found = self.store.get(critic, keys)
        assert all(verdict is not None for verdict in found)
        return [verdict for verdict in found if verdict is not None]

    def _row(self, candidate: Candidate, fact: Facts, verdict: Verdict | None) -> Row:
        c = candidate.condition
        dropped, detail = fact.dropped, fact.detail
        if isinstance(verdict, str):
            dropped, detail = "not-judged", verdict
        if dropped:
            self.drops[dropped] += 1
        scores = verdict if isinstance(verdict, Scores) else None
        sound = self.clip.num_samples * 2
        return {
            "clip_id": fact.sha256, "condition_id": c.condition_id, "identity_id": c.identity_id,
            "audio_id": c.audio_id, "source_id": c.source_id,
            "reference_id": _portrait_hash(c.portrait), "prompt": c.prompt, "split": c.split,
            "model": candidate.model, "seed": candidate.seed,
            "video": _relative(candidate.video, self.output),
            "portrait": _relative(c.portrait, self.conditions_dir),
            "audio": _relative(c.audio, self.conditions_dir),
            "width": self.clip.width, "height": self.clip.height,
            "num_frames": self.clip.num_frames, "fps": self.clip.fps,
            **{f"score_{d}": None if scores is None else scores.get(d) for d in DIMENSIONS},
            "media_bytes": fact.num_bytes + sound + _size(c.portrait),
            "phash": np.packbits(fact.phash).tobytes(),
            "dropped": dropped, "detail": detail,
        }  # fmt: skip


def _relative(path: Path, root: Path) -> str:
    path, root = path.absolute(), root.absolute()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


@lru_cache(maxsize=4096)
def _sound_hash(path: Path) -> str:
    return hash_file(path)


@lru_cache(maxsize=4096)
def _portrait_hash(path: Path) -> str:
    return content_hash(path)


@lru_cache(maxsize=4096)
def _size(path: Path) -> int:
    return path.stat().st_size
