"""A store in the formats that other trainers and benches read."""

import csv
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, ClipRecord, Preference, Store, read_pairs, read_table
from ft2.runs import atomic_dir

RECORD_TEXTS = (
    "pair_id", "store", "better", "prompt", "condition_id", "identity_id", "audio_id",
    "reference_id", "chosen_model", "rejected_model",
)  # fmt: skip
RECORD_SCORES = tuple(f"{side}_{d}" for d in DIMENSIONS for side in ("chosen", "rejected"))
MEDIA_COLUMNS = ("chosen", "rejected", "sound", "portrait")
"""What `webdataset` and `parquet` know of a pair, beside margin and seeds."""

_TAR_PAIRS = 500
_QUESTION = {
    "motion": "Is the motion natural?",
    "lip": "Is the lip synchronized?",
    "quality": "Is the visual quality good?",
    "fusion": "Is the clip good?",
}
_VIDEOALIGN = {"motion": "MQ", "lip": "LS", "quality": "VQ", "fusion": "Overall"}
"""VideoAlign's columns; LS (lip synchronisation) is not one of its own."""


def export(dataset: Path, store: Store, split: str, kind: str, output: Path) -> dict[str, Any]:
    """Write the pairs of a store to `output` in a format of `FORMATS`, with their media.

    Raises:
        UsageError: an unknown format, an empty store, or `output` is not free.
    """
    if kind not in FORMATS:
        raise UsageError(f"unknown format {kind!r}", f"choose one of {', '.join(FORMATS)}")
    if output.exists():
        raise UsageError(f"'{output}' already exists", "choose another --output")
    pairs = read_pairs(dataset, store, split)
    if not pairs:
        raise UsageError(f"{dataset} has no {store} pairs in split {split!r}", "see ft2 nsq stats")
    with atomic_dir(output) as folder:
        FORMATS[kind](Positions(dataset, split), pairs, folder)
    return {"output": str(output), "format": kind, "store": store, "pairs": len(pairs)}


class Positions:
    """Which side of each pair was A in the dataset: formats with two sides keep its balance."""

    def __init__(self, dataset: Path, split: str) -> None:
        """Read the table `pairs`."""
        table = read_table(dataset, "pairs", split)
        ids, a = (table[name].to_pylist() for name in ("pair_id", "clip_a"))
        self._a = dict(zip(ids, a, strict=True))

    def sides(self, pair: Preference) -> tuple[ClipRecord, ClipRecord, str]:
        """Return clip A, clip B and the better one's letter."""
        if self._a[pair.pair_id] == pair.chosen.clip_id:
            return pair.chosen, pair.rejected, "A"
        return pair.rejected, pair.chosen, "B"


def _media(folder: Path, clip: ClipRecord, sound: bool = False) -> str:
    """Write a clip (or its sound) once and return its path relative to the export."""
    name = f"{clip.audio_id}.flac" if sound else f"{clip.clip_id[:32]}.mp4"
    path = folder / "media" / name
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(memoryview(clip.audio if sound else clip.video))
    return f"media/{name}"


def _trl(_: Positions, pairs: Sequence[Preference], folder: Path) -> None:
    """TRL's standard preference format: prompt, chosen and rejected (paths), margin."""
    _write_lines(folder / "train.jsonl", (
        {
            "id": p.pair_id,
            "prompt": p.chosen.prompt,
            "chosen": _media(folder, p.chosen),
            "rejected": _media(folder, p.rejected),
            **_margin(p),
        } for p in pairs
    ))  # fmt: skip


def _swift(_: Positions, pairs: Sequence[Preference], folder: Path) -> None:
    """ms-swift's reward-model rows: the same question, other videos and sounds."""
    _write_lines(folder / "train.jsonl", (
        {
            "messages": [
                {"role": "user", "content": f"<video><audio>{_QUESTION[p.store]}"},
                {"role": "assistant", "content": "Yes."},
            ],
            "videos": [_media(folder, p.chosen)],
            "audios": [_media(folder, p.chosen, sound=True)],
            "rejected_videos": [_media(folder, p.rejected)],
            "rejected_audios": [_media(folder, p.rejected, sound=True)],
            "rejected_response": "Yes.",
            **_margin(p),
        } for p in pairs
    ))  # fmt: skip


