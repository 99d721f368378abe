"""Face and body: strengths of motion in closed form, ONNX networks given by path."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ft2 import faces
from ft2.errors import UsageError
from ft2.generator.strength import DwPose, body_motion, face_motion, joint_finder
from ft2.puppet import identities
from ft2.wan.face import FIVE, TEMPLATE, ArcFace, aligned_face, similarity
from ft2.wan.spec import IdentitySpec


def moving_joints(amplitude: float, frames: int = 40) -> np.ndarray:
    """Shoulders 100 apart and an elbow that sway by a sine; a wrist that is never seen."""
    time = np.arange(frames) * 2 * np.pi / frames
    joints = np.full((frames, 4, 3), 1.0, np.float32)
    joints[:, 0, :2], joints[:, 1, :2] = (50, 200), (150, 200)
    joints[:, 2, :2], joints[:, 3] = (30, 260), (0, 0, 0.1)
    joints[:, :3, 0] += (amplitude * np.sin(time))[:, None]
    joints[:, 3, 0] += 500 * np.sin(time)
    return joints


def test_body_motion_is_the_variance_in_shoulder_widths() -> None:
    for amplitude in (3.0, 9.0):
        want = (amplitude / 100) ** 2 / 2
        assert body_motion(moving_joints(amplitude)) == pytest.approx(want, rel=1e-3)
        assert body_motion(moving_joints(amplitude) * [2, 2, 1]) == pytest.approx(want, rel=1e-3)
    lost = moving_joints(3.0)
    lost[:6, 0, 2] = 0.2
    assert math.isnan(body_motion(lost))


def test_face_motion_knows_that_it_does_not_know() -> None:
    points = np.random.default_rng(0).normal(size=(20, 478, 3)).astype(np.float32)
    points[3] = np.nan
    assert face_motion(points) > 0
    points[:3] = np.nan
    assert math.isnan(face_motion(points))


def test_similarity_undoes_a_turn_a_scale_and_a_shift() -> None:
    turn, scale = 0.3, 1.7
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = np.random.default_rng(1).normal(size=(5, 2)) * 40
    found = similarity(points @ matrix.T + [7, -3], points)
    back = (points @ matrix.T + [7, -3]) @ found[:, :2].T + found[:, 2]
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_an_aligned_face_has_eyes_and_mouth_where_arcface_wants_them() -> None:
    image = identities.load("astronaut").image
    marks = faces.landmarks(aligned_face(image, 224))[list(FIVE), :2]
    assert np.abs(marks / 2 - TEMPLATE).max() < 6


def saved(path: Path, nodes: list, inputs: dict, outputs: dict, constants: dict) -> Path:
    """Write a tiny ONNX graph."""

    def values(shapes: dict) -> list:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    held = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "tiny", values(inputs), values(outputs), held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def tiny_arcface(path: Path, features: int = 4) -> Path:
    """A linear map of the pixels."""
    weights = np.random.default_rng(2).normal(size=(3 * 112 * 112, features)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]),
             helper.make_node("MatMul", ["flat", "w"], ["y"])]  # fmt: skip
    shapes = {"x": ["N", 3, 112, 112]}, {"y": ["N", features]}
    return saved(path, nodes, *shapes, {"w": weights})


def test_arcface_runs_the_file_on_the_aligned_face(tmp_path: Path) -> None:
    path = tiny_arcface(tmp_path / "arc.onnx")
    images = np.stack([identities.load(name).image for name in ("astronaut", "bald")])
    found = ArcFace(str(path), IdentitySpec(features=4)).embed(torch.from_numpy(images))
    weights = np.random.default_rng(2).normal(size=(3 * 112 * 112, 4)).astype(np.float32)
    for image, row in zip(images, found.numpy(), strict=True):
        pixels = aligned_face(image, 112).transpose(2, 0, 1).ravel() / 127.5 - 1
        want = pixels @ weights
        np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=1e-4)
    with pytest.raises(UsageError, match=r"maps \[3, 112, 112\] to \[4\]"):
        ArcFace(str(path), IdentitySpec())
    path.write_bytes(b"no network")
    with pytest.raises(UsageError, match="not a readable ONNX file"):
        ArcFace(str(path), IdentitySpec(features=4))


def test_dwpose_reads_peaks_back_into_the_picture(tmp_path: Path) -> None:
    """Heat maps that are the picture's brightest column and row, so the answer is known."""
    height, width = 384, 288
    scale = np.ones((1, 133, 1), np.float32)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["grey"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["grey"], ["columns"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["grey"], ["rows"], axes=[2], keepdims=0),
    ]
    for name, out in (("columns", "across"), ("rows", "down")):
        nodes += [
            helper.make_node("Reshape", [name, f"{name}_flat"], [f"{name}_1"]),
            helper.make_node("Resize", [f"{name}_1", "", f"{name}_twice"], [f"{name}_2"],
                             mode="nearest", coordinate_transformation_mode="asymmetric",
                             nearest_mode="floor"),
            helper.make_node("Mul", [f"{name}_2", "every"], [out]),
        ]  # fmt: skip
    constants = {"every": scale}
    for name, size in (("columns", width), ("rows", height)):
        constants[f"{name}_flat"] = np.array([1, 1, size], np.int64)
        constants[f"{name}_twice"] = np.array([1, 1, 2], np.float32)
    outputs = {"across": [1, 133, 2 * width], "down": [1, 133, 2 * height]}
    path = saved(tmp_path / "pose.onnx", nodes, {"x": [1, 3, height, width]}, outputs, constants)
    frames = np.zeros((2, 200, 300, 3), np.uint8)
    frames[0, 60:64, 200:204], frames[1, 150:154, 40:44] = 255, 255
    found = joint_finder(str(path))(frames)
    assert found.shape == (2, 8, 3)
    np.testing.assert_allclose(found[0, :, :2], np.tile([202, 62], (8, 1)), atol=2.5)
    np.testing.assert_allclose(found[1, :, :2], np.tile([42, 152], (8, 1)), atol=2.5)
    with pytest.raises(UsageError, match="is not DWPose's"):
        DwPose(tiny_arcface(tmp_path / "arc.onnx"))


def test_joints_come_from_the_bundled_model_or_a_named_file() -> None:
    assert joint_finder("none") is None
    with pytest.raises(UsageError, match=r"no DWPose file 'gone\.onnx'"):
        joint_finder("gone.onnx")
    find = joint_finder("mediapipe")
    assert find(np.full((1, 96, 96, 3), 90, np.uint8)).shape == (1, 14, 3)
