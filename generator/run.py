"""``ft2 generate``: one portrait, one sound, one clip with its record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ft2 import media
from ft2.config import ClipFormat
from ft2.errors import UsageError
from ft2.generator.codec_fit import mouth_psnr
from ft2.generator.config import GenerateConfig
from ft2.generator.inputs import load_portrait, load_sound
from ft2.generator.sample import Gated, generate_batch
from ft2.puppet.curves import Curves
from ft2.puppet.portrait import CANVAS, prepare
from ft2.puppet.render import render
from ft2.runs import Progress, hash_file, write_json
from ft2.wan.model import TalkingModel
from ft2.wan.weights import load_talking_model, read_architecture, weights_dir

SCHEMA = 1


@dataclass(frozen=True)
class Inputs:
    """Checked inputs of one generation."""

    portrait: NDArray[np.uint8]
    audio: NDArray[np.float32]
    remarks: list[str]
    clip: ClipFormat


def check_inputs(config: GenerateConfig, portrait: Path, audio: Path, output: Path) -> Inputs:
    """Read and check everything before a model loads.

    Raises:
        UsageError: if a file is missing or unreadable, the output is not an mp4 file's name,
            or the picture shows no face.
    """
    if output.suffix.lower() != ".mp4":
        raise UsageError(f"the output '{output}' is not an .mp4 file", "write -o NAME.mp4")
    if output.is_dir():
        raise UsageError(f"the output '{output}' is a directory", "write -o NAME.mp4")
    for path, name in ((portrait, "portrait"), (audio, "audio")):
        if not path.is_file():
            raise UsageError(f"the {name} '{path}' does not exist")
    clip = read_architecture(config.model).clip
    sound, remarks = load_sound(audio, clip)
    picture = load_portrait(portrait, clip, config.portrait_margin)
    return Inputs(picture, sound, remarks, clip)


def rehearsal(portrait: NDArray[np.uint8], clip: ClipFormat) -> NDArray[np.uint8]:
    """Return the portrait drawn as a talking puppet, uint8 [F, size, size, 3].

    Mouth and head move as much as they do in the clips that base training saw.

    Raises:
        NoFace: if the aligned portrait shows no face.
    """
    time = np.arange(clip.num_frames) / clip.fps
    start = np.minimum(1.0, time / 0.16)
    waves = {
        "open": 0.35 * (1 - np.cos(5 * np.pi * time)) * start,
        "width": 0.42 * np.sin(2.6 * np.pi * time),
        "yaw": 0.085 * np.sin(1.2 * np.pi * time),
        "pitch": 0.08 * np.sin(1.8 * np.pi * time),
        "tx": 0.06 * np.sin(0.8 * np.pi * time),
    }
    table = [waves.get(name, np.zeros(clip.num_frames)) for name in Curves.names()]
    large = cv2.resize(portrait, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    identity = prepare(np.asarray(large, np.uint8), "portrait")
    return render(identity, Curves.unstack(np.stack(table, -1)), clip.width)


def portrait_psnr(model: TalkingModel, portrait: NDArray[np.uint8]) -> float:
    """Return the codec's mouth-box PSNR (dB) on the portrait drawn as a talking puppet."""
    frames = torch.from_numpy(rehearsal(portrait, model.clip))[None]
    back = model.codec.decode(model.codec.encode(frames), frames[:, 0])
    return mouth_psnr(back[:, 1:].numpy(), frames[:, 1:].numpy())


def check_portrait(
    model: TalkingModel, portrait: NDArray[np.uint8], limit: float | None
) -> float | None:
    """Return :func:`portrait_psnr`, or None without a limit.

    Raises:
        UsageError: if it is below ``limit`` (dB): the weights do not serve this face.
        NoFace: if the aligned portrait shows no face.
    """
    if limit is None:
        return None
    found = portrait_psnr(model, portrait)
    if found < limit:
        raise UsageError(
            f"these weights do not serve this face: the codec returns its mouth at"
            f" {found:.1f} dB, {limit:.0f} dB are needed",
            "use another frontal portrait or other weights; min_portrait_psnr=null lifts the check",
        )
    return found


def generate_one(
    config: GenerateConfig,
    portrait: Path,
    audio: Path,
    output: Path,
    *,
    policy_path: Path | None,
    make_policy: Callable[[Path, TalkingModel], Gated],
    progress: Progress,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Generate one clip and return its record, which is also written beside the mp4.

    Args:
        config: model and sampling.
        portrait: picture with a face.
        audio: sound file.
        output: mp4 file to write; ``NAME.json`` beside it gets the record.
        policy_path: preference-aligned policy, or None for the base.
        make_policy: loads a policy into the model.
        progress: is told what happens.
        say: prints remarks.

    Raises:
        UsageError: if an input cannot be used.
    """
    inputs = check_inputs(config, portrait, audio, output)
    for remark in inputs.remarks:
        say(remark)
    progress.update("load the model", 0, 3)
    model = load_talking_model(config.model, config.device)
    psnr = check_portrait(model, inputs.portrait, config.min_portrait_psnr)
    policy = None if policy_path is None else make_policy(policy_path, model)
    cond = model.encode_condition(inputs.portrait, inputs.audio, config.prompt)
    progress.update("sample", 1, 3)
    key = f"{hash_file(portrait)}{hash_file(audio)}"
    alone = config.model_copy(update={"batch_size": 1})
    frames = generate_batch(model, cond, [(key, config.seed)], alone, policy)[0]
    progress.update("write", 2, 3)
    record = _record(config, portrait, audio, policy_path, inputs, psnr)
    media.write_video(
        output,
        frames,
        inputs.clip.fps,
        inputs.audio,
        sample_rate=inputs.clip.sample_rate,
        crf=config.crf,
        metadata={"comment": f"made by ft2 {version('ft2')}, seed {config.seed}"},
    )
    record = {"video": str(output), "video_sha256": hash_file(output), **record}
    write_json(output.with_suffix(".json"), record)
    progress.update("write", 3, 3)
    return record


def _record(
    config: GenerateConfig,
    portrait: Path,
    audio: Path,
    policy_path: Path | None,
    inputs: Inputs,
    psnr: float | None,
) -> dict[str, object]:
    """Return what made the clip: inputs, policy and weights with hashes, config, versions."""
    policy = None
    if policy_path is not None:
        files = sorted(p for p in policy_path.rglob("*") if p.suffix in {".safetensors", ".json"})
        policy = {
            "path": str(policy_path),
            "sha256": {
                str(p.relative_to(policy_path)): hash_file(p)
                for p in files
                if "checkpoints" not in p.parts
            },
        }
    weights = {
        p.name: hash_file(p) for p in sorted(weights_dir(config.model).glob("*.safetensors"))
    }
    packages = ("ft2", "torch", "diffusers", "transformers")
    return {
        "schema": SCHEMA,
        "synthetic": True,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": {
            "portrait": {"path": str(portrait), "sha256": hash_file(portrait)},
            "audio": {"path": str(audio), "sha256": hash_file(audio)},
        },
        "policy": policy,
        "weights_sha256": weights,
        "config": config.model_dump(mode="json"),
        "seconds": inputs.clip.seconds,
        "remarks": inputs.remarks,
        "portrait_psnr": psnr,
        "versions": {name: version(name) for name in packages},
    }
