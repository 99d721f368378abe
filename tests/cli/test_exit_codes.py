"""Exit codes, and what goes to which stream."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import ft2.__main__ as entry
from ft2.errors import Interrupted, RunError, UsageError


def call(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        entry.main(argv)
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["nonsense"], ["error: No such command 'nonsense'", "hint: `ft2 --help`"]),
        (["confg"], ["did you mean"]),
        (["--nonsense"], ["error: No such option", "hint: `ft2 --help`"]),
        (["config", "sow"], ["Did you mean 'show'", "hint: `ft2 config --help`"]),
        (["config", "show"], ["error: no config given", "hint:"]),
        (["config", "show", "nano/none"], ["error: unknown preset", "hint:"]),
        (["config", "show", "none.yaml"], ["error: the config file 'none.yaml' does not exist"]),
        (["config", "show", "a", "b"], ["error: more than one config: 'a', 'b'"]),
        (["info", "/nowhere"], ["error: '/nowhere' does not exist"]),
        (["info"], ["error: Missing argument"]),
    ],
)
def test_wrong_commands_exit_2_with_error_and_hint(
    argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]
):
    assert call(argv) == 2
    out = capsys.readouterr()
    assert out.out == "", "stdout carries results only"
    assert "Traceback" not in out.err
    for part in parts:
        assert part.lower() in out.err.lower()


@pytest.mark.parametrize("argv", [[], ["config"], ["critic"]])
def test_a_group_alone_prints_its_help(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert call(argv) == 2
    assert capsys.readouterr().err.startswith("Usage: ft2")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("no face", "use another"), 2, "error: no face\nhint: use another\n"),
        (RunError("disk full"), 1, "error: disk full\n"),
        (Interrupted(15, "--resume"), 143, "error: interrupted by SIGTERM\nhint: --resume\n"),
        (ValueError("odd"), 1, "error: ValueError: odd\nhint: FT2_DEBUG=1 shows the traceback\n"),
        (KeyboardInterrupt(), 130, "error: interrupted by SIGINT\n"),
    ],
)
def test_errors_become_messages_and_codes(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def fail(_argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(entry, "_run", fail)
    monkeypatch.delenv("FT2_DEBUG", raising=False)
    assert call([]) == code
    assert capsys.readouterr().err.startswith(text)
    if isinstance(error, Exception):
        monkeypatch.setenv("FT2_DEBUG", "1")
        with pytest.raises(type(error)):
            entry.main([])


@pytest.mark.parametrize("flag", ["--local_rank=1", "--local-rank=1"])
def test_a_launcher_s_rank_is_taken_and_hidden(flag: str, capsys: pytest.CaptureFixture[str]):
    assert call([flag, "config", "list"]) == 0
    assert call(["--help"]) == 0
    assert "rank" not in capsys.readouterr().out.partition("Usage")[2]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_their_code(signum: int, code: int):
    program = textwrap.dedent(
        """
        import time
        from ft2.__main__ import main
        from ft2.cli import app
        from ft2.cli.options import Resume

        @app.command()
        def hang(resume: Resume = False):
            print("up", flush=True)
            try:
                time.sleep(60)
            except Exception:
                print("swallowed", flush=True)

        main(["hang"])
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    time.sleep(0.05)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert process.returncode == code
    hint = "hint: the same command with --resume goes on\n"
    assert err == f"error: interrupted by {signal.Signals(signum).name}\n{hint}"


@pytest.mark.parametrize(
    ("argv", "resumes"),
    [
        (["tlpo", "train", "nano/expert-lip"], True),
        (["-q", "nsq", "build"], True),
        (["critic", "annotate", "train"], False),
        (["study", "serve"], False),
        (["generate", "--page"], True),
        ([], False),
    ],
)
def test_only_what_can_go_on_says_so(argv: list[str], resumes: bool):
    assert entry._resumable(argv) == resumes


def test_a_closed_pipe_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "ft2", "config", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_spin_briefly_unless_told_otherwise(given: dict[str, str], count: str) -> None:
    """Before torch loads, which reads it once."""
    code = (
        "import os, sys, ft2.__main__ as m\n"
        "try: m.main(['--version'])\n"
        "except SystemExit: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {k: v for k, v in os.environ.items() if k not in names} | given
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{count} False"
