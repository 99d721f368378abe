import io
import json
from pathlib import Path

import pytest

from ft2.cli import options
from ft2.cli.progress import LineProgress, LiveProgress
from ft2.errors import UsageError
from ft2.runs import Silent


def test_config_arguments_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert options.split_config_args(None) == (None, [])
    assert options.split_config_args(["a=1", "nano/nsq", "b.c=x=y"]) == (
        "nano/nsq",
        ["a=1", "b.c=x=y"],
    )
    with pytest.raises(UsageError, match="more than one config"):
        options.split_config_args(["nano/nsq", "steps", "5"])
    monkeypatch.chdir(tmp_path)
    Path("a=b.yaml").write_text("")
    assert options.split_config_args(["a=b.yaml"]) == ("a=b.yaml", [])


def test_results_go_to_stdout_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    result = {"loss": 0.123456, "none": None, "sub": {"n": 3}, "rows": [{"a": 1}, {"a": 2}]}
    options.emit(result, json=True)
    assert json.loads(capsys.readouterr().out) == result
    options.emit(result)
    assert capsys.readouterr().out == (
        "loss: 0.1235\nnone: none\nsub:\n  n: 3\nrows:\n  - a: 1\n  - a: 2\n"
    )
    monkeypatch.setenv("RANK", "1")
    options.emit(result)
    options.say("x")
    assert capsys.readouterr() == ("", "")


def test_remarks_go_to_stderr_unless_quiet(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    options.say("hello")
    assert capsys.readouterr() == ("", "hello\n")
    monkeypatch.setitem(options._state, "quiet", True)
    options.say("hello")
    assert capsys.readouterr() == ("", "")
    assert isinstance(options.make_progress(), Silent)


def test_progress_is_lines_when_stderr_is_no_terminal():
    assert isinstance(options.make_progress(), LineProgress)
    assert isinstance(options.make_progress(quiet=True), Silent)


def test_lines_are_few_and_the_last_one_is_there():
    stream = io.StringIO()
    progress = LineProgress(stream, interval_seconds=1000)
    for stage in ("a", "b"):
        for done in range(1, 101):
            progress.update(stage, done, 100, f"loss {done}" if done == 100 else "")
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "a: 1/100",
        "a: 100/100",
        "b: 1/100",
        "b: 100/100",
    ]
    assert lines[-1].endswith("loss 100")


def test_the_live_display_ends_with_its_stage():
    progress = LiveProgress()
    for stage in ("a", "b"):
        for done in (1, 2):
            progress.update(stage, done, 2, "x")
        assert progress._display is None


def test_sentences_stand_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]):
    options.emit({"remarks": ["one, two", "three"], "numbers": [1, 2], "nothing": {}, "no": []})
    lines = ["remarks:", "  - one, two", "  - three", "numbers: 1, 2", "nothing: none", "no: none"]
    assert capsys.readouterr().out.splitlines() == lines
