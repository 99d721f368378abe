"""The page of all commands, from the Typer app itself."""

import re
from typing import Any

import typer.main
from typer.cli import get_docs_for_click

from ft2.cli import app

LEAD = """# Commands

`-h` after any command prints the same. Results go to stdout, everything else to stderr. Exit codes:
0 done, 1 failed, 2 wrong command, config or input (nothing was started), 130 or 143 interrupted.

`[CONFIG]` is a preset (`ft2 config list`) or a YAML file; single values follow as `KEY=VALUE`
(see [config keys](config/index.md)).

`-n` checks the inputs, prints the plan and writes nothing. What is not there yet stands under
`missing` with the command that makes it; a missing input that you named yourself is error 2.
"""


def page() -> str:
    """Return the page as Markdown: a heading a command, with usage, arguments and options."""
    root: Any = typer.main.get_command(app)
    text = get_docs_for_click(obj=root, ctx=root.make_context("ft2", [], resilient_parsing=True))
    text = re.sub(r"^#+ ", lambda found: "#" + found[0], text, flags=re.MULTILINE)
    text = text.replace("[[CONFIG] [KEY=VALUE]...]...", "[CONFIG] [KEY=VALUE]...")
    text = text.replace("[CONFIG] [KEY=VALUE]... <list[str]>", "[CONFIG] [KEY=VALUE]...")
    text = re.sub(r" <(?:list\[)?(?:str|path|int|float)\]?>`", "`", text)
    for path, command in _walk(root, ()):
        for name, child in getattr(command, "commands", {}).items():
            short = re.escape(f"* `{name}`: ") + r".*$"
            full = f"* [`{name}`](#{'-'.join(('ft2', *path, name))}): {_first(child)}"
            section = "## `" + " ".join(("ft2", *path)) + "`"
            head, found, tail = text.partition(section)
            tail = re.sub(short, lambda _, full=full: full, tail, count=1, flags=re.MULTILINE)
            text = head + found + tail
    return LEAD + "\n" + text.strip() + "\n"


def _walk(command: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    found = [(path, command)]
    for name, child in getattr(command, "commands", {}).items():
        found += _walk(child, (*path, name))
    return found


def _first(command: Any) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split())
