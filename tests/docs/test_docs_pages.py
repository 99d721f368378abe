"""The pages of docs/: generated ones follow the code, links lead somewhere, commands exist."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from markdown.extensions.toc import slugify

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WRITTEN = [page for page in PAGES if "reference" not in page.parts and page.stem != "measured"]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def prose(page: Path) -> str:
    """Return a page without its fenced code."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def fenced(language: str) -> list[tuple[str, str]]:
    """Return (page, text) of every fenced block of a language."""
    pattern = re.compile(rf"^( *)```{language}\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    return [
        (page.relative_to(ROOT).as_posix(), re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for page in WRITTEN
        for indent, text in pattern.findall(page.read_text(encoding="utf-8"))
    ]


def command_lines() -> list[tuple[str, str]]:
    """Return (page, line) of every ft2 command in a bash block, continued lines joined."""
    found = []
    for page, block in fenced("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition(" #")[0].strip().removeprefix("uv run ")
            if line.startswith("ft2 "):
                found.append((page, line.replace(" ...", "")))
    return found


def anchors(page: Path) -> set[str]:
    """Return the ids of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {
        slugify(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", h).replace("`", ""), "-") for h in headings
    }


def test_generated_pages_follow_the_code():
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", TEXTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(text: Path):
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)", prose(text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        page = (text.parent / name).resolve() if name else text
        assert page.exists(), f"{target} leads nowhere"
        api = "reference/api" in page.as_posix() or "measured" in page.name
        if anchor and page.suffix == ".md" and not api:
            assert anchor in anchors(page), f"{target}: no such heading"


def test_every_page_is_in_the_navigation():
    plain = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]  # type: ignore[attr-defined]

    named = leaves(yaml.safe_load(plain)["nav"])
    assert sorted(named) == sorted(p.relative_to(DOCS).as_posix() for p in PAGES)


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_each_command_exists_with_its_options_and_keys(
    page: str, line: str, check_command: Callable[[str], None]
):
    check_command(line)


@pytest.mark.parametrize(("page", "code"), fenced("python"))
def test_python_in_the_pages_imports_what_exists(page: str, code: str):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"
