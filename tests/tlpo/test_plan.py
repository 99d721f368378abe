"""Presets and plans: the full sizes on the meta device, counted against the papers' arithmetic."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ft2.config import load_config
from ft2.errors import UsageError
from ft2.tlpo.config import ATTENTION_TARGETS, FFN_TARGETS, ExpertConfig, FusionConfig, stage_of
from ft2.tlpo.memory import kept_by_block, memory_gib
from ft2.tlpo.plan import plan_stage
from ft2.tlpo.work import Held, forward_flops, num_tokens
from ft2.wan.spec import Architecture

DIMENSIONS = ("motion", "lip", "quality")
FULL = Architecture()


@pytest.mark.parametrize("family", ["nano", "full"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_every_expert_preset_trains_its_dimension(family: str, dimension: str) -> None:
    config = load_config(ExpertConfig, f"{family}/expert-{dimension}")
    assert config.dimension == dimension
    assert (config.mask.kind == "lip") == (dimension == "lip")
    if family == "nano" or dimension == "motion":
        assert config.dpo.positive_weight > 0


@pytest.mark.parametrize("family", ["nano", "full"])
def test_fusion_presets(family: str) -> None:
    config = load_config(FusionConfig, f"{family}/fusion")
    assert tuple(config.experts) == DIMENSIONS
    assert config.store == "fusion"
    assert config.reference == "initial"
    assert config.engine.learning_rate <= (3e-2 if family == "nano" else 1e-3)


def test_full_counts() -> None:
    """Rank 128, 40 blocks of 5120 / 13824: per block and rank 6 * 2 * d + 2 (d + f)."""
    d, f, layers = 5120, 13824, 40
    config = load_config(ExpertConfig, "full/expert-lip")
    plan = plan_stage(config)
    assert plan["trainable_parameters"] == 128 * layers * (6 * 2 * d + 2 * (d + f)) == 508_559_360
    assert plan["adapted_linears"] == 8 * layers
    own = {**config.lora.model_dump(), "targets": (*ATTENTION_TARGETS[:3], *FFN_TARGETS)}
    plan = plan_stage(config.model_copy(update={"lora": type(config.lora)(**own)}))
    assert plan["trainable_parameters"] == 128 * 2_744_320 == 351_272_960
    gate = plan_stage(load_config(FusionConfig, "full/fusion"))
    assert gate["trainable_parameters"] == layers * (3 * d + 3) == 614_520
    sinusoid = load_config(FusionConfig, "full/fusion", ["gate.input=sinusoid"])
    assert plan_stage(sinusoid)["trainable_parameters"] == 30_840


def test_full_work() -> None:
    """512 x 512 x 81: 21,504 tokens; 514 TF in the linears, 379 in self-attention, 910 in all."""
    assert num_tokens(FULL) == 21_504
    forward = forward_flops(FULL)
    assert forward.video == pytest.approx(514e12, rel=0.01)
    assert forward.attention == pytest.approx(379e12, rel=0.04)
    assert forward.total == pytest.approx(910e12, rel=0.02)


def pair_tflop(*changes: str) -> float:
    plan = plan_stage(load_config(ExpertConfig, "full/expert-motion", ["sigma.draws=1", *changes]))
    return float(str(plan["tflop_per_pair"]))


def test_full_pair() -> None:
    """2 x (forward, recomputed forward, backward) and 2 reference forwards: 8.45 PF a pair."""
    small = "lora.rank=1"
    assert pair_tflop(small) == pytest.approx(8450, rel=0.02)
    stored = pair_tflop(small, "sigma.stored_draws=4")
    assert stored == pytest.approx(6630, rel=0.02)
    assert pair_tflop(small, "dpo.decomposed=true") == pytest.approx(8450 + 910, rel=0.02)
    keep = "gradient_checkpointing=keep_attention"
    assert pair_tflop(small, keep) == pytest.approx(7660, rel=0.02)
    both = pair_tflop(small, keep, "dpo.decomposed=true")
    assert both == pytest.approx(7660 + 910 - 379, rel=0.02)
    assert pair_tflop() > 1.01 * pair_tflop(small)


def test_memory_is_shared_by_zero_stage() -> None:
    config = load_config(ExpertConfig, "full/expert-motion")
    base, trainable = 17_240_000_000, 508_559_360
    names = [f"blocks.{i}.{n}" for i in range(40) for n in ("attn1.to_q", "ffn.net.0.proj")]
    held = Held.of((name, trainable // 80, 128) for name in names)
    parts = {stage: memory_gib(config, FULL, base, trainable, held, stage, 8) for stage in range(4)}
    assert parts[0]["base"] == pytest.approx(34.48e9 / 2**30, rel=1e-3)
    assert parts[2]["base"] == parts[0]["base"]
    assert parts[3]["base"] == pytest.approx(parts[0]["base"] / 8)
    assert parts[1]["adam"] == pytest.approx(parts[0]["adam"] / 8)
    assert parts[1]["gradients"] == parts[0]["gradients"]
    copy = trainable * 4 / 2**30  # ZeRO-1 and 2 copy fp32 weights too; ZeRO-3 steps on its own part
    assert [parts[s]["master"] for s in range(4)] == pytest.approx([0, copy / 8, copy / 8, 0])
    cast = trainable * 2 / 2**30  # experts of all blocks in bf16, of one at a time if checkpointed
    assert parts[2]["cast"] == pytest.approx(cast / 40)
    open_ = config.model_copy(update={"gradient_checkpointing": False})
    kept = memory_gib(open_, FULL, base, trainable, held, 2, 8)
    assert kept["cast"] == pytest.approx(cast)
    assert parts[2]["gradients"] == pytest.approx(parts[0]["gradients"] / 8)
    inputs = 4 * 40 * 21_504 * 5120 * 2 / 2**30  # two sides, two draws, block inputs in bf16
    assert parts[2]["activations"] == pytest.approx(inputs)
    keep = config.model_copy(update={"gradient_checkpointing": "keep_attention"})
    more = memory_gib(keep, FULL, base, trainable, held, 2, 8)["activations"] - inputs
    assert more == pytest.approx(inputs * (1 + 4 / 256))  # as wide as inputs, a number a head
    block = 4 * kept_by_block(config, FULL, held, 2) / 2**30
    assert parts[2]["workspace"] == pytest.approx(block)
    # a token: 3 inputs of layer norms in fp32, 13 numbers of 5120 and the feed-forward's 13824, and
    # two experts' ranks; the conditions' keys and values are below a twentieth of it
    token = 3 * 5120 * 4 + 2 * (13 * 5120 + 13_824 + 2 * 128)
    assert 1 < block / (4 * 21_504 * token / 2**30) < 1.05


def test_planned_work_of_a_nano_sized_pair_is_what_torch_counts() -> None:
    """Within a tenth of the products that torch's own counter sees in a real step."""
    from test_step import adapted, draws, make_batch, make_step
    from tlpo_toys import ARCHITECTURE, TARGETS
    from torch.utils.flop_counter import FlopCounterMode

    from ft2.tlpo.config import LoraConfig, SigmaConfig
    from ft2.tlpo.work import audio_window, pair_flops

    model = adapted(seed=4)
    experts = [(n, p) for n, p in model.dit.named_parameters() if "lora_" in n]
    held = Held.of((n, p.numel(), p.shape[0] if "lora_A" in n else 0) for n, p in experts)
    step, batch = make_step(model), make_batch()
    heard = torch.randn(3, 2, audio_window(ARCHITECTURE), 28)
    cond = replace(batch.cond, audio=heard, audio_mask=torch.ones(heard.shape[:3]).bool())

    def product(out: object, a: list[int], b: list[int], **_: object) -> int:
        return 2 * a[0] * a[1] * b[1]

    in_place = {torch.ops.aten.addmm_: product}  # torch's counter leaves it out
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step(replace(batch, cond=cond), *draws())[0].backward()
    config = ExpertConfig(lora=LoraConfig(rank=4, targets=TARGETS), sigma=SigmaConfig(draws=2))
    planned = pair_flops(config, ARCHITECTURE, held)
    counted = counter.get_total_flops() / 3
    assert planned == pytest.approx(counted, rel=0.1)


def test_dry_run_lists_what_is_missing(tmp_path: Path) -> None:
    config = load_config(FusionConfig, "full/fusion", [f"dataset={tmp_path / 'no'}", "experts={}"])
    plan = plan_stage(config)
    assert set(plan["missing"]) == {"model.weights", "dataset", "experts"}


def test_stage_of_presets_files_and_overrides(tmp_path: Path) -> None:
    assert stage_of("nano/fusion", []) == "fusion"
    assert stage_of("nano/expert-lip", []) == "expert"
    assert stage_of("nano/expert-lip", ["stage=fusion"]) == "fusion"
    file = tmp_path / "own.yaml"
    file.write_text("beta: 3\n")
    assert stage_of(str(file), []) == "expert"
    with pytest.raises(UsageError, match="unknown stage"):
        stage_of("nano/expert-lip", ["stage=other"])


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(UsageError, match=r"unknown key 'dpo\.betta'"):
        load_config(ExpertConfig, "nano/expert-lip", ["dpo.betta=3"])
