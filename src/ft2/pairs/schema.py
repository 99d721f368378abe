"""Arrow schemas of Talking-NSQ, with the feature metadata that `datasets.load_dataset` reads."""

import json
from collections.abc import Mapping
from typing import Final

import pyarrow as pa

from ft2.pairs.records import DIMENSIONS, LABELS, STORES

SCHEMA_VERSION: Final = 2
LABEL_SOURCES: Final = ("human", "critic", "synthetic")

_DTYPES = {
    pa.float32(): "float32",
    pa.int16(): "int16",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.string(): "string",
    pa.bool_(): "bool",
}


def clip_schema(sample_rate: int = 16000) -> pa.Schema:
    """Return the schema of the table `clips`; media are structs of bytes and a file name."""
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = _texts("clip_id", "condition_id", "identity_id", "audio_id", "source_id")
    fields += _texts("reference_id", "prompt", "model")
    fields += [pa.field("seed", pa.int64())]
    fields += [pa.field(name, pa.int32()) for name in ("width", "height", "num_frames")]
    fields += _floats("fps", "seconds")
    fields += [pa.field("has_audio", pa.bool_())]
    fields += _floats(*(f"score_{d}" for d in DIMENSIONS))
    fields += [pa.field(name, media) for name in ("video", "audio", "reference")]
    special = {
        "video": {"decode": False, "_type": "Video"},
        "audio": {"sampling_rate": sample_rate, "decode": False, "_type": "Audio"},
        "reference": {"_type": "Image"},
    }
    return _with_features(fields, special)


def pair_schema() -> pa.Schema:
    """Return the schema of the table `pairs`; labels index `LABELS`, null means unlabelled."""
    fields = _texts("pair_id", "condition_id", "prompt", "clip_a", "clip_b", "audio_id")
    fields += _texts("reference_id", "identity_id", "source", "model_a", "model_b")
    fields += [pa.field(name, pa.int64()) for name in ("seed_a", "seed_b")]
    for d in DIMENSIONS:
        fields += [pa.field(f"label_{d}", pa.int64())]
        fields += _floats(f"p_a_{d}", f"score_a_{d}", f"score_b_{d}", f"margin_{d}")
        fields += [pa.field(f"n_annotators_{d}", pa.int16())]
    fields += [pa.field(f"in_{store}", pa.bool_()) for store in STORES]
    fields += [pa.field("label_source", pa.int64()), *_texts("critic_version", "created_at")]
    fields += _floats("fps_a", "fps_b")
    fields += [pa.field(name, pa.int32()) for name in ("num_frames_a", "num_frames_b")]
    label = {"names": list(LABELS), "_type": "ClassLabel"}
    special: dict[str, object] = {f"label_{d}": label for d in DIMENSIONS}
    return _with_features(fields, special | {"label_source": _source_feature()})


def view_schema() -> pa.Schema:
    """Return the schema of a view (`motion`, `lip`, `quality`, `fusion`): chosen and rejected.

    `chosen` and `rejected` are `clip_id`s; `chosen_row` and `rejected_row` their rows in the
    table `clips` of the split (of `test` for `test_unique`).
    """
    fields = _texts("pair_id", "condition_id", "prompt", "audio_id", "reference_id", "identity_id")
    fields += _texts("chosen", "rejected")
    fields += [pa.field(name, pa.int64()) for name in ("chosen_row", "rejected_row")]
    fields += _texts("chosen_model", "rejected_model")
    fields += _floats("margin")
    fields += _floats(*(f"{side}_{d}" for d in DIMENSIONS for side in ("chosen", "rejected")))
    fields += [pa.field("label_source", pa.int64()), *_texts("critic_version")]
    return _with_features(fields, {"label_source": _source_feature()})


def _texts(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.string()) for name in names]


def _floats(*names: str) -> list[pa.Field]:
    return [pa.field(name, pa.float32()) for name in names]


def _source_feature() -> dict[str, object]:
    return {"names": list(LABEL_SOURCES), "_type": "ClassLabel"}


def _with_features(fields: list[pa.Field], special: Mapping[str, object]) -> pa.Schema:
    """Add Hugging Face feature metadata; `special` names features that are not plain values."""
    plain = {f.name: {"dtype": _DTYPES.get(f.type), "_type": "Value"} for f in fields}
    info = {"info": {"features": {**plain, **special}}}
    metadata = {"huggingface": json.dumps(info), "ft2_schema": str(SCHEMA_VERSION)}
    return pa.schema(fields, metadata=metadata)
