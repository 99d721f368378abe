"""What the mouth does for each phone."""

from __future__ import annotations

VISEMES: dict[str, tuple[float, float]] = {
    "AA": (1.0, 0.1), "AE": (0.85, 0.4), "AH": (0.6, 0.1), "AO": (0.85, -0.4),
    "AW": (0.9, -0.2), "AY": (0.85, 0.3), "EH": (0.6, 0.35), "ER": (0.35, -0.35),
    "EY": (0.5, 0.5), "IH": (0.38, 0.4), "IY": (0.28, 0.65), "OW": (0.6, -0.75),
    "OY": (0.7, -0.6), "UH": (0.35, -0.6), "UW": (0.3, -0.95), "W": (0.16, -1.0),
    "B": (0.0, 0.0), "P": (0.0, 0.0), "M": (0.0, 0.0), "F": (0.06, 0.1), "V": (0.06, 0.1),
    "S": (0.13, 0.35), "Z": (0.13, 0.35), "SH": (0.2, -0.5), "ZH": (0.2, -0.5),
    "CH": (0.2, -0.5), "JH": (0.2, -0.5), "T": (0.22, 0.15), "D": (0.22, 0.15),
    "N": (0.22, 0.15), "L": (0.32, 0.15), "R": (0.26, -0.5), "TH": (0.25, 0.1),
    "DH": (0.25, 0.1), "K": (0.3, 0.1), "G": (0.3, 0.1), "NG": (0.3, 0.1),
    "HH": (0.4, 0.05), "Y": (0.25, 0.5), "SIL": (0.0, 0.0),
}  # fmt: skip
"""Target opening (0 to 1) and width (-1 rounded to 1 spread) of each ARPAbet phone."""

CLOSED, TUCKED = ("B", "P", "M"), ("F", "V")
"""Phones with pressed lips, and with the lower lip under the upper teeth."""
