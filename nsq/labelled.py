"""Pairs that other collections labelled, with their media: what an import reads, row by row.

Vocabularies are strict: a row with an unknown field or word is refused with its number.
"""

import hashlib
import json
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ft2.errors import UsageError
from ft2.files import read_lines
from ft2.nsq.export import MEDIA_COLUMNS, RECORD_SCORES, RECORD_TEXTS
from ft2.pairs import DIMENSIONS, STORES, Scores, Store

LETTERS = ("A", "B", "tie")


@dataclass(frozen=True)
class Labelled:
    """One row of a collection: two clips, and which is better."""

    row: int
    """Number of the row, from 1."""
    clips: tuple[Path, Path]
    """Videos A and B."""
    labels: Mapping[Store, str]
    """`LETTERS` by dimension; ``fusion`` speaks about all three."""
    margins: Mapping[Store, float] = field(default_factory=dict)
    """By how much the better one is better, at least 0."""
    prompt: str = ""
    models: tuple[str, str] = ("", "")
    seeds: tuple[int, int] = (0, 0)
    scores: tuple[Scores | None, Scores | None] = (None, None)
    sound: Path | None = None
    """The sound of both; None takes the video's own."""
    portrait: Path | None = None
    """The portrait of both; None takes the video's first frame."""
    names: Mapping[str, str] = field(default_factory=dict)
    """condition_id, identity_id, audio_id and reference_id, as far as they are known."""

    def __post_init__(self) -> None:
        """Refuse words that are none and margins that are no size."""
        for dimension, letter in self.labels.items():
            if dimension not in STORES or letter not in LETTERS:
                raise ValueError(f"{dimension} is {letter!r}, not one of {', '.join(LETTERS)}")
        for dimension, margin in self.margins.items():
            if not (math.isfinite(margin) and margin >= 0):
                raise ValueError(f"the margin of {dimension} is {margin}, which is below 0 or none")


@dataclass
class Refused:
    """Rows that were not taken: number and reason."""

    reasons: list[tuple[int, str]] = field(default_factory=list)

    def add(self, row: int, reason: object) -> None:
        """Note a row."""
        self.reasons.append((row, str(reason)))


Reader = Callable[[Path, Path, Store | None, Refused], Iterator[Labelled]]
"""From a file or folder, a folder for media, the asked dimension, and where refusals go."""


def first_is_a(clip: Path | str, other: Path | str) -> bool:
    """Return whether the better clip is A where a format has no sides: an even, fixed choice."""
    digest = hashlib.sha256(":".join(sorted((str(clip), str(other)))).encode()).digest()
    return bool(digest[0] & 1) == (str(clip) < str(other))


def read_swift(path: Path, _: Path, dimension: Store | None, no: Refused) -> Iterator[Labelled]:
    """Yield ms-swift's reward-model rows in which the videos differ and the answers do not."""
    path = path / "train.jsonl" if path.is_dir() else path
    asked = _asked(dimension, "ms-swift")
    for number, line in _lines(path):
        try:
            yield _swift_row(number, json.loads(line), path.parent, asked)
        except (ValueError, TypeError, KeyError, UsageError) as error:
            no.add(number, error)


_SWIFT = {"messages", "videos", "rejected_videos", "rejected_response"}
_SWIFT_MORE = {"audios", "rejected_audios", "margin"}


def _swift_row(number: int, row: Any, root: Path, dimension: Store) -> Labelled:
    _fields(row, _SWIFT, _SWIFT_MORE)
    roles = [message["role"] for message in row["messages"]]
    if roles != ["user", "assistant"]:
        raise ValueError(f"the messages are of {roles}, not of user and assistant")
    if row["messages"][1]["content"] != row["rejected_response"]:
        raise ValueError("the answers differ: this prefers a text, not a video")
    for name in ("videos", "rejected_videos", "audios", "rejected_audios"):
        if len(row.get(name, ["x"])) != 1 or not isinstance(row.get(name, ["x"])[0], str):
            raise ValueError(f"{name} is {row[name]!r}, not a list of one path")
    good, bad = root / row["videos"][0], root / row["rejected_videos"][0]
    sounds = [root / row[n][0] for n in ("audios", "rejected_audios") if n in row]
    if len({sound.resolve() for sound in sounds}) > 1 and not _same_bytes(*sounds):
        raise ValueError("the two clips have different sounds: not one condition")
    return _preference(number, good, bad, dimension, row.get("margin"),
                       sound=sounds[0] if sounds else None)  # fmt: skip


def read_webdataset(
    path: Path, folder: Path, dimension: Store | None, no: Refused
) -> Iterator[Labelled]:
    """Yield the pairs of tar files as `ft2 nsq export ... webdataset` writes them."""
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    number = 0
    for tar in tars:
        for sample in _samples(tar):
            number += 1
            try:
                _fields(sample, {"chosen.mp4", "rejected.mp4", "json"}, {"flac", "png"})
                record = json.loads(sample.pop("json"))
                yield _from_record(number, record, sample, folder, dimension)
            except (ValueError, TypeError, UsageError) as error:
                no.add(number, error)


