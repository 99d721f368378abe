"""``ft2 generate --policy``: what a policy changes, what it must not, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ft2.lora.fused as fused
from ft2 import faces, media
from ft2.__main__ import main
from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig, GuidanceConfig
from ft2.generator.sample import sample_latents
from ft2.lora import expert_parameters, install_experts, remove_experts, save_expert
from ft2.puppet import identities
from ft2.tlpo.cache import model_hash
from ft2.tlpo.fits import check_fit, files_hash
from ft2.tlpo.gate import GateTable, make_gate
from ft2.tlpo.options import GateConfig
from ft2.tlpo.policy import load_policy
from ft2.tlpo.policy_files import save_policy
from ft2.wan.model import TalkingModel
from ft2.wan.spec import Architecture, WanSpec
from ft2.wan.weights import load_talking_model

TARGETS = ["attn1.to_q", "attn1.to_k", "attn2.to_v", "ffn.net.0.proj", "ffn.net.2"]
NAMES = ("motion", "lip", "quality")


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def model(trained: Path) -> TalkingModel:
    return load_talking_model(WanSpec(weights=str(trained / "model")))


@pytest.fixture(scope="module")
def experts(model: TalkingModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three random experts of the tiny model."""
    folder, base = tmp_path_factory.mktemp("experts"), model_hash(model)
    install_experts(model.dit, TARGETS, 3, 2, 2.0)
    torch.manual_seed(0)
    for parameter in expert_parameters(model.dit):
        torch.nn.init.normal_(parameter, std=0.2)
    for index, name in enumerate(NAMES):
        save_expert(model.dit, index, folder / name, {"base": base, "dimension": name})
    remove_experts(model.dit)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="module")
