"""Talking models that ft2 itself trains: building one, and the files of its weights.

A directory holds ``architecture.json``, ``dit``, ``codec``, ``text``, ``image`` and (with a speech
tower) ``speech.safetensors``, ``tokenizer.json`` and ``provenance.json``; with branches also
``identity`` and ``face``, or ``motion.safetensors``. Weights may be stored in float16; they are
computed with in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ft2.errors import UsageError
from ft2.runs import hash_file, load_tensors, read_json, save_tensors, write_atomic, write_json
from ft2.wan.branches import branch_state
from ft2.wan.checkpoint import check_tensors
from ft2.wan.codec import MotionCodec
from ft2.wan.dit import build_dit
from ft2.wan.encoders import SpeechTower, image_encoder, text_encoder
from ft2.wan.model import TalkingModel
from ft2.wan.places import weights_dir
from ft2.wan.space import LatentSpace
from ft2.wan.spec import Architecture, WanSpec

NUM_PHONES = 41
"""Classes of the speech tower's training head: 39 ARPAbet phones, silence, anything else."""


def build_model(spec: WanSpec, architecture: Architecture, tokenizer: object) -> TalkingModel:
    """Return a model of ft2's own kind with fresh weights (codec zero, encoders random)."""
    clip, audio = architecture.clip, architecture.audio
    if architecture.latent.codec != "motion" or audio.kind != "log_mel":
        raise UsageError(
            f"cannot build '{architecture.name}' from nothing: codec"
            f" {architecture.latent.codec} and audio {audio.kind} need published weights",
        )
    rows, columns = clip.height // 8, clip.width // 8
    shape = (architecture.latent.channels, clip.num_latent_frames, rows, columns)
    tower = SpeechTower(audio.num_mels, audio.tower_dim, NUM_PHONES) if audio.tower_dim else None
    return TalkingModel(
        spec,
        architecture,
        build_dit(architecture),
        MotionCodec(rows, columns),
        LatentSpace(shape),
        text_encoder(architecture.text),
        tokenizer,
        image_encoder(architecture.image),
        tower,
    )


def read_tokenizer(path: Path) -> object:
    """Return the tokenizer saved in one ``tokenizer.json``."""
    from transformers import PreTrainedTokenizerFast

    if not path.is_file():
        raise UsageError(
            f"the tokenizer '{path}' does not exist",
            "it lies beside the weights: copy the whole directory, or set model.weights",
        )
    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>", eos_token="</s>")


def parts(model: TalkingModel) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a model, file by file; of a published one only its branches."""
    files: dict[str, dict[str, Tensor]] = {}
    if isinstance(model.codec, nn.Module):
        space = {f"space.{name}": value for name, value in model.space.state_dict().items()}
        files = {
            "dit": branch_state(model.dit, None),
            "codec": {**model.codec.state_dict(), **space},
            "text": dict(model.text.state_dict()),
            "image": dict(model.image.state_dict()),
        }
        if model.speech is not None:
            files["speech"] = dict(model.speech.state_dict())
    files |= {name: branch_state(model.dit, name) for name in model.branches}
    if isinstance(model.face, nn.Module):
        files["face"] = dict(model.face.state_dict())
    return files


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with floating-point values in float16.

    Raises:
        UsageError: if a value does not fit into float16.
    """
    small = {}
    for name, value in tensors.items():
        half = value.half() if value.is_floating_point() else value
        if not torch.isfinite(half).all():
            raise UsageError(f"'{name}' has values beyond float16 (largest {value.abs().max()})")
        small[name] = half
    return small


def save_model(
    model: TalkingModel, directory: Path, provenance: Mapping[str, object], half: bool = True
) -> None:
    """Write a model's files; ``provenance`` gets the hash of each one.

    Args:
        model: the model; experts must not be installed.
        directory: is created; files in it are replaced one by one.
        provenance: how the weights were made; entries of the file that it does not name stay.
        half: store in float16; a published model keeps its own number formats.
    """
    directory.mkdir(parents=True, exist_ok=True)
    hashes = {}
    if not isinstance(model.codec, nn.Module):
        from ft2.wan.published import save_published

        hashes = save_published(model, weights_dir(model.spec), directory)
        half = False
    for name, tensors in parts(model).items():
        unique = {key: value.contiguous().clone() for key, value in tensors.items()}
        path = directory / f"{name}.safetensors"
        save_tensors(path, compact(unique) if half else unique)
        hashes[path.name] = hash_file(path)
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None and isinstance(model.codec, nn.Module):
        write_atomic(directory / "tokenizer.json", backend.to_str())
        hashes["tokenizer.json"] = hash_file(directory / "tokenizer.json")
    write_json(directory / "architecture.json", model.architecture.model_dump(mode="json"))
    record = directory / "provenance.json"
    known = read_json(record) if record.is_file() else {}
    write_json(record, {**known, **provenance, "sha256": hashes})


def load_parts(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module, all of them and no others, in the module's own dtype.

    Raises:
        UsageError: naming missing, unknown and misshapen tensors.
    """
    wanted = module.state_dict()
    check_tensors(wanted, tensors, path)
    cast = {name: tensors[name].to(value.dtype) for name, value in wanted.items()}
    module.load_state_dict(cast)


def load_own(spec: WanSpec, architecture: Architecture, directory: Path) -> TalkingModel:
    """Load a directory that :func:`save_model` wrote."""
    model = build_model(spec, architecture, read_tokenizer(directory / "tokenizer.json"))
    assert isinstance(model.codec, nn.Module)
    path = directory / "codec.safetensors"
    tensors, _ = load_tensors(path)
    space = {k.removeprefix("space."): v for k, v in tensors.items() if k.startswith("space.")}
    load_parts(model.space, space, path)
    own = {name: value for name, value in tensors.items() if not name.startswith("space.")}
    load_parts(model.codec, own, path)
    modules: dict[str, nn.Module | None] = {
        "dit": model.dit,
        "text": model.text,
        "image": model.image,
        "speech": model.speech,
    }
    for name, module in modules.items():
        if module is not None:
            path = directory / f"{name}.safetensors"
            load_parts(module, load_tensors(path)[0], path)
    return model
