"""The demo from end to end at a tiny budget: same table twice, killed and resumed, its page."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ft2.pairs import DIMENSIONS

pytestmark = pytest.mark.slow

EXPERT = "[loop.num_steps=6, loop.eval_every=3, engine.micro_batch_size=1]"
FUSION = "[loop.num_steps=4, loop.eval_every=2, engine.micro_batch_size=1, store=quality]"
TINY = [
    "threads=1",
    "world.train_ratings=60",
    "world.dev_ratings=24",
    "world.test_ratings=24",
    "world.own_train_conditions=6",
    "world.own_dev_conditions=4",
    "world.own_test_conditions=4",
    "world.train_conditions=8",
    "world.test_conditions=4",
    "samples=2",
    "overrides={critic: [steps=40], generate: [steps=4],"
    " nsq: [num_candidates=8, pairing.yes_from=median],"
    f" expert-motion: {EXPERT}, expert-lip: {EXPERT}, expert-quality: {EXPERT},"
    f" fusion: {FUSION}}}",
]
COLUMNS = ("critic", "pairs", "experts", "scores", "difference_to_base")


def command(out: Path, *more: str) -> list[str]:
    """A resume gives no settings again: the hint of an interruption does not either."""
    settings = [] if "--resume" in more else TINY
    return [sys.executable, "-m", "ft2", "demo", "-o", str(out), *settings, *more]


def run(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command(out, *more), capture_output=True, text=True, check=False, env=env, timeout=1500
    )


def figures(out: Path) -> dict[str, object]:
    """The figures of result.json, without times."""
    result = json.loads((out / "result.json").read_text())
    found = {name: result[name] for name in COLUMNS}
    for expert in found["experts"].values():
        expert.pop("seconds")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "whole"
    done = run(out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done.stdout


def test_result_has_every_figure(whole: tuple[Path, str]) -> None:
    out, text = whole
    result = json.loads((out / "result.json").read_text())
    for dimension in DIMENSIONS:
        for row in ("untrained", "critic", "majority", "silenced", "audio_swapped"):
            cell = result["critic"][row][dimension]
            assert cell["n"] == 24
            assert cell["low"] <= cell["value"] <= cell["high"]
        assert result["pairs"][dimension] > 0
        for policy in ("base", "lip expert", "merge 1/3", "merge 2/3", "merge 1", "policy"):
            assert result["scores"][policy][dimension]["n"] == 4
    assert "lip by landmarks" in text
    assert f"report: {out / 'report.html'}" in text
    assert result["peak_mb"] < 4000


def test_page_shows_its_clips(whole: tuple[Path, str]) -> None:
    from ft2.media import read_video

    out, _ = whole
    page = (out / "report.html").read_text()
    clips = sorted((out / "clips").glob("*.mp4"))
    assert len(clips) == 4 + 6
    for clip in clips:
        assert f'src="clips/{clip.name}"' in page
        video = read_video(clip, need_audio=True)
        assert video.frames.shape == (21, 64, 64, 3)


def test_complete_run_resumes_to_the_same_table_at_once(whole: tuple[Path, str]) -> None:
    out, text = whole
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    again = run(out, "--resume")
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout == text
    assert (out / "report.html").read_bytes() == page


def test_killed_and_interrupted_run_resumes_to_the_same_figures(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    """Ctrl-C in the world, SIGTERM in the critic, SIGKILL in the experts, then to the end."""
    out = tmp_path / "killed"
    for marker, signum, code in (
        ("1/7 world", signal.SIGINT, 130),
        ("train critic", signal.SIGTERM, 143),
        ("expert lip", signal.SIGKILL, -9),
    ):
        resume = ["--resume"] if out.exists() else []
        process = subprocess.Popen(command(out, *resume), stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if marker in line:
                process.send_signal(signum)
                break
        rest = process.stderr.read()
        assert process.wait(600) == code, rest[-2000:]
        if code > 0:
            assert f"ft2 demo -o {out} --resume" in rest
    done = run(out, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert figures(out) == figures(whole[0])
    expected = whole[1].replace(str(whole[0]), str(out))
    assert done.stdout == expected
