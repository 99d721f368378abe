"""Published weights: four layouts of the audio branch, and a tiny directory of the real classes."""

from pathlib import Path

import pytest
import torch

from ft2.errors import UsageError
from ft2.wan.published import audio_branch, read_audio_file
from ft2.wan.spec import (
    Architecture,
    AudioSpec,
    DitSpec,
    ImageSpec,
    LatentSpec,
    TextSpec,
    WanSpec,
)
from ft2.wan.weights import build_dit, load_talking_model

TINY = Architecture(
    name="tiny-published",
    clip={"width": 32, "height": 32, "num_frames": 5, "fps": 5.0},
    dit=DitSpec(
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=32,
        num_layers=2,
        freq_dim=16,
        audio_dim=16,
    ),
    text=TextSpec(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=300, max_tokens=12
    ),
    image=ImageSpec(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    ),
    audio=AudioSpec(kind="wav2vec2", features=16),
    latent=LatentSpec(),
)


def branch(layers: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = {"proj.weight": (16, 16), "norm.weight": (16,), "norm.bias": (16,)}
    state = {f"proj_model.{n}": torch.randn(s) for n, s in names.items()}
    for layer in range(layers):
        for kind in "kv":
            name = f"blocks.{layer}.cross_attn.processor.{kind}_proj.weight"
            state[name] = torch.randn(24, 16)
    return state


def layouts() -> dict[str, dict[str, object]]:
    flat = branch()
    projection = {n.removeprefix("proj_model."): t for n, t in flat.items() if "proj_model" in n}
    processors = {n: t for n, t in flat.items() if "processor" in n}
    return {
        "official": {"proj_model": projection, "audio_processor": processors},
        "flat": {
            **{f"proj_model.{n}": t for n, t in projection.items()},
            **{f"audio_processor.{n}": t for n, t in processors.items()},
        },
        "comfy": {n.replace(".processor", ""): t for n, t in flat.items()},
        "whole": {**flat, "blocks.0.self_attn.q.weight": torch.zeros(2, 2)},
    }


@pytest.mark.parametrize("name", ["official", "flat", "comfy", "whole"])
def test_every_layout_gives_the_same_branch(name: str) -> None:
    found = audio_branch(layouts()[name], 2)
    want = {n.replace("cross_attn", "attn2"): t for n, t in branch().items()}
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n], want[n]) for n in want)


def test_a_branch_of_another_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="7 tensors"):
        audio_branch(branch(2), 3)


def test_a_pickle_that_is_not_plain_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"proj_model": Path("x")}, tmp_path / "fantasytalking_model.ckpt")
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        read_audio_file(tmp_path)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tiny models of the real classes, saved by their own libraries."""
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Wav2Vec2Config, Wav2Vec2Model

    from ft2.wan.encoders import image_encoder, text_encoder

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    dit = build_dit(TINY)
    audio = {n: p for n, p in dit.state_dict().items() if "proj_model" in n or ".processor." in n}
    base = {n: p for n, p in dit.state_dict().items() if n not in audio}
    (folder / "transformer").mkdir()
    from safetensors.torch import save_file

    save_file(base, folder / "transformer" / "model-00001-of-00001.safetensors")
    torch.save(
        {n.replace("attn2", "cross_attn"): t for n, t in audio.items()},
        folder / "fantasytalking_model.ckpt",
    )
    text_encoder(TINY.text).save_pretrained(folder / "text_encoder")
    image_encoder(TINY.image).save_pretrained(folder / "image_encoder")
    AutoencoderKLWan(base_dim=4, z_dim=16, num_res_blocks=1).save_pretrained(folder / "vae")
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
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4, "talks": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(
        folder / "tokenizer"
    )
    return folder


def test_a_published_directory_becomes_a_talking_model(published: Path) -> None:
    import numpy as np

    spec = WanSpec(weights=str(published), architecture=TINY, precision="bf16")
    model = load_talking_model(spec)
    dtypes = {n: p.dtype for n, p in model.dit.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32
    assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    rng = np.random.default_rng(0)
    audio = rng.normal(size=model.clip.num_samples).astype(np.float32)
    portrait = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
    cond = model.encode_condition(portrait, audio, "a person talks")
    frames = torch.from_numpy(rng.integers(0, 255, (1, 5, 32, 32, 3)).astype(np.uint8))
    x = model.encode_video(frames, cond)
    assert x.shape == (1, 16, 2, 4, 4)
    with torch.no_grad():
        velocity = model.velocity(x, torch.tensor([0.5]), cond)
    assert torch.isfinite(velocity).all()
    assert model.decode(x, cond).shape == (1, 5, 32, 32, 3)
    raw = model.codec.encode(frames)
    mean = torch.tensor(model.codec.vae.config.latents_mean)[:, None, None, None]
    std = torch.tensor(model.codec.vae.config.latents_std)[:, None, None, None]
    torch.testing.assert_close(x, (raw - mean) / std)


def test_missing_parts_are_named_all_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="transformer, text_encoder, tokenizer"):
        load_talking_model(WanSpec(weights=str(tmp_path), architecture=Architecture()))


def test_weights_of_another_shape_are_named(published: Path) -> None:
    wider = TINY.model_copy(update={"dit": TINY.dit.model_copy(update={"ffn_dim": 40})})
    with pytest.raises(UsageError, match=r"ffn\.net"):
        load_talking_model(WanSpec(weights=str(published), architecture=wider))
