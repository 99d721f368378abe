"""Build a Talking-NSQ dataset: candidates, scores, pairs, shards, card and manifest."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ft2.errors import RunError
from ft2.nsq.assemble import assemble
from ft2.nsq.candidates import Maker, read_folder
from ft2.nsq.card import render_card
from ft2.nsq.config import NsqConfig
from ft2.nsq.judging import FAILURES, Bench
from ft2.nsq.manifest import public_config
from ft2.nsq.protocols import Generator, Scorer
from ft2.nsq.scored import read_chunk, write_rows
from ft2.nsq.splits import check_splits
from ft2.nsq.store import ScoreStore
from ft2.nsq.tables import Provenance, read_media
from ft2.nsq.workers import start_workers
from ft2.pairs import DIMENSIONS, SCHEMA_VERSION, STORES, Condition, read_conditions
from ft2.runs import Interrupts, Progress, RunDir, hash_file, write_atomic, write_json

_SHOWN = 20


def build(
    config: NsqConfig,
    output: Path,
    generator: Generator | Sequence[Generator],
    scorer: Scorer,
    *,
    resume: bool = False,
    progress: Progress,
) -> dict[str, Any]:
    """Build the dataset in `output` and return its statistics (also in result.json).

    Nothing that is finished is done again: scores, chunks and shards are kept, and a build that
    was killed and resumed has the same bytes as one that was not.

    Raises:
        UsageError: bad conditions, overlapping splits, or a directory that is not free.
        RunError: too many clips failed, a clip vanished, or the disk is full.
        Interrupted: a signal came; `resume` goes on.
    """
    conditions = sorted(read_conditions(config.conditions), key=lambda c: c.condition_id)
    check_splits(conditions, config.filters.portrait_bits)
    by_id = {c.condition_id: c for c in conditions}
    folders = [read_folder(Path(path), by_id) for path in config.folders]
    generators = generator if isinstance(generator, Sequence) else [generator]
    seeds = range(config.seed, config.seed + config.num_candidates)
    maker = Maker(generators, seeds, folders, output)
    with _writing(output):
        run = RunDir.open(output, config=config, resume=resume)
        if run.result is not None:
            return run.result
        return _build(config, output, run, conditions, maker, scorer, progress)


def _build(
    config: NsqConfig,
    output: Path,
    run: RunDir,
    conditions: Sequence[Condition],
    maker: Maker,
    scorer: Scorer,
    progress: Progress,
) -> dict[str, Any]:
    chunks = judge_chunks(config, conditions, maker, scorer, output, progress)
    drops, failed, total = _count_drops(chunks)
    _check_failures(failed, total, config.max_failed_fraction, drops)
    splits = list(dict.fromkeys(c.split for c in conditions))
    media = read_media(output, Path(config.conditions).parent, config.clip)
    provenance = Provenance(scorer.name, created_at=config.created_at)
    made = assemble(config, output, chunks, splits, media, provenance, progress)
    summary = _summary(made.stats, drops, failed, total)
    models = sorted({name for split in made.stats for name in split["models"]})
    manifest = {
        "schema": SCHEMA_VERSION,
        "dataset_hash": made.dataset_hash,
        "label_source": provenance.label_source,
        "critic": scorer.name,
        "models": models,
        "conditions_sha256": hash_file(config.conditions),
        "config": public_config(config.model_dump(mode="json")),
        "tables": made.tables,
    }
    write_json(run.path / "stats.json", summary)
    write_atomic(run.path / "README.md", render_card(config.card, manifest, summary))
    write_json(run.path / "manifest.json", manifest)
    run.finish(summary)
    return summary


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Say what to do when a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"cannot write the dataset in {output}: {error.strerror or error}",
            f"free the disk and go on with --resume -o {output}: what is finished is kept",
        ) from error


def judge_chunks(
    config: NsqConfig,
    conditions: Sequence[Condition],
    maker: Maker,
    scorer: Scorer,
    output: Path,
    progress: Progress,
) -> list[Path]:
    """Make and judge the candidates chunk by chunk; return the files of judged rows, in order.

    Raises:
        Interrupted: a signal came; finished chunks and scores are kept.
    """
    hint = f"finished clips are kept; go on with --resume -o {output}"
    total = sum(maker.per_condition(c.condition_id) for c in conditions)
    paths, done, shares = [], 0, _Shares(config.pairing.thresholds.as_tuple())
    store_path = Path(config.store) if config.store else output / "scores" / "store.sqlite"
    wanted = config.workers
    workers = start_workers(wanted.kind, wanted.count, wanted.queue, wanted.gpus, wanted.address)
    with ScoreStore(store_path) as store, Interrupts() as interrupts:
        if config.retry_errors:
            store.forget_errors(scorer.name)
        bench = Bench(
            scorer, store, workers, config.clip, config.filters, config.critic_batch_size, output,
            Path(config.conditions).parent,
        )  # fmt: skip
        try:
            for start in range(0, len(conditions), config.chunk_conditions):
                chunk = conditions[start : start + config.chunk_conditions]
                number = start // config.chunk_conditions
                path = output / "scores" / f"chunk-{number:05d}.arrow"
                if not path.exists():
                    journal = path.with_suffix(".journal")
                    candidates = maker.make(chunk, journal, interrupts, hint)
                    write_rows(path, bench.judge(candidates))
                    journal.unlink(missing_ok=True)
                paths.append(path)
                done += sum(maker.per_condition(c.condition_id) for c in chunk)
                progress.update("candidates", done, total, shares.add(path))
                interrupts.check(hint)
        finally:
            workers.close()
    return paths


class _Shares:
    """How often the critic says Yes, in words."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        self._thresholds = thresholds
        self._yes: Counter[str] = Counter()
        self._count = 0

    def add(self, path: Path) -> str:
        table = read_chunk(path)
        for dimension, threshold in zip(DIMENSIONS, self._thresholds, strict=True):
            values = table[f"score_{dimension}"].drop_null().to_numpy()
            self._yes[dimension] += int((values >= threshold).sum())
        self._count += table.num_rows - table["dropped"].drop_null().length()
        count = max(1, self._count)
        return "Yes: " + ", ".join(f"{d} {self._yes[d] / count:.0%}" for d in DIMENSIONS)


