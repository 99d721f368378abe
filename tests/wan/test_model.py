"""The bundle: conditions, latent space, the Gaussian skip, files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ft2.errors import UsageError
from ft2.runs import load_tensors, save_tensors
from ft2.wan.audio import positions
from ft2.wan.condition import Conditioning
from ft2.wan.encoders import SpeechTower, clean_prompt, level, log_mel_tokens
from ft2.wan.space import gaussian_skip
from ft2.wan.spec import Architecture, AudioSpec, WanSpec
from ft2.wan.weights import load_talking_model, meta_dit


def condition(batch: int = 3) -> Conditioning:
    return Conditioning(
        torch.randn(batch, 20, 3, 8, 8),
        torch.randn(batch, 4, 6),
        torch.randn(batch, 5, 6),
        torch.randn(batch, 3, 7, 8),
        torch.rand(batch, 3, 7) > 0.3,
        torch.randint(0, 255, (batch, 64, 64, 3), dtype=torch.uint8),
    )


def test_conditions_join_repeat_select_and_survive_a_file(tmp_path: Path) -> None:
    cond = condition()
    twice = cond.repeat(2)
    assert len(twice) == 6
    assert torch.equal(twice.text[0], twice.text[1])
    joined = Conditioning.cat([cond.select([0]), cond.select([1, 2])])
    for name, value in cond.state().items():
        assert torch.equal(joined.state()[name], value)
    save_tensors(tmp_path / "c.safetensors", cond.state())
    back = Conditioning.from_state(load_tensors(tmp_path / "c.safetensors")[0])
    assert torch.equal(back.audio_mask, cond.audio_mask)
    assert back.to("cpu", torch.bfloat16).audio.dtype == torch.bfloat16
    assert back.to("cpu", torch.bfloat16).reference.dtype == torch.uint8


def test_gaussian_skip_is_the_least_squares_velocity() -> None:
    generator = torch.Generator().manual_seed(0)
    variance = torch.tensor([0.3, 2.5])
    for sigma in (0.15, 0.6, 0.95):
        clean = torch.randn(200_000, 2, generator=generator) * variance.sqrt()
        noise = torch.randn(200_000, 2, generator=generator)
        noisy = (1 - sigma) * clean + sigma * noise
        slope = ((noise - clean) * noisy).mean(0) / noisy.square().mean(0)
        got = gaussian_skip(torch.ones(1, 2), torch.tensor([sigma]), variance)[0]
        torch.testing.assert_close(got, slope, atol=0.03, rtol=0.03)


def test_positions_tell_all_tokens_of_a_clip_apart() -> None:
    place = positions(torch.arange(42.0))
    distances = torch.cdist(place, place) + 10 * torch.eye(42)
    assert distances.min() > 0.1


def test_levelled_sound_has_one_loudness_and_silence_stays() -> None:
    wave = np.sin(np.arange(16000) / 20).astype(np.float32)
    quiet, loud = level(0.02 * wave), level(0.9 * wave)
    np.testing.assert_allclose(quiet, loud, rtol=1e-3, atol=1e-5)
    assert not level(np.zeros(100, np.float32)).any()


def test_log_mel_tokens_come_at_25_hz() -> None:
    spec = AudioSpec(kind="log_mel", features=40, num_mels=10, tower_dim=8)
    tokens = log_mel_tokens(SpeechTower(10, 8, 41), [np.zeros(26880, np.float32)], spec)
    assert tokens.shape == (1, 42, 28)


def test_prompts_are_cleaned_as_wan_does() -> None:
    assert clean_prompt("  a &amp;amp; b\n\tc ") == "a & b c"


def test_audio_features_must_add_up() -> None:
    with pytest.raises(ValueError, match="features must be 188"):
        AudioSpec(kind="log_mel", features=100, num_mels=40, tower_dim=96)


def test_the_published_size_has_the_published_audio_branch() -> None:
    dit = meta_dit(WanSpec(architecture=Architecture()))
    audio = {n: p for n, p in dit.named_parameters() if "proj_model" in n or ".processor." in n}
    assert len(audio) == 83
    assert sum(p.numel() for p in audio.values()) == 840_437_760
    blocks = sum(p.numel() for n, p in dit.named_parameters() if n.startswith("blocks."))
    processors = 40 * 2 * 5120 * 2048
    assert blocks - processors == pytest.approx(16.1e9, rel=0.005)


def test_unknown_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights at"):
        load_talking_model(WanSpec(weights=str(tmp_path / "none")))
    with pytest.raises(UsageError, match=r"architecture\.json"):
        load_talking_model(WanSpec(weights=str(tmp_path)))
