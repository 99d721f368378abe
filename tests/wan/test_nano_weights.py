"""The shipped nano weights: complete, small, as their record says, and usable."""

import numpy as np
import pytest
import torch

from ft2.runs import hash_file, read_json
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model
from ft2.weights import nano_dir

FILES = ("codec", "dit", "text", "image", "speech", "identity", "motion", "face")


@pytest.fixture(scope="module")
def model() -> TalkingModel:
    return load_talking_model(WanSpec())


def test_the_record_has_the_hash_of_every_file() -> None:
    recorded = read_json(nano_dir() / "provenance.json")["sha256"]
    for name in (*(f"{part}.safetensors" for part in FILES), "tokenizer.json"):
        assert recorded[name] == hash_file(nano_dir() / name), name


def test_all_shipped_weights_stay_below_25_megabytes() -> None:
    size = sum(path.stat().st_size for path in nano_dir().rglob("*") if path.is_file())
    assert size <= 25e6


def test_the_shipped_transformer_heeds_prompt_audio_and_picture(model: TalkingModel) -> None:
    assert model.clip.num_samples == 26880
    assert not any(p.requires_grad for p in model.dit.parameters())
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    sound = rng.normal(size=26880).astype(np.float32) * 0.1
    tone = np.sin(np.arange(26880) / 30).astype(np.float32) * 0.1
    conditions = [
        model.encode_condition(picture, sound, "a person talks"),
        model.encode_condition(picture, tone, "a person talks"),
        model.encode_condition(255 - picture, sound, "a person talks"),
        model.encode_condition(picture, sound, "raising the brows"),
    ]
    x = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, *others = [model.velocity(x, torch.tensor([0.8]), cond) for cond in conditions]
    for other in others:
        assert (other - first).abs().max() > 1e-3


def test_the_codec_returns_a_moving_picture(model: TalkingModel) -> None:
    from ft2.generator.codec_fit import psnr
    from ft2.puppet import identities

    still = torch.from_numpy(identities.load("astronaut").image.copy())[None]
    still = torch.nn.functional.avg_pool2d(still.permute(0, 3, 1, 2).float(), 4)
    still = still.round().to(torch.uint8).permute(0, 2, 3, 1)
    moves = [(0, 0), (0, 1), (1, 1), (1, 0), (-1, 0)]
    clip = torch.stack([torch.roll(still, move, (1, 2)) for move in moves], 1)
    back = model.codec.decode(model.codec.encode(clip), still)
    inner = np.s_[:, 1:, 8:56, 8:56]
    assert psnr(back.numpy()[inner], clip.numpy()[inner]) > 25


def test_shipped_branches_are_used_only_where_they_are_asked_for(model: TalkingModel) -> None:
    asked = load_talking_model(WanSpec(branches=("identity", "motion")))
    assert (model.branches, asked.branches) == ((), ("identity", "motion"))
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    sound = rng.normal(size=26880).astype(np.float32) * 0.1
    x = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.8])
    plain = model.encode_condition(picture, sound, "a person talks")
    with torch.no_grad():
        base = model.velocity(x, sigma, plain)
        assert torch.equal(asked.velocity(x, sigma, plain), base), "nothing said, nothing changed"
        levels = [
            asked.velocity(
                x, sigma, asked.encode_condition(picture, sound, "a person talks", (omega, 0.5))
            )
            for omega in (0.1, 1.0)
        ]
        face = asked.encode_condition(255 - picture, sound, "a person talks").identity
        other = asked.encode_condition(picture, sound, "a person talks", (0.1, 0.5))
        swapped = asked.velocity(x, sigma, type(other)(**(other.state() | {"identity": face})))
    assert (levels[1] - levels[0]).abs().max() > 1e-3
    assert (levels[0] - base).abs().max() > 1e-3
    assert (swapped - levels[0]).abs().max() > 1e-3
