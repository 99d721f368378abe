"""The best of several videos of one portrait and one sound, by the scores of a critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ft2.generator.record import Job, Record, seed_path
from ft2.pairs import DIMENSIONS, Scores
from ft2.runs import read_json, write_json

Judge = Callable[[Sequence[Path]], list[Scores]]
"""Returns the scores of video files, in their order."""


def choose(job: Job, seeds: Sequence[int], judge: Judge) -> Record:
    """Keep the best of the videos of several seeds under the job's name; return its record."""
    paths = [seed_path(job.output, seed) if len(seeds) > 1 else job.output for seed in seeds]
    scores = judge(paths)
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
