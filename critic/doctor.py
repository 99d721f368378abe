"""Is a critic steady where it must be, and moved where it should be: one page with red marks.

Steady: in batches of any size, with the two sides swapped, at another frame rate or resolution of
the same clip; motion and quality also when the sound is another one. Moved: lip, by another sound,
and most at ease with the sound in its place.
"""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2.critic.api import TalkingCritic, outcome
from ft2.critic.negatives import moved
from ft2.critic.pages import Section, Table, plot, write_page
from ft2.errors import UsageError
from ft2.media import read_video, write_video
from ft2.qwen.view import ClipView, read_views
from ft2.runs import write_json

Matrix = NDArray[np.float64]

SHIFT_SECONDS = 0.6
"""The sound is moved by up to this much, either way."""
BATCH_TOLERANCE = 1e-5
"""Largest change of P(yes) that rounding explains."""
STEADY = 0.1
"""Mean change of P(yes) above which another rate, size or sound is a failure."""


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    value: float
    limit: str
    passed: bool
    meaning: str


def examine(critic: TalkingCritic, videos: Sequence[Path]) -> dict[str, Any]:
    """Return all checks and the audio shift curve, ready for JSON.

    Args:
        critic: Whom to examine.
        videos: At least three clips with different speech; the more, the surer.

    Raises:
        UsageError: Fewer than three clips, or one that cannot be judged.
    """
    if len(videos) < 3:
        raise UsageError(f"{len(videos)} clips are too few to compare", "give three or more")
    views = [read_views(path, critic.scorer.spec, max_windows=1)[0] for path in videos]
    own = _chances(critic, views)
    checks = [_batches(critic, views, own), *_pairs(critic, own), *_files(critic, videos)]
    heard = _chances(critic, [_with(v, w) for v, w in zip(views, _rolled(views), strict=True)])
    checks += _sound(critic, own, heard)
    curve = None
    if "lip" in critic.dimensions:
        curve = shift_curve(critic, views)
        checks.append(_peak(critic, curve))
    return {
        "clips": len(views),
        "critic": critic.scorer.name,
        "passed": all(check.passed for check in checks),
        "checks": [vars(check) for check in checks],
        "shift_curve": curve,
    }


def shift_curve(critic: TalkingCritic, views: Sequence[ClipView]) -> list[dict[str, float]]:
    """Return mean lip log-odds with the sound moved, a frame a step; later sound is positive."""
    clip = critic.scorer.spec.clip
    column = critic.dimensions.index("lip")
    most = int(SHIFT_SECONDS * clip.fps)
    rows = []
    for frames in range(-most, most + 1):
        moved = [_moved(view, round(frames / clip.fps * clip.sample_rate)) for view in views]
        odds = critic.scorer.log_odds(moved)[:, column].double().numpy()
        spread = float(odds.std() / np.sqrt(len(odds)))
        rows.append({"seconds": frames / clip.fps, "log_odds": float(odds.mean()), "se": spread})
    return rows


def _moved(view: ClipView, samples: int) -> ClipView:
    return ClipView(view.streams, moved(view.audio, samples))


def _with(view: ClipView, other: ClipView) -> ClipView:
    return ClipView(view.streams, other.audio)


def _rolled(views: Sequence[ClipView]) -> list[ClipView]:
    return [*views[1:], views[0]]


def _chances(critic: TalkingCritic, views: Sequence[ClipView]) -> Matrix:
    """Return P(yes) [clips, dimensions]."""
    return critic.scorer.chances(critic.scorer.log_odds(views)).numpy()


def _batches(critic: TalkingCritic, views: Sequence[ClipView], own: Matrix) -> Check:
    alone = np.concatenate([_chances(critic, [view]) for view in views])
    gap = float(np.abs(alone - own).max())
    return Check(
        "batch size", gap, f"<= {BATCH_TOLERANCE:g}", gap <= BATCH_TOLERANCE,
        "largest change of P(yes) when clips are judged one by one",
    )  # fmt: skip


def _pairs(critic: TalkingCritic, own: Matrix) -> list[Check]:
    """Check that swapping sides mirrors the outcome, and that preferences make no circle."""
    swap, circles = 0.0, 0
    for column in range(len(critic.dimensions)):
        p = own[:, column]
        for i, j in itertools.combinations(range(len(p)), 2):
            one, other = outcome(p[i], p[j]), outcome(p[j], p[i])
            swap = max(swap, abs(one.a - other.b), abs(one.tie - other.tie))
        beats = p[:, None] > p[None, :]
        circles += int(np.trace(beats.astype(int) @ beats @ beats)) // 3
    return [
        Check("A/B swap", swap, "<= 1e-9", swap <= 1e-9, "largest asymmetry of the outcomes"),
        Check("transitivity", float(circles), "0", circles == 0, "circles a > b > c > a"),
    ]


