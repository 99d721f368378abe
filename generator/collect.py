"""``ft2 generator prepare``: a list of videos -> shards of training clips, resumable."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ft2 import media
from ft2.config import ClipFormat
from ft2.errors import MissingExtra, UsageError
from ft2.files import finite, read_lines
from ft2.generator.config import VideosConfig
from ft2.generator.strength import Joints, joint_finder
from ft2.generator.videos import Clip, clips_of
from ft2.metrics.measure import Metric
from ft2.runs import Interrupts, Progress, RunDir, hash_file, read_json, save_tensors, write_json
from ft2.wan.intensity import ranks, strength_knots
from ft2.wan.places import read_architecture

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Source:
    """One video: where it is, what is said to be seen, and who it shows."""

    video: Path
    caption: str
    identity: str


def read_sources(path: Path) -> list[Source]:
    """Return the videos of a folder, or of a list with one JSON object a line.

    A line has ``video`` (relative to the list) and may have ``caption`` and ``identity``; without,
    the identity is the file's name.

    Raises:
        UsageError: nothing is found, or naming every line that is wrong.
    """
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES]
        sources = [Source(p, "", p.stem) for p in found]
    elif path.is_file():
        sources = _read_list(path)
    else:
        raise UsageError(f"there is nothing at '{path}'", "give a folder of videos or a list")
    if not sources:
        raise UsageError(f"'{path}' has no videos", f"they end in {', '.join(SUFFIXES)}")
    return sources


def _read_list(path: Path) -> list[Source]:
    sources, problems = [], []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            video = path.parent / row["video"]
            sources.append(
                Source(video, str(row.get("caption", "")), str(row.get("identity", video.stem)))
            )
            if not video.is_file():
                problems.append(f"  {path}:{number}: there is no file '{video}'")
        except (ValueError, KeyError, TypeError):
            problems.append(f'  {path}:{number}: a line is {{"video": "a.mp4", "caption": "..."}}')
    if problems:
        raise UsageError("\n".join(["the list cannot be used:", *problems]))
    return sources


def prepare_videos(
    config: VideosConfig,
    videos: Path,
    output: Path,
    *,
    resume: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Cut all videos and return the summary, which also lies in ``result.json``.

    ``OUTPUT/clips`` gets a shard for each video with clips, ready for ``data=`` of
    ``ft2 generator train``; ``OUTPUT/videos`` a record of each, with the reason of every clip that
    was refused; ``OUTPUT/summary.png`` the first frames of some clips.

    Raises:
        UsageError: the list is wrong.
        Interrupted: on SIGINT or SIGTERM; finished videos are kept.
    """
    sources = read_sources(videos)
    clip = read_architecture(config.model).clip
    joints, sync = joint_finder(config.joints), syncnet(config.syncnet)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return dict(run.result)
    records: list[dict[str, Any]] = []
    with Interrupts() as interrupts:
        for number, source in enumerate(sources):
            records.append(_one_video(source, clip, config, output, joints, sync))
            kept = sum(len(record["kept"]) for record in records)
            progress.update("videos", number + 1, len(sources), f"{kept} clips")
            interrupts.check("go on with the same command and --resume")
    summary = summarise(records)
    _draw(records, output)
    run.finish(summary)
    return summary


def syncnet(path: Path | None) -> Metric | None:
    """Return SyncNet's measure with weights that were trained, or None without a path.

    Raises:
        UsageError: the file is missing, is another network, or was never trained.
        MissingExtra: python_speech_features is not installed.
    """
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(
            f"there is no SyncNet file '{path}'",
            "set syncnet to the path of syncnet_v2.model (joonson/syncnet_python)",
        )
    if find_spec("python_speech_features") is None:
        raise MissingExtra("python_speech_features", "metrics")
    from ft2.metrics.sync import Sync, load_syncnet

    network = load_syncnet(path)
    return Sync(lambda: network)


