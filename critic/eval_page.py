"""`ft2 critic eval -o DIR`: the figures as JSON and as one page with reliability plots."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft2.critic.evaluate_pairs import METRICS
from ft2.critic.names import ONE_VOICE, SWAPPED
from ft2.critic.pages import Section, Table, estimate, plot, write_page
from ft2.errors import UsageError
from ft2.report.charts import number
from ft2.runs import write_json


def check_output(directory: Path) -> None:
    """Refuse a directory that has content.

    Raises:
        UsageError: It has.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"the output '{directory}' already exists", "choose another --output")


def write_evaluation(directory: Path, result: Mapping[str, Any]) -> None:
    """Write ``eval.json`` and ``eval.html``."""
    sections = _pair_sections(result) if "dimensions" in result else _clip_sections(result)
    lead = (
        "Agreement with people's ratings. Intervals are 95 % bootstraps over "
        + ("prompts" if "dimensions" in result else "utterances")
        + ". Scores compare only within one critic and one prompt."
    )
    write_page(directory / "eval.html", "Critic evaluation", lead, sections)
    write_json(directory / "eval.json", result)


def _clip_sections(result: Mapping[str, Any]) -> list[Section]:
    rows, dimensions = result["rows"], list(result["thresholds"])
    table = Table(
        ["judge", *dimensions, "what it is"],
        [
            [name, *(estimate(cells.get(d, {}).get("accuracy")) for d in dimensions), meaning]
            for (name, cells), meaning in zip(rows.items(), result["meaning"].values(), strict=True)
        ],
    )
    areas = Table(
        ["judge", *dimensions],
        [
            [name, *(estimate(cells.get(d, {}).get("auc")) for d in dimensions)]
            for name, cells in rows.items()
        ],
    )
    found = {d: cell["calibration"] for d, cell in rows["critic"].items()}
    counts = (
        f"{result['clips']} clips, {result['utterances']} utterances, "
        f"{result['identities']} faces of the split {result['split']}."
    )
    chance = "0.5 is chance; no threshold plays a part."
    if SWAPPED[0] not in rows:
        counts += f" No row for swapped sound: {ONE_VOICE}."
    left_out = rows.get("sync_measure", {}).get("lip", {}).get("left_out", {})
    for why, count in left_out.items():
        counts += f" The lip-sync measure leaves out {count}: {why}."
    return [
        Section("Accuracy of Yes and No", counts, [table]),
        Section("Area under the ROC curve", chance, [areas], [_roc(rows["critic"])]),
        _reliability(found),
    ]


def _roc(cells: Mapping[str, Any]) -> str:
    curves = {d: [(x, y) for x, y in cell["roc"]] for d, cell in cells.items()}
    return plot(
        curves, x_label="share of No taken for Yes", y_label="share of Yes found",
        x_range=(0, 1), y_range=(0, 1), diagonal=True, key_at=(330, 150),
    )  # fmt: skip


def _reliability(found: Mapping[str, Any]) -> Section:
    table = Table(
        ["", *found],
        [
            ["Brier score", *(estimate(c["brier"]) for c in found.values())],
            ["expected calibration error", *(estimate(c["ece"]) for c in found.values())],
        ],
    )
    curves = {
        d: [(b["mean_p"], b["share_yes"]) for b in c["reliability"]] for d, c in found.items()
    }
    drawn = plot(
        curves, x_label="mean P(yes) of a bin", y_label="share of Yes", x_range=(0, 1),
        y_range=(0, 1), diagonal=True,
    )  # fmt: skip
    text = "On the dashed line P(yes) means what it says; 0.25 is the Brier score of a coin."
    return Section("Reliability", text, [table], [drawn])


def _pair_sections(result: Mapping[str, Any]) -> list[Section]:
    sections = []
    for dimension, found in result["dimensions"].items():
        if not found["n"]:
            sections.append(Section(dimension, f"No pair has both scores: {found['left_out']}."))
            continue
        human = ", ".join(f"{name} {count}" for name, count in found["human"].items())
        text = f"{found['n']} pairs of {found['prompts']} prompts; people said {human}."
        sections.append(Section(dimension, text, [_metrics(found), *_generators(found)]))
    return sections


def _metrics(found: Mapping[str, Any]) -> Table:
    rows = [[name, estimate(found[key]), _remark(key, found)] for key, name in METRICS.items()]
    trivial = found["trivial"]
    rows.append(["trivial: random, oracle eps", number(trivial["random"]["three_way_oracle"]), ""])
    rows.append(["trivial: always tie, three-way", number(trivial["always_tie"]["three_way"]), ""])
    sync = found.get("sync_measure")
    if sync and sync["n"]:
        about = f"{sync['n']} pairs"
        names = METRICS.items()
        rows += [[f"lip-sync measure: {name}", estimate(sync[key]), about] for key, name in names]
    ceiling = found["raters"]["agree_with_the_others"]
    if ceiling is not None:
        rows.append(["one rater against the others", number(ceiling), "the ceiling"])
    return Table(["metric", "value", ""], rows)


def _remark(key: str, found: Mapping[str, Any]) -> str:
    if key == "decided":
        return f"coverage {number(found[key]['coverage'])}"
    return f"eps {found[key]['eps']:.4g}" if key == "three_way_oracle" else ""


def _generators(found: Mapping[str, Any]) -> list[Table]:
    rows = [
        [name, str(g["n"]), number(g["people"]), number(g["scores"]), number(g["bias"])]
        for name, g in found["generators"].items()
    ]
    head = ["generator", "pairs", "people prefer it", "scores prefer it", "bias"]
    return [Table(head, rows)] if rows else []
