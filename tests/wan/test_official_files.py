"""Wan's own files for text encoder, image encoder and codec, against forwards written anew.

Tensors are made at random under the names of Wan-Video/Wan2.1; what the loaded model computes is
compared with plain arithmetic on those names, so that no two of them can be mixed up.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from published_toys import TINY, write_layout, write_speech, write_tokenizer
from torch import Tensor

from ft2.__main__ import main
from ft2.errors import UsageError
from ft2.wan.official import OFFICIAL, load_image_encoder, load_text_encoder, load_vae
from ft2.wan.spec import ImageSpec, TextSpec, WanSpec
from ft2.wan.weights import load_talking_model

TEXT = TextSpec(d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, vocab_size=40)
IMAGE = ImageSpec(
    hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
    image_size=28, patch_size=14,
)  # fmt: skip
State = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) * 0.4 for n, s in shapes.items()}


def text_state(spec: TextSpec) -> State:
    wide = spec.d_kv * spec.num_heads
    shapes = {
        "token_embedding.weight": (spec.vocab_size, spec.d_model),
        "norm.weight": (spec.d_model,),
    }
    for layer in range(spec.num_layers):
        block = {"norm1": (spec.d_model,), "norm2": (spec.d_model,), "attn.o": (spec.d_model, wide)}
        block |= {f"attn.{letter}": (wide, spec.d_model) for letter in "qkv"}
        block |= {"ffn.gate.0": (spec.d_ff, spec.d_model), "ffn.fc1": (spec.d_ff, spec.d_model)}
        block |= {
            "ffn.fc2": (spec.d_model, spec.d_ff),
            "pos_embedding.embedding": (32, spec.num_heads),
        }
        shapes |= {f"blocks.{layer}.{name}.weight": shape for name, shape in block.items()}
    return drawn(shapes, 1)


def image_state(spec: ImageSpec) -> State:
    dim, wide = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "log_scale": (), "textual.norm.weight": (4,), "visual.head": (dim, 5),
        "visual.cls_embedding": (1, 1, dim), "visual.pos_embedding": (1, spec.num_tokens, dim),
        "visual.patch_embedding.weight": (dim, 3, spec.patch_size, spec.patch_size),
    }  # fmt: skip
    linears = {"attn.to_qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.0": (wide, dim),
               "mlp.2": (dim, wide)}  # fmt: skip
    parts = ["visual.pre_norm", "visual.post_norm"]
    for layer in range(spec.num_hidden_layers):
        block = f"visual.transformer.{layer}"
        parts += [f"{block}.norm1", f"{block}.norm2"]
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return drawn(shapes | {f"{n}.{leaf}": (dim,) for n in parts for leaf in ("weight", "bias")}, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor) -> Tensor:
    """softmax(scale q k^T + bias) v, head by head, of [L, C] and bias [heads, L, L]."""
    width = q.shape[1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = scale * q[:, part] @ k[:, part].T + bias[head]
        parts.append(logits.softmax(1) @ v[:, part])
    return torch.cat(parts, 1)


def bucket(distance: int) -> int:
    """T5's bucket of a distance (key minus query): 32 in all, exact below 8, logarithmic to 128."""
    side, far = 16 * (distance > 0), abs(distance)
    if far < 8:
        return side + far
    return side + min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))


