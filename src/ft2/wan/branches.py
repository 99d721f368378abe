"""The networks beside the audio branch: put onto a transformer, counted, saved and loaded.

FantasyTalking never released them, so they lie in files of their own, ``identity.safetensors`` and
``motion.safetensors``, and a transformer has them only where they are asked for. Fresh ones leave
its output unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ft2.runs import load_tensors
from ft2.wan.block import IdentityProcessor, TalkingBlock
from ft2.wan.checkpoint import check_tensors
from ft2.wan.dit import TalkingTransformer
from ft2.wan.identity import IdentityFormer
from ft2.wan.intensity import MotionIntensity
from ft2.wan.spec import Architecture, Branch

_MARKS: dict[Branch, tuple[str, ...]] = {
    "identity": ("identity.", ".attn2.identity."),
    "motion": ("intensity.",),
}


def branch_of(name: str) -> Branch | None:
    """Return the branch to which a transformer's tensor belongs, or None for the base."""
    for branch, marks in _MARKS.items():
        if name.startswith(marks[0]) or any(mark in name for mark in marks[1:]):
            return branch
    return None


def add_branches(
    dit: TalkingTransformer, architecture: Architecture, branches: Sequence[Branch], seed: int = 0
) -> None:
    """Put fresh branches onto a transformer, in place, on its device; the output stays as it is."""
    device = dit.patch_embedding.weight.device
    dim = architecture.dit.dim
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        if "identity" in branches:
            dit.identity = IdentityFormer(architecture.identity)
            for block in dit.blocks:
                assert isinstance(block, TalkingBlock)
                block.attn2.identity = IdentityProcessor(architecture.identity.dim, dim)
        if "motion" in branches:
            dit.intensity = MotionIntensity(architecture.motion, dim)


def branch_state(dit: TalkingTransformer, branch: Branch | None) -> dict[str, Tensor]:
    """Return the tensors of one branch by name; None gives the base with its audio branch."""
    return {n: value for n, value in dit.state_dict().items() if branch_of(n) == branch}


def branch_parameters(dit: TalkingTransformer, branch: Branch) -> int:
    """Return the number of parameters of one branch."""
    return sum(p.numel() for n, p in dit.named_parameters() if branch_of(n) == branch)


def branch_path(directory: Path, branch: Branch) -> Path:
    """Return the file of a branch beside the weights."""
    return directory / f"{branch}.safetensors"


def load_branch(dit: TalkingTransformer, branch: Branch, path: Path) -> None:
    """Fill one branch from its file: all of its tensors and no others.

    Raises:
        UsageError: naming what is missing, unknown or misshapen.
    """
    wanted, (given, _) = branch_state(dit, branch), load_tensors(path)
    check_tensors(wanted, given, path)
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(given[name])
