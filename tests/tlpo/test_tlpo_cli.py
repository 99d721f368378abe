"""`ft2 tlpo`: dry runs, refusals before anything loads, merging."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tlpo_toys import TARGETS, toy_model

from ft2.__main__ import main
from ft2.cli.compare import ask_critic
from ft2.critic.api import ClipScore
from ft2.lora import install_experts, save_expert
from ft2.runs import read_json


def call(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    "preset", ["full/expert-motion", "full/expert-lip", "full/expert-quality", "full/fusion"]
)
def test_full_presets_pass_the_dry_run(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("tlpo", "train", preset, "-n", "--json", "-o", str(tmp_path / "run")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["base_parameters"] > 16e9
    assert plan["memory_gib_total"] > 30
    assert plan["missing"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "-o", "x"], "no config"),
        (["train", "nano/expert-lips", "-o", "x"], "expert-lip"),
        (["train", "nano/expert-lip", "dpo.betta=3", "-o", "x"], "beta"),
        (["train", "nano/expert-lip", "dataset=nowhere", "-o", "x"], "nowhere"),
        (["train", "nano/fusion", "experts.lip=nowhere", "-o", "x"], "holds no expert"),
        (["cache", "nano/expert-lip", "dataset=nowhere", "-o", "x"], "nowhere"),
        (["merge", "--expert", "nowhere", "-o", "x"], "nowhere holds no expert"),
    ],
)
def test_wrong_input_is_exit_2_and_writes_nothing(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("tlpo", *argv) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("error: ")
    assert "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


def test_an_existing_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert call("tlpo", "train", "nano/expert-lip", "-o", str(tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err


def test_merge_writes_a_static_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = toy_model()
    install_experts(model.dit, TARGETS, 2, 2, 2)
    for index, name in enumerate(("quality", "motion")):
        save_expert(model.dit, index, tmp_path / name / "adapter", {"dimension": name})
    given = ["--expert", str(tmp_path / "quality"), "--expert", str(tmp_path / "motion")]
    out = tmp_path / "merged"
    assert call("tlpo", "merge", *given, "--weight", "0.5", "-o", str(out), "-n") == 0
    assert not out.exists()
    assert call("tlpo", "merge", *given, "--weight", "0.5", "-o", str(out)) == 0
    record = read_json(out / "policy.json")
    assert record["experts"] == ["motion", "quality"]
    assert record["gate"] == {"form": "constant", "weights": [0.5, 0.5]}
    capsys.readouterr()
    assert call("tlpo", "merge", *given, given[0], given[1], "-o", str(tmp_path / "twice")) == 2
    assert "two quality experts" in capsys.readouterr().err


def test_merge_takes_a_weight_each_or_a_switch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = toy_model()
    install_experts(model.dit, TARGETS, 2, 2, 2)
    for index, name in enumerate(("quality", "motion")):
        save_expert(model.dit, index, tmp_path / name / "adapter", {"dimension": name})
    given = ["--expert", str(tmp_path / "quality"), "--expert", str(tmp_path / "motion")]
    each, switch = tmp_path / "each", tmp_path / "switch"
    assert call("tlpo", "merge", *given, "--weight", "0.25", "--weight", "1", "-o", str(each)) == 0
    assert read_json(each / "policy.json")["gate"]["weights"] == [1.0, 0.25]
    assert call("tlpo", "merge", *given, "--switch", "0.4", "-o", str(switch)) == 0
    from ft2.tlpo.policy import load_policy

    gate = load_policy(switch, toy_model()).gate(torch.tensor([0.1, 0.39, 0.41, 1.0]))
    assert gate[:, 1].tolist() == [[0, 1], [0, 1], [1, 0], [1, 0]]
    capsys.readouterr()
    for wrong, message in (
        (["--switch", "0.4", "--switch", "0.2"], "rising"),
        (["--switch", "1.5"], "between 0 and 1"),
        (["--weight", "1", "--weight", "1", "--weight", "1"], "3 weights for 2"),
        (["--weight", "1", "--switch", "0.4"], "exclude"),
    ):
        assert call("tlpo", "merge", *given, *wrong, "-o", str(tmp_path / "x")) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_dry_run_refuses_inputs_that_were_named_and_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "run")
    own = tmp_path / "own.yaml"
    own.write_text("stage: expert\nmodel: {weights: nano}\ndataset: gone\n")
    for given, message in (
        (["nano/expert-lip", "dataset=nowhere"], "the dataset nowhere does not exist"),
        (["nano/expert-lip", "model.weights=void", "dataset=nowhere"], "no weights at 'void'"),
        (["nano/fusion", "experts.lip=void"], "lip expert: "),
        ([str(own)], "the dataset gone does not exist"),
    ):
        assert call("tlpo", "train", *given, "-n", "--json", "-o", out) == 2
        told = capsys.readouterr()
        assert message in told.err
        assert message in str(json.loads(told.out)["missing"])  # the plan is there all the same
    assert call("tlpo", "train", "nano/expert-lip", "-n", "--json", "-o", out) == 0
    assert "runs/nsq" in json.loads(capsys.readouterr().out)["missing"]["dataset"]
    assert list(tmp_path.iterdir()) == [own]


def test_compare_checks_its_inputs_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"train1"}
    monkeypatch.setattr("ft2.cli.compare.trained_conditions", lambda config: trained)
    views: list[str] = []
    monkeypatch.setattr(
        "ft2.tlpo.compare_config.read_view", lambda config, view: views.append(view)
    )
    for name in ("validation", "test"):
        row = {"condition_id": f"{name}1", "identity_id": "a", "audio_id": "b", "prompt": "",
               "portrait": "p.png", "audio": "a.wav", "split": "test"}  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        (tmp_path / "p.png").touch()
        (tmp_path / "a.wav").touch()
    (tmp_path / "nsq").mkdir()
    given = [f"dataset={tmp_path / 'nsq'}", f"validation={tmp_path / 'validation.jsonl'}"]
    test = f"test={tmp_path / 'test.jsonl'}"
    out = str(tmp_path / "out")
    assert call("tlpo", "compare", *given, test, "-n", "--json", "-o", out) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(views) == ["fusion", "lip", "mixed", "motion", "quality"]
    assert plan["seeds"] == [0, 1, 2]
    assert plan["trainings"] == 3 * (3 + 5 + 3)
    assert plan["clips"] == 3 * 14 + 6 + 2  # each seed, the sweep of the first, the base
    both = f"test={tmp_path / 'validation.jsonl'}"
    for wrong, message in (
        ([test, "methods=[gait]"], "gait"),
        ([both], "both in validation and in test"),
        (["test=nowhere.jsonl"], "nowhere.jsonl does not exist"),
        ([test, f"critic={tmp_path}"], "no trained critic"),
        ([test, "family=nanno"], "nanno"),
        ([test, "seeds=[1,1]"], "seeds has something twice"),
        ([test, "methods=[gate average]"], "'gate average' needs the method 'gate' before it"),
        ([test, "sweep.dpo=[{dpo.betta: 3}]"], "sweep of 'dpo': unknown key 'dpo.betta'"),
        ([test, "sweep.gate=[{},{loop.num_stepz: 3}]"], "sweep of 'gate': unknown key"),
        ([test, "sweep.expert-lip=[{dpo.betta: 3}]"], "sweep of 'expert-lip': unknown key"),
        ([test, "sweep.ipo=[{loop.num_steps: 9999}]"], "9999 steps exceeds the budget"),
        ([test, "sweep.merge tuned=[{wieght: 1}]"], "sweep of 'merge tuned': unknown key"),
        ([test, "sweep.merge tuned=[{weight: much}]"], "a merge takes a number"),
        ([test, "sweep.switch=[{edges: [0.7, 0.2]}]"], "do not rise"),
        ([test, "overrides.fusion=[gate.fom=mlp]"], "gate.fom"),
        ([test, "overrides.generate=[stepz=3]"], "stepz"),
    ):
        assert call("tlpo", "compare", *given, *wrong, "-n") == 2
        assert message in capsys.readouterr().err
    for own, where in (("test1", "test"), ("validation1", "validation")):
        trained |= {own}
        assert call("tlpo", "compare", *given, test, "-o", out) == 2
        assert f"1 conditions of {where} are also in the dataset: {own}" in capsys.readouterr().err
        trained -= {own}
    monkeypatch.undo()
    assert call("tlpo", "compare", *given, test, "-n") == 2  # an empty directory is no dataset
    assert "has no clips" in capsys.readouterr().err
    assert not Path(out).exists()


class _Critic:
    asked: list[Path]

    def score(self, *, videos: list[Path]) -> list[ClipScore]:
        self.asked = videos
        return [ClipScore(path, {"lip": 0.1 * i}) for i, path in enumerate(videos, start=1)]


def test_the_critic_is_asked_once_about_the_clips_of_a_row(tmp_path: Path) -> None:
    rows = [{"condition": "c1", "seed": 0, "lip": 0.5}, {"condition": "c2", "seed": 3, "lip": 0.4}]
    critic: Any = _Critic()
    found = ask_critic(critic, rows, tmp_path)
    assert critic.asked == [tmp_path / "c1-0000.mp4", tmp_path / "c2-0003.mp4"]
    assert [row["critic lip"] for row in found] == [0.1, 0.2]
    assert [row["lip"] for row in found] == [0.5, 0.4]
    assert found[0]["critic motion"] is None
    critic.asked = []
    assert ask_critic(critic, rows, tmp_path) == found
    assert critic.asked == []
