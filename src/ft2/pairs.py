"""Preference records of Talking-NSQ: what a clip and a pair are, and how they lie on disk.

A dataset directory holds two tables as Arrow IPC stream files, `data/clips/{split}-*.arrow` (the
media, each clip once) and `data/pairs/{split}-*.arrow` (labels and scores, light). A pair keeps
its clips as A and B, because dimensions may disagree on the winner; `read_pairs` derives the
chosen/rejected view of one dimension. The schemas carry Hugging Face feature metadata, so that
`datasets.load_dataset` reads the same files without ft2.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa

from ft2.errors import UsageError

Dimension = Literal["motion", "lip", "quality"]
Store = Literal["motion", "lip", "quality", "fusion"]

DIMENSIONS: Final[tuple[Dimension, ...]] = ("motion", "lip", "quality")
STORES: Final[tuple[Store, ...]] = (*DIMENSIONS, "fusion")
LABELS: Final = ("A", "B", "tie")
SCHEMA_VERSION: Final = 1
BATCH_ROWS: Final = 10


@dataclass(frozen=True)
class Scores:
    """What a critic says about one clip: P(yes) per dimension, each in [0, 1]."""

    motion: float
    lip: float
    quality: float

    def __post_init__(self) -> None:
        """Refuse what is no probability, NaN included."""
        for name in DIMENSIONS:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UsageError(
                    f"a {name} score of {value} is no probability",
                    hint="a Scorer returns P(yes) in [0, 1] for each dimension",
                )

    def get(self, dimension: Dimension) -> float:
        """Return P(yes) of one dimension."""
        return float(getattr(self, dimension))

    def values(self) -> tuple[float, float, float]:
        """Return (motion, lip, quality)."""
        return (self.motion, self.lip, self.quality)

    def answers(self, threshold: float = 0.5) -> tuple[bool, bool, bool]:
        """Return Yes (True) or No per dimension: P(yes) >= threshold."""
        return (
            self.motion >= threshold,
            self.lip >= threshold,
            self.quality >= threshold,
        )


@dataclass(frozen=True)
class Condition:
    """What a clip is generated from; one line of conditions.jsonl with its paths resolved."""

    condition_id: str
    identity_id: str
    audio_id: str
    portrait: Path
    audio: Path
    prompt: str
    split: str


@dataclass(frozen=True)
class Generated:
    """One candidate that a generator wrote: which condition, which seed, which mp4 file."""

    condition_id: str
    seed: int
    video: Path


@dataclass(frozen=True)
class ClipRecord:
    """One generated clip with its condition; media stay memory-mapped until they are read."""

    clip_id: str
    """sha256 of the mp4 file and its condition."""
    condition_id: str
    identity_id: str
    audio_id: str
    reference_id: str
    prompt: str
    split: str
    model: str
    seed: int
    width: int
    height: int
    fps: float
    num_frames: int
    scores: Scores
    video: pa.Buffer
    """Bytes of the mp4 file, sound included."""
    audio: pa.Buffer
    """Bytes of a FLAC file, mono."""
    reference: pa.Buffer
    """Bytes of a PNG file: the portrait that the clip was generated from."""

    def write_media(self, directory: Path) -> tuple[Path, Path, Path]:
        """Write the media to `directory` and return the paths of video, audio and portrait."""
        directory.mkdir(parents=True, exist_ok=True)
        stem = self.clip_id[:16]
        paths = (
            directory / f"{stem}.mp4",
            directory / f"{self.audio_id}.flac",
            directory / f"{self.reference_id}.png",
        )
        for path, data in zip(paths, (self.video, self.audio, self.reference), strict=True):
            path.write_bytes(memoryview(data))
        return paths


@dataclass(frozen=True)
class PairRecord:
    """Two clips of one condition with a label per dimension ("A", "B" or "tie")."""

    pair_id: str
    condition_id: str
    clip_a: str
    clip_b: str
    labels: tuple[str, str, str]
    """In the order of `DIMENSIONS`."""
    scores_a: Scores
    scores_b: Scores
    stores: tuple[Store, ...]
    """Stores that use this pair: its decided dimensions within margin and cap, and "fusion"."""


@dataclass(frozen=True)
class Preference:
    """One training pair of a store, side by preference."""

    pair_id: str
    store: Store
    chosen: ClipRecord
    rejected: ClipRecord
    margin: float
    """Score of chosen minus rejected on the store's dimension; the smallest of all for "fusion"."""


