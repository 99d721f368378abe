import json
from pathlib import Path

import pytest
import yaml

from ft2.__main__ import main
from ft2.cli.config import KINDS, config_class
from ft2.config import dump_yaml, load_config, preset_names, preset_path


def call(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_every_kind_has_a_preset_in_both_families():
    expected = {f"{family}/{kind}" for family in ("nano", "full") for kind in KINDS}
    assert set(preset_names()) == expected - {"full/demo", "nano/critic-3b"}, "nano has one critic"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_shows_all_its_keys(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cls = config_class(name.partition("/")[2])
    config = load_config(cls, name)
    assert call("config", "show", name) == 0
    shown = capsys.readouterr().out
    assert shown == dump_yaml(config)
    copy = tmp_path / "c.yaml"
    copy.write_text(shown)
    assert load_config(cls, copy) == config
    assert call("config", "check", name) == 0
    assert "valid: True" in capsys.readouterr().out


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_only_what_differs_or_explains(name: str):
    text = preset_path(name).read_text()
    assert text.startswith("#"), "a preset begins with a comment that says what it is for"
    assert isinstance(yaml.safe_load(text), dict)


def test_list_prints_the_presets(capsys: pytest.CaptureFixture[str]):
    assert call("config", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == preset_names()
    assert all(len(line.split()) > 3 and len(line) <= 100 for line in lines)
    nano = next(line for line in lines if line.startswith("nano/critic "))
    assert nano.endswith("  Talking-Critic on the nano Thinker: minutes on one CPU core")
    assert call("config", "list", "--json") == 0
    about = json.loads(capsys.readouterr().out)["presets"]
    assert list(about) == preset_names()
    assert all(about.values())


def test_copies_are_checked_by_name_or_by_their_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name = "nano/nsq"
    for file in ("nsq.yaml", "mine.yaml"):
        assert call("config", "copy", name, "-o", str(tmp_path / file)) == 0
        assert (tmp_path / file).read_bytes() == preset_path(name).read_bytes()
        assert call("config", "check", str(tmp_path / file)) == 0
        assert "NsqConfig" in capsys.readouterr().out


def test_copy_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "a.yaml"
    target.write_text("mine")
    assert call("config", "copy", "nano/nsq", "-o", str(target)) == 2
    assert "already exists" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_misspelt_keys_are_named_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "nsq.yaml"
    path.write_text(preset_path("nano/nsq").read_text() + "\nsedes_typo: 1\n")
    line = path.read_text().splitlines().index("sedes_typo: 1") + 1
    assert call("config", "check", str(path), "another_typo=1") == 2
    err = capsys.readouterr().err
    assert f"{path}:{line}: unknown key 'sedes_typo'" in err
    assert "argument 'another_typo=1': unknown key 'another_typo'" in err