def _files(critic: TalkingCritic, videos: Sequence[Path]) -> list[Check]:
    """Check the same clips at twice the frame rate and at twice the size, through the decoder."""
    before = _scored(critic, videos)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, change in (("frame rate", _twice_the_rate), ("resolution", _twice_the_size)):
            paths = [Path(folder) / f"{name}-{i}.mp4" for i in range(len(videos))]
            for path, video in zip(paths, videos, strict=True):
                change(video, path)
            gap = _scored(critic, paths) - before
            lost = float(np.isnan(gap).any(1).mean())
            value = float(np.nanmean(np.abs(gap))) if lost < 1 else 1.0
            meaning = f"mean change of P(yes) at twice the {name}; {lost:.0%} could not be judged"
            passed = value <= STEADY and lost == 0
            found.append(Check(name, value, f"<= {STEADY:g}, none lost", passed, meaning))
    return found


def _scored(critic: TalkingCritic, paths: Sequence[Path]) -> Matrix:
    """Return P(yes) of files, nan where one could not be judged."""
    rows = critic.score(videos=list(paths))
    return np.array([[row.p.get(d, np.nan) for d in critic.dimensions] for row in rows])


def _twice_the_rate(video: Path, path: Path) -> None:
    read = read_video(video, need_audio=True)
    write_video(path, np.repeat(read.frames, 2, axis=0), 2 * read.fps, read.audio, crf=4)


def _twice_the_size(video: Path, path: Path) -> None:
    read = read_video(video, need_audio=True)
    large = [cv2.resize(f, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC) for f in read.frames]
    write_video(path, np.stack(large).astype(np.uint8), read.fps, read.audio, crf=4)


def _sound(critic: TalkingCritic, own: Matrix, heard: Matrix) -> list[Check]:
    """Check what another clip's sound does: nothing to the picture, harm to the lips."""
    found = []
    for column, name in enumerate(critic.dimensions):
        gap = heard[:, column] - own[:, column]
        if name == "lip":
            fall = float(-gap.mean())
            meaning = "fall of mean P(yes) with another clip's sound"
            found.append(Check("lip hears", fall, "> 0.05", fall > 0.05, meaning))
            continue
        value = float(np.abs(gap).mean())
        meaning = "mean change of P(yes) with another clip's sound"
        found.append(Check(f"{name} is deaf", value, f"<= {STEADY:g}", value <= STEADY, meaning))
    return found


def _peak(critic: TalkingCritic, curve: Sequence[Mapping[str, float]]) -> Check:
    best = max(curve, key=lambda row: row["log_odds"])["seconds"]
    frame = 1 / critic.scorer.spec.clip.fps
    meaning = "where the sound suits the lips best, in seconds from its place"
    passed = abs(best) <= frame + 1e-9
    return Check("lip peak", best, f"within {frame:.3f} s of 0", passed, meaning)


def write_report(directory: Path, result: Mapping[str, Any]) -> None:
    """Write ``doctor.json`` and ``doctor.html``."""
    rows = [
        [
            check["name"],
            ("" if check["passed"] else "!") + f"{check['value']:.4g}",
            check["limit"],
            check["meaning"],
        ]
        for check in result["checks"]
    ]
    failed = [check["name"] for check in result["checks"] if not check["passed"]]
    verdict = f"Failed: {', '.join(failed)}." if failed else "All checks passed."
    sections = [Section("Checks", verdict, [Table(["check", "found", "limit", "meaning"], rows)])]
    curve = result["shift_curve"]
    if curve:
        points = {"lip": [(row["seconds"], row["log_odds"]) for row in curve]}
        svg = plot(points, x_label="sound later by, s", y_label="mean log-odds of lip", mark_x=0.0)
        text = "A critic that watches the lips is highest at 0 and falls to both sides."
        sections.append(Section("Sound moved against the picture", text, [], [svg]))
    lead = f"{result['critic']} on {result['clips']} clips."
    write_page(directory / "doctor.html", "Critic check-up", lead, sections)
    write_json(directory / "doctor.json", result)
