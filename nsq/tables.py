"""The columns of `clips`, `pairs` and the views, made from judged clips and mined pairs."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ft2.config import ClipFormat
from ft2.media import encode_flac, encode_png, fit_audio, read_audio, read_image
from ft2.nsq.mining import read_core
from ft2.nsq.pairing import UNLABELLED, pair_id
from ft2.nsq.scored import RangeFile
from ft2.nsq.shards import Column, Columns
from ft2.pairs import DIMENSIONS, LABEL_SOURCES, STORES, Store


@dataclass(frozen=True)
class Media:
    """How the media of a clip are read: three functions from a path to bytes."""

    video: Callable[[str], bytes]
    """mp4 of a candidate."""
    audio: Callable[[str], bytes]
    """FLAC of a condition's sound."""
    reference: Callable[[str], bytes]
    """PNG of a condition's portrait."""


@dataclass(frozen=True)
class Provenance:
    """What every row of a build says about where its labels come from."""

    critic: str
    label_source: str = "critic"
    """One of `LABEL_SOURCES`; how many people gave a label is known only for a critic's: none."""
    source: str = "generated"
    created_at: str | None = None


def read_media(videos: Path, conditions: Path, clip: ClipFormat) -> Media:
    """Return readers for paths relative to `videos` and to the folder `conditions`."""

    @lru_cache(maxsize=32)
    def sound(path: str) -> bytes:
        audio = fit_audio(read_audio(conditions / path, clip.sample_rate), clip.num_samples)
        return encode_flac(audio, clip.sample_rate)

    @lru_cache(maxsize=32)
    def portrait(path: str) -> bytes:
        return encode_png(read_image(conditions / path))

    return Media(lambda path: (videos / path).read_bytes(), sound, portrait)


def clip_columns(scored: RangeFile, media: Media) -> Columns:
    """Return the columns of the table `clips` as a function of a range of rows."""
    plain = ["clip_id", "condition_id", "identity_id", "audio_id", "source_id", "reference_id"]
    plain += ["prompt", "model", "seed", "width", "height", "num_frames", "fps"]
    plain += [f"score_{d}" for d in DIMENSIONS]

    def columns(start: int, stop: int) -> dict[str, Column]:
        table = scored.read(start, stop).combine_chunks()
        values: dict[str, Column] = {name: _flat(table[name]) for name in plain}
        frames, fps = table["num_frames"].to_numpy(), table["fps"].to_numpy()
        values["seconds"] = (frames / fps).astype(np.float32)
        values["has_audio"] = np.ones(table.num_rows, bool)
        for name, read, stem, kind in (
            ("video", media.video, "clip_id", "mp4"),
            ("audio", media.audio, "audio_id", "flac"),
            ("reference", media.reference, "reference_id", "png"),
        ):
            column = "portrait" if name == "reference" else name
            values[name] = [
                {"bytes": read(path), "path": f"{stem_[:32]}.{kind}"}
                for path, stem_ in zip(
                    table[column].to_pylist(), table[stem].to_pylist(), strict=True
                )
            ]
        return values

    return columns


def pair_columns(scored: RangeFile, core: Path, provenance: Provenance) -> Columns:
    """Return the columns of the table `pairs` as a function of a range of rows."""

    def columns(start: int, stop: int) -> dict[str, Any]:
        rows = read_core(core, start, stop)
        a, b = _sides(scored, rows["a"], rows["b"])
        names = ("condition_id", "prompt", "audio_id", "identity_id", "reference_id")
        values: dict[str, Any] = {name: a[name] for name in names}
        values["pair_id"] = _pair_ids(a["clip_id"], b["clip_id"])
        for side, clips in (("a", a), ("b", b)):
            values[f"clip_{side}"] = clips["clip_id"]
            for name in ("seed", "model", "fps", "num_frames"):
                values[f"{name}_{side}"] = clips[name]
            values |= {f"score_{side}_{d}": clips[f"score_{d}"] for d in DIMENSIONS}
        for index, d in enumerate(DIMENSIONS):
            score_a, score_b = _floats(a[f"score_{d}"]), _floats(b[f"score_{d}"])
            values[f"label_{d}"] = _labels(rows["labels"][:, index])
            values[f"margin_{d}"] = _margins(rows["given"][:, index], np.abs(score_a - score_b))
            chance = preference_probabilities(score_a, score_b).astype(np.float32)
            values[f"p_a_{d}"] = pa.array(chance, from_pandas=True)
            people = 0 if provenance.label_source == "critic" else None
            values[f"n_annotators_{d}"] = [people] * len(rows)
        values |= {f"in_{s}": rows["stores"][:, i].copy() for i, s in enumerate(STORES)}
        return values | _provenance(provenance, len(rows))

    return columns


