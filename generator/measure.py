"""``ft2 generator measure``: motion strengths for array shards that were made without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ft2 import faces
from ft2.errors import UsageError
from ft2.generator.config import MeasureConfig
from ft2.generator.strength import body_motion, face_motion, joint_finder
from ft2.runs import Interrupts, Progress, load_tensors, save_tensors


def measure_shards(config: MeasureConfig, data: Path, progress: Progress) -> dict[str, object]:
    """Add ``motion`` [N, 2] to every shard of a directory that lacks it; return counts.

    A shard is replaced whole when its clips are measured, so an interrupted command goes on where
    it was.

    Raises:
        UsageError: there are no shards, or what finds joints is missing.
        Interrupted: on SIGINT or SIGTERM; shards that are done stay done.
    """
    paths = sorted(data.glob("*.safetensors"))
    if not paths:
        raise UsageError(f"there are no array shards (*.safetensors) in '{data}'")
    joints = joint_finder(config.joints)
    known, clips = np.zeros(2, int), 0
    with Interrupts() as interrupts:
        for number, path in enumerate(paths):
            tensors, metadata = load_tensors(path)
            if "frames" not in tensors:
                raise UsageError(f"'{path}' is not an array shard: it has no frames")
            if "motion" not in tensors:
                rows = []
                for frames in tensors["frames"].numpy()[:, :: config.every]:
                    body = float("nan") if joints is None else body_motion(joints(frames))
                    rows.append((face_motion(faces.track(frames)), body))
                    interrupts.check("go on with the same command")
                tensors["motion"] = torch.tensor(rows, dtype=torch.float32)
                save_tensors(path, tensors, metadata)
            known += (~torch.isnan(tensors["motion"])).sum(0).numpy()
            clips += len(tensors["motion"])
            progress.update("shards", number + 1, len(paths))
    return {"shards": len(paths), "clips": clips, "face": int(known[0]), "body": int(known[1])}
