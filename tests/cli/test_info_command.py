import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ft2.__main__ import main
from ft2.config import EngineConfig
from ft2.runs import RunDir, save_tensors, write_json


def info(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as stop:
        main(["info", str(path), "--json"])
    assert stop.value.code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def weights(path: Path) -> Path:
    save_tensors(path, {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)})
    return path


def test_weights_are_counted_from_their_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = weights(tmp_path / "w.safetensors")
    found = info(path, capsys)
    assert (found["what"], found["tensors"], found["parameters"]) == ("weights", 2, 10)
    assert found["types"] == ["F16", "F32"]
    assert found["bytes"] == path.stat().st_size


def test_a_run_directory_shows_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = RunDir.open(tmp_path / "r", config=EngineConfig(), resume=False, argv=["ft2", "x"])
    with run.checkpoint(7):
        pass
    found = info(run.path, capsys)
    assert (found["what"], found["complete"], found["last_checkpoint"]) == (
        "run directory",
        False,
        7,
    )
    run.finish({"loss": 1.5})
    assert info(run.path, capsys)["result"] == {"loss": 1.5}


def test_an_estimate_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = RunDir.open(tmp_path / "r", config=EngineConfig(), resume=False, argv=["ft2", "x"])
    run.finish({"lip": {"value": 0.5, "low": 0.25, "high": 0.75, "n": 8, "num_groups": 4}})
    with pytest.raises(SystemExit):
        main(["info", str(run.path)])
    assert "  lip: 0.5 [0.25, 0.75] (n 8)\n" in capsys.readouterr().out


@pytest.mark.parametrize(("data", "changed"), [(b"video", False), (b"other", True)])
def test_a_generated_video_is_known_by_its_record(
    data: bytes, changed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    record = {
        "video": "me.mp4",
        "video_sha256": hashlib.sha256(b"video").hexdigest(),
        "made": "2026-11-20T14:00:49+00:00",
        "inputs": {"portrait": {"path": "me.png"}, "audio": {"path": "me.wav"}},
        "policy": None,
        "config": {"seed": 7, "model": {"weights": "nano"}},
    }
    write_json(tmp_path / "me.json", record)
    (tmp_path / "me.mp4").write_bytes(data)
    for name in ("me.json", "me.mp4"):
        found = info(tmp_path / name, capsys)
        assert (found["what"], found["seed"], found["portrait"]) == ("generated video", 7, "me.png")
        assert ("changed since" in found["video"]) == changed


def test_adapters_policies_and_datasets_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_json(tmp_path / "lora" / "adapter_config.json", {"r": 8, "lora_alpha": 16})
    weights(tmp_path / "lora" / "adapter_model.safetensors")
    found = info(tmp_path / "lora", capsys)
    assert (found["what"], found["r"], found["tensors"]) == ("adapter", 8, 2)
    write_json(tmp_path / "policy" / "policy.json", {"schema": 1, "kind": "gated"})
    weights(tmp_path / "policy" / "gate.safetensors")
    found = info(tmp_path / "policy", capsys)
    assert (found["what"], found["kind"], found["parameters"]) == ("policy", "gated", 10)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ratings.jsonl").write_text("{}\n{}\n\n")
    assert info(tmp_path / "data", capsys)["ratings"] == 2


def test_a_foreign_checkpoint_says_its_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    projection = {"proj.weight": torch.zeros(6, 4), "norm.weight": torch.zeros(6)}
    processors = {
        f"blocks.{n}.cross_attn.processor.{x}_proj.weight": torch.zeros(8, 6, dtype=torch.float16)
        for n in range(3)
        for x in "kv"
    }
    state = {"proj_model": {**projection, "norm.bias": torch.zeros(6)},
             "audio_processor": processors}  # fmt: skip
    torch.save(state, tmp_path / "model.ckpt")
    found = info(tmp_path / "model.ckpt", capsys)
    assert found["audio_branch"] == "official layout, 3 blocks, 9 tensors, complete"
    assert (found["tensors"], found["parameters"]) == (9, 24 + 12 + 6 * 48)
    assert found["types"] == ["float16", "float32"]
    wan = {f"model.diffusion_model.blocks.{n}.self_attn.q.weight": torch.zeros(8, 8)
           for n in range(2)}  # fmt: skip
    save_tensors(tmp_path / "wan.safetensors", wan)
    found = info(tmp_path / "wan.safetensors", capsys)
    assert (found["layout"], found["blocks"], found["width"]) == (
        "official Wan transformer",
        2,
        8,
    )


def test_a_pickle_with_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"x": Path("y")}, tmp_path / "evil.pth")
    with pytest.raises(SystemExit) as stop:
        main(["info", str(tmp_path / "evil.pth")])
    assert stop.value.code == 2
    assert "not a readable checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("blob", [b"", b"\xff" * 100, (4).to_bytes(8, "little") + b"{{{{"])
def test_damaged_weights_are_refused(
    tmp_path: Path, blob: bytes, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "w.safetensors").write_bytes(blob)
    with pytest.raises(SystemExit) as stop:
        main(["info", str(tmp_path / "w.safetensors")])
    assert stop.value.code == 2
    assert "not a readable safetensors file" in capsys.readouterr().err


def test_other_things_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "a.txt").write_text("x")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(SystemExit) as stop:
            main(["info", str(path)])
        assert stop.value.code == 2
    assert "nothing that ft2 knows" in capsys.readouterr().err


def test_a_folder_of_torch_files_lists_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"a": torch.ones(2, 3)}, tmp_path / "vae.pth")
    (tmp_path / "google").mkdir()
    torch.save({"b": torch.ones(5)}, tmp_path / "google" / "umt5.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    found = info(tmp_path, capsys)
    rows = {row["file"]: row for row in found["torch_files"]}
    assert list(rows) == ["broken.pth", "google/umt5.pth", "vae.pth"]
    assert (rows["vae.pth"]["parameters"], rows["google/umt5.pth"]["tensors"]) == (6, 1)
    assert "is not a readable checkpoint" in rows["broken.pth"]["error"]
    weights(tmp_path / "dit.safetensors")
    assert info(tmp_path, capsys)["parameters"] == 10