def _count_drops(chunks: Sequence[Path]) -> tuple[list[dict[str, Any]], int, int]:
    """Return the reasons with counts and examples, the number of failures, and of candidates."""
    drops: dict[str, dict[str, Any]] = {}
    total = 0
    for path in chunks:
        table = read_chunk(path)
        total += table.num_rows
        names = ["dropped", "detail", "condition_id", "model", "seed"]
        lost = table.select(names).filter(table["dropped"].is_valid())
        for row in lost.to_pylist():
            reason = drops.setdefault(
                row["dropped"], {"reason": row["dropped"], "count": 0, "examples": []}
            )
            reason["count"] += 1
            if len(reason["examples"]) < _SHOWN:
                reason["examples"].append({k: v for k, v in row.items() if k != "dropped"})
    failed = sum(d["count"] for d in drops.values() if d["reason"] in FAILURES)
    return sorted(drops.values(), key=lambda d: str(d["reason"])), failed, total


def _check_failures(failed: int, total: int, limit: float, drops: Sequence[dict[str, Any]]) -> None:
    if total and failed / total > limit:
        lines = [
            f"  {d['reason']}: {d['count']}, such as {d['examples'][0]['detail']}"
            for d in drops
            if d["reason"] in FAILURES
        ]
        raise RunError(
            f"{failed} of {total} clips failed, more than max_failed_fraction={limit:g}:\n"
            + "\n".join(lines),
            "see to them and build in a new output (scores are kept with store=FILE), "
            "or raise max_failed_fraction",
        )


def _summary(
    stats: list[dict[str, Any]], drops: list[dict[str, Any]], failed: int, total: int
) -> dict[str, Any]:
    dropped = sum(d["count"] for d in drops)
    return {
        "label_source": "critic",
        "num_candidates": total,
        "num_clips": total - dropped,
        "num_dropped": dropped,
        "num_failed": failed,
        "dropped": drops,
        "pairs": {store: sum(s[store] for s in stats) for store in STORES},
        "splits": stats,
    }