def umt5(state: State, spec: TextSpec, ids: list[int]) -> Tensor:
    """umT5's encoder by its formulas: every layer has its own relative positions, no scaling."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    x = state["token_embedding.weight"][ids]
    places = [[bucket(key - query) for key in range(len(ids))] for query in range(len(ids))]
    for layer in range(spec.num_layers):
        w = {n.removeprefix(f"blocks.{layer}."): t for n, t in state.items() if f"s.{layer}." in n}
        bias = w["pos_embedding.embedding.weight"][torch.tensor(places)].permute(2, 0, 1)
        y = norm(x, f"blocks.{layer}.norm1")
        q, k, v = (y @ w[f"attn.{letter}.weight"].T for letter in "qkv")
        x = x + attention(q, k, v, spec.num_heads, 1.0, bias) @ w["attn.o.weight"].T
        y = norm(x, f"blocks.{layer}.norm2")
        gate = torch.nn.functional.gelu(y @ w["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ w["ffn.fc1.weight"].T)) @ w["ffn.fc2.weight"].T
    return norm(x, "norm")


def vision(state: State, spec: ImageSpec, picture: Tensor) -> Tensor:
    """open-CLIP's vision tower without its last block, of one picture [3, S, S]."""

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    kernel, side = state["visual.patch_embedding.weight"], spec.patch_size
    patches = [picture[:, r : r + side, c : c + side] for r in range(0, spec.image_size, side)
               for c in range(0, spec.image_size, side)]  # fmt: skip
    tokens = [(kernel * patch).sum((1, 2, 3)) for patch in patches]
    x = (
        torch.stack([state["visual.cls_embedding"][0, 0], *tokens])
        + state["visual.pos_embedding"][0]
    )
    x = norm(x, "visual.pre_norm")
    scale = (spec.hidden_size / spec.num_attention_heads) ** -0.5
    for layer in range(spec.num_hidden_layers - 1):
        block = f"visual.transformer.{layer}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.to_qkv").chunk(3, 1)
        none = torch.zeros(spec.num_attention_heads, len(x), len(x))
        seen = attention(q, k, v, spec.num_attention_heads, scale, none)
        x = x + linear(seen, f"{block}.attn.proj")
        fed = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.0")
        x = x + linear(fed * 0.5 * (1 + torch.erf(fed / math.sqrt(2))), f"{block}.mlp.2")
    return x


@torch.no_grad()
def test_umt5_computes_what_its_official_names_mean(tmp_path: Path) -> None:
    state = text_state(TEXT)
    torch.save(state, tmp_path / "t5.pth")
    model = load_text_encoder(tmp_path / "t5.pth", TEXT, torch.float32)
    ids = torch.randint(40, (150,), generator=torch.Generator().manual_seed(3)).tolist()
    found = model(torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(found, umt5(state, TEXT, ids), atol=1e-5, rtol=1e-4)
    assert model.shared.weight is model.encoder.embed_tokens.weight
    assert not model.training


@torch.no_grad()
def test_the_vision_tower_computes_what_its_official_names_mean(tmp_path: Path) -> None:
    state = image_state(IMAGE)
    torch.save(state, tmp_path / "clip.pth")
    model = load_image_encoder(tmp_path / "clip.pth", IMAGE, torch.float32)
    picture = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(4))
    found = model(picture[None], output_hidden_states=True).hidden_states[IMAGE.output_layer][0]
    torch.testing.assert_close(found, vision(state, IMAGE, picture), atol=1e-5, rtol=1e-4)


def official_vae(model: AutoencoderKLWan) -> State:
    """The codec's tensors under Wan's names, written anew: two lists of layers in a row."""
    leaves = {"norm1.gamma": "residual.0.gamma", "norm2.gamma": "residual.3.gamma"}
    for number, place in (("1", "2"), ("2", "6")):
        leaves |= {f"conv{number}.{x}": f"residual.{place}.{x}" for x in ("weight", "bias")}
    leaves |= {f"conv_shortcut.{x}": f"shortcut.{x}" for x in ("weight", "bias")}
    renamed = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] in ("quant_conv", "post_quant_conv"):
            new = f"conv{1 + (parts[0] == 'post_quant_conv')}.{parts[1]}"
        elif parts[1] == "mid_block":
            place = {"resnets": 2 * int(parts[3]), "attentions": 1}[parts[2]]
            leaf = ".".join(parts[4:])
            new = f"{parts[0]}.middle.{place}.{leaves.get(leaf, leaf)}"
        elif parts[1] == "down_blocks":
            leaf = ".".join(parts[3:])
            new = f"encoder.downsamples.{parts[2]}.{leaves.get(leaf, leaf)}"
        elif parts[1] == "up_blocks":
            own = {"resnets": int(parts[4]), "upsamplers": 3}[parts[3]]
            leaf = ".".join(parts[5:])
            new = f"decoder.upsamples.{4 * int(parts[2]) + own}.{leaves.get(leaf, leaf)}"
        else:
            place = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[parts[1]]
            new = f"{parts[0]}.{place}.{parts[2]}"
        renamed[new] = tensor
    return renamed


