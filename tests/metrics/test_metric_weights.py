"""Weights are loaded whole or refused; and the arithmetic around the networks."""

import hashlib
import importlib.util
import json
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from ft2.__main__ import main
from ft2.errors import UsageError
from ft2.metrics.aesthetic import Perceptron, head_of
from ft2.metrics.catalogue import FACTS
from ft2.metrics.config import EvaluateConfig, WeightsConfig
from ft2.metrics.dynamics import Dynamics
from ft2.metrics.evaluate import Bench, choose, measure_clip
from ft2.metrics.expression import TEMPLATE, aligned, five_points, load_arcface
from ft2.metrics.measure import Clip, Measured
from ft2.metrics.network import pictures, steadiness
from ft2.metrics.published import Published, Weights
from ft2.metrics.sync import Sync, mouths, scores
from ft2.metrics.weights import fill, identify, pretrained, read_state


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).mean((2, 3))


def trained():
    network = Small()
    network(torch.randn(8, 3, 4, 4))
    return network


def test_weights_are_loaded_whole_or_refused(tmp_path):
    good = trained().state_dict()
    path = tmp_path / "w.pth"
    torch.save(good, path)
    network = fill(Small(), read_state(path), path)
    assert not network.training
    assert torch.equal(network.bn.running_var, good["bn.running_var"])
    cases = {
        "bn.bias is missing": {k: v for k, v in good.items() if k != "bn.bias"},
        "more fits nowhere": good | {"more": torch.zeros(1)},
        r"conv.bias has shape \[5\], not \[4\]": good | {"conv.bias": torch.zeros(5)},
        "never trained": Small().state_dict(),
    }
    for message, state in cases.items():
        with pytest.raises(UsageError, match=message):
            fill(Small(), state, path)


def test_files_that_are_no_weights_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(1), "b": "text"}, path)
    with pytest.raises(UsageError, match="no table of tensors"):
        read_state(path)
    torch.save(Small(), path)  # a pickled module would run code
    with pytest.raises(UsageError, match="no plain weights"):
        read_state(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="no plain weights"):
        read_state(path)
    with pytest.raises(UsageError, match="no ONNX model"):
        load_arcface(path.rename(tmp_path / "w.onnx"))
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="no IResNet-50 or -100"):
        load_arcface(path)


ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of b"abc"


def test_published_sums_are_compared(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(b"abc")
    for known in (ABC, "ba7816bf"):
        found = identify(Weights("raft", "somewhere", (Published("w.pth", known, "x"),)), path)
        assert (found.sha256, found.published, found.remark) == (ABC, "w.pth", "")
    differs = Weights("raft", "somewhere", (Published("w.pth", "00" * 32, "x"),))
    found = identify(differs, path)
    assert found.published == ""
    assert ABC in found.remark
    assert "00" * 32 in found.remark
    with pytest.raises(
        UsageError, match=f"not the published w.pth: its SHA-256 is {ABC}, publ.*00"
    ):
        identify(differs, path.rename(tmp_path / "w.pth"))
    unknown = Weights("raft", "somewhere", (Published("w.pth"),))
    assert "no published file that we know" in identify(unknown, tmp_path / "w.pth").remark


def test_a_model_is_its_folder_or_its_id(tmp_path, monkeypatch):
    files = (Published("model.safetensors", ABC, "x"), Published("pytorch_model.bin"))
    model = Weights("dino", "somewhere", files, hub_id="facebook/dino-vitb16")
    with pytest.raises(UsageError, match="neither a model's folder nor a hub id"):
        identify(model, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert identify(model, str(tmp_path)).sha256 == ""
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    assert identify(model, str(tmp_path)).published == "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(b"tuned")
    assert ABC in identify(model, str(tmp_path)).remark
    cached = {"facebook/dino-vitb16": str(tmp_path / "model.safetensors")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda r, n: cached.get(r))
    assert ABC in identify(model, "facebook/dino-vitb16").remark
    cached.clear()
    assert identify(model, "facebook/dino-vitb16").remark == ""
    assert "not facebook/dino-vitb16" in identify(model, "some/other").remark


def test_every_sum_is_whole_and_says_who_states_it():
    files = [f for facts in FACTS.values() for w in facts.weights for f in w.files]
    assert len(files) >= 13
    for file in files:
        assert file.stated_by, file.name
        assert len(file.sha256) in (0, 8, 64)
        assert not set(file.sha256) - set("0123456789abcdef")
        prefix = re.search(r"-([0-9a-f]{8})\.pth$", file.name)  # torch's own file names carry it
        assert prefix is None or file.sha256.startswith(prefix[1])


def test_a_model_that_is_not_there_or_lacks_weights(tmp_path):
    from transformers import ViTConfig, ViTModel

    with pytest.raises(UsageError, match="cannot load 'nobody/nothing'"):
        pretrained(ViTModel, "nobody/nothing")
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                       intermediate_size=16, image_size=32)  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="lacks weights: pooler"):
        pretrained(ViTModel, str(tmp_path))


