"""Rows of the tables `clips` and `pairs`, column by column, as they go into the shards."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ft2.media import encode_flac, encode_png, fit_audio, read_audio, read_image
from ft2.nsq.candidates import Row
from ft2.nsq.config import NsqConfig
from ft2.nsq.pairing import Pairs
from ft2.nsq.shards import Column, write_table
from ft2.pairs import (
    DIMENSIONS,
    STORES,
    Condition,
    clip_schema,
    pair_schema,
    preference_probability,
)
from ft2.runs import hash_file

_LABEL_CRITIC = 1
_PAIR_BATCH = 2048


def write_clips(
    config: NsqConfig,
    output: Path,
    split: str,
    clips: Sequence[Row],
    by_id: Mapping[str, Condition],
    generator: str,
) -> list[dict[str, Any]]:
    """Write the clips of a split with their media; return the manifest entries."""
    clip = config.clip

    @cache
    def sound(path: Path) -> bytes:
        audio = fit_audio(read_audio(path, clip.sample_rate), clip.num_samples)
        return encode_flac(audio, clip.sample_rate)

    @cache
    def portrait(path: Path) -> bytes:
        return encode_png(read_image(path))

    def columns(start: int, stop: int) -> dict[str, Column]:
        rows = clips[start:stop]
        where = [by_id[str(r["condition_id"])] for r in rows]
        names = ("condition_id", "identity_id", "audio_id", "prompt")
        values: dict[str, Column] = {n: [getattr(c, n) for c in where] for n in names}
        values |= {n: [r[n] for r in rows] for n in ("clip_id", "seed")}
        values |= {f"score_{d}": [r[f"score_{d}"] for r in rows] for d in DIMENSIONS}
        values["reference_id"] = [hash_portrait(c.portrait) for c in where]
        values["model"] = [generator] * len(rows)
        constants = {
            "width": clip.width,
            "height": clip.height,
            "num_frames": clip.num_frames,
            "fps": clip.fps,
            "seconds": clip.seconds,
            "has_audio": True,
        }
        values |= {name: [value] * len(rows) for name, value in constants.items()}
        videos = [output / str(r["video"]) for r in rows]
        values["video"] = [{"bytes": p.read_bytes(), "path": p.name} for p in videos]
        values["audio"] = [{"bytes": sound(c.audio), "path": f"{c.audio_id}.flac"} for c in where]
        values["reference"] = [
            {"bytes": portrait(c.portrait), "path": f"{c.identity_id}.png"} for c in where
        ]
        return values

    return write_table(
        output / "data" / "clips",
        split,
        clip_schema(clip.sample_rate),
        len(clips),
        config.clips_per_shard,
        columns,
    )


@cache
def hash_portrait(path: Path) -> str:
    """Return the `reference_id` of a portrait: the first 16 hex digits of its file's sha256."""
    return hash_file(path)[:16]


def pair_columns(
    config: NsqConfig,
    clips: Sequence[Row],
    pairs: Pairs,
    ids: Sequence[str],
    by_id: Mapping[str, Condition],
    generator: str,
    scorer: str,
) -> dict[str, Any]:
    """Return every column of a split's pairs."""
    count = len(pairs)
    a, b = [clips[i] for i in pairs.a], [clips[i] for i in pairs.b]
    where = [by_id[str(r["condition_id"])] for r in a]
    names = ("condition_id", "prompt", "audio_id", "identity_id")
    values: dict[str, Any] = {n: [getattr(c, n) for c in where] for n in names}
    values |= {"pair_id": ids, "reference_id": [hash_portrait(c.portrait) for c in where]}
    for side, rows in (("a", a), ("b", b)):
        values[f"clip_{side}"] = [r["clip_id"] for r in rows]
        values[f"seed_{side}"] = [r["seed"] for r in rows]
        values[f"model_{side}"] = [generator] * count
        values[f"fps_{side}"] = [config.clip.fps] * count
        values[f"num_frames_{side}"] = [config.clip.num_frames] * count
        values |= {f"score_{side}_{d}": [r[f"score_{d}"] for r in rows] for d in DIMENSIONS}
    for index, d in enumerate(DIMENSIONS):
        score_a = np.array(values[f"score_a_{d}"], np.float64)
        score_b = np.array(values[f"score_b_{d}"], np.float64)
        values[f"label_{d}"] = pairs.labels[:, index]
        values[f"margin_{d}"] = np.abs(score_a - score_b).astype(np.float32)
        values[f"p_a_{d}"] = [
            preference_probability(x, y) for x, y in zip(score_a, score_b, strict=True)
        ]
        values[f"n_annotators_{d}"] = [0] * count
    values |= {f"in_{s}": pairs.stores[:, i] for i, s in enumerate(STORES)}
    values |= {"label_source": [_LABEL_CRITIC] * count, "critic_version": [scorer] * count}
    values["source"] = ["generated"] * count
    return values


def write_pairs(
    config: NsqConfig, output: Path, split: str, columns: Mapping[str, Any], count: int
) -> list[dict[str, Any]]:
    """Write the pairs of a split; return the manifest entries."""
    return write_table(
        output / "data" / "pairs",
        split,
        pair_schema(),
        count,
        config.pairs_per_shard,
        lambda start, stop: {name: values[start:stop] for name, values in columns.items()},
        batch_rows=_PAIR_BATCH,
    )
