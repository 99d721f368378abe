"""The clips that the demo's report shows, copied beside the page."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ft2.cli import demo_evaluate as evaluation
from ft2.media import read_image, write_png
from ft2.pairs import DIMENSIONS, ClipRecord, Condition, read_pairs
from ft2.puppet.truth import spoken_text
from ft2.report import ClipShown, PairExample, Sample

if TYPE_CHECKING:
    from ft2.cli.demo_stages import Demo


def samples(demo: "Demo", conditions: Sequence[Condition], media: Path) -> list[Sample]:
    """Return clips of base and policy side by side, the user's own first; copies the files."""
    found = []
    own = demo.output / "own"
    if (own / "base.mp4").exists():
        clips = [_copy(own / f"{n}.mp4", own / "portrait.png", n, media, f"own-{n}")
                 for n in (evaluation.BASE, evaluation.POLICY)]  # fmt: skip
        found.append(Sample("Your portrait and speech", "", clips))
    step = max(1, len(conditions) // demo.settings.samples)
    for number, condition in enumerate(conditions[::step][: demo.settings.samples], start=1):
        clips = []
        for name in (evaluation.BASE, evaluation.POLICY):
            folder = demo.output / "evaluation" / evaluation.folder_name(name)
            video = folder / f"{condition.condition_id}-{demo.settings.seed:04d}.mp4"
            copy = f"sample-{number}-{name}"
            clips.append(_copy(video, condition.portrait, name, media, copy))
        detail = f"“{spoken_text(condition)}” Seed {demo.settings.seed}."
        found.append(Sample(f"Face {number}", detail, clips))
    return found


def _copy(video: Path, portrait: Path, label: str, media: Path, name: str) -> ClipShown:
    media.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(video, media / f"{name}.mp4")
    write_png(media / f"{name}.png", read_image(portrait))
    return ClipShown(label.capitalize(), f"{media.name}/{name}.mp4", f"{media.name}/{name}.png")


def pair_examples(dataset: Path, media: Path) -> list[PairExample]:
    """Return the clearest pair of each dimension, no condition twice where that can be."""
    examples, used = [], set()
    for dimension in DIMENSIONS:
        pairs = sorted(read_pairs(dataset, dimension), key=lambda p: -p.margin)
        if not pairs:
            continue
        pair = next((p for p in pairs if p.chosen.condition_id not in used), pairs[0])
        used.add(pair.chosen.condition_id)
        shown = [
            _shown(clip, side, media, f"pair-{dimension}-{side}", clip.score(dimension))
            for side, clip in (("chosen", pair.chosen), ("rejected", pair.rejected))
        ]
        examples.append(PairExample(dimension, shown[0], shown[1]))
    return examples


def _shown(clip: ClipRecord, label: str, media: Path, name: str, score: float) -> ClipShown:
    media.mkdir(parents=True, exist_ok=True)
    (media / f"{name}.mp4").write_bytes(memoryview(clip.video))
    (media / f"{name}.png").write_bytes(memoryview(clip.reference))
    return ClipShown(
        label.capitalize(),
        f"{media.name}/{name}.mp4",
        f"{media.name}/{name}.png",
        f"critic: P(yes) {score:.2f}",
    )
