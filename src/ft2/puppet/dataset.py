"""Datasets of puppet clips: array shards for base training, rated videos, generation conditions."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ft2 import media
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.files import with_metadata
from ft2.puppet import identities, world
from ft2.puppet.curves import Style
from ft2.runs import Progress, Silent, write_atomic

SHARD = 240
CLIPS_PER_PERSON = 3
_SPLIT_BASE = {"train": 0, "dev": 10_000_000, "test": 20_000_000}


@dataclass(frozen=True)
class _Job:
    path: str
    split: str
    first: int
    count: int
    clip: ClipFormat
    probability: float
    energy: tuple[float, float]
    manners: bool
    per_person: int


def clips(
    split: str, count: int, clip: ClipFormat, seed: int = 0, probability: float = 0.5
) -> Iterator[world.PuppetClip]:
    """Yield `count` clips of a split, three of each new person.

    Args:
        split: train, dev or test (of faces, sentences and speakers alike).
        count: How many.
        clip: Size and length.
        seed: Another seed gives other people and clips.
        probability: Chance of a defect, independent per dimension.
    """
    base = _SPLIT_BASE[check_split(split)] + 1_000_003 * seed
    for person in range(-(-count // CLIPS_PER_PERSON)):
        left = min(CLIPS_PER_PERSON, count - person * CLIPS_PER_PERSON)
        yield from world.random_clips(split, base + person, left, clip, probability)


def build_arrays(
    output_dir: str | Path, split: str, num_clips: int, clip: ClipFormat, *, seed: int = 0,
    probability: float = 0.5, energy: tuple[float, float] = (1.0, 1.0), manners: bool = False,
    per_person: int = CLIPS_PER_PERSON, num_workers: int = 2, progress: Progress | None = None,
) -> list[Path]:  # fmt: skip
    """Write clips as safetensors shards of 240 and return their paths; existing shards are kept.

    Tensors of a shard: frames uint8 [N,F,H,W,3], audio int16 [N,samples], curves and shown
    float32 [N,F,13] (`Curves.names()` order; clean and after defects), labels uint8 [N,3]
    (motion, lip, quality; 1 good), strengths float32 [N,3] (0 where good). The metadata entry
    "clips" is a JSON list with identity_id, audio_id, caption and defects (three names, "" if
    none) of each clip.

    Args:
        output_dir: Where the shards go.
        split: train, dev or test.
        num_clips: How many clips in all.
        clip: Size and length.
        seed: Another seed gives other clips.
        probability: Chance of a defect, independent per dimension.
        energy: Range of how much heads move (`world.random_clips`); (1, 1) is natural.
        manners: People have manners of their own (`world.random_clips`).
        per_person: Clips of each new person.
        num_workers: Processes.
        progress: Told after every shard.

    Raises:
        UsageError: Unknown split, or `per_person` below 1.
    """
    if per_person < 1:
        raise UsageError(f"per_person is {per_person}", "make at least one clip of each person")
    progress = progress or Silent()
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    base = _SPLIT_BASE[check_split(split)] + 1_000_003 * seed
    jobs = []
    for start in range(0, num_clips, SHARD):
        path = folder / f"shard-{start // SHARD:05d}.safetensors"
        count = min(SHARD, num_clips - start)
        first = base + start // SHARD * -(-SHARD // per_person)
        asked = (probability, energy, manners, per_person)
        jobs.append(_Job(str(path), split, first, count, clip, *asked))
    todo = [job for job in jobs if not Path(job.path).is_file()]
    done = len(jobs) - len(todo)
    for _ in _run(todo, num_workers):
        done += 1
        progress.update("puppet arrays", done, len(jobs), split)
    return [Path(job.path) for job in jobs]


def _run(jobs: Sequence[_Job], num_workers: int) -> Iterator[str]:
    if num_workers <= 1 or len(jobs) <= 1:
        yield from map(_write_shard, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(num_workers, cv2.setNumThreads, (1,)) as pool:
        yield from pool.imap_unordered(_write_shard, jobs)


def _write_shard(job: _Job) -> str:
    made: list[world.PuppetClip] = []
    person = 0
    while len(made) < job.count:
        left = min(job.per_person, job.count - len(made))
        seed = job.first + person
        made += world.random_clips(
            job.split, seed, left, job.clip, job.probability, job.energy, job.manners
        )
        person += 1
    write_atomic(job.path, pack(made))
    return job.path


def pack(made: Sequence[world.PuppetClip]) -> bytes:
    """Return clips as the bytes of one safetensors shard (see `build_arrays`); equal for equal."""
    order = ("motion", "lip", "quality")
    rows, names, strengths = [], [], np.zeros((len(made), 3), np.float32)
    for number, clip in enumerate(made):
        found = {defect.dimension: defect for defect in clip.defects}
        names.append([found[d].name if d in found else "" for d in order])
        strengths[number] = [found[d].strength if d in found else 0.0 for d in order]
        rows.append({
            "identity_id": clip.identity_id, "audio_id": clip.audio_id, "caption": clip.caption,
            "defects": names[-1],
        })  # fmt: skip
    tensors: dict[str, NDArray[Any]] = {
        "frames": np.stack([clip.frames for clip in made]),
        "audio": np.stack([np.round(clip.audio * 32767).astype(np.int16) for clip in made]),
        "curves": np.stack([clip.curves.stack() for clip in made]),
        "shown": np.stack([clip.shown.stack() for clip in made]),
        "labels": np.array([[clip.labels[d] for d in order] for clip in made], np.uint8),
        "strengths": strengths,
    }
    return with_metadata(save(tensors), {"clips": json.dumps(rows), "schema": "1"})


def build(
    output_dir: str | Path, num_clips: int, split: str, seed: int, clip: ClipFormat, *,
    probability: float = 0.5, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write rated mp4 clips and ratings.jsonl (the critic's training data); returns its path.

    Each line: video (path relative to the file), motion, lip, quality (true: good), identity_id,
    audio_id, split, source "puppet", caption, defects (name to strength).
    """
    progress = progress or Silent()
    folder = Path(output_dir)
    lines = []
    for number, made in enumerate(clips(split, num_clips, clip, seed, probability)):
        name = f"videos/{split}-{seed}-{number:05d}.mp4"
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        media.write_video(
            folder / name, made.frames, clip.fps, made.audio, clip.sample_rate, crf=10
        )
        lines.append({
            "video": name, **made.labels, "identity_id": made.identity_id,
            "audio_id": made.audio_id, "split": split, "source": "puppet",
            "caption": made.caption, "defects": {d.name: d.strength for d in made.defects},
        })  # fmt: skip
        progress.update("rated clips", number + 1, num_clips, split)
    return _write_lines(folder / "ratings.jsonl", lines)


