"""Candidates of a build: generated, decoded and scored chunk by chunk, never twice.

Each finished chunk of conditions is one JSON file, written after its clips. While a chunk is
being generated, a journal names its finished clips, so a resumed build makes only the others.
"""

import hashlib
import json
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
                journal = path.with_suffix(".journal")
                clips = _generate(chunk, seeds, output, generator, journal, interrupts)
                write_json(path, _judge(clips, output, scorer, clip))
                journal.unlink(missing_ok=True)
            record = read_json(path)
            kept += record["clips"]
            dropped += record["dropped"]
            note = _shares(kept, thresholds)
            progress.update("candidates", len(kept) + len(dropped), total, note)
        interrupts.check(_hint(output))
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


def _hint(output: Path) -> str:
    return f"finished clips are kept; go on with --resume -o {output}"


def _generate(
    chunk: Sequence[Condition],
    seeds: Sequence[int],
    output: Path,
    generator: Generator,
    journal: Path,
    interrupts: Interrupts,
) -> list[Row]:
    """Generate what the journal does not name yet; return one row a clip, in a fixed order."""
    wanted = [(c.condition_id, seed) for c in chunk for seed in seeds]
    made = _read_journal(journal, output)
    untouched = [c for c in chunk if not any((c.condition_id, s) in made for s in seeds)]
    calls = [(untouched, list(seeds))] if untouched else []
    for condition in chunk:
        left = [seed for seed in seeds if (condition.condition_id, seed) not in made]
        if condition not in untouched and left:
            calls.append(([condition], left))
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as file:
        for conditions, left in calls:
            for clip in generator.generate(conditions, left, output / "candidates"):
                video = clip.video.relative_to(output).as_posix()
                made[clip.condition_id, clip.seed] = video
                file.write(json.dumps([clip.condition_id, clip.seed, video]) + "\n")
                file.flush()
                interrupts.check(_hint(output))
    if set(made) != set(wanted):
        missing, extra = set(wanted) - set(made), set(made) - set(wanted)
        raise RunError(
            f"the generator left out {len(missing)} clips and gave {len(extra)} unknown ones",
            f"first: {sorted(missing or extra)[0]}",
        )
    return [{"condition_id": c, "seed": seed, "video": made[c, seed]} for c, seed in wanted]


def _read_journal(journal: Path, output: Path) -> dict[tuple[str, int], str]:
    """Return the finished clips of an interrupted chunk; a line that a kill cut is skipped."""
    made = {}
    lines = journal.read_text("utf-8").splitlines() if journal.exists() else []
    for line in lines:
        try:
            condition, seed, video = json.loads(line)
        except ValueError:
            continue
        if (output / video).is_file():
            made[str(condition), int(seed)] = str(video)
    return made


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
