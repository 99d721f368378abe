"""The README is short, and every command in it exists with its options, presets and keys."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ft2.__main__ import main
from ft2.cli import app
from ft2.cli.config import config_class
from ft2.config import load_config, preset_names

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
    line: str, capsys: pytest.CaptureFixture[str]
):
    words = shlex.split(line)[1:]
    command: Any = typer.main.get_command(app)
    path = []
    while words and words[0] in getattr(command, "commands", {}):
        path.append(words[0])
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"'{line}' names no command"
    assert call(*path, "--help") == 0
    usage = capsys.readouterr().out
    known = {spelling for parameter in command.params for spelling in parameter.opts}
    for word in words:
        assert not word.startswith("-") or word in known, f"{word} is no option\n{usage}"
    presets = [w for w in words if w.startswith(("nano/", "full/"))]
    assert set(presets) <= set(preset_names())
    for preset in presets:
        overrides = [w for w in words if "=" in w]
        load_config(config_class(preset.partition("/")[2]), preset, overrides)


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
