"""Policies, adapters and caches whose files were cut or edited are refused in words."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_export import expert
from test_tlpo_cli import call
from tlpo_toys import World, expert_config

from ft2.errors import UsageError
from ft2.lora import read_adapter_config
from ft2.tlpo.cache import Cache, _named
from ft2.tlpo.gate import FusionGate
from ft2.tlpo.policy_files import read_policy, save_policy
from ft2.tlpo.train import train_expert


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    experts = {name: expert(tmp_path, name, seed) for seed, name in enumerate(("motion", "lip"))}
    save_policy(tmp_path / "policy", experts, FusionGate(2, 2, 24))
    return tmp_path / "policy"


CONSTANT: dict[str, Any] = {"experts": ["motion"], "gate": {"form": "constant", "weights": [1.0]}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "valid dictionary"),
        ({"experts": ["motion"]}, "gate: Field required"),
        ({**CONSTANT, "experts": []}, "experts: List should have at least 1"),
        ({**CONSTANT, "experts": [["motion"]]}, "experts.0: "),
        ({**CONSTANT, "experts": ["smell"]}, "experts: smell is none of motion"),
        ({**CONSTANT, "experts": ["motion", "lip"]}, "1 weights for 2 experts"),
        ({**CONSTANT, "gate": {"form": "constant"}}, "gate.constant.weights: "),
        ({**CONSTANT, "gate": {"form": "constant", "weights": ["a"]}}, "gate.constant.weights.0"),
        ({**CONSTANT, "gate": {"form": "round"}}, "gate: "),
        ({**CONSTANT, "gate": {"form": "figure", "lay": 2}}, "gate.figure.lay: Extra inputs"),
        ({**CONSTANT, "sha256": [1]}, "sha256: "),
        ({**CONSTANT, "average": [["a"]]}, "average.0.0: "),
    ],
)
def test_a_record_that_is_none_is_refused_with_its_place(
    policy: Path, record: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (policy / "policy.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="does not say which experts it has") as caught:
        read_policy(policy)
    assert message in str(caught.value)
    for argv in (["export", "-o", str(policy / "x.safetensors")], ["push", "--repo", "a/b", "-n"]):
        assert call("tlpo", argv[0], "--policy", str(policy), *argv[1:]) == 2
        assert "policy.json does not say" in capsys.readouterr().err
    assert not (policy / "x.safetensors").exists()
    assert call("info", str(policy)) in (0, 2)
    assert "Error: " not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[]", "no LoRA adapter"),
        ({"r": "x"}, "says r 'x'"),
        ({"r": 0}, "says r 0"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"target_modules": []}, "target_modules []"),
    ],
)
def test_a_config_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, change: str | dict[str, object], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = expert(tmp_path, "lip", 0)
    file = next(folder.rglob("adapter_config.json"))
    text = change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change)
    file.write_text(text)
    with pytest.raises(UsageError, match="adapter"):
        read_adapter_config(file.parent)
    out = tmp_path / "out"
    for argv in (["merge", "--expert", str(folder), "-o", str(out)],
                 ["export", "--policy", str(folder), "-o", f"{out}.safetensors"]):  # fmt: skip
        assert call("tlpo", *argv) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_an_expert_without_its_config_is_not_published(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (policy / "experts/lip/adapter_config.json").unlink()
    assert call("tlpo", "push", "--policy", str(policy), "--repo", "a/b", "-n") == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err
    shutil.rmtree(policy / "experts/lip")


def test_a_file_as_cache_is_found_before_anything_is_encoded(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    config = expert_config(world, cache=tmp_path / "file" / "cache")
    with pytest.raises(UsageError, match="file' is a file"):
        train_expert(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_media_that_are_refused_are_named_by_their_clip(world: World) -> None:
    clip = world.pairs["motion"][0].chosen
    wanted = f"the dataset's clip {clip.clip_id}: no sound"
    with pytest.raises(UsageError, match=wanted) as caught, _named(clip):
        raise UsageError("no sound", "record it again")
    assert caught.value.hint == "record it again"


@pytest.mark.parametrize("text", ["[]", "{}"])
def test_a_damaged_index_of_a_cache_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "clips-x.json").write_text(text)
    with pytest.raises(UsageError, match=r"clips-x.json' is no index of a shard"):
        Cache(tmp_path)


@pytest.mark.parametrize("key", ["loop.seed=99999999999999999999", "loop.eval_sigmas=[2]",
                                 "loop.eval_sigmas=[]"])  # fmt: skip
def test_numbers_without_a_meaning_are_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert call("tlpo", "train", "nano/expert-lip", key, "-n", "-o", out) == 2
    assert key.split("=")[0].removeprefix("loop.") in capsys.readouterr().err
