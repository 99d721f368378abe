"""The record beside every video: what it was made of and how, enough to make it again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ft2.config import flatten
from ft2.errors import UsageError
from ft2.generator.config import GenerateConfig
from ft2.runs import hash_file, read_json
from ft2.wan.checkpoint import SUFFIXES
from ft2.wan.places import weights_dir

SCHEMA = 2
PACKAGES = ("ft2", "torch", "diffusers", "transformers")


Record = dict[str, Any]
"""What a video was made of and how; JSON."""


@dataclass(frozen=True)
class Job:
    """One video to make, or several of the same portrait and sound.

    Attributes:
        config: model and sampling.
        portrait: picture with a face.
        audio: sound or video file.
        output: mp4 file to write.
        policy: directory of a preference-aligned policy, or None for the base.
    """

    config: GenerateConfig
    portrait: Path
    audio: Path
    output: Path
    policy: Path | None = None


def policy_hashes(path: Path | None) -> dict[str, str]:
    """Return the hash of each file of a policy; checkpoints of its run are left out."""
    if path is None:
        return {}
    files = sorted(p for p in path.rglob("*") if p.suffix in {".safetensors", ".json"})
    inner = {str(p.relative_to(path)): p for p in files}
    return {name: hash_file(p) for name, p in inner.items() if "checkpoints" not in p.parts}


def weights_hashes(config: GenerateConfig) -> dict[str, str]:
    """Return the hash of each weights file of the model."""
    directory = weights_dir(config.model)
    files = sorted(p for p in directory.rglob("*") if p.suffix in SUFFIXES)
    return {str(p.relative_to(directory)): hash_file(p) for p in files}


def face_hash(config: GenerateConfig) -> str | None:
    """Return the hash of the face-recognition file, or None if none is used."""
    path = config.model.face_weights
    return None if path is None else hash_file(Path(path).expanduser())


def job_record(job: Job) -> Record:
    """Return what a job is made of: inputs, policy and weights with hashes, config, versions."""
    policy = None
    if job.policy is not None:
        policy = {"path": str(job.policy), "sha256": policy_hashes(job.policy)}
    return {
        "schema": SCHEMA,
        "synthetic": True,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": {
            "portrait": {"path": str(job.portrait), "sha256": hash_file(job.portrait)},
            "audio": {"path": str(job.audio), "sha256": hash_file(job.audio)},
        },
        "policy": policy,
        "weights_sha256": weights_hashes(job.config),
        "face_weights_sha256": face_hash(job.config),
        "config": job.config.model_dump(mode="json"),
        "versions": {name: version(name) for name in PACKAGES},
    }


def job_key(record: Record, seed: int) -> str:
    """Return a hash over all that decides the latents of one seed."""
    config = {**record["config"], "seed": seed, "num_seeds": 1, "crf": None, "best_by": None}
    files = [record["inputs"][name]["sha256"] for name in ("portrait", "audio")]
    policy = (record["policy"] or {}).get("sha256")
    text = json.dumps([config, files, policy, record["weights_sha256"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(path: Path) -> tuple[list[str], Path, Path, Path | None]:
    """Return the config overrides, portrait, sound and policy with which a video was made.

    Raises:
        UsageError: the file is no such record, or a file that it names is gone or has changed.
    """
    record = read_json(path)
    try:
        inputs, policy = record["inputs"], record["policy"]
        portrait, audio = Path(inputs["portrait"]["path"]), Path(inputs["audio"]["path"])
        config = flatten(record["config"])
        wanted = [(portrait, inputs["portrait"]["sha256"]), (audio, inputs["audio"]["sha256"])]
        folder = None if policy is None else Path(policy["path"])
        hashes, weights = (policy or {"sha256": {}})["sha256"], record["weights_sha256"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"'{path}' is not the record of a video", "give the .json beside an mp4 of ft2 generate"
        ) from error
    wanted += [(folder / name, value) for name, value in hashes.items() if folder is not None]
    model = GenerateConfig.model_validate(record["config"])
    wanted += [(weights_dir(model.model) / name, value) for name, value in weights.items()]
    for file, value in wanted:
        if not file.is_file():
            raise UsageError(f"'{file}', with which the video was made, does not exist")
        if hash_file(file) != value:
            raise UsageError(
                f"'{file}' has changed since the video was made", "bring back the old file"
            )
    overrides = [f"{name}={json.dumps(value)}" for name, value in config.items()]
    return overrides, portrait, audio, folder


def seed_path(output: Path, seed: int) -> Path:
    """Return the file of one of several seeds, ``NAME-SEED.mp4``."""
    return output.with_name(f"{output.stem}-{seed}{output.suffix}")


def kept_latents(output: Path) -> Path:
    """Return where the latents of an interrupted video lie, ``NAME.latents.safetensors``."""
    return output.with_suffix(".latents.safetensors")


class Clock:
    """Seconds of named stages since they were last taken."""

    def __init__(self) -> None:
        """Start with none."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """Return the seconds and start anew."""
        taken, self.seconds = {name: round(s, 3) for name, s in self.seconds.items()}, {}
        return taken