def preference_probability(score_a: float, score_b: float) -> float:
    """Return P(A preferred) in [0, 1] under Bradley-Terry on the log-odds of two scores.

    sigmoid(logit(a) - logit(b)) = a(1-b) / (a(1-b) + b(1-a)); one half when both are certain.
    """
    for_a = score_a * (1.0 - score_b)
    for_b = score_b * (1.0 - score_a)
    total = for_a + for_b
    return 0.5 if math.isclose(total, 0.0, abs_tol=1e-30) else for_a / total


def _with_features(fields: list[pa.Field], special: Mapping[str, object]) -> pa.Schema:
    """Add Hugging Face feature metadata; `special` names features that are not plain values."""
    features = {f.name: special.get(f.name, _value_feature(f.type)) for f in fields}
    info = {"info": {"features": features}}
    metadata = {"huggingface": json.dumps(info), "ft2_schema": str(SCHEMA_VERSION)}
    return pa.schema(fields, metadata=metadata)


def _value_feature(kind: pa.DataType) -> dict[str, str]:
    names = {pa.float32(): "float32", pa.int16(): "int16", pa.int32(): "int32"}
    names |= {pa.int64(): "int64", pa.string(): "string", pa.bool_(): "bool"}
    return {"dtype": names.get(kind, "null"), "_type": "Value"}


def clip_schema(sample_rate: int = 16000) -> pa.Schema:
    """Return the Arrow schema of the table `clips`; media are structs of bytes and file name."""
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = (
        "clip_id",
        "condition_id",
        "identity_id",
        "audio_id",
        "reference_id",
        "prompt",
        "model",
    )
    fields = [pa.field(name, pa.string()) for name in text]
    fields += [pa.field("seed", pa.int64())]
    fields += [pa.field(name, pa.int32()) for name in ("width", "height", "num_frames")]
    fields += [pa.field(name, pa.float32()) for name in ("fps", "seconds")]
    fields += [pa.field("has_audio", pa.bool_())]
    fields += [pa.field(f"score_{d}", pa.float32()) for d in DIMENSIONS]
    fields += [pa.field(name, media) for name in ("video", "audio", "reference")]
    special = {
        "video": {"decode": False, "_type": "Video"},
        "audio": {"sampling_rate": sample_rate, "decode": False, "_type": "Audio"},
        "reference": {"_type": "Image"},
    }
    return _with_features(fields, special)


def pair_schema() -> pa.Schema:
    """Return the Arrow schema of the table `pairs`; labels index `LABELS`, null: unlabelled."""
    text = ["pair_id", "condition_id", "prompt", "clip_a", "clip_b", "audio_id", "reference_id"]
    text += ["identity_id", "source", "model_a", "model_b"]
    fields = [pa.field(name, pa.string()) for name in text]
    fields += [pa.field(name, pa.int64()) for name in ("seed_a", "seed_b")]
    for d in DIMENSIONS:
        fields += [pa.field(f"label_{d}", pa.int64())]
        names = (f"p_a_{d}", f"score_a_{d}", f"score_b_{d}", f"margin_{d}")
        fields += [pa.field(name, pa.float32()) for name in names]
        fields += [pa.field(f"n_annotators_{d}", pa.int16())]
    fields += [pa.field(f"in_{store}", pa.bool_()) for store in STORES]
    fields += [
        pa.field("label_source", pa.int64()),
        pa.field("critic_version", pa.string()),
    ]
    fields += [pa.field(name, pa.float32()) for name in ("fps_a", "fps_b")]
    fields += [pa.field(name, pa.int32()) for name in ("num_frames_a", "num_frames_b")]
    sources = {"names": ["human", "critic", "synthetic"], "_type": "ClassLabel"}
    label = {"names": list(LABELS), "_type": "ClassLabel"}
    special: dict[str, object] = {f"label_{d}": label for d in DIMENSIONS}
    return _with_features(fields, special | {"label_source": sources})


def shard_paths(dataset_dir: Path, table: Literal["clips", "pairs"], split: str) -> list[Path]:
    """Return the shard files of a table and split in order.

    Raises:
        UsageError: no such dataset, or the split has no shards.
    """
    paths = sorted((dataset_dir / "data" / table).glob(f"{split}-*-of-*.arrow"))
    if not paths:
        folder = dataset_dir / "data" / table
        splits = sorted({p.name.split("-")[0] for p in folder.glob("*.arrow")})
        raise UsageError(
            f"{dataset_dir} has no {table} of split {split!r}",
            hint=f"splits there: {', '.join(splits)}" if splits else "build it: ft2 nsq build",
        )
    return paths


def read_table(dataset_dir: Path, table: Literal["clips", "pairs"], split: str) -> pa.Table:
    """Return a whole table, memory-mapped (media stay on disk until a value is read)."""
    tables = []
    for path in shard_paths(dataset_dir, table, split):
        with pa.memory_map(str(path)) as source:
            tables.append(pa.ipc.open_stream(source).read_all())
    return pa.concat_tables(tables)


