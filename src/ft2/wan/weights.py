"""Loading a talking model: its own files or published ones, its branches, number format, device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ft2.engine import local_device
from ft2.errors import UsageError
from ft2.runs import load_tensors
from ft2.wan.branches import add_branches, branch_path, load_branch
from ft2.wan.dit import FP32_PARTS, TalkingTransformer, build_dit
from ft2.wan.face import ArcFace, FaceTower, arcface_path
from ft2.wan.model import TalkingModel
from ft2.wan.own import load_own, load_parts
from ft2.wan.places import read_architecture, weights_dir
from ft2.wan.spec import WanSpec


def meta_dit(spec: WanSpec) -> TalkingTransformer:
    """Return the transformer on the meta device: shapes and counts, no memory."""
    architecture = read_architecture(spec)
    with torch.device("meta"):
        dit = build_dit(architecture)
        add_branches(dit, architecture, spec.branches)
    return dit


def cast_transformer(dit: TalkingTransformer) -> None:
    """Cast a transformer to bfloat16 but for what Wan computes in float32, in place."""
    for name, parameter in dit.named_parameters():
        if not any(part in name for part in FP32_PARTS):
            parameter.data = parameter.data.to(torch.bfloat16)


def check_branches(spec: WanSpec) -> None:
    """Refuse branches whose files are not there, before anything is loaded.

    Raises:
        UsageError: naming the file.
    """
    architecture = read_architecture(spec)
    for branch in spec.branches:
        path = branch_path(weights_dir(spec), branch)
        if not path.is_file():
            raise UsageError(
                f"the weights have no {branch} branch: there is no '{path}'",
                "train it with `ft2 generator train full/generator-branches` (nano/...), or leave"
                f" '{branch}' out of model.branches",
            )
    if "identity" in spec.branches and architecture.identity.encoder == "arcface":
        arcface_path(spec.face_weights)


def load_branches(model: TalkingModel, spec: WanSpec, directory: Path, fresh: bool) -> None:
    """Put the branches that a spec asks for onto a loaded model, in place.

    Args:
        model: gets them, and a face encoder for ``identity``.
        spec: names them.
        directory: holds their files.
        fresh: leave a branch without a file as it begins, and a face tower untrained.
    """
    add_branches(model.dit, model.architecture, spec.branches)
    for branch in spec.branches:
        path = branch_path(directory, branch)
        if path.is_file() or not fresh:
            load_branch(model.dit, branch, path)
    if "identity" in spec.branches:
        identity = model.architecture.identity
        if identity.encoder == "arcface":
            model.face = ArcFace(spec.face_weights, identity)
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = FaceTower(identity)
        path = directory / "face.safetensors"
        if path.is_file() or not fresh:
            load_parts(tower, load_tensors(path)[0], path)
        model.face = tower


def load_talking_model(
    spec: WanSpec,
    device: str | torch.device = "cpu",
    *,
    fresh_branches: bool = False,
    transformer: bool = True,
) -> TalkingModel:
    """Load a talking model, frozen and in eval mode.

    Args:
        spec: weights, architecture, precision, branches.
        device: where it computes; ``ft2.wan.memory.place`` can put less of it there.
        fresh_branches: branches without a file begin anew, to be trained.
        transformer: without, a published transformer is left without weights (on the meta
            device): the model can only encode.

    Raises:
        UsageError: if there is no such device, or files are missing or do not fit.
    """
    device = local_device(device) if isinstance(device, str) else device
    architecture = read_architecture(spec)
    directory = weights_dir(spec)
    if not fresh_branches:
        check_branches(spec)
    if architecture.latent.codec == "wan_vae":
        from ft2.wan.published import load_published

        model = load_published(spec, architecture, directory, transformer)
    else:
        model = load_own(spec, architecture, directory)
    load_branches(model, spec, directory, fresh_branches)
    own = (model.dit, model.text, model.image, model.speech, model.codec, model.space, model.face)
    for module in own:
        if isinstance(module, nn.Module):
            module.eval().requires_grad_(False)
    if spec.precision == "bf16":
        cast_transformer(model.dit)
    vae = getattr(model.codec, "vae", model.codec)
    for module in (model.dit, model.space, model.text, model.image, model.speech, vae):
        if isinstance(module, nn.Module) and (transformer or module is not model.dit):
            module.to(device)
    if not transformer:
        model.compute = device
    return model
