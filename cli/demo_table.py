"""The one table that the demo prints."""

from collections.abc import Mapping
from typing import Any

from ft2.pairs import DIMENSIONS

CRITIC_ROWS = {
    "majority": "majority answer",
    "untrained": "untrained",
    "critic": "trained",
    "silenced": "trained, sound made silent",
    "audio_swapped": "trained, another clip's sound",
    "generated_majority": "generated clips: majority answer",
    "generated_untrained": "generated clips: untrained",
    "generated": "generated clips: trained",
    "generated_silenced": "generated clips: sound made silent",
    "generated_audio_swapped": "generated clips: another's sound",
}
"""Rows of the critic's accuracy: key in result.json and label."""


def table_text(result: Mapping[str, Any]) -> str:
    """Return result.json's figures as one table of plain text.

    It holds no times, so the same seed gives the same table.
    """
    from io import StringIO

    from rich import box
    from rich.console import Console
    from rich.table import Table

    columns = list(result["scores"]["base"])
    table = Table(box=box.SIMPLE_HEAD, title="ft2 demo", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _rows(result, columns):
        table.add_row(*row)
    text = StringIO()
    Console(file=text, width=160, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip("\n")


def _rows(result: Mapping[str, Any], columns: list[str]) -> list[list[str]]:
    def row(label: str, values: Mapping[str, str] | None = None) -> list[str]:
        return [label, *((values or {}).get(column, "") for column in columns)]

    rows = [row("critic: accuracy on held-out clips")]
    for key, label in CRITIC_ROWS.items():
        accuracy: dict[str, str] = {d: _estimate(result["critic"][key][d]) for d in DIMENSIONS}
        rows.append(row(f"  {label}", accuracy))
    pairs: dict[str, str] = {d: str(result["pairs"][d]) for d in DIMENSIONS}
    rows.append(row("pairs", pairs))
    experts: dict[str, str] = {d: _estimate(result["experts"][d]["held_out"]) for d in DIMENSIONS}
    rows.append(row("experts: held-out accuracy", experts))
    base = {column: _estimate(result["scores"]["base"][column]) for column in columns}
    rows += [row("ground-truth score"), row("  base", base), row("difference to the base")]
    for name, deltas in result["difference_to_base"].items():
        values = {column: _estimate(deltas.get(column), signed=True) for column in columns}
        rows.append(row(f"  {name}", values))
    return rows


def _estimate(estimate: Mapping[str, Any] | None, signed: bool = False) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    sign = "+" if signed else ""
    text = f"{estimate['value']:{sign}.2f}"
    if estimate.get("low") is not None:
        text += f" [{estimate['low']:{sign}.2f},{estimate['high']:{sign}.2f}]"
    return text
