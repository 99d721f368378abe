"""Loading of the published weights: Wan2.1-I2V, and FantasyTalking's audio branch.

The directory is Wan-AI/Wan2.1-I2V-14B-720P as downloaded (``ft2.wan.official`` names its files), or
holds folders ``text_encoder``, ``tokenizer``, ``image_encoder``, ``vae`` (as in its repository
...-Diffusers), or some of both; the transformer in a folder ``transformer`` or as plain files, in
Wan's own or diffusers' names, one file or shards; ``wav2vec2`` (facebook/wav2vec2-base-960h); and
one file ``fantasytalking*.ckpt`` or ``.safetensors``. Nothing is downloaded and no code is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from huggingface_hub import save_torch_state_dict
from torch import nn

from ft2.errors import UsageError
from ft2.runs import hash_file
from ft2.wan.branches import branch_state
from ft2.wan.checkpoint import (
    Shapes,
    audio_files,
    check_fit,
    shapes_of,
    sharded_files,
    tensors_of,
)
from ft2.wan.codec import WanVae
from ft2.wan.dit import FP32_PARTS, TalkingTransformer, build_dit
from ft2.wan.layouts import canonical_names, is_official
from ft2.wan.model import TalkingModel
from ft2.wan.official import OFFICIAL, load_image_encoder, load_text_encoder, load_vae
from ft2.wan.space import LatentSpace
from ft2.wan.spec import Architecture, WanSpec

PARTS = ("text_encoder", "tokenizer", "image_encoder", "vae", "wav2vec2")


def transformer_files(directory: Path) -> list[Path]:
    """Return the files that make up the transformer with its audio branch.

    The transformer is in ``transformer`` or, as in Wan's own repository, beside the other files;
    the audio branch is in one file ``fantasytalking*``, or inside the transformer.

    Raises:
        UsageError: nothing is there, shards are missing, or there are several audio files.
    """
    folder = directory / "transformer"
    files = sharded_files(folder if folder.is_dir() else directory)
    audio = audio_files(directory)
    if not files:
        raise UsageError(
            f"'{directory}' holds no transformer (*.safetensors, or a folder transformer)",
            "download Wan2.1-I2V-14B-720P there, in its own or in diffusers' layout",
        )
    if len(audio) > 1:
        raise UsageError(
            f"'{directory}' holds {len(audio)} files fantasytalking*:"
            f" {', '.join(path.name for path in audio)}",
            "keep one",
        )
    return [*files, *audio]


def name_map(shapes: Sequence[Shapes]) -> list[dict[str, str]]:
    """Return ft2's name of every tensor, file by file; see ``ft2.wan.layouts``."""
    official = any(is_official(file) for file in shapes)
    return [canonical_names(list(file), official) for file in shapes]


def load_dit(dit: TalkingTransformer, files: Sequence[Path], dtype: torch.dtype) -> None:
    """Fill a transformer that lies on the meta device, tensor by tensor, in place.

    Nothing is read before all names and shapes are found to fit. What Wan computes in float32
    stays in it.

    Raises:
        UsageError: see :func:`check_fit`.
    """
    wanted = {name: tuple(p.shape) for name, p in dit.named_parameters()}
    shapes = [shapes_of(path) for path in files]
    names = name_map(shapes)
    check_fit(wanted, shapes, names)
    for path, known in zip(files, names, strict=True):
        for old, tensor in tensors_of(path):
            name = known[old]
            keep = any(part in name for part in FP32_PARTS)
            cast = tensor.to(torch.float32 if keep else dtype)
            place, _, leaf = name.rpartition(".")
            setattr(dit.get_submodule(place), leaf, nn.Parameter(cast, requires_grad=False))
    config = dit.config
    dit.rope = WanRotaryPosEmbed(
        config.attention_head_dim, tuple(config.patch_size), config.rope_max_seq_len
    )


def vae_space(vae: AutoencoderKLWan, channels: int) -> LatentSpace:
    """Return the latent space of a Wan VAE: its published means and deviations."""
    space = LatentSpace((channels, 1, 1, 1))
    mean = torch.tensor(vae.config.latents_mean).reshape(-1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).reshape(-1, 1, 1, 1)
    for name, value in (
        ("shift", mean),
        ("image_shift", mean),
        ("scale", std),
        ("image_scale", std),
    ):
        getattr(space, name).copy_(value)
    return space


