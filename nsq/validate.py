"""Check a dataset directory: files, hashes, schemas, references, splits, balance, media."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ft2.errors import UsageError
from ft2.media import read_video
from ft2.nsq.manifest import ContentHash, row_texts
from ft2.nsq.splits import UNIQUE_SPLIT
from ft2.pairs import (
    DIMENSIONS,
    LABELS,
    SCHEMA_VERSION,
    clip_schema,
    pair_schema,
    view_schema,
)
from ft2.runs import hash_file, read_json

Decode = Literal["none", "sample", "all"]

_SAMPLE = 32
_LEAKS = ("identity_id", "source_id", "audio_id", "prompt")
_LEAST = 400
_BALANCE = 0.1
"""A wins this much more or less than half of at least `_LEAST` pairs: not balanced."""


@dataclass
class _Checked:
    """What is known so far."""

    root: Path
    problems: list[str] = field(default_factory=list)
    clips: dict[str, pa.Array] = field(default_factory=dict)
    """`clip_id` of every row, by split."""
    content: ContentHash = field(default_factory=ContentHash)
    places: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    pairs: int = 0
    judged: bool = True
    """Whether a critic gave the labels, so that every clip has its scores."""

    def say(self, text: str) -> None:
        self.problems.append(text)


def validate(root: Path, decode: Decode = "sample", seed: int = 0) -> dict[str, Any]:
    """Return counts and the list of problems of a dataset; an empty list means it is sound.

    Args:
        root: A dataset directory.
        decode: Which media to hash and decode: of 32 clips a split, of all, or of none.
        seed: Chooses the sample.

    Raises:
        UsageError: the directory is no dataset, or one of a newer ft2.
    """
    if not root.is_dir():
        raise UsageError(f"there is no directory '{root}'", "check the path")
    if not (root / "manifest.json").is_file():
        raise UsageError(
            f"{root} is not a finished dataset: it has no manifest.json",
            "build it, or finish it: ft2 nsq build ... --resume",
        )
    manifest = read_json(root / "manifest.json")
    if manifest.get("schema") != SCHEMA_VERSION:
        raise UsageError(
            f"{root} has schema {manifest.get('schema')}, this ft2 reads {SCHEMA_VERSION}",
            "use the ft2 that wrote it, or build it anew",
        )
    seen = _Checked(root, judged=manifest.get("label_source", "critic") == "critic")
    whole = [entry for entry in manifest["tables"] if _files_are_whole(seen, entry)]
    _no_strangers(seen, manifest)
    complete = len(whole) == len(manifest["tables"])
    for entry in sorted(whole, key=lambda e: e["table"] != "clips"):
        if entry["table"] == "clips":
            _check_clips(seen, entry, decode, seed)
        elif entry["table"] == "pairs":
            _check_pairs(seen, entry)
        else:
            _check_view(seen, entry)
    _check_leaks(seen)
    if complete and seen.content.hexdigest() != manifest["dataset_hash"]:
        seen.say("the rows are not those of the manifest: dataset_hash differs")
    clips = sum(len(ids) for ids in seen.clips.values())
    return {"clips": clips, "pairs": seen.pairs, "decoded": decode, "problems": seen.problems}


def _files_are_whole(seen: _Checked, entry: Mapping[str, Any]) -> bool:
    """Check size and hash of every shard of a table; name what is wrong."""
    before = len(seen.problems)
    for shard in entry["shards"]:
        path = seen.root / shard["path"]
        if not path.is_file():
            seen.say(f"{shard['path']} is missing")
        elif path.stat().st_size != shard["bytes"]:
            have = path.stat().st_size
            seen.say(f"{shard['path']} has {have} bytes, the manifest says {shard['bytes']}")
        elif hash_file(path) != shard["sha256"]:
            seen.say(f"{shard['path']} is damaged: its sha256 is not the manifest's")
    return len(seen.problems) == before


def _no_strangers(seen: _Checked, manifest: Mapping[str, Any]) -> None:
    known = {shard["path"] for entry in manifest["tables"] for shard in entry["shards"]}
    for path in sorted((seen.root / "data").rglob("*.arrow")):
        name = path.relative_to(seen.root).as_posix()
        if name not in known:
            seen.say(f"{name} is not in the manifest, and a reader would load it")


def _batches(
    seen: _Checked, entry: Mapping[str, Any], schema: pa.Schema
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the record batches of a table with the file they are in; check schema and rows."""
    for shard in entry["shards"]:
        rows = 0
        try:
            with pa.memory_map(str(seen.root / shard["path"])) as source:
                reader = pa.ipc.open_stream(source)
                if not reader.schema.equals(schema):
                    wrong = set(map(str, reader.schema)) ^ set(map(str, schema))
                    seen.say(f"{shard['path']} has other columns: {', '.join(sorted(wrong))}")
                    return
                for batch in reader:
                    rows += batch.num_rows
                    yield shard["path"], batch
        except (pa.ArrowInvalid, OSError) as error:
            seen.say(f"{shard['path']} cannot be read: {error}")
            return
        if rows != shard["rows"]:
            seen.say(f"{shard['path']} has {rows} rows, the manifest says {shard['rows']}")


