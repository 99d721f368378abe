"""The site builds without a warning, with every page and its figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "from_pretrained" in (tmp_path / "reference/api/critic/index.html").read_text()
    assert not list(tmp_path.rglob("*.py"))
    pages = list(tmp_path.rglob("index.html"))
    fetched = [
        p for p in pages if 'src="http' in p.read_text() or "fonts.googleapis" in p.read_text()
    ]
    assert not fetched, "a page fetches from elsewhere"