def _one_video(
    source: Source,
    clip: ClipFormat,
    config: VideosConfig,
    output: Path,
    joints: Joints | None,
    sync: Metric | None,
) -> dict[str, Any]:
    """Return the record of one video, made now or found from before."""
    name = hashlib.sha256(str(source.video.absolute()).encode()).hexdigest()[:16]
    place = output / "videos" / f"{name}.json"
    if place.is_file():
        found: dict[str, Any] = read_json(place)
        return found
    record: dict[str, Any] = {
        "video": str(source.video),
        "shard": None,
        "kept": [],
        "refused": [],
    }
    try:
        record["sha256"] = hash_file(source.video)
        clips, record["refused"] = clips_of(source.video, clip, config, joints, sync)
    except UsageError as error:
        clips, record["refused"] = [], [{"reason": error.message}]
    if clips:
        rows = [_row(source, name, item) for item in clips]
        record |= {"shard": f"clips/{name}.safetensors", "kept": rows}
        _write_shard(output / record["shard"], clips, rows)
    write_json(place, record)
    return record


def _row(source: Source, name: str, clip: Clip) -> dict[str, Any]:
    return {
        "identity_id": source.identity,
        "audio_id": f"{name}-{clip.start:.3f}",
        "caption": source.caption,
        "start": round(clip.start, 3),
        "face_confidence": round(clip.confidence, 4),
        "sync_correlation": round(clip.correlation, 4),
        "sync_offset_seconds": round(clip.offset_seconds, 4),
        **{name: round(value, 4) for name, value in clip.sync.items()},
        "face_motion": finite(clip.motion[0]),
        "body_motion": finite(clip.motion[1]),
    }


def _write_shard(path: Path, clips: Sequence[Clip], rows: list[dict[str, Any]]) -> None:
    audio = np.stack([np.clip(clip.audio, -1, 1) * 32767 for clip in clips]).round()
    tensors = {
        "frames": torch.from_numpy(np.stack([clip.frames for clip in clips])),
        "audio": torch.from_numpy(audio.astype(np.int16)),
        "motion": torch.tensor([clip.motion for clip in clips], dtype=torch.float32),
        "lips": torch.from_numpy(np.packbits([clip.lips for clip in clips], axis=-1)),
    }
    save_tensors(path, tensors, {"clips": json.dumps(rows)})


def kind_of(reason: str) -> str:
    """Return a reason without its file and numbers, so that equal kinds can be counted."""
    return re.sub(r"[-+]?\d[\d.]*%?", "N", re.sub(r"\S*/\S*", "FILE", reason))


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return counts, reasons, and omega_l and omega_b of every clip.

    omega is the clip's rank by face or body motion in this set (``ft2.wan.intensity``); a motion
    that is unknown has none.
    """
    rows = [row for record in records for row in record["kept"]]
    reasons = Counter(
        kind_of(str(row["reason"])) for record in records for row in record["refused"]
    )
    summary: dict[str, Any] = {
        "videos": len(records),
        "clips": len(rows),
        "refused": dict(reasons.most_common()),
    }
    for name, key in (("omega_l", "face_motion"), ("omega_b", "body_motion")):
        motion = np.array([np.nan if row[key] is None else row[key] for row in rows])
        omega = ranks(motion, strength_knots(motion))
        known = ~np.isnan(motion)
        summary[f"{key}_known"] = int(known.sum())
        summary[name] = {
            row["audio_id"]: round(float(w), 4)
            for row, w, is_known in zip(rows, omega, known, strict=True)
            if is_known
        }
    return summary


def _draw(records: Sequence[dict[str, Any]], output: Path) -> None:
    """Draw the first kept clip of up to twelve videos, with its figures."""
    from ft2.runs import load_tensors

    clips, labels = [], []
    for record in [record for record in records if record["shard"]][:12]:
        clips.append(load_tensors(output / record["shard"])[0]["frames"][0].numpy())
        row = record["kept"][0]
        labels.append(
            f"{Path(record['video']).name}  mouth and sound {row['sync_correlation']:.2f}"
            f"  face {row['face_confidence']:.2f}"
        )
    if clips:
        media.write_png(output / "summary.png", media.contact_sheet(clips, labels))