def load_published(
    spec: WanSpec, architecture: Architecture, directory: Path, transformer: bool = True
) -> TalkingModel:
    """Load published weights; the transformer never exists twice in memory.

    Without ``transformer`` it stays on the meta device, and its files are not looked at.

    Raises:
        UsageError: naming every part that is missing, or tensors that do not fit.
    """
    found = find_parts(directory)
    files = transformer_files(directory) if transformer else []
    from transformers import AutoTokenizer, Wav2Vec2Model

    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    with torch.device("meta"):
        dit = build_dit(architecture)
    vae, text, image = load_encoders(found, architecture, dtype)
    if transformer:
        load_dit(dit, files, dtype)
    return TalkingModel(
        spec,
        architecture,
        dit,
        WanVae(vae.eval().requires_grad_(False)),
        vae_space(vae, architecture.latent.channels),
        text,
        AutoTokenizer.from_pretrained(found["tokenizer"], local_files_only=True),
        image,
        Wav2Vec2Model.from_pretrained(found["wav2vec2"], local_files_only=True).float(),
    )


def find_parts(directory: Path) -> dict[str, Path]:
    """Return where each part beside the transformer lies: a folder, or Wan's own file.

    Raises:
        UsageError: naming every part that is missing.
    """
    found: dict[str, Path] = {}
    for name in PARTS:
        for place in (directory / OFFICIAL.get(name, name), directory / name):
            if place.exists():
                found[name] = place
    missing = [name for name in PARTS if name not in found]
    if missing:
        files = [OFFICIAL[name] for name in missing if name in OFFICIAL]
        raise UsageError(
            f"'{directory}' lacks {', '.join(missing)}"
            + (f" (Wan's own files: {', '.join(files)})" if files else ""),
            "it must hold Wan2.1-I2V in its own or in diffusers' layout, wav2vec2, and"
            " FantasyTalking's file",
        )
    return found


def load_encoders(
    found: dict[str, Path], architecture: Architecture, dtype: torch.dtype
) -> tuple[AutoencoderKLWan, nn.Module, nn.Module]:
    """Return codec, text encoder and image encoder, each from its folder or from Wan's own file.

    Raises:
        UsageError: a file's tensors do not fit, each named.
    """
    from transformers import CLIPVisionModel, UMT5EncoderModel

    local = {"local_files_only": True, "dtype": dtype}
    place = found["vae"]
    vae = (
        AutoencoderKLWan.from_pretrained(place, torch_dtype=dtype, local_files_only=True)
        if place.is_dir()
        else load_vae(place, architecture.latent.channels, dtype)
    )
    place = found["text_encoder"]
    text = (
        UMT5EncoderModel.from_pretrained(place, **local)
        if place.is_dir()
        else load_text_encoder(place, architecture.text, dtype)
    )
    place = found["image_encoder"]
    image = (
        CLIPVisionModel.from_pretrained(place, **local)
        if place.is_dir()
        else load_image_encoder(place, architecture.image, dtype)
    )
    return vae, text, image


def save_published(model: TalkingModel, base: Path, directory: Path) -> dict[str, str]:
    """Write the transformer with its audio branch in shards; return the files' hashes.

    The other parts become links to those of ``base``: they are frozen, and large.

    Args:
        model: a published model; branches are saved elsewhere.
        base: the directory that it was loaded from.
        directory: where it goes; ``load_published`` reads it.
    """
    folder = directory / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    # gathered ZeRO-3 weights are views of one buffer, which a file must not repeat
    base_state = branch_state(model.dit, None)
    state = {name: value.detach().to("cpu", copy=True) for name, value in base_state.items()}
    save_torch_state_dict(
        state, folder, filename_pattern="diffusion_pytorch_model{suffix}.safetensors"
    )
    for place in find_parts(base).values():
        link = directory / place.relative_to(base)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(place.resolve(), target_is_directory=place.is_dir())
    files = sorted(folder.glob("*.safetensors"))
    return {f"transformer/{path.name}": hash_file(path) for path in files}