def _samples(tar: Path) -> Iterator[dict[str, bytes]]:
    """Yield the files of each sample by their ending; a sample's files follow each other."""
    current, sample = "", dict[str, bytes]()
    try:
        with tarfile.open(tar) as files:
            for member in files:
                key, _, kind = member.name.partition(".")
                data = files.extractfile(member)
                if data is None:
                    continue
                if key != current and sample:
                    yield sample
                    sample = {}
                current = key
                sample[kind] = data.read()
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"cannot read {tar}: {error}", "give whole tar files") from error
    if sample:
        yield sample


def read_parquet(
    path: Path, folder: Path, dimension: Store | None, no: Refused
) -> Iterator[Labelled]:
    """Yield the pairs of a Parquet file as `ft2 nsq export ... parquet` writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path / "pairs.parquet" if path.is_dir() else path
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(10):
            for row in batch.to_pylist():
                number += 1
                try:
                    found = {n: (row.pop(n, None) or {}).get("bytes") for n in MEDIA_COLUMNS}
                    kinds = dict(zip(MEDIA_COLUMNS, _KINDS, strict=True))
                    media = {kinds[name]: data for name, data in found.items() if data}
                    record = {name: value for name, value in row.items() if value is not None}
                    yield _from_record(number, record, media, folder, dimension)
                except (ValueError, TypeError, AttributeError, UsageError) as error:
                    no.add(number, error)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"cannot read {path}: {error}", "give a whole Parquet file") from error


_KINDS = ("chosen.mp4", "rejected.mp4", "flac", "png")
_NAMES = ("condition_id", "identity_id", "audio_id", "reference_id")


def _from_record(
    number: int,
    record: Any,
    media: Mapping[str, bytes],
    folder: Path,
    dimension: Store | None,
) -> Labelled:
    """Return a row whose media come with it, from what `ft2 nsq export` says of a pair."""
    needed = {"store", "better", "prompt"}
    rest = {*RECORD_TEXTS, *RECORD_SCORES, "margin", "chosen_seed", "rejected_seed"} - needed
    _fields(record, needed, rest)
    if record["store"] not in get_args(Store) or record["better"] not in ("A", "B"):
        raise ValueError(f"store {record['store']!r}, better {record['better']!r}")
    if dimension not in (None, record["store"]):
        raise ValueError(f"the pair is of {record['store']}, not of {dimension}")
    for kind in ("chosen.mp4", "rejected.mp4"):
        if not media.get(kind):
            raise ValueError(f"it has no {kind}")
    files = {kind: _keep(data, kind, folder) for kind, data in media.items()}
    texts = {name: record[name] for name in RECORD_TEXTS if name in record}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"not a text: {texts}")
    return _preference(
        number, files["chosen.mp4"], files["rejected.mp4"], record["store"], record.get("margin"),
        better=record["better"], prompt=record["prompt"],
        models=(record.get("chosen_model", ""), record.get("rejected_model", "")),
        seeds=(int(record.get("chosen_seed", 0)), int(record.get("rejected_seed", 0))),
        scores=(_scores(record, "chosen"), _scores(record, "rejected")),
        sound=files.get("flac"), portrait=files.get("png"),
        names={name: record[name] for name in _NAMES if record.get(name)},
    )  # fmt: skip


def _scores(record: Mapping[str, Any], side: str) -> Scores | None:
    values = [record.get(f"{side}_{d}") for d in DIMENSIONS]
    return None if None in values else Scores(*(min(1.0, max(0.0, float(str(v)))) for v in values))


def _preference(
    number: int,
    good: Path,
    bad: Path,
    dimension: Store,
    margin: object,
    better: str | None = None,
    **known: Any,
) -> Labelled:
    """Return a row of a format that names the better clip, with the sides that `better` asks."""
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise ValueError(f"margin is {margin!r}, not a number")
    letter = better or ("A" if first_is_a(good.name, bad.name) else "B")
    if letter == "B":
        good, bad = bad, good
        known = {
            name: value[::-1] if name in ("models", "seeds", "scores") else value
            for name, value in known.items()
        }
    margins = {} if margin is None else {dimension: float(margin)}
    return Labelled(number, (good, bad), {dimension: letter}, margins, **known)


def _keep(data: bytes, kind: str, folder: Path) -> Path:
    """Write media once under their hash."""
    path = folder / f"{hashlib.sha256(data).hexdigest()[:32]}.{kind.rpartition('.')[2]}"
    if not path.exists():
        path.write_bytes(data)
    return path


def _same_bytes(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _asked(dimension: Store | None, kind: str) -> Store:
    if dimension is None:
        raise UsageError(
            f"{kind} does not say what its labels are about",
            f"say it with --dimension {', '.join(STORES)}",
        )
    return dimension


def _fields(row: Any, needed: set[str], more: set[str]) -> None:
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object, got {row!r}")
    missing, strange = needed - set(row), set(row) - needed - more
    if missing or strange:
        raise ValueError(
            f"fields missing: {', '.join(sorted(missing)) or 'none'}; "
            f"unknown: {', '.join(sorted(strange)) or 'none'}"
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "give what the other collection wrote")
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, line


READERS: dict[str, Reader] = {
    "ms-swift": read_swift,
    "webdataset": read_webdataset,
    "parquet": read_parquet,
}
"""Formats read here; those of `ft2.critic.importers` come from `ft2.cli`."""
