"""The tables that papers print, as data, each with how sure we are of it.

FantasyTalking's are the authors' text. What is known of FantasyTalking2's comes second-hand or from
a review, and most of its tables are not known at all. FantasyTalking gives two IDC values for the
same method on the same set (.9754 in its Table 1, .989 in its Tables 2 and 4): never compare IDC
across tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ft2.metrics.catalogue import NINE

Confidence = Literal["authors' text", "review", "second-hand"]
Values = dict[str, float]


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        title: Which table, on which clips.
        source: The paper.
        confidence: How we know it.
        rows: Value of each column of `ft2.metrics.catalogue.COLUMNS`, by method.
        note: What to know before comparing.
    """

    title: str
    source: str
    confidence: Confidence
    rows: dict[str, Values]
    note: str = ""

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order of the paper."""
        return list(dict.fromkeys(name for values in self.rows.values() for name in values))


def _nine(*numbers: float | None) -> Values:
    return {n: v for n, v in zip(NINE, numbers, strict=True) if v is not None}


def _some(names: str, *numbers: float) -> Values:
    return dict(zip(names.split(), numbers, strict=True))


_FT = "FantasyTalking, 2504.04842"
_FT2 = "FantasyTalking2, 2508.11255"
_CONTROL = "fvd sync_c sync_d idc sd"

TABLES = (
    PaperTable(
        "Table 1, tame: 50 clips of HDTF", _FT, "authors' text",
        {
            "AniPortrait": _nine(
                37.672, 397.114, 1.095, 12.461, 0.9508, 0.9372, 4.639, None, 0.5129
            ),
            "EchoMimic": _nine(
                33.765, 471.452, 2.514, 10.743, 0.9527, 0.9419, 5.783, None, 0.5108
            ),
            "Sonic": _nine(
                30.396, 358.023, 4.197, 9.103, 0.9595, 0.9885, 8.832, None, 0.5312
            ),
            "Hallo3": _nine(
                32.617, 347.358, 4.060, 9.371, 0.9566, 0.9774, 8.415, None, 0.5247
            ),
            "FantasyTalking": _nine(
                27.695, 301.173, 4.226, 9.251, 0.9612, 0.9892, 11.745, None, 0.5362
            ),
        },
    ),
    PaperTable(
        "Table 1, wild: 80 people, in-house", _FT, "authors' text",
        {
            "AniPortrait": _nine(
                63.574, 841.962, 0.996, 12.084, 0.9318, 0.9031, 2.252, 1.9287, 0.5357
            ),
            "EchoMimic": _nine(
                59.746, 590.373, 1.949, 10.754, 0.9463, 0.9202, 3.201, 1.9508, 0.5311
            ),
            "Sonic": _nine(
                45.400, 489.985, 2.689, 10.194, 0.9539, 0.9607, 10.484, 3.9019, 0.5913
            ),
            "Hallo3": _nine(
                47.403, 488.499, 2.673, 10.292, 0.9420, 0.9538, 11.411, 5.2840, 0.5842
            ),
            "FantasyTalking": _nine(
                43.137, 483.108, 3.154, 9.689, 0.9589, 0.9754, 13.783, 7.9624, 0.6183
            ),
        },
    ),
    PaperTable(
        "Table 2, motion control, wild", _FT, "authors' text",
        {
            "Sonic, subtle": _some(_CONTROL, 508.66, 2.64, 11.23, 0.978, 8.32),
            "FantasyTalking, subtle": _some(_CONTROL, 496.22, 3.11, 10.04, 0.982, 8.12),
            "Sonic, natural": _some(_CONTROL, 489.99, 2.69, 10.19, 0.988, 10.48),
            "FantasyTalking, natural": _some(_CONTROL, 483.11, 3.15, 9.69, 0.989, 13.78),
            "Sonic, intense": _some(_CONTROL, 522.78, 2.06, 12.59, 0.971, 12.32),
            "FantasyTalking, intense": _some(_CONTROL, 501.67, 3.09, 9.81, 0.980, 18.14),
        },
        "IDC is not comparable with Table 1.",
    ),
    PaperTable(
        "Table 4, ablation, wild", _FT, "authors' text",
        {
            "clip level only": _some(_CONTROL, 492.85, 1.98, 11.21, 0.986, 13.66),
            "frame level only": _some(_CONTROL, 534.39, 3.54, 9.02, 0.987, 8.22),
            "without identity": _some(_CONTROL, 510.62, 3.06, 10.15, 0.945, 12.96),
            "FantasyTalking": _some(_CONTROL, 483.11, 3.15, 9.69, 0.989, 13.78),
        },
        "IDC is not comparable with Table 1.",
    ),
    PaperTable(
        "Headline", _FT2, "review", {"FantasyTalking2": _some("fvd sync_c", 341.181, 5.704)},
        "The set is not stated; probably the wild one. All other metrics are unknown to us.",
    ),
    PaperTable(
        "Table 3, preference losses", _FT2, "second-hand",
        {
            "base": {"sync_c": 3.154}, "DPO": {"sync_c": 4.381}, "IPO": {"sync_c": 4.375},
            "SimPO": {"sync_c": 4.546}, "TLPO": {"sync_c": 5.704},
        },
        "The base's value is FantasyTalking's on the wild set.",
    ),
)  # fmt: skip
"""Tables of automatic metrics."""

STUDY_DIMENSIONS = ("lip_sync", "video_quality", "identity", "motion_diversity")
"""What FantasyTalking's 24 raters were asked, 0 to 10 each."""

STUDY = PaperTable(
    "Table 3, user study: 24 people, 0 to 10", _FT, "authors' text",
    {
        "AniPortrait": _some(" ".join(STUDY_DIMENSIONS), 8.18, 6.78, 7.82, 5.28),
        "EchoMimic": _some(" ".join(STUDY_DIMENSIONS), 8.22, 6.31, 7.05, 4.40),
        "Sonic": _some(" ".join(STUDY_DIMENSIONS), 9.07, 8.17, 8.13, 6.25),
        "Hallo3": _some(" ".join(STUDY_DIMENSIONS), 8.93, 7.89, 7.82, 6.44),
        "FantasyTalking": _some(" ".join(STUDY_DIMENSIONS), 9.45, 9.18, 8.44, 9.81),
    },
)  # fmt: skip

STUDY_GAINS = {"lip": 0.127, "motion": 0.150, "quality": 0.137}
"""Relative gains of FantasyTalking2's user study (a review; over whom is not stated)."""