def view_columns(scored: RangeFile, core: Path, store: Store, provenance: Provenance) -> Columns:
    """Return the columns of a store's view: chosen and rejected."""

    def columns(start: int, stop: int) -> dict[str, Any]:
        rows = read_core(core, start, stop)
        index = 0 if store == "fusion" else DIMENSIONS.index(store)
        a_wins = rows["labels"][:, index] == 0
        better = np.where(a_wins, rows["a"], rows["b"])
        worse = np.where(a_wins, rows["b"], rows["a"])
        chosen, rejected = _sides(scored, better, worse)
        names = ("condition_id", "prompt", "audio_id", "reference_id", "identity_id")
        values: dict[str, Any] = {name: chosen[name] for name in names}
        a = pc.if_else(pa.array(a_wins), chosen["clip_id"], rejected["clip_id"])
        b = pc.if_else(pa.array(a_wins), rejected["clip_id"], chosen["clip_id"])
        values["pair_id"] = _pair_ids(a, b)
        values |= {"chosen": chosen["clip_id"], "rejected": rejected["clip_id"]}
        values |= {"chosen_row": better, "rejected_row": worse}
        values |= {"chosen_model": chosen["model"], "rejected_model": rejected["model"]}
        gaps = []
        for d in DIMENSIONS:
            values |= {f"chosen_{d}": chosen[f"score_{d}"], f"rejected_{d}": rejected[f"score_{d}"]}
            gaps.append(_floats(chosen[f"score_{d}"]) - _floats(rejected[f"score_{d}"]))
        own = slice(None) if store == "fusion" else slice(index, index + 1)
        gap = _margins(rows["given"][:, own].min(axis=1), np.min(gaps[own], axis=0))
        return values | {"margin": gap} | _provenance(provenance, len(rows))

    return columns


def preference_probabilities(
    score_a: NDArray[np.float64], score_b: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return P(A preferred) of whole columns; see `ft2.pairs.preference_probability`."""
    for_a, for_b = score_a * (1.0 - score_b), score_b * (1.0 - score_a)
    total = for_a + for_b
    certain = total < 1e-30
    return np.where(certain, 0.5, for_a / np.where(certain, 1.0, total))


def _floats(column: pa.Array) -> NDArray[np.float64]:
    """Return scores; NaN where a clip was never judged."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64)


def _labels(codes: NDArray[np.int8]) -> pa.Array:
    """Return a column of labels, null where nobody was asked."""
    unknown = codes == UNLABELLED
    return pa.array(codes.astype(np.int64), mask=unknown if unknown.any() else None)


def _margins(given: NDArray[np.float32], gaps: NDArray[np.float64]) -> pa.Array:
    """Return the margins that came with the labels, else the scores' difference, else null."""
    found = np.where(np.isnan(given), gaps, given).astype(np.float32)
    return pa.array(found, from_pandas=True)


def _sides(
    scored: RangeFile, first: NDArray[np.int64], second: NDArray[np.int64]
) -> tuple[dict[str, pa.Array], dict[str, pa.Array]]:
    """Return the clips of two columns of row numbers; both lie in one narrow range of rows."""
    if not len(first):
        empty = scored.read(0, 0)
        columns = {name: _flat(empty[name]) for name in empty.column_names}
        return columns, columns
    low = int(min(first.min(), second.min()))
    table = scored.read(low, int(max(first.max(), second.max())) + 1).combine_chunks()
    return _take(table, first - low), _take(table, second - low)


def _take(table: pa.Table, rows: NDArray[np.int64]) -> dict[str, pa.Array]:
    index = pa.array(rows)
    return {name: _flat(table[name]).take(index) for name in table.column_names}


def _flat(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def _pair_ids(a: pa.Array, b: pa.Array) -> list[str]:
    return [pair_id(x, y) for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)]


def _provenance(provenance: Provenance, count: int) -> dict[str, Column]:
    return {
        "label_source": np.full(count, LABEL_SOURCES.index(provenance.label_source)),
        "critic_version": [provenance.critic] * count,
        "created_at": [provenance.created_at] * count,
        "source": [provenance.source] * count,
    }


def content_hash(path: Path) -> str:
    """Return the first 16 hex digits of a file's sha256: the `reference_id` of a portrait."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
