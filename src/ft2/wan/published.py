"""Loading of the published weights: Wan2.1-I2V in diffusers' layout, and FantasyTalking's audio.

The directory holds ``transformer``, ``text_encoder``, ``tokenizer``, ``image_encoder``, ``vae`` (as
Wan-AI/Wan2.1-I2V-14B-720P-Diffusers), ``wav2vec2`` (facebook/wav2vec2-base-960h) and one file
``fantasytalking*.ckpt`` or ``.safetensors``. Nothing is downloaded and no code in it is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor

from ft2.errors import UsageError
from ft2.runs import load_tensors
from ft2.wan.codec import WanVae
from ft2.wan.dit import FP32_PARTS, TalkingTransformer, build_dit
from ft2.wan.model import LatentSpace, TalkingModel
from ft2.wan.spec import Architecture, WanSpec

FOLDERS = ("transformer", "text_encoder", "tokenizer", "image_encoder", "vae", "wav2vec2")
_PROJECTION = re.compile(r"(?:.*\.)?(?:proj_model\.)(proj\.weight|norm\.weight|norm\.bias)$")
_PROCESSOR = re.compile(
    r"(?:.*\.)?blocks\.(\d+)\.(?:cross_attn|attn2)\.(?:processor\.)?([kv])_proj\.weight$"
)


def flatten_checkpoint(state: Mapping[str, object]) -> dict[str, Tensor]:
    """Return nested mappings of tensors (the official file) as one with dotted names."""
    flat: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": t for inner, t in flatten_checkpoint(value).items()}
        elif isinstance(value, Tensor):
            flat[name] = value
    return flat


def audio_branch(state: Mapping[str, object], num_layers: int) -> dict[str, Tensor]:
    """Return the audio branch under ft2's names from any of its four published layouts.

    The layouts are the official pickle (``proj_model`` and ``audio_processor`` mappings), its flat
    safetensors twin, the ComfyUI one (``blocks.N.cross_attn.k_proj``) and a whole trained
    transformer.

    Raises:
        UsageError: if not exactly 2 * num_layers + 3 tensors are found.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in flatten_checkpoint(state).items():
        if match := _PROJECTION.match(name):
            found[f"proj_model.{match[1]}"] = tensor
        elif match := _PROCESSOR.match(name):
            found[f"blocks.{match[1]}.attn2.processor.{match[2]}_proj.weight"] = tensor
    wanted = 2 * num_layers + 3
    if len(found) != wanted:
        raise UsageError(
            f"the audio weights hold {len(found)} tensors of the audio branch, {wanted} are needed",
            "give FantasyTalking's checkpoint for a transformer of as many blocks",
        )
    return found


def read_audio_file(directory: Path) -> dict[str, object]:
    """Read the one ``fantasytalking*`` file of a directory; pickles only as plain tensors."""
    found = [
        path
        for path in sorted(directory.glob("fantasytalking*"))
        if path.suffix in {".ckpt", ".safetensors", ".pt"}
    ]
    if len(found) != 1:
        raise UsageError(
            f"'{directory}' holds {len(found)} files fantasytalking*, one is needed",
            "put the audio weights (.ckpt or .safetensors) there",
        )
    if found[0].suffix == ".safetensors":
        return dict(load_tensors(found[0])[0])
    try:
        state: dict[str, object] = torch.load(found[0], map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"'{found[0]}' is not a readable checkpoint: {error}") from error
    return state


def load_dit(dit: TalkingTransformer, directory: Path, dtype: torch.dtype) -> None:
    """Fill a transformer that lies on the meta device, shard by shard, in place.

    Raises:
        UsageError: naming the tensors that are missing, unknown or of another shape.
    """
    wanted = {name: p.shape for name, p in dit.named_parameters()}
    problems: list[str] = []

    def put(tensors: Mapping[str, Tensor]) -> None:
        known = {}
        for name, tensor in tensors.items():
            if wanted.get(name) != tensor.shape:
                problems.append(f"{name} {tuple(tensor.shape)}")
                continue
            keep = any(part in name for part in FP32_PARTS)
            known[name] = tensor.to(torch.float32 if keep else dtype)
            del wanted[name]
        dit.load_state_dict(known, strict=False, assign=True)

    put(audio_branch(read_audio_file(directory), dit.config.num_layers))
    for shard in sorted((directory / "transformer").glob("*.safetensors")):
        put(load_tensors(shard)[0])
    if problems or wanted:
        listed = "; ".join(
            [*(f"does not fit: {p}" for p in problems), *(f"missing: {n}" for n in wanted)][:5]
        )
        raise UsageError(
            f"'{directory}' does not fit the architecture:"
            f" {len(problems) + len(wanted)} tensors ({listed})",
            "check `architecture`, or download the weights again",
        )
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
    from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model

    dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
    with torch.device("meta"):
        dit = build_dit(architecture)
    load_dit(dit, directory, dtype)
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
        Wav2Vec2Model.from_pretrained(directory / "wav2vec2", **local),
    )
