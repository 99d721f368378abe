"""Record a finished comparison of methods and print its table for the docs.

    python benchmarks/tlpo_compare.py RUN [FILE]

RUN is what `ft2 tlpo compare FILE -o RUN` made, FILE benchmarks/tlpo_compare.yaml or another; the
record gets its name. Nothing is measured here.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import header

from ft2.files import read_json
from ft2.pairs import DIMENSIONS
from ft2.tlpo.compare_table import Rows, summarise

FILE = Path("benchmarks/tlpo_compare.yaml")
RESULTS = Path(__file__).parent / "results"
STEPS = "an expert 40 of rank 16, a gate 40, one LoRA 160 of rank 48, or fewer"


def recorded(run: Path, file: Path) -> dict[str, Any]:
    """Return what is kept of a comparison that a file asked for."""
    table = read_json(run / "table.json")
    own = read_json(run / "command.json")
    return {
        "machine": {
            **header(),
            "command": f"ft2 tlpo compare {file} -o runs/table",
            "torch": own["packages"]["torch"],
        },
        "setting": {
            "weights": "nano",
            "dataset": "the demo's, made with the presets of its date",
            "validation": "24 conditions of the puppets' split dev",
            "test": f"{table['conditions']} conditions on 12 unseen faces",
            "steps": STEPS,
        },
        "conditions": table["conditions"],
        "seeds": table["seeds"],
        "scores": rounded(table["scores"]),
        "difference_to_base": rounded(table["difference_to_base"]),
        "wins_against_base": rounded(table["wins"]),
        "gate_minus": {
            name: rounded(minus(run, table["seeds"], "gate", name))
            for name in table["difference_to_base"]
            if name != "gate"
        },
        "sweep": {name: sweep(found) for name, found in table["chosen"].items()},
    }


def minus(run: Path, seeds: list[int], ours: str, theirs: str) -> dict[str, Any]:
    """Return the paired differences of two methods over the seeds' test clips."""
    rows: dict[str, Rows] = {
        name: [
            {**row, "run": seed}
            for seed in seeds
            for row in read_json(
                run / f"seed-{seed}" / f"{name.replace(' ', '-').replace('/', '-')}.json"
            )
        ]
        for name in (ours, theirs)
    }
    table = summarise(rows, (*DIMENSIONS, "lip by landmarks"), theirs)
    found: dict[str, Any] = table["difference_to_base"][ours]
    return found


def rounded(cells: Any) -> Any:
    """Return cells with five decimals."""
    if isinstance(cells, Mapping):
        return {name: rounded(cell) for name, cell in cells.items()}
    return round(cells, 5) if isinstance(cells, float) else cells


def sweep(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a method's sweep tried: keys, validation gains, and which was taken."""
    tried = {
        words(entry["changes"]): round(entry["validation_gain"], 4)
        for entry in found["sweep"]
        if len(found["sweep"]) > 1
    }
    return {"chosen": words(found["changes"]), "validation gain of each candidate": tried}


def words(changes: Mapping[str, Any]) -> str:
    """Return changes of a config as KEY=VALUE words without their groups."""
    named = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in changes.items()]
    return ", ".join(named) or "as the preset of its date"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table of the docs."""
    lines = [
        "| method | motion | lip | quality | clips above the base's: motion / lip / quality |",
        "|---|---|---|---|---|",
    ]
    for name, cells in report["difference_to_base"].items():
        parts = [f"{c['value']:+.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in
                 (cells[d] for d in DIMENSIONS)]  # fmt: skip
        wins = [f"{report['wins_against_base'][name][d]['value']:.2f}" for d in DIMENSIONS]
        lines.append(f"| {name} | {' | '.join(parts)} | {' / '.join(wins)} |")
    return "\n".join(lines)


def beside(report: Mapping[str, Any]) -> str:
    """Return the docs' table of what the gate has beyond other methods."""
    lines = ["| the gate minus | motion | lip | quality |", "|---|---|---|---|"]
    for name, cells in report["gate_minus"].items():
        parts = [f"{c['value']:+.3f} [{c['low']:.3f}, {c['high']:.3f}]" for c in
                 (cells[d] for d in DIMENSIONS)]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(parts)} |")
    return "\n".join(lines)


def main() -> None:
    """Record a comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    options = parser.parse_args()
    report = recorded(options.run, options.file)
    (RESULTS / f"{options.file.stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report))
    print(beside(report))


if __name__ == "__main__":
    main()
