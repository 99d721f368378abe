"""Published weights: four layouts of the audio branch, and a tiny directory of the real classes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ft2.errors import UsageError
from ft2.wan.checkpoint import flatten_checkpoint, load_pickle
from ft2.wan.layouts import audio_name, canonical_names, describe_names
from ft2.wan.published import load_dit, transformer_files
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
    given = flatten_checkpoint(layouts()[name])
    names = canonical_names(list(given), official=False)
    found = {names[old]: tensor for old, tensor in given.items() if audio_name(old)}
    want = {n.replace("cross_attn", "attn2"): t for n, t in branch().items()}
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n], want[n]) for n in want)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("official", "official layout, 2 blocks, 7 tensors, complete"),
        ("flat", "official layout"),
        ("comfy", "without 'processor' (ComfyUI) layout, 2 blocks"),
        ("whole", "inside a whole transformer layout"),
    ],
)
def test_every_layout_is_told_by_its_names(name: str, said: str) -> None:
    given = flatten_checkpoint(layouts()[name])
    found = describe_names({n: tuple(t.shape) for n, t in given.items()})
    assert str(found["audio_branch"]).startswith(said)


class Runs:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code in a pickle ran')",)


@pytest.mark.parametrize("value", [Path("x"), Runs()])
def test_a_pickle_that_is_not_plain_tensors_is_refused(tmp_path: Path, value: object) -> None:
    torch.save({"proj_model": value}, tmp_path / "fantasytalking_model.ckpt")
    with pytest.raises(UsageError, match="not a readable checkpoint"):
        load_pickle(tmp_path / "fantasytalking_model.ckpt")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with tiny models of the real classes, saved by their own libraries."""
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, Wav2Vec2Config, Wav2Vec2Model

    from ft2.wan.encoders import image_encoder, text_encoder

    folder = tmp_path_factory.mktemp("published")
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
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
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
    with pytest.raises(UsageError, match="lacks text_encoder, tokenizer, image_encoder, vae"):
        load_talking_model(WanSpec(weights=str(tmp_path), architecture=Architecture()))


def test_weights_of_another_shape_are_named(published: Path) -> None:
    wider = TINY.model_copy(update={"dit": TINY.dit.model_copy(update={"ffn_dim": 40})})
    with pytest.raises(UsageError, match=r"ffn\.net"):
        load_talking_model(WanSpec(weights=str(published), architecture=wider))


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


KINDS = ("diffusers", "official shards", "official, prefixed", "one file with the audio")


@pytest.mark.parametrize("kind", KINDS)
def test_every_transformer_layout_gives_the_same_network(tmp_path: Path, kind: str) -> None:
    want = write_layout(tmp_path, kind).state_dict()
    with torch.device("meta"):
        dit = build_dit(TINY)
    load_dit(dit, transformer_files(tmp_path), torch.float32)
    found = dit.state_dict()
    assert found.keys() == want.keys()
    assert all(torch.equal(found[n], want[n]) for n in want)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_layout(tmp_path, "official shards")
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"lacks 1 of 3 shards: model-00002-of-00003"):
        transformer_files(tmp_path)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    write_layout(tmp_path, "one file with the audio")
    path = tmp_path / "trained.safetensors"
    state = load_file(path)
    del state["blocks.1.ffn.0.bias"], state["blocks.0.ffn.0.bias"], state["head.modulation"]
    extra = {f"blocks.{i}.cross_attn.extra.weight": torch.zeros(1) for i in range(2)}
    save_file({**state, **extra, "img_emb.emb_pos": torch.zeros(1)}, path)
    with torch.device("meta"):
        dit = build_dit(TINY)
    with pytest.raises(UsageError) as caught:
        load_dit(dit, transformer_files(tmp_path), torch.float32)
    text = caught.value.message
    assert "3 missing: scale_shift_table, blocks.N.ffn.net.0.proj.bias (2 times)" in text
    assert "3 unknown" in text
    assert "blocks.N.cross_attn.extra.weight (2 times)" in text
    assert "img_emb.emb_pos" in text
    assert all(p.is_meta for p in dit.parameters()), "nothing is loaded before all fits"


def test_loading_holds_the_weights_and_at_most_one_shard(tmp_path: Path) -> None:
    """Peak memory in a process of its own: four float32 shards become bf16 weights."""
    script = """
import resource, sys, torch
from pathlib import Path
from ft2.wan.published import load_dit, transformer_files
from ft2.wan.spec import Architecture
from ft2.wan.weights import build_dit
architecture = Architecture.model_validate_json(Path(sys.argv[1], "a.json").read_text())
with torch.device("meta"):
    dit = build_dit(architecture)
    dit.to(torch.bfloat16)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
files = transformer_files(Path(sys.argv[1]))
before = peak()
load_dit(dit, files, torch.bfloat16)
print(peak() - before, sum(p.numel() * p.element_size() for p in dit.parameters()) / 2**20)
"""
    sizes = TINY.dit.model_copy(
        update={"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048,
                "num_layers": 8, "audio_dim": 128}
    )  # fmt: skip
    architecture = TINY.model_copy(update={"dit": sizes})
    (tmp_path / "a.json").write_text(architecture.model_dump_json())
    state = dict(build_dit(architecture).named_parameters())
    names = list(state)
    shard = 0.0
    for number in range(4):
        part = {n: state[n].detach() for n in names[number::4]}
        save_file(part, tmp_path / f"model-{number}.safetensors")
        shard = max(shard, (tmp_path / f"model-{number}.safetensors").stat().st_size / 2**20)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, weights = map(float, done.stdout.split())
    assert weights > 60
    assert grown < weights + shard + 25, f"{grown:.0f} MiB for {weights:.0f} + {shard:.0f} MiB"
