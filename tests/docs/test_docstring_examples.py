"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"


def with_examples() -> list[str]:
    """Return the modules of ft2 whose text has a prompt; linked packages are followed."""
    found = []
    for folder in (SOURCE / "ft2", *(p for p in (SOURCE / "ft2").iterdir() if p.is_dir())):
        for path in folder.rglob("*.py") if folder != SOURCE / "ft2" else folder.glob("*.py"):
            if ">>> " in path.read_text(encoding="utf-8"):
                name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
                found.append(name.removesuffix(".__init__"))
    return sorted(found)


@pytest.mark.parametrize("name", with_examples())
def test_examples_print_what_they_say(name: str):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted
    assert not results.failed


def test_there_are_examples():
    assert {"ft2.config", "ft2.flow", "ft2.wan.audio"} <= set(with_examples())
