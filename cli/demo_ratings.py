"""Ratings of the generator's own clips: what the critic must have seen to judge such clips.

The paper's annotators rated generated clips. A critic that knows rendered puppets only answers No
to nearly every clip of a small generator, and Yes/No pairs need both. Here the ground-truth judges
stand in for the annotators: of the base's clips on conditions set aside for this, a clip is rated
Yes on a dimension when it is clearly better than the median, No when clearly worse, and not at all
in between.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ft2.cli.demo_world import OWN_FILES, RATINGS
from ft2.files import read_lines
from ft2.media import read_video
from ft2.nsq.protocols import Generator
from ft2.pairs import DIMENSIONS, Condition, Generated, read_conditions
from ft2.puppet import judges
from ft2.runs import Progress, write_atomic

if TYPE_CHECKING:
    from ft2.config import ClipFormat

UNSURE = (0.4, 0.6)
"""Between these quantiles a clip is left unrated."""


def rate_clips(
    clips: Sequence[Generated],
    conditions: Sequence[Condition],
    output: Path,
    clip: "ClipFormat",
    split: str,
    progress: Progress,
) -> Path:
    """Write a ``ratings.jsonl`` of generated clips beside them and return its path.

    Args:
        clips: What the base made of the conditions.
        conditions: Their conditions, of puppet faces.
        output: The file to write; video paths are relative to its directory.
        clip: The clip format.
        split: Split that the ratings get: ``train``, ``dev`` or ``test``.
        progress: Told how far it is.
    """
    from ft2.puppet.truth import truth_of

    by_id = {condition.condition_id: condition for condition in conditions}
    scores = np.zeros((len(clips), len(DIMENSIONS)))
    for number, made in enumerate(clips):
        truth = truth_of(by_id[made.condition_id], clip)
        video = read_video(made.video)
        found = judges.judge(video.frames, truth.probe, truth.driving, video.fps)
        scores[number] = [getattr(found, dimension) for dimension in DIMENSIONS]
        progress.update("rate own clips", number + 1, len(clips))
    labels = answers(scores)
    rows = [
        _row(made, by_id[made.condition_id], answer, split, output.parent)
        for made, answer in zip(clips, labels, strict=True)
    ]
    write_atomic(output, "".join(json.dumps(row) + "\n" for row in rows))
    return output


def answers(scores: "np.ndarray[Any, Any]") -> list[tuple[bool | None, ...]]:
    """Return Yes, No or None per clip and dimension of scores [N, 3]; higher is better."""
    low, high = np.quantile(scores, UNSURE, axis=0)
    return [
        tuple(
            True if x > top else False if x < bottom else None
            for x, bottom, top in zip(row, low, high, strict=True)
        )
        for row in scores
    ]


def _row(
    made: Generated,
    condition: Condition,
    answer: tuple[bool | None, ...],
    split: str,
    folder: Path,
) -> Mapping[str, Any]:
    return {
        "video": str(made.video.resolve().relative_to(folder.resolve())),
        **dict(zip(DIMENSIONS, answer, strict=True)),
        "identity_id": condition.identity_id,
        "audio_id": condition.audio_id,
        "split": split,
        "source": "judges",
    }


def rate_own_clips(
    generator: Generator,
    world: Path,
    output: Path,
    seeds: Sequence[int],
    clip: "ClipFormat",
    progress: Progress,
) -> dict[str, int]:
    """Generate and rate clips, and write the critic's ratings; return the lines by file.

    ``ratings.jsonl`` has the rendered clips of all splits and the generated ones of train and
    dev; ``own-test.jsonl`` the generated ones of test, to measure the critic on those alone.
    """
    rows = [json.loads(line) for line in read_lines(world / RATINGS)]
    rows = [row | {"video": f"../{world.name}/{row['video']}"} for row in rows]
    counts = {}
    for split, name in OWN_FILES.items():
        conditions = read_conditions(world / name)
        rated = output / f"own-{split}.jsonl"
        if not rated.exists():
            clips = []
            total = len(conditions) * len(seeds)
            for made in generator.generate(conditions, seeds, output / split):
                clips.append(made)
                progress.update("clips to rate", len(clips), total, split)
            rate_clips(clips, conditions, rated, clip, split, progress)
        found = [json.loads(line) for line in read_lines(rated)]
        counts[rated.name] = len(found)
        rows += found if split != "test" else []
    write_atomic(output / RATINGS, "".join(json.dumps(row) + "\n" for row in rows))
    return {RATINGS: len(rows), **counts}
