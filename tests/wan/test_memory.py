"""Low memory: the plan, parts that visit, blocks that come one by one; numbers stay the same.

The processor stands in for the card here: hooks, moves and the order of work are the same; how much
memory a card saves is not measured.
"""

import numpy as np
import pytest
import torch

from ft2.errors import UsageError
from ft2.lora import SharedGate, expert_parameters, install_experts
from ft2.wan.memory import MemoryPlan, card_gib, encoders_of, place, plan_memory
from ft2.wan.model import TalkingModel
from ft2.wan.spec import WanSpec
from ft2.wan.weights import load_talking_model


@pytest.mark.parametrize(
    ("vram", "placement", "tiled"),
    [(80, "all", False), (48, "encoders", False), (24, "blocks", True), (8, "blocks", True)],
)
def test_a_14b_model_is_placed_by_the_cards_memory(vram: int, placement: str, tiled: bool) -> None:
    plan = plan_memory(vram, dit_gib=33.0, encoders_gib=13.0)
    assert (plan.placement, plan.tiled_codec) == (placement, tiled)
    assert plan.resident_gib < vram


def test_memory_is_refused_for_a_processor() -> None:
    with pytest.raises(UsageError, match="vram=24 with device=cpu"):
        card_gib(24, "cpu")


def sampled(model: TalkingModel) -> list[torch.Tensor]:
    """Conditions, a gated velocity and a decoded clip."""
    rng = np.random.default_rng(0)
    portrait = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    audio = (rng.normal(size=model.clip.num_samples) * 0.1).astype(np.float32)
    cond = model.encode_condition(portrait, audio, "a person talks")
    x = torch.randn(1, *model.latent_shape(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gate = SharedGate(torch.full((model.num_layers, 2), 0.7))
        v = model.velocity(x, torch.tensor([0.5]), cond, gate)
        again = model.velocity(x, torch.tensor([0.4]), cond, gate)
    return [cond.text, cond.audio, cond.image, v, again, model.decode(v, cond)]


@pytest.mark.parametrize("placement", ["all", "encoders", "blocks"])
def test_every_placement_gives_the_same_numbers(placement: str) -> None:
    model = load_talking_model(WanSpec())
    install_experts(model.dit, ["attn1.to_q", "ffn.net.2"], 2, 4, 4.0)
    torch.manual_seed(0)
    for parameter in expert_parameters(model.dit):
        torch.nn.init.normal_(parameter, std=0.1)
    want = sampled(model)
    moves = []
    for part in encoders_of(model):
        plain = part.to
        part.to = lambda *a, plain=plain, **k: moves.append(a) or plain(*a, **k)  # type: ignore[method-assign]
    place(model, "cpu", MemoryPlan(placement, False, 0.0))  # type: ignore[arg-type]
    for ours, plain in zip(sampled(model), want, strict=True):
        assert torch.equal(ours, plain)
    assert len(moves) > 8 or placement == "all", "parts come and go"