def _check_clips(seen: _Checked, entry: Mapping[str, Any], decode: Decode, seed: int) -> None:
    split = entry["split"]
    rng = np.random.default_rng(seed)
    rows = np.arange(entry["rows"])
    count = {"none": 0, "sample": min(_SAMPLE, len(rows)), "all": len(rows)}[decode]
    wanted = set(rng.permutation(rows)[:count].tolist())
    ids, start = [], 0
    for name, batch in _batches(seen, entry, clip_schema(_rate(seen, entry))):
        seen.content.add(row_texts(batch))
        ids.append(batch.column("clip_id"))
        for kind in _LEAKS:
            places = seen.places.setdefault(kind, {})
            for value in batch.column(kind).unique().to_pylist():
                places.setdefault(value, set()).add(split)
        for d in DIMENSIONS:
            if not _are_probabilities(batch.column(f"score_{d}"), seen.judged):
                seen.say(f"{name} has score_{d} outside [0, 1]")
        for row in wanted & set(range(start, start + batch.num_rows)):
            _check_media(seen, name, batch, row - start)
        start += batch.num_rows
    seen.clips[split] = pa.concat_arrays(ids) if ids else pa.array([], pa.string())
    repeated = start - len(seen.clips[split].unique())
    if repeated:
        seen.say(f"split {split}: {repeated} clip_ids are there twice")


def _rate(seen: _Checked, entry: Mapping[str, Any]) -> int:
    """Return the sample rate that a table of clips states; the rest of its schema is fixed."""
    import json

    with pa.memory_map(str(seen.root / entry["shards"][0]["path"])) as source:
        metadata = pa.ipc.open_stream(source).schema.metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return int(features.get("audio", {}).get("sampling_rate", 16000))


def _check_media(seen: _Checked, name: str, batch: pa.RecordBatch, row: int) -> None:
    clip_id = batch.column("clip_id")[row].as_py()
    data = batch.column("video").field("bytes")[row].as_py()
    if hashlib.sha256(data).hexdigest() != clip_id:
        seen.say(f"{name}: the video of clip {clip_id[:16]} is not the one of its id")
        return
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        try:
            video = read_video(file.name, need_audio=True)
        except UsageError as error:
            seen.say(f"{name}: clip {clip_id[:16]} does not decode: {error.message}")
            return
    stated = tuple(batch.column(n)[row].as_py() for n in ("num_frames", "height", "width"))
    if video.frames.shape[:3] != stated:
        seen.say(f"{name}: clip {clip_id[:16]} has the shape {video.frames.shape[:3]}")


