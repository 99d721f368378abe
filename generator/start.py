"""The model that training starts from: an earlier stage's, a saved one, or one from nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from ft2.engine import local_device
from ft2.errors import UsageError
from ft2.generator.config import TrainConfig
from ft2.generator.data import Clips
from ft2.generator.face_training import train_face_tower
from ft2.generator.prepare import Speech, prepare_model
from ft2.runs import Progress, RunDir, load_tensors, save_tensors
from ft2.wan.block import TalkingBlock
from ft2.wan.branches import add_branches, branch_path
from ft2.wan.face import FaceTower, arcface_path
from ft2.wan.model import TalkingModel
from ft2.wan.own import load_parts, save_model
from ft2.wan.places import read_architecture, weights_dir
from ft2.wan.spec import Branch, WanSpec
from ft2.wan.weights import load_talking_model

Part = Literal["audio", "face", "identity", "motion"]
"""What training can start anew."""

HINT = "run `ft2 generator measure --data DIR`, or make clips with `ft2 generator prepare`"


def starting_spec(config: TrainConfig) -> WanSpec:
    """Return which weights training starts from, with the branches that are trained.

    Raises:
        UsageError: the earlier stage is not finished.
    """
    if config.start is None:
        return config.model
    path = Path(config.start) / "model"
    if not path.is_dir():
        raise UsageError(
            f"'{config.start}' holds no finished stage (no model/)", "finish it with --resume"
        )
    return config.model.model_copy(update={"weights": str(path), "architecture": None})


def check_training(config: TrainConfig, clips: Clips) -> None:
    """Refuse what the branches need and the data or the machine lacks, before anything loads.

    Raises:
        UsageError: see above.
    """
    if config.freeze_base and not config.model.branches:
        raise UsageError(
            "freeze_base leaves nothing to train", "set model.branches=[identity,motion]"
        )
    needed = ["identity" if part == "face" else part for part in config.fresh]
    lacking = [part for part in needed if part not in ("audio", *config.model.branches)]
    if lacking:
        raise UsageError(
            f"fresh={','.join(config.fresh)}: the model has no branch {lacking[0]}",
            "add it to model.branches, or leave out of fresh what needs it",
        )
    if config.ema_decay and config.engine.kind == "deepspeed" and config.engine.zero_stage == 3:
        raise UsageError(
            f"ema_decay={config.ema_decay:g} with ZeRO stage 3, which splits the weights",
            "set ema_decay=0, or engine.zero_stage=2",
        )
    if "motion" in config.model.branches and clips.motion is None:
        raise UsageError(f"the clips in '{config.data}' have no motion strengths", HINT)
    if "identity" in config.model.branches and config.model.weights != "none":
        architecture = read_architecture(starting_spec(config))
        if architecture.identity.encoder == "arcface":
            arcface_path(config.model.face_weights)


def starting_model(
    config: TrainConfig,
    clips: Clips,
    speech: Callable[[], Sequence[Speech]],
    run: RunDir,
    progress: Progress,
) -> TalkingModel:
    """Return the model to train, branches and all.

    What is made from nothing is kept in ``RUN/prepared`` and found again on resume.
    """
    spec = starting_spec(config)
    prepared = run.path / "prepared"
    if spec.weights == "none":
        if not (prepared / "provenance.json").is_file():
            architecture = read_architecture(spec)
            model, figures = prepare_model(
                spec, architecture, clips, speech(), config.prepare, config.seed, progress
            )
            save_model(model, prepared, {"figures": figures, "data": clips.fingerprint})
        spec = spec.model_copy(update={"weights": str(prepared), "architecture": None})
    model = load_talking_model(spec, local_device(config.device), fresh_branches=True)
    directory = weights_dir(spec)
    start_anew(model, config.fresh, config.seed)
    intensity, known = model.dit.intensity, branch_path(directory, "motion").is_file()
    if intensity is not None and ("motion" in config.fresh or not known):
        assert clips.motion is not None
        intensity.set_range(clips.motion)
    untrained = "face" in config.fresh or not (directory / "face.safetensors").is_file()
    if isinstance(model.face, FaceTower) and untrained:
        _face_tower(model.face, prepared / "face.safetensors", config, clips, progress)
    return model


def start_anew(model: TalkingModel, parts: Sequence[Part], seed: int) -> None:
    """Give parts of a loaded model the weights that they begin with, in place.

    A fresh audio branch says nothing (its values are zero), nor do fresh branches: what is left
    is the video model beneath, with whatever the other layers have learned beside them.
    """
    if "audio" in parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.dit.proj_model.proj.reset_parameters()
        model.dit.proj_model.norm.reset_parameters()
        for block in model.dit.blocks:
            assert isinstance(block, TalkingBlock)
            for layer in (block.attn2.processor.k_proj, block.attn2.processor.v_proj):
                torch.nn.init.zeros_(layer.weight)
    anew: list[Branch] = [branch for branch in model.branches if branch in parts]
    add_branches(model.dit, model.architecture, anew, seed)


def _face_tower(
    tower: FaceTower, path: Path, config: TrainConfig, clips: Clips, progress: Progress
) -> None:
    """Train the face encoder from nothing, in place, or find what an interrupted run has made."""
    if not path.is_file():
        steps = config.prepare.face_steps
        tower.start_anew(config.seed)
        train_face_tower(tower, clips, steps=steps, seed=config.seed, progress=progress)
        save_tensors(path, dict(tower.state_dict()))
    load_parts(tower, load_tensors(path)[0], path)
