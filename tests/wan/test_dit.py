"""The talking transformer against diffusers' own forward and a naive audio attention."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from ft2.wan.block import audio_attention
from ft2.wan.dit import TalkingTransformer

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 36,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "image_dim": 20,
    "added_kv_proj_dim": 24,
}


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)


@pytest.fixture
def dit() -> TalkingTransformer:
    model = TalkingTransformer(**SIZES, audio_features=10, audio_dim=14).eval()
    randomise(model)
    return model


def inputs(batch: int = 2, text_tokens: int = 512, windows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    mask = torch.ones(batch, windows, 5, dtype=torch.bool)
    mask[:, 0, 2:] = False
    return {
        "hidden_states": draw(batch, 36, 3, 4, 4),
        "timestep": torch.tensor([1000.0, 263.16])[:batch],
        "encoder_hidden_states": draw(batch, text_tokens, 16),
        "encoder_hidden_states_image": draw(batch, 7, 20),
        "audio": draw(batch, windows, 5, 10),
        "audio_mask": mask,
    }


def test_without_audio_it_is_diffusers_model(dit: TalkingTransformer) -> None:
    theirs = WanTransformer3DModel(**SIZES).eval()
    missing, unexpected = theirs.load_state_dict(dit.state_dict(), strict=False)
    assert not missing
    assert all("processor" in name or "proj_model" in name for name in unexpected)
    given = inputs()
    heard = dit(**given)
    for block in dit.blocks:
        torch.nn.init.zeros_(block.attn2.processor.v_proj.weight)
    ours = dit(**given)
    want = theirs(
        given["hidden_states"],
        given["timestep"],
        given["encoder_hidden_states"],
        given["encoder_hidden_states_image"],
        return_dict=False,
    )[0]
    torch.testing.assert_close(ours, want, atol=1e-6, rtol=1e-5)
    assert (heard - want).abs().max() > 1e-3


def test_new_model_starts_with_a_silent_audio_branch() -> None:
    model = TalkingTransformer(**SIZES, audio_features=10, audio_dim=14).eval()
    given = inputs()
    scale = torch.zeros(2)
    assert torch.equal(model(**given), model(**given, audio_scale=scale))
    names = [n for n, _ in model.named_parameters() if "processor" in n or "proj_model" in n]
    assert len(names) == 2 * 2 + 3
    assert model.config.num_layers == 2
    assert model.config.audio_dim == 14


@pytest.mark.parametrize("windows", [1, 3])
def test_audio_attention_equals_a_loop_over_real_tokens(
    dit: TalkingTransformer, windows: int
) -> None:
    attn = dit.blocks[0].attn2
    given = inputs(windows=windows)
    audio = torch.randn(2, windows, 5, 14, generator=torch.Generator().manual_seed(2))
    query = torch.randn(2, 12, 24, generator=torch.Generator().manual_seed(3))
    ours = audio_attention(attn, query, audio, given["audio_mask"], None)
    per_window = 12 // windows
    want = torch.zeros(2, 12, 24)
    for item in range(2):
        for token in range(12):
            window = token // per_window
            real = audio[item, window, : int(given["audio_mask"][item, window].sum())]
            keys = real @ attn.processor.k_proj.weight.T
            values = real @ attn.processor.v_proj.weight.T
            for head in range(2):
                part = slice(12 * head, 12 * head + 12)
                logits = keys[:, part] @ query[item, token, part] / 12**0.5
                want[item, token, part] = logits.softmax(0) @ values[:, part]
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=1e-5)


def test_padding_and_batch_size_change_nothing(dit: TalkingTransformer) -> None:
    given = inputs()
    both = dit(**given)
    one = dit(**{name: value[1:] for name, value in given.items()})
    torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=1e-5)
    given["audio"] = given["audio"].masked_fill(~given["audio_mask"][..., None], 1e3)
    torch.testing.assert_close(dit(**given), both, atol=1e-5, rtol=1e-5)


def test_checkpointing_gives_the_same_gradients(dit: TalkingTransformer) -> None:
    given = inputs()
    gradients = []
    for checkpointing in (False, True):
        dit.gradient_checkpointing = checkpointing
        dit.zero_grad()
        dit(**given).square().mean().backward()
        gradients.append([p.grad.clone() for p in dit.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