def _check_pairs(seen: _Checked, entry: Mapping[str, Any]) -> None:
    split = entry["split"]
    clips = _clips_of(seen, split)
    prefixes, wins, decided = [], np.zeros(3, np.int64), np.zeros(3, np.int64)
    for name, batch in _batches(seen, entry, pair_schema()):
        if split != UNIQUE_SPLIT:
            seen.content.add(row_texts(batch))
            seen.pairs += batch.num_rows
        ids = batch.column("pair_id").to_pylist()
        joined = pc.binary_join_element_wise(batch.column("clip_a"), batch.column("clip_b"), ":")
        hashes = [hashlib.sha256(text.encode()).hexdigest() for text in joined.to_pylist()]
        if ids != hashes:
            seen.say(f"{name}: a pair_id is not the hash of its clips")
        prefixes.append(np.array([int(text[:16], 16) for text in ids], np.uint64))
        for index, d in enumerate(DIMENSIONS):
            wins[index] += (counts := _check_labels(seen, name, batch, d))[0]
            decided[index] += counts[1]
    _check_references(seen, entry, clips)
    every = np.concatenate(prefixes) if prefixes else np.zeros(0, np.uint64)
    if len(np.unique(every)) != len(every):
        seen.say(f"split {split}: a pair_id is there twice")
    for index, d in enumerate(DIMENSIONS):
        if decided[index] >= _LEAST and abs(wins[index] / decided[index] - 0.5) > _BALANCE:
            share = wins[index] / decided[index]
            seen.say(f"split {split}: A wins {share:.0%} of the pairs of {d}, which gives it away")


def _check_labels(seen: _Checked, name: str, batch: pa.RecordBatch, d: str) -> tuple[int, int]:
    """Check one dimension's labels and scores; return how often A wins and how many there are."""
    label = batch.column(f"label_{d}").fill_null(LABELS.index("tie")).to_numpy()
    if not np.isin(label, range(len(LABELS))).all():
        seen.say(f"{name}: label_{d} has values outside {LABELS}")
    columns = [batch.column(f"score_{side}_{d}") for side in "ab"]
    if not all(_are_probabilities(column, seen.judged) for column in columns):
        seen.say(f"{name} has scores of {d} outside [0, 1]")
    inside = batch.column(f"in_{d}").to_numpy(zero_copy_only=False)
    if (label[inside] == LABELS.index("tie")).any():
        seen.say(f"{name}: a tie of {d} is in its store")
    return int((label[inside] == 0).sum()), int(inside.sum())


def _check_view(seen: _Checked, entry: Mapping[str, Any]) -> None:
    clips = _clips_of(seen, entry["split"])
    for name, batch in _batches(seen, entry, view_schema()):
        for side in ("chosen", "rejected"):
            rows = batch.column(f"{side}_row").to_numpy()
            if clips is None or not len(rows):
                continue
            if rows.min() < 0 or rows.max() >= len(clips):
                seen.say(f"{name}: {side}_row points outside the table clips")
            elif not clips.take(pa.array(rows)).equals(batch.column(side)):
                seen.say(f"{name}: {side}_row and {side} are not the same clip")
        least = pc.min(batch.column("margin")).as_py()
        if least is not None and least < 0:
            seen.say(f"{name}: a chosen clip has the lower score")


def _clips_of(seen: _Checked, split: str) -> pa.Array | None:
    return seen.clips.get("test" if split == UNIQUE_SPLIT else split)


def _check_references(seen: _Checked, entry: Mapping[str, Any], clips: pa.Array | None) -> None:
    """Look up the clips of pairs, shard by shard: each look-up goes through all clips once."""
    for shard in entry["shards"] if clips is not None else []:
        with pa.memory_map(str(seen.root / shard["path"])) as source:
            try:
                table = pa.ipc.open_stream(source).read_all()
                columns = {side: table[f"clip_{side}"] for side in "ab"}
            except (pa.ArrowInvalid, OSError, KeyError):
                return  # said already, by name
        for side, ids in columns.items():
            missing = ids.filter(pc.invert(pc.is_in(ids, value_set=clips)))
            if len(missing):
                seen.say(
                    f"{shard['path']} (clip_{side}) names {len(missing)} clips that are not "
                    f"there, such as {missing[0]}"
                )


def _are_probabilities(values: pa.Array, judged: bool) -> bool:
    """Return whether all are; where people gave the labels, a clip may have no score."""
    numbers = (values if judged else values.drop_null()).to_numpy(zero_copy_only=False)
    return bool(((numbers >= 0) & (numbers <= 1)).all())


def _check_leaks(seen: _Checked) -> None:
    for kind, places in seen.places.items():
        for value, splits in sorted(places.items()):
            if value and len(splits) > 1:
                seen.say(f"{kind} {value!r} is in the splits {', '.join(sorted(splits))}")