def read_clips(dataset_dir: Path | str, split: str = "train") -> dict[str, ClipRecord]:
    """Return the clips of a split by `clip_id`, in file order.

    Raises:
        UsageError: no such dataset or split.
    """
    clips = {}
    for batch in read_table(Path(dataset_dir), "clips", split).to_batches():
        rows = batch.drop_columns(["video", "audio", "reference"]).to_pylist()
        media = {n: batch.column(n).field("bytes") for n in ("video", "audio", "reference")}
        for i, row in enumerate(rows):
            scores = Scores(*(min(1.0, max(0.0, row.pop(f"score_{d}"))) for d in DIMENSIONS))
            row.pop("seconds"), row.pop("has_audio")
            buffers = {name: column[i].as_buffer() for name, column in media.items()}
            clips[row["clip_id"]] = ClipRecord(**row, split=split, scores=scores, **buffers)
    return clips


def read_pair_records(dataset_dir: Path | str, split: str = "train") -> Iterator[PairRecord]:
    """Yield every pair of a split with labels and scores, without media."""
    for row in read_table(Path(dataset_dir), "pairs", split).to_pylist():
        yield PairRecord(
            pair_id=row["pair_id"],
            condition_id=row["condition_id"],
            clip_a=row["clip_a"],
            clip_b=row["clip_b"],
            labels=tuple(LABELS[row[f"label_{d}"]] for d in DIMENSIONS),  # type: ignore[arg-type]
            scores_a=Scores(*(row[f"score_a_{d}"] for d in DIMENSIONS)),
            scores_b=Scores(*(row[f"score_b_{d}"] for d in DIMENSIONS)),
            stores=tuple(store for store in STORES if row[f"in_{store}"]),
        )


def read_pairs(dataset_dir: Path | str, dimension: Store, split: str = "train") -> list[Preference]:
    """Return one store as chosen/rejected pairs, in file order; an empty store gives [].

    Args:
        dataset_dir: a directory that `ft2 nsq build` wrote.
        dimension: "motion", "lip" or "quality", or "fusion" for pairs that win on all three.
        split: "train", "dev" or "test".

    Raises:
        UsageError: unknown dimension, or no such dataset or split.
    """
    if dimension not in STORES:
        raise UsageError(f"unknown dimension {dimension!r}", hint=f"one of {', '.join(STORES)}")
    clips = read_clips(dataset_dir, split)
    preferences = []
    for record in read_pair_records(dataset_dir, split):
        if dimension not in record.stores:
            continue
        decided = DIMENSIONS if dimension == "fusion" else (dimension,)
        a_wins = record.labels[DIMENSIONS.index(decided[0])] == "A"
        chosen, rejected = (record.clip_a, record.clip_b)[:: 1 if a_wins else -1]
        gaps = [clips[chosen].scores.get(d) - clips[rejected].scores.get(d) for d in decided]
        preferences.append(
            Preference(record.pair_id, dimension, clips[chosen], clips[rejected], min(gaps))
        )
    return preferences


def read_conditions(path: Path | str) -> list[Condition]:
    """Return the conditions of a conditions.jsonl file, in file order, with resolved paths.

    Raises:
        UsageError: no such file, a broken line (all lines are reported at once), a duplicate
            `condition_id` or a missing portrait or audio file.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"no conditions file {path}",
            hint="write one object a line; see ft2 nsq build --help",
        )
    conditions: dict[str, Condition] = {}
    problems = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            condition = _condition(json.loads(line), path.parent)
            if condition.condition_id in conditions:
                raise ValueError(f"condition_id {condition.condition_id!r} is there twice")
            conditions[condition.condition_id] = condition
        except (ValueError, TypeError) as error:
            problems.append(f"{path}:{number}: {error}")
    if problems or not conditions:
        raise UsageError(
            "\n".join(problems[:20]) or f"{path} has no conditions",
            hint=f"each line needs {', '.join(Condition.__dataclass_fields__)}",
        )
    return list(conditions.values())


def _condition(row: object, root: Path) -> Condition:
    if not isinstance(row, dict) or set(row) != set(Condition.__dataclass_fields__):
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"wrong fields: {keys}")
    for name, value in row.items():
        if not isinstance(value, str) or (not value and name != "prompt"):
            raise ValueError(f"{name} is {value!r}, not a text")
    files = {name: root / row[name] for name in ("portrait", "audio")}
    for name, file in files.items():
        if not file.is_file():
            raise ValueError(f"no {name} file {file}")
    return Condition(**(row | files))
