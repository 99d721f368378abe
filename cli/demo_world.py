"""The demo's data: rated puppet clips and conditions, made by a few processes, resumable by job."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft2.cli.demo_config import WorldConfig
from ft2.config import ClipFormat
from ft2.files import read_lines
from ft2.runs import Progress, atomic_dir, write_atomic

JOB_CLIPS = 60
_POLL_SECONDS = 0.5
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
CONDITIONS_PER_FACE = 4
"""Conditions in a row that share a face, where the judges must learn the face."""
OWN_SEED = 1000
"""Added to the seed for the conditions of rated clips of the generator's own."""
CONDITIONS = "conditions.jsonl"
RATINGS = "ratings.jsonl"
OWN_FILES = {split: f"own-{split}-{CONDITIONS}" for split in ("train", "dev", "test")}


@dataclass(frozen=True)
class Job:
    """A part of the world: `count` rated clips or conditions of a split, in a folder of its own."""

    kind: str
    """``ratings`` or ``conditions``."""
    folder: str
    split: str
    count: int
    seed: int
    per_face: int
    clip: ClipFormat


def jobs_of(sizes: WorldConfig, seed: int, clip: ClipFormat, output: Path) -> list[Job]:
    """Return the jobs that make up the world, in the order of their rows."""
    jobs = []
    wanted = {"train": sizes.train_ratings, "dev": sizes.dev_ratings, "test": sizes.test_ratings}
    for split, total in wanted.items():
        for index, start in enumerate(range(0, total, JOB_CLIPS)):
            count = min(JOB_CLIPS, total - start)
            folder = str(output / f"ratings-{split}-{index:02d}")
            jobs.append(Job("ratings", folder, split, count, 100 * seed + index, 1, clip))
    own = {
        "train": sizes.own_train_conditions,
        "dev": sizes.own_dev_conditions,
        "test": sizes.own_test_conditions,
    }
    for split, total in own.items():
        folder = str(output / f"own-{split}")
        shared = (total, OWN_SEED + seed, CONDITIONS_PER_FACE, clip)
        jobs.append(Job("conditions", folder, split, *shared))
    for split, total in (("train", sizes.train_conditions), ("test", sizes.test_conditions)):
        per_face = CONDITIONS_PER_FACE if split == "test" else 1
        folder = str(output / f"conditions-{split}")
        jobs.append(Job("conditions", folder, split, total, seed, per_face, clip))
    return jobs


def make_world(
    sizes: WorldConfig, seed: int, clip: ClipFormat, output: Path, progress: Progress
) -> dict[str, Any]:
    """Write ratings and conditions; return their line counts, and the processes' memory (MB)."""
    jobs = jobs_of(sizes, seed, clip, output)
    todo = [job for job in jobs if not Path(job.folder).exists()]
    done = len(jobs) - len(todo)
    progress.update("puppet world", done, len(jobs))
    memory = [0.0]
    spawn = multiprocessing.get_context("spawn")
    if todo:
        with _one_thread(), spawn.Pool(min(sizes.workers, len(todo)), _start_worker) as pool:
            finished = pool.imap_unordered(_run, todo)
            while done < len(jobs):
                with suppress(multiprocessing.TimeoutError):
                    memory.append(finished.next(timeout=_POLL_SECONDS))
                    done += 1
                progress.update("puppet world", done, len(jobs))
    rated = [job for job in jobs if job.kind == "ratings"]
    counts: dict[str, Any] = {RATINGS: merge_lines(output / RATINGS, RATINGS, rated)}
    folders = {"conditions-train": CONDITIONS, "conditions-test": f"test-{CONDITIONS}"}
    folders |= {f"own-{split}": name for split, name in OWN_FILES.items()}
    for job in jobs:
        if job.kind == "conditions":
            name = folders[Path(job.folder).name]
            counts[name] = merge_lines(output / name, CONDITIONS, [job])
    return {**counts, "workers_mb": round(sizes.workers * max(memory), 1)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start meanwhile use one thread: two that share two cores wait twice."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and one thread to a worker."""
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _run(job: Job) -> float:
    """Do a job and return the peak memory of this process in MB."""
    from ft2.cli.demo_record import peak_mb
    from ft2.puppet import dataset

    with atomic_dir(job.folder) as folder:
        if job.kind == "ratings":
            dataset.build(folder, job.count, job.split, job.seed, job.clip)
        else:
            dataset.build_conditions(
                folder, job.count, job.split, job.seed, job.clip, per_person=job.per_face
            )
    return peak_mb()


def merge_lines(path: Path, name: str, jobs: Sequence[Job]) -> int:
    """Join the jobs' files called `name` into one; return its lines.

    Paths in it are relative to the new file.
    """
    lines = []
    for job in jobs:
        folder = Path(job.folder)
        for line in read_lines(folder / name):
            row = json.loads(line)
            paths = {
                k: f"{folder.name}/{row[k]}" for k in ("video", "portrait", "audio") if k in row
            }
            lines.append(json.dumps(row | paths) + "\n")
    write_atomic(path, "".join(lines))
    return len(lines)
