"""The best of several videos of one portrait and one sound, by the scores of a critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ft2.errors import UsageError
from ft2.generator.record import Job, Record, seed_path
from ft2.pairs import DIMENSIONS, Scores
from ft2.runs import read_json, write_json


@dataclass(frozen=True)
class Judge:
    """What chooses among several videos.

    Attributes:
        score: returns the scores of video files, in their order.
        min_seconds: the shortest video that it can score.
    """

    score: Callable[[Sequence[Path]], list[Scores]]
    min_seconds: float = 0.0

    def check(self, seconds: float) -> None:
        """Refuse videos that cannot be scored, before they are made.

        Raises:
            UsageError: they will be shorter than `min_seconds`.
        """
        if seconds < self.min_seconds:
            raise UsageError(
                f"the video will last {seconds:.2f} s, the critic needs {self.min_seconds:.2f} s",
                "give longer speech, or choose without a critic",
            )


def choose(job: Job, seeds: Sequence[int], judge: Judge) -> Record:
    """Keep the best of the videos of several seeds under the job's name; return its record."""
    paths = [seed_path(job.output, seed) if len(seeds) > 1 else job.output for seed in seeds]
    scores = judge.score(paths)
    records = [read_json(path.with_suffix(".json")) for path in paths]
    candidates = [
        {
            "seed": seed,
            "video_sha256": record["video_sha256"],
            **{name: score.get(name) for name in DIMENSIONS},
            "mean": sum(score.values()) / 3,
        }
        for seed, record, score in zip(seeds, records, scores, strict=True)
    ]
    best = max(range(len(seeds)), key=lambda i: candidates[i][job.config.best_by])
    record = {
        **records[best],
        "video": str(job.output),
        "chosen_by": job.config.best_by,
        "candidates": candidates,
    }
    write_json(job.output.with_suffix(".json"), record)
    paths[best].replace(job.output)
    for path in paths:
        for file in (path, path.with_suffix(".json")):
            if file not in {job.output, job.output.with_suffix(".json")}:
                file.unlink(missing_ok=True)
    return record
