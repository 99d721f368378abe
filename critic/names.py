"""Names that configs and losses share; importing this imports no torch."""

from typing import Final, Literal

PairObjective = Literal["bradley_terry", "margin", "soft", "rao_kupper", "davidson"]
Objective = Literal["yes_no", "regression", PairObjective]

PAIR_OBJECTIVES: Final = ("bradley_terry", "margin", "soft", "rao_kupper", "davidson")

Negative = Literal["audio_shift", "silence", "shuffle", "freeze", "blur", "bitrate"]

SWAPPED: Final = ("audio_swapped", "audio_swapped_detected")
"""Rows of an evaluation that need clips of two voices."""
ONE_VOICE: Final = "all clips have one utterance, and there is no other sound to give them"
