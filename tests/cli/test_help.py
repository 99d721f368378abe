"""Every command explains itself, names shared options alike, and starts without torch."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from ft2.cli import app

SHARED = {
    "output": {"-o", "--output"},
    "resume": {"--resume"},
    "dry_run": {"-n", "--dry-run"},
    "json": {"--json"},
    "quiet": {"-q", "--quiet"},
    "verbose": {"-v", "--verbose"},
    "yes": {"-y", "--yes"},
}
HEAVY = ("torch", "transformers", "diffusers", "datasets", "cv2", "pydantic", "numpy", "rich")


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(app)))
IDS = [" ".join(path) or "ft2" for path in COMMANDS]


def run(*argv: str, code: str = "from ft2.__main__ import main; main()") -> Any:
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)


def test_the_nouns_and_commands_are_all_there():
    assert {path[0] for path in COMMANDS if path} == {
        *("critic", "nsq", "tlpo", "generator", "study", "puppet", "weights", "config"),
        *("generate", "evaluate", "demo", "info"),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=IDS)
def test_help_is_printed_and_complete(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    from ft2.__main__ import main

    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as stop:
            main([*path, flag])
        assert stop.value.code == 0
        out = capsys.readouterr()
        assert out.out.startswith(f"Usage: {' '.join(('ft2', *path))} ")
        assert out.err == ""
    command = COMMANDS[path]
    assert (command.help or "").strip(), "a command says in its docstring what it does"
    for name in getattr(command, "commands", {}):
        assert f"  {name} " in out.out
    assert "range>" not in out.out, "a number's option has a metavar"


@pytest.mark.parametrize("path", COMMANDS, ids=IDS)
def test_parameters_are_documented_and_named_alike(path: tuple[str, ...]):
    for parameter in COMMANDS[path].params:
        if parameter.name in {"help", "install_completion", "show_completion"}:
            continue
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
        if parameter.name in SHARED:
            assert set(parameter.opts) == SHARED[parameter.name]
        for spelling in (*parameter.opts, *parameter.secondary_opts):
            taken = {s for name, all_ in SHARED.items() if name != parameter.name for s in all_}
            assert spelling not in taken, f"{spelling} means something else everywhere else"


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from ft2.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = run(code=code)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1, "processor time: about 0.15 s when this was written"


def test_importing_the_package_imports_nothing_heavy():
    done = run(code=f"import sys, ft2; print([n for n in {HEAVY!r} if n in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_package_s():
    from importlib.metadata import version

    assert run("--version").stdout == f"ft2 {version('ft2')}\n"


def test_completion_scripts_are_offered():
    done = subprocess.run(
        [sys.executable, "-m", "ft2", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert "COMPLETE" in done.stdout + done.stderr
