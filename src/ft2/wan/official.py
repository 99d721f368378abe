"""Text encoder, image encoder and codec from Wan's own files, by their names and shapes.

Wan-AI/Wan2.1-I2V-14B-720P holds them as PyTorch files beside the transformer's shards. The names
are those of Wan-Video/Wan2.1 (``wan/modules/t5.py``, ``clip.py``, ``vae.py``); the codec's are
renamed by diffusers. Everything is checked on shapes before a number is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch import Tensor, nn
from transformers import CLIPVisionModel, UMT5EncoderModel

from ft2.errors import UsageError
from ft2.wan.checkpoint import check_fit, load_pickle
from ft2.wan.encoders import image_encoder, text_encoder
from ft2.wan.spec import ImageSpec, TextSpec

OFFICIAL = {
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    "tokenizer": "google/umt5-xxl",
    "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    "vae": "Wan2.1_VAE.pth",
}
"""What stands in Wan's own repository for each folder of diffusers' layout."""

_TEXT = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
"""A block of umT5: the gate goes through GELU (wi_0), fc1 is multiplied with it (wi_1)."""

_IMAGE = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
"""A block of the vision transformer, but for its joint projection to q, k and v."""

UNUSED = ("textual.", "log_scale", "visual.head")
"""What else open-CLIP's file holds: the text tower and the maps into a common space."""


def text_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of Wan's umT5 file by the names of ``UMT5EncoderModel``."""
    for name, tensor in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if name == "token_embedding.weight":
            yield "shared.weight", tensor
            yield "encoder.embed_tokens.weight", tensor
        elif name == "norm.weight":
            yield "encoder.final_layer_norm.weight", tensor
        elif block and block[2] in _TEXT:
            yield f"encoder.block.{block[1]}.{_TEXT[block[2]]}", tensor
        else:
            yield name, tensor


def image_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the vision tensors of Wan's open-CLIP file by the names of ``CLIPVisionModel``."""
    norms = {"visual.pre_norm": "pre_layrnorm", "visual.post_norm": "post_layernorm"}
    for name, tensor in state.items():
        part, _, leaf = name.rpartition(".")
        block = re.fullmatch(r"visual\.transformer\.(\d+)\.(.+)", part)
        if name.startswith(UNUSED):
            continue
        if name == "visual.cls_embedding":
            yield "embeddings.class_embedding", tensor.flatten()
        elif name == "visual.pos_embedding":
            yield "embeddings.position_embedding.weight", tensor.squeeze(0)
        elif name == "visual.patch_embedding.weight":
            yield "embeddings.patch_embedding.weight", tensor
        elif part in norms:
            yield f"{norms[part]}.{leaf}", tensor
        elif block and block[2] == "attn.to_qkv":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                yield f"encoder.layers.{block[1]}.self_attn.{letter}_proj.{leaf}", third
        elif block and block[2] in _IMAGE:
            yield f"encoder.layers.{block[1]}.{_IMAGE[block[2]]}.{leaf}", tensor
        else:
            yield name, tensor


def load_text_encoder(path: Path, spec: TextSpec, dtype: torch.dtype) -> UMT5EncoderModel:
    """Return umT5's encoder from Wan's file, memory-mapped until it is cast or moved.

    Raises:
        UsageError: the file is damaged, or its tensors do not fit, each named.
    """
    with torch.device("meta"):
        model = text_encoder(spec)
    _check(model, dict(text_tensors(load_pickle(path, "meta"))), path)
    _fill(model, text_tensors(load_pickle(path)), dtype)
    model.tie_weights()
    return model


def load_image_encoder(path: Path, spec: ImageSpec, dtype: torch.dtype) -> CLIPVisionModel:
    """Return the vision tower of open-CLIP's ViT-H/14 from Wan's file.

    Raises:
        UsageError: the file is damaged, or its tensors do not fit, each named.
    """
    with torch.device("meta"):
        model = image_encoder(spec, "gelu")
    _check(model, dict(image_tensors(load_pickle(path, "meta"))), path)
    _fill(model, image_tensors(load_pickle(path)), dtype)
    model.embeddings.position_ids = torch.arange(spec.num_tokens)[None]  # no part of the file
    return model


def load_vae(path: Path, channels: int, dtype: torch.dtype) -> AutoencoderKLWan:
    """Return the codec from Wan's file; its width is the file's.

    Raises:
        UsageError: the file is damaged, or its tensors do not fit, each named.
    """
    shapes = load_pickle(path, "meta")
    first = shapes.get("encoder.conv1.weight")
    if first is None:
        raise UsageError(f"'{path}' is no Wan VAE: it has no encoder.conv1.weight")
    model = AutoencoderKLWan(base_dim=len(first), z_dim=channels)
    _check(model, convert_wan_vae_to_diffusers(dict(shapes)), path)
    model.load_state_dict(convert_wan_vae_to_diffusers(dict(load_pickle(path))))
    nn.Module.to(model, dtype)  # diffusers' own warns of islands that this model has not
    return model


def _check(model: nn.Module, found: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors (shapes alone) that are not those of a module."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    check_fit(wanted, [shapes], [{name: name for name in shapes}], f"'{path}' holds")


def _fill(model: nn.Module, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Give a module on the meta device its tensors, in place."""
    state = {name: tensor.to(dtype).contiguous() for name, tensor in tensors}
    model.load_state_dict(state, assign=True)
    model.eval().requires_grad_(False)
