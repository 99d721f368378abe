import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from ft2.config import EngineConfig
from ft2.errors import Interrupted, RunError, UsageError
from ft2.runs import Interrupts, RunDir, Silent, check_output

CONFIG = EngineConfig(learning_rate=1e-3)


def opened(path: Path, resume: bool = False) -> RunDir:
    return RunDir.open(path, config=CONFIG, resume=resume, argv=["ft2", "x"])


def metrics(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_new_run_records_config_and_command(tmp_path: Path):
    run = opened(tmp_path / "r")
    command = json.loads((run.path / "command.json").read_text())
    assert command["argv"] == ["ft2", "x"]
    assert command["packages"]["torch"] == torch.__version__.split("+")[0]
    assert {"python", "git", "device", "world_size", "time"} <= set(command)
    assert "learning_rate: 0.001" in (run.path / "config.yaml").read_text()
    assert run.result is None
    assert run.latest() is None


def test_an_existing_run_needs_resume_and_the_same_config(tmp_path: Path):
    path = tmp_path / "r"
    opened(path)
    with pytest.raises(UsageError) as error:
        opened(path)
    assert "--resume" in error.value.hint
    assert "--output" in error.value.hint
    changed = EngineConfig(learning_rate=2e-3, eps=1e-6)
    with pytest.raises(UsageError) as error:
        RunDir.open(path, config=changed, resume=True)
    assert "learning_rate: was 0.001, now 0.002" in error.value.message
    assert "eps: was" in error.value.message
    assert "betas" not in error.value.message
    opened(path, resume=True)
    assert len(json.loads((path / "command.json").read_text())["resumed"]) == 1


def test_resume_starts_a_run_that_never_was(tmp_path: Path):
    assert opened(tmp_path / "r", resume=True).latest() is None
    (tmp_path / "empty").mkdir()
    opened(tmp_path / "empty")


def test_foreign_content_is_never_a_run(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError):
            check_output(tmp_path, resume=resume)
    with pytest.raises(UsageError, match="is a file"):
        check_output(tmp_path / "notes.txt", resume=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_metrics_are_lines_of_json(tmp_path: Path):
    run = opened(tmp_path / "r")
    run.log(1, loss=torch.tensor(0.5), name="a")
    run.log(2, loss=float("nan"), counts=[1, 2])
    assert metrics(run.path) == [
        {"step": 1, "loss": 0.5, "name": "a"},
        {"step": 2, "loss": None, "counts": [1, 2]},
    ]


def test_rewind_drops_later_and_broken_lines(tmp_path: Path):
    run = opened(tmp_path / "r")
    run.rewind(0)
    for step in range(1, 6):
        run.log(step, loss=step)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run.rewind(3)
    assert [row["step"] for row in metrics(run.path)] == [1, 2, 3]


def test_numbers_reach_tensorboard(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = opened(tmp_path / "r")
    for step in range(4):
        run.log(step, loss=float(step), flag=True, name="x")
    run.rewind(1)
    run.log(2, loss=20.0)
    run.finish({})
    events = EventAccumulator(str(run.path / "tb"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0), (1, 1), (2, 20)]


def test_checkpoints_keep_the_newest_two(tmp_path: Path):
    run = opened(tmp_path / "r")
    for step in (5, 10, 15):
        with run.checkpoint(step) as folder:
            (folder / "w").write_text(str(step))
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["000010", "000015", "latest"]
    step, folder = run.latest() or (0, Path())
    assert (step, (folder / "w").read_text()) == (15, "15")


def test_the_end_prunes_what_a_kill_left_unpruned(tmp_path: Path):
    run = opened(tmp_path / "r")
    for step in (5, 10, 15):
        with run.checkpoint(step) as folder:
            (folder / "w").write_text(str(step))
    (run.path / "checkpoints" / "000005").mkdir()  # killed after `latest` was written
    run.finish({})
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["000010", "000015", "latest"]


def test_a_failed_checkpoint_leaves_the_last_one(tmp_path: Path):
    run = opened(tmp_path / "r")
    with run.checkpoint(1) as folder:
        (folder / "w").write_text("1")
    with pytest.raises(RuntimeError), run.checkpoint(2) as folder:
        (folder / "w").write_text("half")
        raise RuntimeError
    assert run.latest() == (1, run.path / "checkpoints" / "000001")
    assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["000001", "latest"]


def test_a_pointer_to_nothing_is_an_error(tmp_path: Path):
    run = opened(tmp_path / "r")
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "latest").write_text("000009\n")
    with pytest.raises(RunError, match="000009"):
        run.latest()


def test_a_result_marks_the_run_as_complete(tmp_path: Path):
    opened(tmp_path / "r").finish({"loss": 0.5, "bad": float("inf")})
    assert opened(tmp_path / "r", resume=True).result == {"loss": 0.5, "bad": None}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    run = opened(tmp_path / "r")
    run.log(1, loss=1.0)
    run.finish({})
    assert list((tmp_path / "r").iterdir()) == []


def test_a_second_process_is_kept_out(tmp_path: Path):
    opened(tmp_path / "r")
    code = textwrap.dedent(
        """
        import sys
        from ft2.config import EngineConfig
        from ft2.errors import UsageError
        from ft2.runs import RunDir
        try:
            RunDir.open(sys.argv[1], config=EngineConfig(learning_rate=1e-3), resume=True)
        except UsageError as error:
            print(error.message)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "another process is using" in done.stdout


def test_signals_wait_for_a_safe_point():
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.pending == signal.SIGTERM
        with pytest.raises(Interrupted) as error:
            interrupts.check("use --resume")
    assert (error.value.exit_code, error.value.hint) == (143, "use --resume")


def test_nested_interrupts_pass_an_unanswered_signal_out():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as outer:
        with Interrupts() as inner:
            os.kill(os.getpid(), signal.SIGINT)
            assert inner.pending == signal.SIGINT
            assert outer.pending is None
        assert outer.pending == signal.SIGINT
        outer.pending = None
    assert signal.getsignal(signal.SIGINT) is before


def test_silence_is_a_progress():
    assert Silent().update("stage", 1, 2, "note") is None
