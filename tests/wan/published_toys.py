"""A tiny published model: the real classes, and its weights in every layout that is read."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from tiny_sizes import DIT, IMAGE, TEXT
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Wav2Vec2Config, Wav2Vec2Model

from ft2.wan.dit import build_dit
from ft2.wan.encoders import image_encoder, text_encoder
from ft2.wan.spec import Architecture, AudioSpec, LatentSpec

TINY = Architecture(
    name="tiny-published",
    clip={"width": 32, "height": 32, "num_frames": 5, "fps": 5.0},
    dit=DIT,
    text=TEXT,
    image=IMAGE,
    audio=AudioSpec(kind="wav2vec2", features=16),
    latent=LatentSpec(),
)


def write_transformer(folder: Path) -> None:
    """Write a random transformer in diffusers' layout and its audio branch in the official one."""
    torch.manual_seed(0)
    dit = build_dit(TINY)
    audio = {n: p for n, p in dit.state_dict().items() if "proj_model" in n or ".processor." in n}
    base = {n: p for n, p in dit.state_dict().items() if n not in audio}
    (folder / "transformer").mkdir()
    save_file(base, folder / "transformer" / "model-00001-of-00001.safetensors")
    torch.save(
        {n.replace("attn2", "cross_attn"): t for n, t in audio.items()},
        folder / "fantasytalking_model.ckpt",
    )


def write_encoders(folder: Path) -> None:
    """Write text encoder, image encoder and codec as their own libraries do."""
    text_encoder(TINY.text).save_pretrained(folder / "text_encoder")
    image_encoder(TINY.image).save_pretrained(folder / "image_encoder")
    AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1).save_pretrained(folder / "vae")


def write_speech(folder: Path) -> None:
    """Write a tiny wav2vec 2.0."""
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).save_pretrained(folder / "wav2vec2")


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of six words to a folder."""
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4, "talks": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename diffusers' tensors to Wan's own names, by the table of Wan's repository."""
    table = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_out.0", "o"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("add_k_proj", "k_img"),
        ("add_v_proj", "v_img"),
        ("norm_added_k", "norm_k_img"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("norm2", "NORM"),
        ("norm3", "norm2"),
        ("NORM", "norm3"),
        ("proj_out", "head.head"),
    ]
    renamed = {}
    for name, tensor in state.items():
        for old, new in table:
            if not name.startswith("img_emb"):
                name = name.replace(old, new)
        name = "head.modulation" if name == "scale_shift_table" else name
        renamed[name.replace("scale_shift_table", "modulation")] = tensor
    return renamed


def write_layout(folder: Path, kind: str) -> torch.nn.Module:
    """Write a random transformer in one of the layouts and return it."""
    dit = build_dit(TINY)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.normal_(std=0.2)
    state = {n: p.detach().clone() for n, p in dit.named_parameters()}
    audio = {n: state.pop(n) for n in list(state) if "proj_model" in n or ".processor." in n}
    audio = {n.replace("attn2", "cross_attn"): t for n, t in audio.items()}
    if kind != "diffusers":
        state = official_names(state)
    if kind == "one file with the audio":
        save_file({**state, **audio}, folder / "trained.safetensors")
        return dit
    save_file(audio, folder / "fantasytalking_fp16.safetensors")
    place = folder / "transformer" if kind == "diffusers" else folder
    place.mkdir(exist_ok=True)
    names = sorted(state)
    parts = (names[::3], names[1::3], names[2::3]) if kind != "official, prefixed" else (names,)
    weight_map = {}
    for number, part in enumerate(parts):
        prefix = "model.diffusion_model." if kind == "official, prefixed" else ""
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        save_file({prefix + n: state[n].contiguous() for n in part}, place / file)
        weight_map |= dict.fromkeys(part, file)
    if len(parts) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
        (place / "stale.safetensors").write_bytes(b"not named by the index")
    return dit
