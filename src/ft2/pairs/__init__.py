"""Preference records of Talking-NSQ: what a clip and a pair are, and how they lie on disk.

A dataset directory holds Arrow IPC stream files: the table `clips` (the media, each clip once), the
table `pairs` (labels and scores, light) and a light view for each store. A pair keeps its clips
as A and B, because dimensions may disagree on the winner; a view has chosen and rejected. The
schemas carry Hugging Face feature metadata, so that `datasets.load_dataset` reads the same files
without ft2.
"""

from ft2.pairs.conditions import read_conditions
from ft2.pairs.read import (
    read_clips,
    read_pair_records,
    read_pairs,
    read_table,
    shard_paths,
    splits_of,
)
from ft2.pairs.records import (
    DIMENSIONS,
    LABELS,
    STORES,
    ClipRecord,
    Condition,
    Dimension,
    Generated,
    PairRecord,
    Preference,
    Scores,
    Store,
    preference_probability,
)
from ft2.pairs.schema import (
    LABEL_SOURCES,
    SCHEMA_VERSION,
    clip_schema,
    pair_schema,
    view_schema,
)

__all__ = [
    "DIMENSIONS",
    "LABELS",
    "LABEL_SOURCES",
    "SCHEMA_VERSION",
    "STORES",
    "ClipRecord",
    "Condition",
    "Dimension",
    "Generated",
    "PairRecord",
    "Preference",
    "Scores",
    "Store",
    "clip_schema",
    "pair_schema",
    "preference_probability",
    "read_clips",
    "read_conditions",
    "read_pair_records",
    "read_pairs",
    "read_table",
    "shard_paths",
    "splits_of",
    "view_schema",
]
