"""Every preset can be planned on any machine: no weights are loaded and nothing is written."""

import json
import shutil
import wave
from pathlib import Path

import pytest

from ft2 import puppet
from ft2.__main__ import main
from ft2.config import preset_names


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the input files that the presets name."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/conditions", "data", "runs/critic/adapter"):
        Path(folder).mkdir(parents=True)
    shutil.copy(Path(puppet.__file__).parent / "faces" / "astronaut.jpg", "me.png")
    with wave.open("me.wav", "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(32000))
    for folder in ("runs/conditions", "data"):
        up = "../" * (folder.count("/") + 1)
        row = {
            "condition_id": "c",
            "identity_id": "i",
            "audio_id": "a",
            "split": "train",
            "portrait": f"{up}me.png",
            "audio": f"{up}me.wav",
            "prompt": "a person",
        }
        Path(folder, "conditions.jsonl").write_text(json.dumps(row) + "\n")
    people = {"identity_id": "i", "audio_id": "a", "split": "train", "source": "human"}
    for number, video in enumerate(("me.wav", "me.png")):
        answers = dict.fromkeys(("motion", "lip", "quality"), bool(number))
        line = json.dumps({"video": video, **answers, **people}) + "\n"
        with Path("ratings.jsonl").open("a") as ratings:
            ratings.write(line)
    return tmp_path


def plan(preset: str) -> list[str]:
    kind = preset.partition("/")[2]
    start = {
        "critic": "critic train",
        "critic-3b": "critic train",
        "nsq": "nsq build",
        "fusion": "tlpo train",
        "generate": "generate",
        "generator-ablation": "generator ablate",
        "demo": "demo",
    }.get(kind, "tlpo train" if kind.startswith("expert") else "generator train")
    output = "new.mp4" if kind == "generate" else "new"
    words = [*start.split(), preset, "-o", output, "--dry-run", "--json"]
    if kind == "generate":
        words += ["--portrait", "me.png", "--audio", "me.wav"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_planned(preset: str, inputs: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(inputs.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(plan(preset))
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert isinstance(json.loads(out), dict)
    assert sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("tlpo train nano/expert-lip", "stage: expert"),
        ("nsq build nano/nsq critic=runs/critic conditions=data/conditions.jsonl", "clips: 8"),
    ],
)
def test_only_a_run_needs_an_output(
    words: str, shown: str, inputs: Path, capsys: pytest.CaptureFixture[str]
):
    for more, code in ([], 2), (["-n"], 0):
        with pytest.raises(SystemExit) as stop:
            main([*words.split(), *more])
        out, err = capsys.readouterr()
        assert (stop.value.code, out == "") == (code, code == 2)
        assert "--output" in err if code else shown in out


def test_a_plan_says_that_the_weights_are_elsewhere(
    inputs: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        main(["generate", "full/generate", "-n"])
    assert stop.value.code == 0
    assert "weights: weights/wan2.1-i2v-14b (not on this machine)\n" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["--portrait", "--audio"])
def test_a_plan_checks_the_files_of_the_command_line(
    missing: str, inputs: Path, capsys: pytest.CaptureFixture[str]
):
    words = plan("nano/generate")
    words[words.index(missing) + 1] = "missing.file"
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "missing.file" in err
