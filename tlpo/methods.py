"""The methods that `ft2 tlpo compare` knows, and how each differs from the configs given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeVar

import torch

from ft2.config import Config
from ft2.errors import UsageError
from ft2.pairs import DIMENSIONS
from ft2.tlpo.experts import ExpertName
from ft2.tlpo.gate import GateTable
from ft2.wan.model import TalkingModel

Changes = Mapping[str, object]
"""Config keys with dots, and their values."""

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True)
class Method:
    """How a policy comes from the pairs."""

    kind: Literal["expert", "single", "merge", "switch", "gate", "average"]
    """``expert``: one LoRA on its view; ``single``: one on all views; ``merge``: three experts at
    one strength; ``switch``: one expert for each interval of noise levels; ``gate``: learned;
    ``average``: the gate's mean."""
    changes: Changes = field(default_factory=dict)
    """What differs from the configs given."""
    candidates: Sequence[Changes] = ({},)
    """Further changes, of which the best on validation conditions is taken."""

    def of(self, candidate: int) -> dict[str, object]:
        """Return the method's changes with those of a candidate."""
        return {**self.changes, **self.candidates[candidate]}


def merges(*weights: float) -> tuple[Changes, ...]:
    """Return candidates of a merge: one for each strength."""
    return tuple({"weight": weight} for weight in weights)


_PLAIN: Final = {"dpo.positive_weight": 0.0}
"""DPO-Positive's penalty, which the presets of experts may have, belongs to DPO alone."""
_OTHER: Final = {**_PLAIN, "dpo.min_gradient_factor": 0.0}
"""And the early stop reads DPO's margin."""

METHODS: Final[dict[str, Method]] = {
    "dpo": Method("single"),
    "ipo": Method("single", {**_OTHER, "dpo.loss": "ipo"}),
    "simpo": Method("single", {**_OTHER, "dpo.loss": "simpo"}),
    "kto": Method("single", {**_OTHER, "dpo.loss": "kto"}),
    "sdpo": Method("single", {**_PLAIN, "dpo.safeguard": 0.9}),
    "merge 1/3": Method("merge", {"weight": 1 / 3}),
    "merge 2/3": Method("merge", {"weight": 2 / 3}),
    "merge 1": Method("merge", {"weight": 1.0}),
    "merge tuned": Method("merge", {}, merges(1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0, 4 / 3)),
    "switch": Method("switch", {"edges": (1 / 3, 2 / 3)}),
    "gate": Method("gate"),
    "gate average": Method("average"),
    "gate without timestep": Method("gate", {"gate.input": "none"}),
    "gate without layer": Method("gate", {"gate.per_layer": False}),
}
"""What is compared. The switch gives little noise to quality, the middle to lip and much noise to
motion (AlignHuman, arXiv 2506.11144, has motion early and fidelity late)."""


def changed(config: ConfigT, changes: Changes) -> ConfigT:
    """Return a config with some keys (``dpo.beta``) set to other values, validated.

    Raises:
        UsageError: An unknown key or a wrong value.
    """
    data = config.model_dump()
    for key, value in changes.items():
        place = data
        *parents, last = key.split(".")
        for name in parents:
            place = place.get(name, {})
        if last not in place:
            raise UsageError(f"unknown key '{key}' in a method's changes")
        place[last] = value
    try:
        return type(config).model_validate(data)
    except ValueError as error:
        raise UsageError(f"a method's changes do not fit: {error}") from error


def switch_table(
    edges: object, experts: Mapping[ExpertName, Path], model: TalkingModel
) -> GateTable:
    """Return the hard switch: from little to much noise quality, lip, motion, each at weight 1."""
    order = [name for name in ("quality", "lip", "motion") if name in experts]
    names = [name for name in DIMENSIONS if name in experts]
    levels = switch_edges({"edges": edges}, len(order))
    rows = [[float(name == active) for name in names] for active in order]
    table = torch.tensor(rows)[:, None].expand(-1, model.num_layers, -1)
    return GateTable(torch.tensor(levels), table)


def switch_edges(changes: Changes, experts: int) -> list[float]:
    """Return the noise levels at which a switch between some experts goes on to the next.

    Raises:
        UsageError: They are not one fewer than the experts, rising, between 0 and 1.
    """
    edges = changes.get("edges")
    if not isinstance(edges, Sequence) or len(edges) != experts - 1:
        found = len(edges) if isinstance(edges, Sequence) else edges
        raise UsageError(f"{found} edges for a switch of {experts} experts")
    levels = [float(edge) for edge in edges]
    if levels != sorted(set(levels)) or not 0 < levels[0] <= levels[-1] < 1:
        raise UsageError(f"the edges {levels} do not rise between 0 and 1")
    return levels
