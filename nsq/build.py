"""Build a Talking-NSQ dataset: generate, decode, score, pair, write shards, card and manifest."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ft2.nsq.candidates import Row, check_splits, make_candidates
from ft2.nsq.card import render_card
from ft2.nsq.config import NsqConfig
from ft2.nsq.pairing import Pairs, mine_pairs, pair_id
from ft2.nsq.protocols import Generator, Scorer
from ft2.nsq.shards import dataset_hash, manifest_tables
from ft2.nsq.tables import pair_columns, write_clips, write_pairs
from ft2.pairs import (
    DIMENSIONS,
    LABELS,
    SCHEMA_VERSION,
    STORES,
    Condition,
    read_conditions,
)
from ft2.runs import Progress, RunDir, hash_file, write_atomic, write_json

Table = Literal["clips", "pairs"]
Limits = tuple[float, float, float]


def build(
    config: NsqConfig,
    output: Path,
    generator: Generator,
    scorer: Scorer,
    *,
    resume: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Build the dataset in `output` and return its statistics (also in result.json).

    Nothing that is finished is done again: scored chunks and written shards are kept, and a
    build that was killed and resumed has the same bytes as one that was not.

    Raises:
        UsageError: bad conditions, overlapping splits, or a directory that is not free.
        Interrupted: a signal came; `resume` goes on.
    """
    conditions = read_conditions(config.conditions)
    check_splits(conditions)
    run = RunDir.open(output, config=config, resume=resume)
    if run.result is not None:
        return run.result
    seeds = range(config.seed, config.seed + config.num_candidates)
    rows, dropped = make_candidates(
        conditions,
        seeds,
        output,
        generator,
        scorer,
        config.clip,
        config.pairing.thresholds.as_tuple(),
        config.chunk_conditions,
        progress,
    )
    by_id = {c.condition_id: c for c in conditions}
    splits = list(dict.fromkeys(c.split for c in conditions))
    entries: dict[tuple[Table, str], list[dict[str, Any]]] = {}
    stats: list[dict[str, Any]] = []
    wins: Counter[str] = Counter()
    pair_ids: list[str] = []
    for done, split in enumerate(splits, start=1):
        clips = [r for r in rows if by_id[str(r["condition_id"])].split == split]
        limits = _limits(clips, config)
        pairs = _mine(clips, config, limits)
        entries["clips", split] = write_clips(config, output, split, clips, by_id, generator.name)
        ids = [pair_id(str(clips[a]["clip_id"]), str(clips[b]["clip_id"])) for a, b in
               zip(pairs.a, pairs.b, strict=True)]  # fmt: skip
        columns = pair_columns(config, clips, pairs, ids, by_id, generator.name, scorer.name)
        entries["pairs", split] = write_pairs(config, output, split, columns, len(pairs))
        pair_ids += ids
        stats.append(_split_stats(split, conditions, clips, pairs, wins, limits))
        progress.update("shards", done, len(splits), f"{split}: {len(pairs)} pairs")
    summary = _summary(stats, rows, dropped, wins)
    _finish(run, config, entries, summary, pair_ids, generator.name, scorer.name)
    return summary


def _scores(clips: Sequence[Row]) -> NDArray[np.float64]:
    rows = [[r[f"score_{d}"] for d in DIMENSIONS] for r in clips]
    return np.array(rows, np.float64).reshape(len(clips), len(DIMENSIONS))


def _limits(clips: Sequence[Row], config: NsqConfig) -> Limits:
    """Return the score from which an answer is Yes, per dimension."""
    if config.pairing.yes_from == "threshold" or not clips:
        return config.pairing.thresholds.as_tuple()
    motion, lip, quality = np.median(_scores(clips), axis=0).tolist()
    return (motion, lip, quality)


def _mine(clips: Sequence[Row], config: NsqConfig, limits: Limits) -> Pairs:
    return mine_pairs(
        [str(r["condition_id"]) for r in clips],
        [str(r["clip_id"]) for r in clips],
        _scores(clips),
        thresholds=limits,
        min_margin=config.pairing.min_margin,
        max_per_condition=config.pairing.max_per_condition,
        prefer_margin=config.pairing.prefer == "margin",
        seed=config.seed,
    )


def _split_stats(
    split: str,
    conditions: Sequence[Condition],
    clips: Sequence[Row],
    pairs: Pairs,
    wins: Counter[str],
    thresholds: Sequence[float],
) -> dict[str, Any]:
    stats: dict[str, Any] = {
        "split": split,
        "conditions": sum(c.split == split for c in conditions),
        "clips": len(clips),
        "pairs": len(pairs),
    }
    stats["yes_from"] = dict(zip(DIMENSIONS, thresholds, strict=True))
    stats |= {store: int(pairs.stores[:, i].sum()) for i, store in enumerate(STORES)}
    for index, d in enumerate(DIMENSIONS):
        inside = pairs.labels[pairs.stores[:, index], index]
        wins[f"{d}_a"] += int((inside == LABELS.index("A")).sum())
        wins[d] += len(inside)
    for d, threshold in zip(DIMENSIONS, thresholds, strict=True):
        yes = [float(r[f"score_{d}"]) >= threshold for r in clips]  # type: ignore[arg-type]
        stats[f"yes_{d}"] = sum(yes) / len(yes) if yes else None
    return stats


def _summary(
    stats: list[dict[str, Any]], rows: Sequence[Row], dropped: Sequence[Row], wins: Counter[str]
) -> dict[str, Any]:
    return {
        "num_clips": len(rows),
        "num_dropped": len(dropped),
        "dropped": list(dropped[:20]),
        "pairs": {store: sum(s[store] for s in stats) for store in STORES},
        "position_a": {d: wins[f"{d}_a"] / wins[d] if wins[d] else None for d in DIMENSIONS},
        "splits": stats,
    }


def _finish(
    run: RunDir,
    config: NsqConfig,
    entries: Mapping[tuple[Table, str], list[dict[str, Any]]],
    summary: dict[str, Any],
    pair_ids: Sequence[str],
    generator: str,
    scorer: str,
) -> None:
    manifest = {
        "schema": SCHEMA_VERSION,
        "generator": generator,
        "critic": scorer,
        "conditions_sha256": hash_file(config.conditions),
        "pairs_hash": dataset_hash(pair_ids),
        "tables": manifest_tables(entries),
    }
    write_atomic(run.path / "README.md", render_card(config, manifest, summary))
    write_json(run.path / "manifest.json", manifest)
    run.finish(summary)
