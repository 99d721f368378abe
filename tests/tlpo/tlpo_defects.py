"""Checks that are run twice: on the code as it is, and with a defect planted, where they must fail.

The defects are those of public preference trainers.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_step import one
from tlpo_toys import World

from ft2.tlpo import passes
from ft2.tlpo.config import DpoConfig
from ft2.tlpo.step import PreferenceStep
from ft2.wan.model import TalkingModel

Patch = pytest.MonkeyPatch
Check = Callable[[World, Path], None]
Plant = Callable[[Patch], None]


class Defects(dict[str, tuple[Check, Plant]]):
    """Checks by the name of their defect, each with what plants it."""

    def seen_by(self, name: str, plant: Plant) -> Callable[[Check], Check]:
        """Keep a check under a name."""

        def keep(check: Check) -> Check:
            self[name] = (check, plant)
            return check

        return keep

    def sound(self, name: str, world: World, folder: Path) -> None:
        """Run a check on the code as it is."""
        self[name][0](world, folder)

    def planted(self, name: str, world: World, folder: Path, patch: Patch) -> None:
        """Run a check with the defect planted; it must fail."""
        check, plant = self[name]
        with patch.context() as own:
            plant(own)
            with pytest.raises((AssertionError, torch.utils.checkpoint.CheckpointError)):
                check(world, folder)


def make(model: TalkingModel, **settings) -> PreferenceStep:
    trainable = {n: p for n, p in model.dit.named_parameters() if p.requires_grad}
    return PreferenceStep(
        model, one, passes.base_gate, trainable, DpoConfig(**{"beta": 50, **settings})
    )
