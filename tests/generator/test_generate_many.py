"""``ft2 generate``: from a record, many seeds, the best of them, lists, interruptions."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ft2 import faces, media
from ft2.__main__ import main
from ft2.generator.batch import Row, generate_rows
from ft2.generator.best import Judge
from ft2.generator.checks import check_inputs
from ft2.generator.config import GenerateConfig
from ft2.generator.record import Job
from ft2.generator.run import Talker
from ft2.pairs import Scores
from ft2.puppet import identities
from ft2.runs import Silent

Run = Callable[..., int]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    media.write_png(tmp_path / "face.png", faces.align(identities.load("astronaut").image))
    media.write_wav(tmp_path / "sound.wav", rng.normal(size=11520).astype(np.float32) * 0.1)
    return {"portrait": tmp_path / "face.png", "audio": tmp_path / "sound.wav"}


@pytest.fixture
def run(trained: Path, given: dict[str, Path]) -> Run:
    """Run ``ft2 generate`` on the tiny model; returns the exit code."""

    def call(*argv: str, inputs: bool = True) -> int:
        settings = [f"model.weights={trained / 'model'}", "min_portrait_psnr=null", "steps=2"]
        paths = [f"--{name}={path}" for name, path in given.items()] if inputs else []
        with pytest.raises(SystemExit) as stop:
            main(["generate", *settings, *paths, "-q", *argv])
        return int(stop.value.code or 0)

    return call


def again(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["generate", *argv, "-q"])
    return int(stop.value.code or 0)


def test_a_record_makes_the_same_bytes_again(
    run: Run, tmp_path: Path, given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    assert run("-o", str(first), "seed=7", "guidance.audio=2") == 0
    record = str(first.with_suffix(".json"))
    assert again("--from", record, "-o", str(second)) == 0
    assert first.read_bytes() == second.read_bytes()
    other = tmp_path / "c.mp4"
    assert again("--from", record, "-o", str(other), "seed=8") == 0
    assert other.read_bytes() != first.read_bytes()
    assert again("--from", record, "-o", str(tmp_path / "d.mp4"), "--audio", "x.wav") == 2
    media.write_wav(given["audio"], np.zeros(11520, np.float32))
    assert again("--from", record, "-o", str(tmp_path / "d.mp4")) == 2
    assert "has changed since" in capsys.readouterr().err
    given["audio"].unlink()
    assert again("--from", record, "-o", str(tmp_path / "d.mp4")) == 2
    (tmp_path / "no.json").write_text("{}")
    assert again("--from", str(tmp_path / "no.json"), "-o", str(tmp_path / "d.mp4")) == 2
    assert not (tmp_path / "d.mp4").exists()


def test_many_seeds_are_those_of_single_runs(run: Run, tmp_path: Path) -> None:
    assert run("-o", str(tmp_path / "many.mp4"), "num_seeds=2", "seed=4") == 0
    assert run("-o", str(tmp_path / "one.mp4"), "seed=5") == 0
    assert (tmp_path / "many-5.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()
    assert (tmp_path / "many-4.mp4").read_bytes() != (tmp_path / "one.mp4").read_bytes()
    assert not (tmp_path / "many.mp4").exists()
    record = json.loads((tmp_path / "many-5.json").read_text())
    assert (record["config"]["seed"], record["config"]["num_seeds"]) == (5, 1)


def test_the_best_by_a_judge_is_kept_and_all_scores_are_recorded(
    trained: Path, given: dict[str, Path], tmp_path: Path
) -> None:
    config = GenerateConfig(
        model={"weights": str(trained / "model")}, steps=1, num_seeds=3, best_by="lip"
    )
    output = tmp_path / "best.mp4"
    talker = Talker(config, None, lambda *_: pytest.fail("no policy"), Silent())
    inputs = check_inputs(config, given["portrait"], given["audio"], output)
    lips = {0: 0.2, 1: 0.9, 2: 0.4}
    seen: list[Path] = []

    def judge(paths: list[Path]) -> list[Scores]:
        seen.extend(paths)
        return [Scores(0.9 - lips[i], lips[i], 0.5) for i in range(len(paths))]

    job = Job(config, given["portrait"], given["audio"], output)
    record = talker.make(job, inputs, judge=Judge(judge))
    assert [c["lip"] for c in record["candidates"]] == list(lips.values())
    assert record["config"]["seed"] == 1
    assert sorted(p.name for p in tmp_path.glob("best*")) == ["best.json", "best.mp4"]
    assert record["video_sha256"] == record["candidates"][1]["video_sha256"]


def test_a_critic_is_checked_before_anything_is_made(run: Run, tmp_path: Path) -> None:
    critic = ("--critic", str(tmp_path))
    assert run("-o", str(tmp_path / "x.mp4"), *critic) == 2, "it needs several seeds"
    assert run("-o", str(tmp_path / "x.mp4"), *critic, "num_seeds=2") == 2, "and an adapter"
    assert not list(tmp_path.glob("x*"))


def test_the_prompt_is_an_option(run: Run, tmp_path: Path) -> None:
    assert run("-o", str(tmp_path / "a.mp4"), "--prompt", "a = b: c", "guidance.audio=1") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["config"]["prompt"] == "a = b: c"


@pytest.mark.parametrize("setting", ["expert.lip=1.2", "expert.motion=0"])
def test_a_strength_without_its_expert_is_refused(run: Run, tmp_path: Path, setting: str) -> None:
    assert run("-o", str(tmp_path / "x.mp4"), setting) == 2
    assert not (tmp_path / "x.mp4").exists()


def write_list(path: Path, rows: list[object]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_a_list_isolates_failures_and_resumes(
    run: Run, tmp_path: Path, given: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"portrait": given["portrait"].name, "audio": given["audio"].name}
    rows = write_list(
        tmp_path / "list.jsonl",
        [
            {**good, "id": "plain"},
            {**good, "audio": "later.wav", "id": "broken"},
            {**good, "seed": 3, "guidance": {"audio": 1.0}},
        ],
    )
    output = tmp_path / "out"
    arguments = ("--batch", str(rows), "-o", str(output))
    assert run(*arguments, inputs=False) == 1
    assert "1 of 3 rows failed: broken" in capsys.readouterr().err
    videos = {path.name: path.read_bytes() for path in output.glob("*.mp4")}
    assert set(videos) == {"plain.mp4", "row-0003.mp4"}
    assert json.loads((output / "row-0003.json").read_text())["config"]["seed"] == 3
    assert run(*arguments, inputs=False) == 2, "an existing output needs --resume"
    (tmp_path / "later.wav").write_bytes(given["audio"].read_bytes())
    assert run(*arguments, "--resume", inputs=False) == 0
    after = {path.name: path.read_bytes() for path in output.glob("*.mp4")}
    assert videos.items() <= after.items()
    assert after["broken.mp4"] == videos["plain.mp4"]
    assert run(*arguments, "--resume", inputs=False) == 0, "already complete"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"audio": "a.wav"}, "'portrait' is missing"),
        ({"portrait": "p", "audio": "a", "id": "../x"}, "more than letters"),
        ({"portrait": "p", "audio": "a", "model": {"weights": "x"}}, "cannot change model"),
        (["portrait"], "a row is a JSON object"),
        ({"portrait": "p", "audio": "a", "stepz": 4}, "stepz"),
    ],
)
def test_a_wrong_row_is_refused_before_anything_starts(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: object, said: str
) -> None:
    rows = write_list(tmp_path / "list.jsonl", [row])
    assert run("--batch", str(rows), "-o", str(tmp_path / "out"), inputs=False) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interruption_keeps_latents_and_resume_gives_the_same_video(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    import ft2.generator.sample as module

    assert run("-o", str(tmp_path / "whole.mp4")) == 0
    plain, calls = module.guided_velocity, []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "guided_velocity", interrupted)
    output = tmp_path / "part.mp4"
    assert run("-o", str(output)) == 130
    assert "--resume" in capsys.readouterr().err
    assert not output.exists()
    assert output.with_suffix(".latents.safetensors").exists()
    assert run("-o", str(output)) == 2, "kept latents are not thrown away without a word"
    assert run("-o", str(output), "--resume", "seed=9") == 2, "they belong to another seed"
    assert run("-o", str(output), "--resume") == 0
    assert len(calls) == 2, "the first step is not taken twice"
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not output.with_suffix(".latents.safetensors").exists()


def test_a_full_disk_keeps_the_latents(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.mp4"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(media, "write_video", full)
        assert run("-o", str(output)) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert output.with_suffix(".latents.safetensors").exists()
    assert run("-o", str(output), "--resume") == 0


def test_rows_too_short_for_the_judge_are_refused_before_the_model_loads(
    given: dict[str, Path], tmp_path: Path
) -> None:
    config = GenerateConfig(num_seeds=2)
    job = Job(config, given["portrait"], given["audio"], tmp_path / "a.mp4")
    row = Row("a", given["portrait"], given["audio"], [])
    judge = Judge(lambda paths: pytest.fail("nothing to judge"), min_seconds=60)
    result = generate_rows(
        [(row, job)], tmp_path, lambda: pytest.fail("no model"), lambda text: None, judge=judge
    )
    assert result["failed"] == ["a"]
    assert "the critic needs 60.00 s" in (tmp_path / "results.json").read_text()
