"""Published weights: a tiny directory of the real classes, and every layout of a transformer."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_toys import TINY, write_layout
from safetensors.torch import load_file, save_file

from ft2.errors import UsageError
from ft2.wan.dit import build_dit
from ft2.wan.published import load_dit, transformer_files
from ft2.wan.spec import Architecture, WanSpec
from ft2.wan.weights import load_talking_model


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
    assert (
        "3 missing: scale_shift_table [1, 2, 24], blocks.N.ffn.net.0.proj.bias [32] (2 times)"
        in text
    )
    assert "3 unknown" in text
    assert "blocks.N.cross_attn.extra.weight [1] (2 times)" in text
    assert "img_emb.emb_pos" in text
    assert all(p.is_meta for p in dit.parameters()), "nothing is loaded before all fits"


def test_loading_holds_the_weights_and_at_most_one_shard(tmp_path: Path) -> None:
    """Peak memory in a process of its own: four float32 shards become bf16 weights."""
    script = """
import resource, sys, torch
from pathlib import Path
from ft2.wan.published import load_dit, transformer_files
from ft2.wan.spec import Architecture
from ft2.wan.dit import build_dit
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
