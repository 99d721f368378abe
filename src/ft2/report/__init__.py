"""The report of a run: facts in, one static page out.

`Report` holds what the page shows; `write_report` renders it. The page is one HTML file with
its styles, script and charts inside; clips and pictures lie beside it as relative files.
"""

from ft2.report.data import (
    ClipShown,
    Command,
    Curve,
    Estimate,
    Expert,
    FileEntry,
    GateMap,
    PairExample,
    Report,
    Sample,
    ScoreRow,
    Stage,
    Trained,
)
from ft2.report.page import render_report, write_report

__all__ = [
    "ClipShown",
    "Command",
    "Curve",
    "Estimate",
    "Expert",
    "FileEntry",
    "GateMap",
    "PairExample",
    "Report",
    "Sample",
    "ScoreRow",
    "Stage",
    "Trained",
    "render_report",
    "write_report",
]
