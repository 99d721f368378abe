"""The README is short, and every command in it exists with its options, presets and keys."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ft2.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(prefix: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(prefix)]


FT2 = [line.removeprefix("uv run ") for line in (*commands("ft2 "), *commands("uv run ft2"))]


def call(*argv: str) -> object:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return stop.value.code


def test_it_fits_on_a_few_screens():
    assert len(README.splitlines()) <= 150


def test_the_two_commands_and_the_four_are_there():
    assert {"uv run ft2 demo", "uv run pytest"} <= set(commands("uv run"))
    for start in ("ft2 critic train", "ft2 nsq build", "ft2 tlpo train", "ft2 generate"):
        assert any(line.startswith(start) for line in FT2)
    assert "step uv run pytest\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("line", FT2)
def test_each_command_exists_with_its_options_and_keys(
    line: str, check_command: Callable[[str], None]
):
    check_command(line)


def test_the_config_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    run = [line for line in FT2 if line.startswith("ft2 config")]
    assert len(run) == 4
    for line in run:
        assert call(*shlex.split(line)[1:]) == 0, capsys.readouterr().err


def test_every_file_it_names_exists():
    for name in re.findall(r"\b([A-Z]+\.(?:md|cff)|\.ci/\w+|src/[\w/]+/)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.slow
def test_the_four_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As they stand, with little data and few steps; one expert stands for three and a gate."""
    monkeypatch.chdir(tmp_path)
    assert call("puppet", "build", "--conditions", "4", "--clips", "12", "-o", "clips", "-q") == 0
    monkeypatch.chdir(tmp_path / "clips")
    Image.open(next(Path("portraits").iterdir())).convert("RGB").save("me.jpg")
    shutil.copy(next(Path("audio").iterdir()), "me.wav")
    few = {
        "critic": ["steps=2"],
        "nsq": ["num_candidates=2", "pairing={max_per_condition: 1, by: margin, min_margin: 1e-6}"],
        "tlpo": ["loop.num_steps=2", "engine.micro_batch_size=1"],
        "generate": ["steps=2"],
    }
    starts = ("ft2 critic", "ft2 nsq", "ft2 tlpo train nano", "ft2 generate")
    lines = [line for line in commands("ft2 ") if line.startswith(starts)]
    assert len(lines) == 4
    for line in lines:
        words = shlex.split(line.replace("runs/fusion", "runs/expert-lip"))[1:]
        command = [sys.executable, "-m", "ft2", *words, *few[words[0]], "-q"]
        done = subprocess.run(command, capture_output=True, text=True)  # one run, one process group
        assert done.returncode == 0, (line, done.stderr)
    assert Path("me.mp4").is_file()


def test_its_figures_are_those_of_the_recorded_demo():
    found = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    rows = {"majority answer": "majority", "untrained": "untrained", "trained": "critic"}
    rows |= {"trained, sound made silent": "silenced", "generated clips: trained": "generated"}
    rows |= {"trained, another clip's sound": "audio_swapped"}
    rows |= {"generated clips: majority answer": "generated_majority"}
    expected = {name: (found["critic accuracy"][key], ".2f") for name, key in rows.items()}
    expected |= {name: (row, "+.2f") for name, row in found["difference_to_base"].items()}
    for name, (row, form) in expected.items():
        cells = [
            f"{c['value']:{form}} [{c['low']:{form}}, {c['high']:{form}}]" for c in row.values()
        ]
        assert f"| {name} | {' | '.join(cells)} |" in README
    assert f"{found['seconds'] / 60:.1f} minutes" in README
