"""Presets and plans: the full sizes on the meta device, counted against the papers' arithmetic."""

from pathlib import Path

import pytest

from ft2.config import load_config
from ft2.errors import UsageError
from ft2.tlpo.config import ATTENTION_TARGETS, FFN_TARGETS, ExpertConfig, FusionConfig, stage_of
from ft2.tlpo.plan import forward_tflop, num_tokens, plan_stage
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
    assert config.engine.learning_rate <= 1e-3


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
    """512 x 512 x 81: 21,504 tokens, 514 TF in the linears and 379 in the attention."""
    assert num_tokens(FULL) == 21_504
    assert forward_tflop(FULL) == pytest.approx(514 + 379, rel=0.01)


def test_dry_run_lists_what_is_missing(tmp_path: Path) -> None:
    config = load_config(FusionConfig, "full/fusion", [f"dataset={tmp_path / 'no'}", "experts={}"])
    plan = plan_stage(config)
    assert any("dataset" in text for text in plan["missing"])
    assert any("experts" in text for text in plan["missing"])


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