def test_both_published_aesthetic_heads_load(tmp_path):
    x = torch.randn(3, 768)
    linear = nn.Linear(768, 1)
    assert torch.allclose(head_of(linear.state_dict(), tmp_path)(x), linear(x))
    sizes, numbers = (768, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
    layers = {n: nn.Linear(a, b) for n, a, b in zip(numbers, sizes[:-1], sizes[1:], strict=True)}
    plain = nn.Sequential(*layers.values())
    state = {f"layers.{n}.{k}": v for n, m in layers.items() for k, v in m.state_dict().items()}
    assert torch.allclose(head_of(state, tmp_path)(x), plain(x), atol=1e-6)
    assert isinstance(head_of(state, tmp_path), Perceptron)


def test_sync_scores_against_a_direct_loop():
    rng = np.random.default_rng(2)
    heard = rng.standard_normal((30, 8))
    seen = np.roll(heard, 3, axis=0) + 0.1 * rng.standard_normal((30, 8))  # mouths 3 windows late
    found = scores(torch.from_numpy(seen), torch.from_numpy(heard), 5)
    padded = np.pad(heard, ((5, 5), (0, 0)))
    means = [
        np.mean([np.linalg.norm(seen[i] - padded[i + k] + 1e-6) for i in range(30)])
        for k in range(11)
    ]
    assert found["sync_d"] == pytest.approx(min(means))
    assert found["sync_c"] == pytest.approx(np.median(means) - min(means))
    assert found["sync_offset"] == 5 - int(np.argmin(means)) == 3


def test_steadiness_of_known_features():
    same = np.ones((4, 3))
    assert steadiness(same) == pytest.approx(1.0)
    turned = np.array([[1.0, 0], [0, 1], [1, 0]])  # to the first: 0, 1; to the last: 0, 0
    assert steadiness(turned) == pytest.approx(0.25)
    assert np.isnan(steadiness(same[:1]))


def test_pictures_keep_their_aspect_and_range():
    frames = np.zeros((2, 20, 40, 3), np.uint8)
    frames[:, :, 10:30] = 255  # the middle square
    found = pictures(frames, 10)
    assert found.shape == (2, 3, 10, 10)
    assert found.min() > 0.9
    assert pictures(frames, 20, (0, 0, 0), (1, 1, 1))[0, :, 5, 10].tolist() == [1, 1, 1]


def test_arcface_crops_put_eyes_and_mouth_where_they_belong(clean):
    points, frame = clean[0].landmarks[0], clean[0].frames[0]
    five = five_points(points)
    for x, y in five[[0, 1]]:  # mark the eyes and look for the marks in the crop
        frame = frame.copy()
        frame[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2] = (255, 0, 255)
    crop = aligned(frame, points).astype(int)
    marked = (crop[..., 0] > 200) & (crop[..., 1] < 80) & (crop[..., 2] > 200)
    ys, xs = np.nonzero(marked)
    for (x, y), side in ((TEMPLATE[0], xs < 56), (TEMPLATE[1], xs >= 56)):
        assert abs(xs[side].mean() - x) < 6
        assert abs(ys[side].mean() - y) < 6


def test_syncnet_crops_hold_the_face(clean):
    clip = clean[0]
    crops = mouths(clip, np.arange(len(clip.frames)))
    assert crops.shape == (21, 224, 224, 3)
    with pytest.raises(UsageError, match="has 42 frames of 40 ms, min_track is 100"):
        Sync(Small, min_track=100).measure(clip)


class Shift(nn.Module):
    def forward(self, one, two):
        flow = torch.zeros(len(one), 2, *one.shape[2:])
        flow[:, 0] = 3.0
        flow[:, 1] = 4.0
        return flow


def test_dynamics_are_pixels_per_40_ms(clean):
    clip = Clip(clean[0].path, clean[0].frames[:3], 12.5, None)
    found = Dynamics(Shift, side=128).measure(clip).values
    assert found["sd"] == pytest.approx(2.5)  # 5 pixels in 80 ms
    assert found["bd"] == pytest.approx(2.5)


class Broken:
    facts = FACTS["fid"]

    def measure(self, clip):
        return Measured(features=np.full((2, 4), np.nan, np.float32))


def test_features_that_are_not_finite_are_gaps(clean):
    values, gaps, features = measure_clip(clean[0], Bench({"fid": Broken()}, {}))
    assert features == {}
    assert gaps == {"fid": "the features of this clip are not finite"}
    assert values == {"fid": None}


def arcface_onnx(path, operator):
    """A small network with ArcFace's interface: mean colour through `operator`."""
    faces = helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["n", 3, 112, 112])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["n", 3])
    nodes = [helper.make_node("ReduceMean", ["faces"], ["mean"], axes=[2, 3], keepdims=0),
             helper.make_node(operator, ["mean"], ["found"])]  # fmt: skip
    graph = helper.make_graph(nodes, "arcface", [faces], [found])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def run(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, argv), "-q"])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


