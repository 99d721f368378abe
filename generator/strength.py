"""How much a face and a body move in a clip: what omega is made of (FantasyTalking, section 7.4).

The face by the variance of MediaPipe's landmarks over time, the body by that of its joints. Joints
come from MediaPipe's pose model where the installed wheel bundles it, or from a DWPose file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ft2 import faces
from ft2.errors import MissingExtra, UsageError
from ft2.wan.face import open_onnx

UPPER_LIP, LOWER_LIP, FOREHEAD, CHIN = 13, 14, 10, 152
"""Landmarks: inner edges of the lips, top and bottom of the face."""

SEEN = 0.5
"""Least confidence of a joint that counts."""

MAX_LOST = 0.1
"""Share of the frames in which face or shoulders may be lost."""

Joints = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""x, y (pixels) and confidence of the shoulders, then other joints, [F, J, 3], of frames."""


def face_height(points: NDArray[np.float32]) -> float:
    """Return the mean height of a face in pixels, of landmarks [F, 478, 2 or 3]."""
    tall = np.linalg.norm(points[:, FOREHEAD, :2] - points[:, CHIN, :2], axis=1)
    return max(float(tall.mean()), 1e-6)


def face_motion(points: NDArray[np.float32]) -> float:
    """Return the mean variance of landmarks [F, 478, 3] over time, in squared face heights.

    Frames where the face is lost (nan) are left out; nan if they are more than a tenth.
    """
    known = ~np.isnan(points).any((1, 2))
    if known.mean() < 1 - MAX_LOST:
        return float("nan")
    seen = points[known]
    return float((seen[..., :2] / face_height(seen)).var(axis=0).sum(axis=1).mean())


def body_motion(joints: NDArray[np.float32]) -> float:
    """Return the mean variance of joints [F, J, 3] over time, in squared shoulder widths.

    Joints 0 and 1 are the shoulders: without them in nine tenths of the frames it is nan. Other
    joints count where they are seen in all of these frames.
    """
    known = (joints[:, :2, 2] >= SEEN).all(1)
    if known.mean() < 1 - MAX_LOST:
        return float("nan")
    seen = joints[known]
    width = np.linalg.norm(seen[:, 0, :2] - seen[:, 1, :2], axis=1).mean()
    steady = (seen[..., 2] >= SEEN).all(0)
    return float((seen[:, steady, :2] / max(float(width), 1e-6)).var(axis=0).sum(axis=1).mean())


def joint_finder(name: str) -> Joints | None:
    """Return what finds joints: ``mediapipe``, ``none``, or the path of a DWPose ONNX file.

    Raises:
        UsageError: there is no such file, or the pose model is not in the installed wheel.
        MissingExtra: mediapipe or onnxruntime is not installed.
    """
    if name == "none":
        return None
    if name == "mediapipe":
        return _mediapipe()
    if not Path(name).is_file():
        raise UsageError(
            f"there is no DWPose file '{name}'",
            "set joints to mediapipe, none, or the path of dw-ll_ucoco_384.onnx",
        )
    return DwPose(Path(name))


def _mediapipe() -> Joints:
    """Return MediaPipe's pose model: shoulders, elbows, wrists, hands and hips (11 to 24)."""
    try:
        import mediapipe
        from mediapipe.python.solutions.pose import Pose
    except ImportError as error:
        raise MissingExtra("mediapipe", "face") from error
    bundled = Path(mediapipe.__file__).parent / "modules/pose_landmark/pose_landmark_full.tflite"
    if not bundled.is_file():
        raise UsageError(
            "this mediapipe does not bundle its pose model", "set joints to a DWPose file, or none"
        )

    def find(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = frames.shape[1:3]
        found = np.zeros((len(frames), 14, 3), np.float32)
        with faces.quiet(), Pose(static_image_mode=True, model_complexity=1) as pose:
            for number, frame in enumerate(frames):
                marks = pose.process(np.ascontiguousarray(frame)).pose_landmarks
                if marks is not None:
                    rows = [(p.x * width, p.y * height, p.visibility) for p in marks.landmark]
                    found[number] = rows[11:25]
        return found

    return find


class DwPose:
    """DWPose's whole-body network (IDEA-Research/DWPose) on the whole picture, by its ONNX file.

    Joints of COCO: shoulders, elbows, wrists and hips (5 to 12). The picture is taken as the
    person's box: these are portraits of one person.
    """

    mean = np.array([123.675, 116.28, 103.53], np.float32)
    deviation = np.array([58.395, 57.12, 57.375], np.float32)

    def __init__(self, path: Path) -> None:
        """Open the file: [1, 3, H, W] to two tables of 1-D heat maps, [1, 133, 2 W] and [.., 2 H].

        Raises:
            UsageError: it has other inputs or outputs.
        """
        self._session: Any = open_onnx(path)
        shape = self._session.get_inputs()[0].shape
        if len(shape) != 4 or len(self._session.get_outputs()) != 2:
            raise UsageError(f"'{path}' is not DWPose's pose network", "give dw-ll_ucoco_384.onnx")
        self.height, self.width = int(shape[2]), int(shape[3])

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return shoulders, elbows, wrists and hips, [F, 8, 3], of uint8 [F, H, W, 3]."""
        return np.stack([self._one(frame) for frame in frames])

    def _one(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows, columns = frame.shape[:2]
        scale = min(self.width / columns, self.height / rows)
        left = (self.width - scale * columns) / 2
        top = (self.height - scale * rows) / 2
        move = np.array([[scale, 0, left], [0, scale, top]])
        shown = cv2.warpAffine(frame, move, (self.width, self.height), flags=cv2.INTER_LINEAR)
        values = ((shown.astype(np.float32) - self.mean) / self.deviation).transpose(2, 0, 1)
        name = self._session.get_inputs()[0].name
        across, down = self._session.run(None, {name: values[None]})
        x, y = across[0, 5:13], down[0, 5:13]
        place = np.stack([x.argmax(1) / 2 - left, y.argmax(1) / 2 - top], 1) / scale
        sure = np.minimum(x.max(1), y.max(1))
        return np.concatenate([place, sure[:, None]], 1).astype(np.float32)
