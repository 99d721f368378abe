"""Write the generated pages and figures of the documentation; `--check` only compares.

python docs/generate            # write
python docs/generate --check    # exit 1 and name the files that differ
"""

import sys
from pathlib import Path

import api
import commands
import figures
import keys
import measured
import metrics

DOCS = Path(__file__).resolve().parents[1]


def files() -> dict[Path, str]:
    """Return the text of every generated file by its path below docs/."""
    found = {Path("reference/cli.md"): commands.page(), Path("measured.md"): measured.page()}
    found[Path("reference/metrics.md")] = metrics.page()
    found |= {Path("reference/config") / name: text for name, text in keys.pages().items()}
    found |= {Path("reference/api") / name: text for name, text in api.pages().items()}
    found |= {Path("explanation/figures") / name: text for name, text in figures.all_svg().items()}
    return found


def main() -> int:
    """Write or compare; files in the generated folders that nothing writes are in the way."""
    wanted = files()
    folders = ("reference/config", "reference/api", "explanation/figures")
    there = {p.relative_to(DOCS) for f in folders for p in (DOCS / f).glob("*") if p.is_file()}
    differing = sorted(
        [p for p, text in wanted.items() if not _same(DOCS / p, text)] + [*(there - set(wanted))]
    )
    if "--check" in sys.argv[1:]:
        for path in differing:
            print(f"docs/{path}", file=sys.stderr)
        if differing:
            print("these files lag behind the code: python docs/generate", file=sys.stderr)
        return int(bool(differing))
    for path in there - set(wanted):
        (DOCS / path).unlink()
    for path, text in wanted.items():
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_text(text, encoding="utf-8")
    print(f"{len(wanted)} files, {len(differing)} of them changed")
    return 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