def tiny_vae() -> AutoencoderKLWan:
    torch.manual_seed(5)
    return AutoencoderKLWan(base_dim=4, z_dim=16)


def test_the_codec_comes_back_from_its_official_names(tmp_path: Path) -> None:
    want = tiny_vae()
    torch.save(official_vae(want), tmp_path / "vae.pth")
    found = load_vae(tmp_path / "vae.pth", 16, torch.float32).state_dict()
    assert found.keys() == want.state_dict().keys()
    assert all(torch.equal(found[n], t) for n, t in want.state_dict().items())


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A directory as Wan-AI/Wan2.1-I2V-14B-720P is, with wav2vec 2.0 and the audio branch."""
    write_layout(tmp_path, "official shards")
    write_speech(tmp_path)
    write_tokenizer(tmp_path / OFFICIAL["tokenizer"])
    torch.save(text_state(TINY.text), tmp_path / OFFICIAL["text_encoder"])
    torch.save(image_state(TINY.image), tmp_path / OFFICIAL["image_encoder"])
    torch.save(official_vae(tiny_vae()), tmp_path / OFFICIAL["vae"])
    return tmp_path


def test_the_official_directory_works_as_downloaded(
    downloaded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_talking_model(WanSpec(weights=str(downloaded), architecture=TINY))
    rng = np.random.default_rng(0)
    audio = rng.normal(size=model.clip.num_samples).astype(np.float32)
    portrait = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    cond = model.encode_condition(portrait, audio, "a person talks")
    want = umt5(text_state(TINY.text), TINY.text, [3, 4, 5, 1])
    torch.testing.assert_close(cond.text[0, :4], want, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        x = torch.randn(1, 16, 2, 4, 4)
        assert torch.isfinite(model.velocity(x, torch.tensor([0.5]), cond)).all()
    assert model.decode(x, cond).shape == (1, 5, 32, 32, 3)
    layouts = {"text_encoder": "text encoder (umT5)", "vae": "codec (VAE)",
               "image_encoder": "image encoder (open-CLIP)"}  # fmt: skip
    for part, said in layouts.items():
        with pytest.raises(SystemExit) as stop:
            main(["info", str(downloaded / OFFICIAL[part]), "--json"])
        assert stop.value.code == 0
        assert json.loads(capsys.readouterr().out)["layout"] == f"official Wan {said}"
    encoder = load_talking_model(
        WanSpec(weights=str(downloaded), architecture=TINY), transformer=False
    )
    assert all(p.is_meta for p in encoder.dit.parameters())
    again = encoder.encode_condition(portrait, audio, "a person talks")
    assert all(torch.equal(value, again.state()[name]) for name, value in cond.state().items())


@pytest.mark.parametrize("part", ["text_encoder", "image_encoder", "vae"])
def test_every_tensor_that_does_not_fit_is_named_with_its_shape(
    part: str, downloaded: Path
) -> None:
    path = downloaded / OFFICIAL[part]
    state = torch.load(path, weights_only=True)
    lost = [name for name in state if name.endswith(("fc1.weight", "mlp.2.weight"))]
    if part == "vae":
        lost = ["encoder.conv1.bias"]
    for name in lost:
        del state[name]
    torch.save({**state, "surprise.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(UsageError) as caught:
        load_talking_model(WanSpec(weights=str(downloaded), architecture=TINY))
    text = caught.value.message
    assert OFFICIAL[part] in text
    assert "1 unknown: surprise.weight [2, 3]" in text
    assert f"{len(lost)} missing: " in text
    shape = {"text_encoder": "wi_1.weight [16, 16]", "vae": "encoder.conv_in.bias [4]",
             "image_encoder": "encoder.layers.N.mlp.fc2.weight [16, 16] (2 times)"}  # fmt: skip
    assert shape[part] in text
