"""Whose figures they are: what an evaluation records of its critic, and a push compares."""

from pathlib import Path
from typing import Any

from ft2.critic.cache import fingerprint
from ft2.critic.checkpoint import FILES, read_card, read_lora
from ft2.record import packages
from ft2.runs import hash_file


def critic_facts(directory: Path) -> dict[str, Any]:
    """Return what a critic's figures depend on: its hash, base, what it sees, package versions.

    ``sha256`` covers the adapter's tensors and scale, questions, thresholds, calibration and what a
    clip looks like to it; not where its base lies.

    Raises:
        UsageError: There is no critic, or it is damaged.
    """
    card, lora = read_card(directory), read_lora(directory)
    seen = card.model.model_dump(mode="json", include={"clip", "view", "streams"})
    tensors = hash_file(directory / FILES[1])
    known = card.to_dict()
    parts = ("questions", "thresholds", "objective", "tie_widths", "calibration", "base_sha256")
    judged = {key: known[key] for key in parts}
    scale = lora.model_dump(mode="json", include={"rank", "alpha"})
    return {
        "sha256": fingerprint({"tensors": tensors, **scale, **judged, **seen}),
        "adapter_sha256": tensors,
        "base_sha256": card.base_sha256,
        "preprocessing": seen,
        "packages": packages(),
    }
