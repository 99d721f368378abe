"""Exported LoRAs: read back through diffusers' own converters, with the same output."""

import json
from pathlib import Path

import peft
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders import lora_conversion_utils as converters
from torch import Tensor, nn

from ft2.__main__ import main
from ft2.errors import UsageError
from ft2.lora import expert_parameters, fused_linears, install_experts, save_expert
from ft2.runs import load_tensors
from ft2.tlpo.experts import find_adapter
from ft2.tlpo.export import export_lora
from ft2.tlpo.gate import GateTable
from ft2.tlpo.options import ATTENTION_TARGETS, FFN_TARGETS
from ft2.tlpo.policy_files import save_policy

TARGETS = [*ATTENTION_TARGETS, *FFN_TARGETS]


def dit() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32, image_dim=8, added_kv_proj_dim=24,
    )  # fmt: skip


def expert(folder: Path, name: str, seed: int, targets: list[str] = TARGETS) -> Path:
    model = dit()
    install_experts(model, targets, 1, 3, 6.0)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in expert_parameters(model):
            p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    save_expert(model, 0, folder / name / "adapter", {"dimension": name})
    return folder / name


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return model(
        hidden_states=torch.randn(2, 4, 2, 4, 4, generator=g),
        timestep=torch.tensor([10.0, 700.0]),
        encoder_hidden_states=torch.randn(2, 3, 8, generator=g),
        encoder_hidden_states_image=torch.randn(2, 5, 8, generator=g),
    ).sample


def folded(experts: list[Path], weights: list[list[float]]) -> Tensor:
    """The output with the experts added to the base weights by PEFT's numbers alone."""
    model = dit()
    with torch.no_grad():
        for path, own in zip(experts, weights, strict=True):
            tensors, _ = load_tensors(find_adapter(path) / "adapter_model.safetensors")
            for key, down in tensors.items():
                if ".lora_A." not in key:
                    continue
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = tensors[key.replace("lora_A", "lora_B")]
                weight = own[int(name.split(".")[1])]
                model.get_submodule(name).weight += weight * 2.0 * up @ down
    return output(model)


def read_by_diffusers(file: Path, form: str) -> dict[str, Tensor]:
    """What diffusers' converters make of a file; they raise for keys they cannot place."""
    tensors, _ = load_tensors(file)
    if form == "kohya":
        return converters._convert_musubi_wan_lora_to_diffusers(tensors)
    if form == "diffsynth":
        tensors = {f"diffusion_model.{k.replace('.default', '')}": v for k, v in tensors.items()}
    return converters._convert_non_diffusers_wan_lora_to_diffusers(tensors)


def loaded(converted: dict[str, Tensor]) -> nn.Module:
    """A DiT with the converted LoRA installed by PEFT, nothing missing and nothing left over."""
    state = {key.removeprefix("transformer."): value for key, value in converted.items()}
    names = sorted({key.rpartition(".lora_")[0] for key in state})
    ranks = {name: len(state[f"{name}.lora_A.weight"]) for name in names}
    config = peft.LoraConfig(
        r=1, target_modules=names, rank_pattern=ranks, lora_alpha=1, alpha_pattern=ranks
    )
    model = peft.inject_adapter_in_model(config, dit())
    found = peft.set_peft_model_state_dict(model, state)
    assert not found.unexpected_keys
    assert not [key for key in found.missing_keys if "lora_" in key]
    return model


@pytest.mark.parametrize("form", ["comfyui", "kohya", "diffsynth"])
def test_an_expert_survives_diffusers_converters(form: str, tmp_path: Path) -> None:
    path = expert(tmp_path, "lip", 1)
    result = export_lora(path, form, tmp_path / "lora.safetensors")
    assert result["linears"] == 16
    assert result["left_out"]["linears"] == 0
    ours = output(loaded(read_by_diffusers(tmp_path / "lora.safetensors", form)))
    torch.testing.assert_close(ours, folded([path], [[1.0, 1.0]]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours, output(dit()), atol=1e-3)


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_a_mix_by_layer_is_one_lora_of_all_ranks(form: str, tmp_path: Path) -> None:
    experts = {"motion": expert(tmp_path, "motion", 1), "lip": expert(tmp_path, "lip", 2)}
    table = torch.tensor([[[0.2, 0.4], [1.0, 0.0]], [[0.6, 0.0], [0.0, 0.5]]])  # bins, layers, K
    save_policy(tmp_path / "policy", experts, GateTable(torch.tensor([0.5]), table))
    result = export_lora(tmp_path / "policy", form, tmp_path / "mix.safetensors")
    assert result["rank"] == 6
    ours = output(loaded(read_by_diffusers(tmp_path / "mix.safetensors", form)))
    wanted = folded(list(experts.values()), [[0.4, 0.5], [0.2, 0.25]])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_the_command_tells_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlpo_toys import TARGETS as WITH_AUDIO
    from tlpo_toys import toy_model

    model = toy_model()
    install_experts(model.dit, WITH_AUDIO, 1, 2, 2)
    save_expert(model.dit, 0, tmp_path / "run" / "adapter", {"dimension": "lip"})
    heard = [n for n, _ in fused_linears(model.dit) if ".processor." in n]
    call = [
        "tlpo",
        "export",
        "--policy",
        str(tmp_path / "run"),
        "-o",
        str(tmp_path / "x.safetensors"),
    ]
    with pytest.raises(SystemExit) as stop:
        main([*call, "--json"])
    assert stop.value.code == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["left_out"]["linears"] == len(heard) == 4
    assert "left out" in shown.err
    assert not any("processor" in key for key in load_tensors(tmp_path / "x.safetensors")[0])
    for extra, message in (([], "already exists"), (["--format", "a1111"], "comfyui")):
        with pytest.raises(SystemExit) as stop:
            main([*call, *extra])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    attention = expert(tmp_path, "motion", 1, ["attn1.to_q"])
    with pytest.raises(UsageError, match=r"ffn\.0"):
        export_lora(attention, "kohya", tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="holds no expert"):
        export_lora(tmp_path, "comfyui", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
