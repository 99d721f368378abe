"""Is a critic steady where it must be, and moved where it should be: one page with red marks.

Steady: in batches of any size, with more padding, with the two sides swapped, at another frame
rate or resolution of the same clip; motion and quality also when the sound is another one. Moved:
lip, by another sound, and most at ease with the sound in its place.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ft2.critic.api import TalkingCritic
from ft2.critic.cache import clip_hash
from ft2.critic.negatives import moved
from ft2.critic.pages import Section, Table, plot, write_page
from ft2.critic.steadiness import Check, Matrix, chances, company, sides
from ft2.errors import UsageError
from ft2.media import Audio, read_video, write_video
from ft2.qwen.view import ClipView, read_views
from ft2.runs import write_json

SHIFT_SECONDS = 0.6
"""The sound is moved by up to this much, either way."""
SAME_SOUND = 0.99
"""Correlation above which two sounds are the same."""
STEADY = 0.1
"""Mean change of P(yes) above which another rate, size or sound is a failure."""


def examine(critic: TalkingCritic, videos: Sequence[Path]) -> dict[str, Any]:
    """Return all checks and the audio shift curve, ready for JSON.

    Args:
        critic: Whom to examine.
        videos: At least three clips with different speech; the more, the surer.

    Raises:
        UsageError: Fewer than three different clips, all with one sound, or one that cannot be
            judged.
    """
    count = len({clip_hash(path) for path in map(Path, videos) if path.is_file()})
    if count < 3:
        raise UsageError(
            f"different clips: {count}, too few to compare",
            "give three or more with different speech",
        )
    views = [read_views(Path(path), critic.scorer.spec, max_windows=1)[0] for path in videos]
    others = _others(views)
    own = chances(critic, views)
    checks = [*company(critic, views, own), *sides(critic, videos), *_files(critic, videos)]
    heard = chances(critic, [_with(v, w) for v, w in zip(views, others, strict=True)])
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


def _others(views: Sequence[ClipView]) -> list[ClipView]:
    """Return for each clip the next one with another sound.

    Raises:
        UsageError: All have the same.
    """
    found = []
    for place, view in enumerate(views):
        following = (*views[place + 1 :], *views[:place])
        other = next((v for v in following if not _same(view.audio, v.audio)), None)
        if other is None:
            raise UsageError(
                f"all {len(views)} clips have the same sound, and whether lip hears cannot be seen",
                "give clips with different speech",
            )
        found.append(other)
    return found


def _same(one: Audio, other: Audio) -> bool:
    """Return whether two sounds are alike, up to how they were encoded."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return np.array_equal(one, other) or (size > 0 and float(one @ other) / size > SAME_SOUND)


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
