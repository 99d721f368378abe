"""A static page of a dataset's counts: stores, score histograms, conflicts, wins between models."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS, STORES
from ft2.runs import read_json, write_atomic

ORIGINS = {
    "critic": "Labels come from a model.",
    "human": "Labels come from people.",
    "synthetic": "Labels come from how the clips were made.",
}


def origin(facts: Mapping[str, Any]) -> str:
    """Return what every page says about where labels come from; facts as in stats.json."""
    return ORIGINS[facts.get("label_source", "critic")]


def read_stats(dataset: Path) -> dict[str, Any]:
    """Return the counts of a finished dataset.

    Raises:
        UsageError: the directory is no finished dataset.
    """
    if not dataset.is_dir():
        raise UsageError(f"there is no directory '{dataset}'", "check the path")
    if not (dataset / "manifest.json").is_file():
        raise UsageError(
            f"{dataset} is not a finished dataset", "build it, or finish it with --resume"
        )
    return dict(read_json(dataset / "stats.json"))


def write_stats_page(stats: Mapping[str, Any], path: Path) -> None:
    """Write the counts of `read_stats` as one HTML file without scripts."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    page = environment.get_template("stats.html.j2").render(
        stats=stats,
        dimensions=DIMENSIONS,
        stores=STORES,
        win_rates=win_rates(stats),
        origin=origin(stats),
    )
    write_atomic(path, page)


def win_rates(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each model, clips, mean scores and the share of pairs won against others.

    Splits are summed; pairs within one model do not count, and a model that met no other has None.
    """
    models: dict[str, dict[str, Any]] = {}
    for split in stats["splits"]:
        for name, row in split["models"].items():
            total = models.setdefault(
                name, {"name": name, "clips": 0, **{d: [0.0, 0, 0] for d in DIMENSIONS}}
            )
            total["clips"] += row["clips"]
            for d in DIMENSIONS:
                mean = row["mean_score"][d]  # None for clips that no critic judged
                total[d][0] += (math.nan if mean is None else mean) * row["clips"]
                total[d][1] += row["wins"][d]
                total[d][2] += row["losses"][d]
    for total in models.values():
        for d in DIMENSIONS:
            score, wins, losses = total[d]
            met = wins + losses
            total[d] = {
                "score": None if math.isnan(score) else score / max(1, total["clips"]),
                "wins": wins / met if met else None,
                "met": met,
            }
    return list(models.values())
