"""The checks are defined once: .ci/run, the commit hooks and CONTRIBUTING name the same ones."""

import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CI = (ROOT / ".ci" / "run").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_hooks_are_the_script_s_checks():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"] for repo in repos for hook in repo["hooks"]]
    assert len(entries) == 4
    for entry in entries:
        command = " ".join(word for word in entry.split() if not word.startswith("-"))
        assert f"step {command}" in CI, command


def test_the_script_is_valid_and_can_be_run():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


@pytest.mark.parametrize("name", ["pyproject.toml", ".ci/run", ".ci/pins"])
def test_pins_carry_no_addresses(name: str):
    assert "://" not in (ROOT / name).read_text()


def test_every_direct_dependency_is_pinned():
    pins = {pin.partition("==")[0] for pin in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    groups = [PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values()]
    groups += PROJECT["project"]["optional-dependencies"].values()
    entries = [entry for group in groups for entry in group]
    for requirement in (entry for entry in entries if isinstance(entry, str)):
        name = requirement.partition(";")[0].strip()
        for sign in ("[", "=", ">", "<", "!", "~"):
            name = name.partition(sign)[0].strip()
        assert name == "ft2" or name.lower() in pins, requirement


def test_the_lock_file_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "uv.lock" in ignored


def test_one_opencv():
    """MediaPipe brings a second distribution of the same module; which one lands is chance."""
    versions = {version(f"opencv-{kind}") for kind in ("python-headless", "contrib-python")}
    assert len(versions) == 1, versions
