"""Candidates of a build: generated, decoded and scored chunk by chunk, never twice.

Each finished chunk of conditions is one JSON file, written after its clips; a resumed build
starts at the first chunk without one.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ft2.config import ClipFormat
from ft2.errors import RunError, UsageError
from ft2.media import read_clip
from ft2.nsq.protocols import Generator, Scorer
from ft2.pairs import DIMENSIONS, Condition, Scores
from ft2.runs import Interrupts, Progress, hash_file, read_json, write_json

Row = dict[str, object]


def check_splits(conditions: Sequence[Condition]) -> None:
    """Refuse conditions whose identity or speech appears in more than one split.

    Raises:
        UsageError: with every overlap.
    """
    problems = []
    for kind in ("identity_id", "audio_id"):
        splits: dict[str, set[str]] = {}
        for condition in conditions:
            splits.setdefault(getattr(condition, kind), set()).add(condition.split)
        problems += [
            f"{kind} {name!r} is in the splits {', '.join(sorted(where))}"
            for name, where in sorted(splits.items())
            if len(where) > 1
        ]
    if problems:
        raise UsageError(
            "\n".join(problems[:20]),
            "a model would be tested on what it was trained on: give each identity and each "
            "speech track to one split",
        )


def make_candidates(
    conditions: Sequence[Condition],
    seeds: Sequence[int],
    output: Path,
    generator: Generator,
    scorer: Scorer,
    clip: ClipFormat,
    thresholds: Sequence[float],
    chunk_conditions: int,
    progress: Progress,
) -> tuple[list[Row], list[Row]]:
    """Return scored candidates and dropped ones (with a reason), in condition order.

    Raises:
        RunError: the generator left out a clip, or gave one nobody asked for.
        Interrupted: a signal came; finished chunks are kept.
    """
    kept: list[Row] = []
    dropped: list[Row] = []
    total = len(conditions) * len(seeds)
    with Interrupts() as interrupts:
        for index, chunk in enumerate(_chunks(conditions, chunk_conditions)):
            path = output / "scores" / f"chunk-{index:05d}.json"
            if not path.exists():
                interrupts.check(f"go on with --resume -o {output}")
                clips = _generate(chunk, seeds, output, generator)
                write_json(path, _judge(clips, output, scorer, clip))
            record = read_json(path)
            kept += record["clips"]
            dropped += record["dropped"]
            note = _shares(kept, thresholds)
            progress.update("candidates", len(kept) + len(dropped), total, note)
        interrupts.check(f"go on with --resume -o {output}")
    return kept, dropped


def _shares(rows: Sequence[Row], thresholds: Sequence[float]) -> str:
    """Return how often the critic says Yes, in words."""
    parts = []
    for dimension, threshold in zip(DIMENSIONS, thresholds, strict=True):
        yes = [float(r[f"score_{dimension}"]) >= threshold for r in rows]  # type: ignore[arg-type]
        parts.append(f"{dimension} {sum(yes) / max(1, len(yes)):.0%}")
    return f"Yes: {', '.join(parts)}"


def _chunks(conditions: Sequence[Condition], size: int) -> Iterator[Sequence[Condition]]:
    for start in range(0, len(conditions), size):
        yield conditions[start : start + size]


def _generate(
    chunk: Sequence[Condition], seeds: Sequence[int], output: Path, generator: Generator
) -> list[Row]:
    wanted = [(c.condition_id, seed) for c in chunk for seed in seeds]
    made = {
        (clip.condition_id, clip.seed): clip.video
        for clip in generator.generate(chunk, seeds, output / "candidates")
    }
    if set(made) != set(wanted):
        missing, extra = set(wanted) - set(made), set(made) - set(wanted)
        raise RunError(
            f"the generator left out {len(missing)} clips and gave {len(extra)} unknown ones",
            f"first: {sorted(missing or extra)[0]}",
        )
    return [
        {
            "condition_id": condition,
            "seed": seed,
            "video": made[condition, seed].relative_to(output).as_posix(),
        }
        for condition, seed in wanted
    ]


def _judge(
    clips: list[Row], output: Path, scorer: Scorer, clip: ClipFormat
) -> dict[str, list[Row]]:
    """Decode every clip, drop what is not in the format, score the rest."""
    good: list[Row] = []
    dropped: list[Row] = []
    for row in clips:
        try:
            read_clip(output / str(row["video"]), clip)
        except UsageError as error:
            dropped.append({**row, "reason": error.message})
        else:
            good.append(row)
    scores = scorer.score([output / str(row["video"]) for row in good]) if good else []
    if len(scores) != len(good):
        raise RunError(f"the scorer returned {len(scores)} scores for {len(good)} clips")
    return {
        "clips": [_scored(row, output, s) for row, s in zip(good, scores, strict=True)],
        "dropped": dropped,
    }


def _scored(row: Row, output: Path, scores: Scores) -> Row:
    video = output / str(row["video"])
    digest = hashlib.sha256(f"{row['condition_id']}:{row['seed']}:{hash_file(video)}".encode())
    values = {f"score_{d}": round(scores.get(d), 6) for d in DIMENSIONS}
    return {**row, "clip_id": digest.hexdigest(), **values}