def policies(
    model: TalkingModel, experts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Policies over these experts: constant weights, none, and learned gates."""
    folder = tmp_path_factory.mktemp("policies")
    weights = [0.5, 0.75, 1.0]
    save_policy(folder / "constant", experts, weights)
    save_policy(folder / "zero", experts, 0.0)
    still = make_gate(GateConfig(), model.dit, 3)
    still.bias.data = (torch.tensor(weights) - 1 / 3).expand_as(still.bias).clone()
    save_policy(folder / "still", experts, still)
    table = GateTable(torch.tensor([0.5]), torch.tensor(weights).expand(2, 2, 3))
    save_policy(folder / "table", experts, table)
    moving = make_gate(GateConfig(), model.dit, 3)
    torch.nn.init.normal_(moving.weight, generator=torch.Generator().manual_seed(1))
    save_policy(folder / "moving", experts, moving)
    return folder


@pytest.fixture(scope="module")
def video(trained: Path, tmp_path_factory: pytest.TempPathFactory):
    """Return a function that types the command and gives the video's frames and its record."""
    folder = tmp_path_factory.mktemp("inputs")
    media.write_png(folder / "face.png", faces.align(identities.load("astronaut").image))
    noise = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    media.write_wav(folder / "short.wav", noise * 0.1)
    settings = [f"model.weights={trained / 'model'}", "min_portrait_psnr=null", "steps=2"]
    inputs = ["--portrait", str(folder / "face.png"), "--audio", str(folder / "short.wav")]

    def make(name: str, *more: str) -> tuple[np.ndarray, dict]:
        output = folder / f"{name}.mp4"
        assert run("generate", *settings, *inputs, *more, "-o", str(output), "-q") == 0
        record = json.loads(output.with_suffix(".json").read_text())
        return media.read_video(output).frames, record

    return make


def test_a_policy_changes_the_frames_and_one_without_weight_does_not(policies: Path, video):
    base, plain = video("base")
    zero, _ = video("zero", "--policy", str(policies / "zero"))
    moved, record = video("constant", "--policy", str(policies / "constant"))
    assert np.array_equal(zero, base)
    assert np.abs(moved.astype(int) - base).mean() > 1
    assert plain["policy"] is None
    assert "gate" not in record["policy"]["sha256"]
    assert len(record["policy"]["sha256"]) == 7  # policy.json, two files an expert
    again, _ = video("off", "--policy", str(policies / "constant"),
                     *(f"expert.{name}=0" for name in NAMES))  # fmt: skip
    assert np.array_equal(again, base)


def test_one_expert_is_a_policy_and_its_strength_counts(experts: dict[str, Path], video):
    lip, _ = video("lip", "--policy", str(experts["lip"]))
    half, _ = video("half", "--policy", str(experts["lip"]), "expert.lip=0.5")
    base, _ = video("plain")
    assert not np.array_equal(lip, base)
    assert not np.array_equal(lip, half)


def latents(model: TalkingModel, policy: Path | None) -> torch.Tensor:
    cond = model.encode_conditions(
        np.full((2, 64, 64, 3), 90, np.uint8), [np.zeros(11520, np.float32)] * 2, ["", "x"]
    )
    config = GenerateConfig(steps=4, shift=2.0, guidance=GuidanceConfig(prompt=2, audio=2))
    loaded = None if policy is None else load_policy(policy, model)
    found = sample_latents(model, cond, [("a", 0), ("b", 0)], config, loaded)
    remove_experts(model.dit)
    return found


def test_merged_beside_and_constant_sample_the_same(
    model: TalkingModel, policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-4 of latents of size 1, after four steps; merging is what happens unasked."""
    asked = []
    right = fused.merging_pays
    monkeypatch.setattr(fused, "merging_pays", lambda *a: asked.append(right(*a)) or asked[-1])
    base = latents(model, None)
    merged = {name: latents(model, policies / name) for name in ("constant", "still", "moving")}
    assert all(asked)
    assert asked
    monkeypatch.setattr(fused, "merging_pays", lambda *_: False)
    for name, found in merged.items():
        torch.testing.assert_close(latents(model, policies / name), found, atol=1e-4, rtol=0)
        assert float((found - base).abs().mean()) > 1e-2
    for name in ("still", "table"):
        beside = latents(model, policies / name)
        torch.testing.assert_close(beside, merged["constant"], atol=1e-4, rtol=0)
    assert float((merged["moving"] - merged["constant"]).abs().mean()) > 1e-2


def test_the_hash_of_files_is_that_of_the_loaded_model(trained: Path, model: TalkingModel) -> None:
    for spec in (WanSpec(weights=str(trained / "model")), WanSpec()):
        loaded = model if spec.weights != "nano" else load_talking_model(spec)
        assert files_hash(spec) == model_hash(loaded)


@pytest.mark.parametrize("more", [(), ("-n",), ("--batch",), ("--ui",)])
def test_a_policy_of_another_base_is_refused_before_the_model_loads(
    trained: Path, policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], more: tuple[str, ...],
) -> None:  # fmt: skip
    other = tmp_path / "other"
    shutil.copytree(trained / "model", other)
    tensors = load_file(other / "dit.safetensors")
    tensors["proj_out.weight"] += 0.5
    save_file(tensors, other / "dit.safetensors")

    def loaded(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ft2.generator.run.load_talking_model", loaded)
    if more == ("--batch",):
        (tmp_path / "rows.jsonl").write_text('{"portrait": "p.png", "audio": "a.wav"}\n')
        more = ("--batch", str(tmp_path / "rows.jsonl"))
    for weights in (str(other), "nano"):
        given = [f"model.weights={weights}", "--policy", str(policies / "moving"), *more]
        assert run("generate", *given, "-o", str(tmp_path / "out")) == 2
        assert "the motion expert" in (said := capsys.readouterr().err)
        assert "was trained on another base model" in said
    assert not (tmp_path / "out").exists()


def test_of_published_weights_the_shapes_are_compared(experts: dict[str, Path], tmp_path: Path):
    with pytest.raises(UsageError, match=r"attn1.to_q is \(24, 2\) x \(2, 24\)"):
        check_fit(experts["lip"], WanSpec(weights=str(tmp_path), architecture=Architecture()))