def build_conditions(
    output_dir: str | Path, num_conditions: int, split: str, seed: int, clip: ClipFormat, *,
    per_person: int = 1, progress: Progress | None = None,
) -> Path:  # fmt: skip
    """Write portraits, sounds and conditions.jsonl (what to generate); returns its path.

    Each line: condition_id, identity_id, audio_id, portrait (aligned PNG of the clip's size),
    audio (WAV of the clip's length), prompt, split; paths relative to the file. So many
    conditions in a row, `per_person`, share a face.
    """
    progress = progress or Silent()
    folder = Path(output_dir)
    spoken = world.utterances(check_split(split))
    base = _SPLIT_BASE[split] + 1_000_003 * seed + 500_000
    lines = []
    for number in range(num_conditions):
        rng = np.random.default_rng([base + number, 23])
        identity = identities.draw(split, base + number // per_person)
        utterance = spoken[rng.integers(len(spoken))]
        starts = world.start_times(utterance, clip.seconds)
        start = starts[rng.integers(len(starts))]
        prompt = Style.draw(rng).caption()
        name = f"{split}-{seed}-{number:04d}"
        for part in ("portraits", "audio"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        media.write_png(folder / f"portraits/{name}.png", identity.portrait(clip.width))
        sound = world.window(utterance.audio, start, clip)
        media.write_wav(folder / f"audio/{name}.wav", sound, clip.sample_rate)
        lines.append({
            "condition_id": name, "identity_id": identity.identity_id,
            "audio_id": f"{utterance.audio_id}@{round(start * 1000):05d}",
            "portrait": f"portraits/{name}.png", "audio": f"audio/{name}.wav",
            "prompt": prompt, "split": split,
        })  # fmt: skip
        progress.update("conditions", number + 1, num_conditions, split)
    return _write_lines(folder / "conditions.jsonl", lines)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in lines))
    return path


def check_split(split: str) -> str:
    """Return `split` if there is such a split, else raise UsageError."""
    if split not in _SPLIT_BASE:
        raise UsageError(f"unknown split '{split}'", f"choose one of {', '.join(_SPLIT_BASE)}")
    return split