def test_es_by_onnx_comes_with_motion_and_a_gap_for_sd(folders, tmp_path, capsys):
    weights = arcface_onnx(tmp_path / "a.onnx", "Identity")
    argv = [folders / "good", f"weights.arcface={weights}", "metrics=[expression]"]
    code, out, _ = run(capsys, *argv, "-o", tmp_path / "out")
    assert code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert 0.5 < result["run"]["means"]["es"]["value"] <= 1
    assert "head_spread" in result["run"]["means"]
    assert "weights.raft" in result["gaps"]["dynamics"]
    assert "ES and IDC rise on a still video" in out
    found = result["weights"]["arcface"]
    assert (len(found["sha256"]), found["published"]) == (64, "")
    assert found["sha256"] in out  # a remark: no published file
    assert "non-commercial research only" in out


def test_values_that_are_not_finite_are_gaps(folders, tmp_path, capsys):
    weights = arcface_onnx(tmp_path / "a.onnx", "Log")  # of negative means: nan
    argv = [folders / "good", f"weights.arcface={weights}", "metrics=[expression]"]
    code, out, _ = run(capsys, *argv, "-o", tmp_path / "out")
    assert code == 0
    assert "no es: ES is not defined on this clip" in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "es" not in result["run"]["means"]


def test_a_wrong_weights_file_is_told_before_anything_starts(folders, tmp_path, capsys):
    names = ("syncnet_v2.model", "pt_inception-2015-12-05-6726825d.pth")
    for name in names:
        (tmp_path / name).write_bytes(b"planted")
    planted = hashlib.sha256(b"planted").hexdigest()
    for given, message in (
        (f"weights.syncnet={tmp_path / names[0]}", f"{planted}, published is 961e8696"),
        (f"weights.syncnet={tmp_path / 'absent.model'}", "there is no file"),
        ("weights.dino=nonsense", "neither a model's folder nor a hub id"),
        (f"weights.inception={tmp_path / names[1]}", f"{planted}, published is 6726825d"),
    ):
        code, _, err = run(capsys, folders / "good", given, "-o", tmp_path / "out")
        assert code == 2
        assert message in err
        assert not (tmp_path / "out").exists()


def test_every_metric_is_built_from_its_settings(tmp_path, monkeypatch):
    given = {}
    for facts in FACTS.values():
        for weights in facts.weights:
            path = tmp_path / weights.key
            path.write_bytes(b"x")
            given[weights.key] = "some/model" if weights.hub_id else path
    settings = EvaluateConfig(weights=WeightsConfig(**{k: v for k, v in given.items()
                              if k not in ("raft", "inception")}))  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyiqa" else True)
    bench = choose(settings)
    assert set(bench.gaps) == {"critic", "fid", "dynamics", "imaging"}
    assert "pip install '.[iqa]'" in bench.gaps["imaging"]
    assert "no commercial use" in bench.gaps["imaging"]
    assert all(bench.metrics[name].facts is FACTS[name] for name in bench.metrics)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with_pyiqa = choose(settings)
    assert with_pyiqa.metrics["imaging"].facts is FACTS["imaging"]
    assert sum("no commercial use" in remark for remark in with_pyiqa.remarks) == 2
