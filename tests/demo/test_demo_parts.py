"""The demo's own parts, without models: config, jobs, summary, table, plan, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ft2.cli import demo_evaluate as evaluation
from ft2.cli.demo_config import DemoConfig, WorldConfig
from ft2.cli.demo_table import CRITIC_ROWS, table_text
from ft2.cli.demo_world import jobs_of, merge_lines
from ft2.config import ClipFormat, dump_yaml, load_config
from ft2.errors import MissingExtra, UsageError
from ft2.pairs import DIMENSIONS

SIZES = WorldConfig(
    train_ratings=130, dev_ratings=20, test_ratings=60, train_conditions=7, test_conditions=8
)


def test_jobs_make_every_clip_once_with_seeds_of_their_own(tmp_path: Path) -> None:
    jobs = jobs_of(SIZES, 3, ClipFormat(), tmp_path)
    rated = [j for j in jobs if j.kind == "ratings"]
    totals = {s: sum(j.count for j in rated if j.split == s) for s in ("train", "dev", "test")}
    assert totals == {"train": 130, "dev": 20, "test": 60}
    assert len({(j.kind, j.split, j.seed) for j in jobs}) == len(jobs)
    assert len({j.folder for j in jobs}) == len(jobs)
    other = {(j.split, j.seed) for j in jobs_of(SIZES, 4, ClipFormat(), tmp_path)}
    assert not other & {(j.split, j.seed) for j in jobs}


def test_merged_lines_point_at_their_files(tmp_path: Path) -> None:
    jobs = [j for j in jobs_of(SIZES, 0, ClipFormat(), tmp_path) if j.kind == "conditions"]
    for job in jobs:
        folder = Path(job.folder)
        folder.mkdir()
        (folder / "a.png").touch()
        line = json.dumps({"portrait": "a.png", "audio": "a.png", "condition_id": job.split})
        (folder / "conditions.jsonl").write_text(line + "\n")
    assert merge_lines(tmp_path / "all.jsonl", "conditions.jsonl", jobs) == 5
    for line in (tmp_path / "all.jsonl").read_text().splitlines():
        assert (tmp_path / json.loads(line)["portrait"]).is_file()


@pytest.mark.parametrize(
    ("weight", "name"),
    [(1 / 3, "merge 1/3"), (2 / 3, "merge 2/3"), (1.0, "merge 1"), (0.5, "merge 0.5")],
)
def test_merges_are_named_by_their_strength(weight: float, name: str) -> None:
    assert evaluation.merge_name(weight) == name


def test_preset_compares_the_gate_with_the_three_merges_on_enough_conditions() -> None:
    config = load_config(DemoConfig, "nano/demo")
    assert [evaluation.merge_name(w) for w in config.merges] == [
        "merge 1/3",
        "merge 2/3",
        "merge 1",
    ]
    assert config.world.test_conditions >= 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("portrait=me.jpg", "portrait and audio go together"),
        ("overrides={critc: [steps=1]}", "overrides of critc"),
        ("samples=100", "samples is 100"),
        ("world.train_ratings=0", "world.train_ratings"),
    ],
)
def test_wrong_config_is_refused(change: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_config(DemoConfig, "nano/demo", [change])


def fake_rows(shift: float, seed: int = 0) -> list[dict[str, object]]:
    rng = np.random.default_rng(seed)
    return [
        {
            "condition": f"c{i}",
            "seed": 0,
            "utterance": f"u{i // 2}",
            **{d: float(rng.normal() + shift) for d in DIMENSIONS},
            evaluation.LANDMARKS: None,
        }
        for i in range(40)
    ]


def test_summary_is_the_mean_and_the_paired_difference() -> None:
    rows = {"base": fake_rows(0.0), "policy": list(reversed(fake_rows(0.5)))}
    result = evaluation.summarise(rows)
    mean = float(np.mean([r["lip"] for r in rows["base"]]))  # type: ignore[misc]
    assert result["scores"]["base"]["lip"]["value"] == pytest.approx(mean)
    delta = result["difference_to_base"]["policy"]["lip"]
    assert delta["value"] == pytest.approx(0.5)
    assert delta["low"] == pytest.approx(0.5)
    assert delta["n"] == 40
    assert "base" not in result["difference_to_base"]
    assert evaluation.LANDMARKS not in result["scores"]["policy"]
    wide = evaluation.summarise({"base": fake_rows(0.0), "policy": fake_rows(0.5, seed=1)})
    wide_delta = wide["difference_to_base"]["policy"]["lip"]
    assert wide_delta["low"] < wide_delta["value"] - 0.1


def fake_result() -> dict[str, object]:
    rows = {"base": fake_rows(0.0), "policy": fake_rows(0.5, seed=1)}
    accuracy = {d: {"value": 0.875, "low": 0.8, "high": 0.9, "n": 300} for d in DIMENSIONS}
    return {
        "critic": dict.fromkeys(CRITIC_ROWS, accuracy),
        "pairs": {"motion": 101, "lip": 102, "quality": 103, "fusion": 50},
        "experts": {d: {"held_out": None} for d in DIMENSIONS},
        **evaluation.summarise(rows),
    }


def test_table_shows_every_figure_in_lines_of_bounded_width() -> None:
    text = table_text(fake_result())
    lines = text.splitlines()
    assert max(map(len, lines)) <= 130
    assert "\u2026" not in text
    for wanted in ("majority answer", "untrained", "trained", "pairs", "base", "policy"):
        assert any(line.strip().startswith(wanted) for line in lines), wanted
    assert [w for w in ("101", "102", "103") if w in text] == ["101", "102", "103"]
    assert "0.88 [0.80,0.90]" in text


def test_plan_counts_and_writes_nothing(tmp_path: Path) -> None:
    from ft2.cli import app

    out = tmp_path / "demo"
    result = CliRunner().invoke(app, ["demo", "-n", "--json", "-o", str(out)])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["evaluation_clips"] >= 48 * 8
    assert not out.exists()


def test_directory_that_is_there_is_refused(tmp_path: Path) -> None:
    from ft2.cli import app

    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert isinstance(result.exception, UsageError)
    assert "already exists" in result.exception.message


@pytest.mark.parametrize(
    ("module", "extra"), [("deepspeed", "train"), ("mediapipe", "face"), ("pocketsphinx", "speech")]
)
def test_a_module_that_a_late_stage_needs_is_missed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    from ft2.cli import app, demo_checks

    monkeypatch.setattr(demo_checks, "find_spec", lambda name: None if name == module else True)
    result = CliRunner().invoke(app, ["demo", "-o", str(tmp_path / "demo")])
    assert isinstance(result.exception, MissingExtra)
    assert extra in result.exception.hint
    assert not (tmp_path / "demo").exists()


def test_resume_takes_the_recorded_settings(tmp_path: Path) -> None:
    from ft2.cli import app

    out = tmp_path / "demo"
    out.mkdir()
    settings = load_config(DemoConfig, "nano/demo", ["seed=7", "world.test_conditions=9"])
    (out / "config.yaml").write_text(dump_yaml(settings))
    result = CliRunner().invoke(app, ["demo", "-o", str(out), "--resume", "-n", "--json"])
    assert json.loads(result.stdout)["seed"] == 7


@pytest.mark.parametrize("kind", ["missing", "no face", "no sound"])
def test_bad_portrait_or_speech_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str
) -> None:
    from ft2.cli import app
    from ft2.media import write_png, write_wav

    portrait, audio = tmp_path / "me.png", tmp_path / "me.wav"
    if kind != "missing":
        write_png(portrait, np.full((128, 128, 3), 90, np.uint8))
    if kind == "no sound":
        audio.write_bytes(b"this is no sound")
    else:
        write_wav(audio, np.zeros(32000, np.float32))
    out = tmp_path / "demo"
    command = ["demo", "-o", str(out), "--portrait", str(portrait), "--audio", str(audio)]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UsageError), result.output
    assert not out.exists()
