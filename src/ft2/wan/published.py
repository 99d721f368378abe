"""Loading of the published weights: Wan2.1-I2V, and FantasyTalking's audio branch.

The directory holds ``text_encoder``, ``tokenizer``, ``image_encoder``, ``vae`` (as
Wan-AI/Wan2.1-I2V-14B-720P-Diffusers), ``wav2vec2`` (facebook/wav2vec2-base-960h), the transformer
(in a folder ``transformer`` or as plain files; Wan's own or diffusers' names; one file or shards)
and one file ``fantasytalking*.ckpt`` or ``.safetensors``. Nothing is downloaded and no code in it
is run.
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
from ft2.wan.checkpoint import audio_files, shapes_of, sharded_files, tensors_of
from ft2.wan.codec import WanVae
from ft2.wan.dit import FP32_PARTS, TalkingTransformer, build_dit
from ft2.wan.layouts import canonical_names, grouped, is_official
from ft2.wan.model import TalkingModel
from ft2.wan.space import LatentSpace
from ft2.wan.spec import Architecture, WanSpec

FOLDERS = ("text_encoder", "tokenizer", "image_encoder", "vae", "wav2vec2")
Shapes = dict[str, tuple[int, ...]]


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


def check_fit(wanted: Shapes, shapes: Sequence[Shapes], names: Sequence[dict[str, str]]) -> None:
    """Refuse files that are not exactly the wanted tensors.

    Raises:
        UsageError: naming all tensors that are missing, unknown, twice there or misshapen.
    """
    found: Shapes = {}
    unknown, twice, misshapen = [], [], []
    for file, known in zip(shapes, names, strict=True):
        for old, shape in file.items():
            name = known[old]
            if name not in wanted:
                unknown.append(old)
            elif name in found:
                twice.append(name)
            elif shape != wanted[name]:
                misshapen.append(f"{name} is {list(shape)}, not {list(wanted[name])}")
            found[name] = shape
    missing = [name for name in wanted if name not in found]
    problems = {"missing": missing, "unknown": unknown, "twice there": twice}
    texts = [f"{len(n)} {what}: {grouped(n)}" for what, n in problems.items() if n]
    texts += [f"{len(misshapen)} of another shape: {'; '.join(misshapen[:5])}"] * bool(misshapen)
    if texts:
        raise UsageError(
            f"the weights hold {len(found)} tensors and do not fit the architecture's"
            f" {len(wanted)}: {'. '.join(texts)}",
            "check `model.architecture` with `ft2 info FILE`, or download the weights again",
        )


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


def load_published(spec: WanSpec, architecture: Architecture, directory: Path) -> TalkingModel:
    """Load published weights; the transformer never exists twice in memory.

    Raises:
        UsageError: naming every folder that is missing, or tensors that do not fit.
    """
    missing = [name for name in FOLDERS if not (directory / name).is_dir()]
    if missing:
        raise UsageError(
            f"'{directory}' lacks {', '.join(missing)}",
            "it must hold Wan2.1-I2V in diffusers' layout, wav2vec2, and FantasyTalking's file",
        )
    files = transformer_files(directory)
    from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model

    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    with torch.device("meta"):
        dit = build_dit(architecture)
    load_dit(dit, files, dtype)
    vae = AutoencoderKLWan.from_pretrained(
        directory / "vae", torch_dtype=dtype, local_files_only=True
    )
    local = {"local_files_only": True, "dtype": dtype}
    return TalkingModel(
        spec,
        architecture,
        dit,
        WanVae(vae.eval().requires_grad_(False)),
        vae_space(vae, architecture.latent.channels),
        UMT5EncoderModel.from_pretrained(directory / "text_encoder", **local),
        AutoTokenizer.from_pretrained(directory / "tokenizer", local_files_only=True),
        CLIPVisionModel.from_pretrained(directory / "image_encoder", **local),
        Wav2Vec2Model.from_pretrained(directory / "wav2vec2", local_files_only=True).float(),
    )


def save_published(model: TalkingModel, base: Path, directory: Path) -> dict[str, str]:
    """Write the transformer with its audio branch in shards; return the files' hashes.

    The other folders become links to those of ``base``: they are frozen, and large.

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
    for name in FOLDERS:
        link = directory / name
        if not link.exists():
            link.symlink_to((base / name).resolve(), target_is_directory=True)
    files = sorted(folder.glob("*.safetensors"))
    return {f"transformer/{path.name}": hash_file(path) for path in files}