def _videoalign(positions: Positions, pairs: Sequence[Preference], folder: Path) -> None:
    """VideoAlign's csv with the one column of the store."""
    text = io.StringIO()
    names = ["path_A", "path_B", "A_model", "B_model", "prompt", _VIDEOALIGN[pairs[0].store]]
    names += ["fps_A", "num_frames_A", "fps_B", "num_frames_B"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for pair in pairs:
        a, b, better = positions.sides(pair)
        row = [_media(folder, a), _media(folder, b), a.model, b.model, pair.chosen.prompt, better]
        writer.writerow([*row, a.fps, a.num_frames, b.fps, b.num_frames])
    (folder / "pairs.csv").write_text(text.getvalue(), "utf-8")


def _genai_bench(positions: Positions, pairs: Sequence[Preference], folder: Path) -> None:
    """GenAI-Bench's votes between a left and a right video."""
    rows = []
    for number, pair in enumerate(pairs):
        a, b, better = positions.sides(pair)
        rows.append(
            {
                "id": number,
                "prompt": pair.chosen.prompt,
                "video_left": _media(folder, a),
                "video_right": _media(folder, b),
                "left_model": a.model,
                "right_model": b.model,
                "vote_type": {"A": "leftvote", "B": "rightvote"}[better],
            }
        )
    (folder / "data.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")


def _webdataset(positions: Positions, pairs: Sequence[Preference], folder: Path) -> None:
    """Tar files with chosen, rejected, sound, portrait and a record for each pair."""
    for start in range(0, len(pairs), _TAR_PAIRS):
        with tarfile.open(folder / f"{start // _TAR_PAIRS:05d}.tar", "w") as tar:
            for pair in pairs[start : start + _TAR_PAIRS]:
                record = _record(positions, pair)
                parts = {
                    "chosen.mp4": bytes(pair.chosen.video),
                    "rejected.mp4": bytes(pair.rejected.video),
                    "flac": bytes(pair.chosen.audio),
                    "png": bytes(pair.chosen.reference),
                    "json": json.dumps(record, ensure_ascii=False).encode(),
                }
                for kind, data in parts.items():
                    info = tarfile.TarInfo(f"{pair.pair_id[:32]}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def _parquet(positions: Positions, pairs: Sequence[Preference], folder: Path) -> None:
    """One Parquet file with both videos, the sound and the portrait inside, ten pairs a group."""
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [(name, pa.string()) for name in RECORD_TEXTS]
    fields += [(name, media) for name in MEDIA_COLUMNS]
    fields += [("chosen_seed", pa.int64()), ("rejected_seed", pa.int64()), ("margin", pa.float32())]
    fields += [(name, pa.float32()) for name in RECORD_SCORES]
    schema = pa.schema(fields)
    with pq.ParquetWriter(folder / "pairs.parquet", schema) as writer:
        for start in range(0, len(pairs), 10):
            rows = [_record(positions, p) | _inside(p) for p in pairs[start : start + 10]]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _inside(pair: Preference) -> dict[str, dict[str, Any]]:
    """Return the media of a pair as columns of bytes and a file name."""
    found = {}
    for name, clip in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        found[name] = {"bytes": bytes(clip.video), "path": f"{clip.clip_id[:32]}.mp4"}
    c = pair.chosen
    found["sound"] = {"bytes": bytes(c.audio), "path": f"{c.audio_id}.flac"}
    found["portrait"] = {"bytes": bytes(c.reference), "path": f"{c.reference_id}.png"}
    return found


def _record(positions: Positions, pair: Preference) -> dict[str, Any]:
    """Return all that is known of a pair but its media; `RECORD_TEXTS` and `RECORD_SCORES`."""
    c = pair.chosen
    record: dict[str, Any] = {
        "pair_id": pair.pair_id, "store": pair.store, "better": positions.sides(pair)[2],
        "prompt": c.prompt, "condition_id": c.condition_id, "identity_id": c.identity_id,
        "audio_id": c.audio_id, "reference_id": c.reference_id,
    }  # fmt: skip
    for side, clip in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        record |= {f"{side}_model": clip.model, f"{side}_seed": clip.seed}
        if clip.scores is not None:
            record |= {f"{side}_{d}": clip.scores.get(d) for d in DIMENSIONS}
    return record | _margin(pair)


def _margin(pair: Preference) -> dict[str, float]:
    """Return the margin; a label that was imported without one has none."""
    return {} if math.isnan(pair.margin) else {"margin": round(pair.margin, 6)}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


FORMATS: dict[str, Callable[[Positions, Sequence[Preference], Path], None]] = {
    "trl": _trl,
    "ms-swift": _swift,
    "videoalign": _videoalign,
    "genai-bench": _genai_bench,
    "webdataset": _webdataset,
    "parquet": _parquet,
}
"""The formats by name."""
