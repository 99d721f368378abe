"""``ft2 generate``: one portrait, one sound; videos with their records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ft2 import media
from ft2.errors import RunError
from ft2.generator.best import Judge, choose
from ft2.generator.checks import Inputs, check_experts, check_inputs, check_strengths
from ft2.generator.config import GenerateConfig
from ft2.generator.placement import place_talker, start_device
from ft2.generator.portrait_check import check_portrait
from ft2.generator.record import (
    Clock,
    Job,
    Record,
    job_key,
    job_record,
    kept_latents,
    seed_path,
)
from ft2.generator.sample import Gated
from ft2.generator.windows import Latents, sample_long, window_audio
from ft2.runs import Interrupts, Progress, hash_file, read_json, write_json
from ft2.wan.condition import Conditioning
from ft2.wan.model import TalkingModel
from ft2.wan.weights import load_talking_model

RESUME = "go on with the same command and --resume"


class Talker:
    """A loaded model and policy that make videos; nothing of one video is left for the next."""

    def __init__(
        self,
        config: GenerateConfig,
        policy: Path | None,
        make_policy: Callable[[Path, TalkingModel], Gated],
        progress: Progress,
    ) -> None:
        """Load the model of a config and a policy.

        Raises:
            UsageError: they cannot be loaded, or ``expert`` names one that the policy lacks.
        """
        check_experts(config.expert, policy)
        progress.update("load the model", 0, 1)
        self.model = load_talking_model(config.model, start_device(config))
        self.policy = None if policy is None else make_policy(policy, self.model)
        place_talker(self.model, config)
        self.progress = progress
        progress.update("load the model", 1, 1)

    def make(
        self, job: Job, inputs: Inputs, *, resume: bool = False, judge: Judge | None = None
    ) -> Record:
        """Make the videos of a job, each with its record beside it; return the (best) record.

        Without a judge each of ``num_seeds`` videos is written, as ``NAME-SEED.mp4`` if there are
        several. With one only the best is, as ``NAME.mp4``; its record has all scores.

        Raises:
            UsageError: the face is not served, or kept latents belong to other inputs.
            Interrupted: on SIGINT or SIGTERM; latents are kept, ``resume`` goes on with them.
            RunError: memory or disk are full; latents are kept too.
        """
        clock = Clock()
        check_strengths(job.config.expert, self.policy)
        with clock.measure("encode"):
            psnr = check_portrait(self.model, inputs.portrait, job.config.min_portrait_psnr)
            heard = window_audio(inputs.audio, 0, inputs.clip)
            motion = (job.config.motion.face, job.config.motion.body)
            cond = self.model.encode_condition(
                inputs.portrait, heard, job.config.prompt, motion, job.config.whole_audio
            )
        base = job_record(job)
        base |= {
            "seconds": round(inputs.frames / inputs.clip.fps, 4),
            "windows": len(inputs.starts),
            "remarks": inputs.remarks,
            "portrait_psnr": psnr,
        }
        seeds = range(job.config.seed, job.config.seed + job.config.num_seeds)
        many = len(seeds) > 1
        records = []
        for seed in seeds:
            output = seed_path(job.output, seed) if many else job.output
            if resume and output.is_file() and output.with_suffix(".json").is_file():
                records.append(read_json(output.with_suffix(".json")))
                continue
            key, latents = job_key(base, seed), Latents()
            if resume and kept_latents(output).is_file():
                latents = Latents.load(kept_latents(output), key)
            with self._keeping(latents, output, key):
                frames = self._frames(job, inputs, cond, base, seed, latents, clock)
                with clock.measure("write"):
                    records.append(self._write(job, inputs, frames, base, seed, output))
            records[-1]["stage_seconds"] = clock.take()
            write_json(output.with_suffix(".json"), records[-1])
            kept_latents(output).unlink(missing_ok=True)
        if judge is not None:
            return choose(job, seeds, judge)
        return {**records[0], "videos": [r["video"] for r in records]} if many else records[0]

    @contextmanager
    def _keeping(self, latents: Latents, output: Path, key: str) -> Iterator[None]:
        """Leave the latents on disk whatever ends the block early."""
        try:
            yield
        except BaseException as error:
            kept = latents.save(kept_latents(output), key)
            if isinstance(error, torch.OutOfMemoryError):
                smaller = "set vram=24 (or 16, 8), model.precision=bf16, fp8=true"
                hint = f"{smaller}; {RESUME if kept else ''}"
                raise RunError(f"out of memory ({error})", hint) from error
            raise

    def _frames(
        self,
        job: Job,
        inputs: Inputs,
        cond: Conditioning,
        base: Record,
        seed: int,
        latents: Latents,
        clock: Clock,
    ) -> NDArray[np.uint8]:
        """Sample and decode one seed."""
        noise = f"{base['inputs']['portrait']['sha256']}{base['inputs']['audio']['sha256']}"
        steps, windows = job.config.steps, len(inputs.starts)
        with Interrupts() as interrupts, clock.measure("sample"):

            def watch(window: int, step: int) -> None:
                done = window * steps + step
                self.progress.update(f"sample seed {seed}", done, steps * windows)
                interrupts.check(RESUME)

            return sample_long(
                self.model, cond, inputs.audio, inputs.frames, (noise, seed), job.config,
                self.policy, latents, watch,
            )  # fmt: skip

    def _write(
        self,
        job: Job,
        inputs: Inputs,
        frames: NDArray[np.uint8],
        base: Record,
        seed: int,
        output: Path,
    ) -> Record:
        """Write the mp4 with the file's own sound (AAC is copied), and return its record."""
        rate, heard = inputs.sound_rate, len(inputs.audio) / inputs.clip.sample_rate
        copied = media.copyable_sound(job.audio, heard)
        sound = None if copied else media.read_channels(job.audio, rate)[:, : round(heard * rate)]
        try:
            media.write_video(
                output,
                frames,
                inputs.clip.fps,
                sound,
                sample_rate=rate,
                crf=job.config.crf,
                metadata={"comment": f"made by ft2 {version('ft2')}, seed {seed}"},
                copied=job.audio if copied else None,
            )
        except OSError as error:
            raise RunError(f"cannot write '{output}': {error.strerror}", RESUME) from error
        config = {**base["config"], "seed": seed, "num_seeds": 1}
        return {
            "video": str(output),
            "video_sha256": hash_file(output),
            "sound": "copied" if copied else f"encoded, {rate} Hz",
            **base,
            "config": config,
        }


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
    resume: bool = False,
    judge: Judge | None = None,
) -> Record:
    """Generate from one portrait and one sound and return the record (of the best video).

    Args:
        config: model and sampling.
        portrait: picture with a face.
        audio: sound file.
        output: mp4 file to write; ``NAME.json`` beside it gets the record.
        policy_path: preference-aligned policy, or None for the base.
        make_policy: loads a policy into the model.
        progress: is told what happens.
        say: prints remarks.
        resume: go on with latents that an interruption left.
        judge: scores videos; the best is kept.

    Raises:
        UsageError: if an input cannot be used.
        RunError: see :meth:`Talker.make`.
    """
    job = Job(config, portrait, audio, output, policy_path)
    inputs = check_inputs(config, portrait, audio, output, judge)
    check_experts(config.expert, policy_path)
    for remark in inputs.remarks:
        say(remark)
    talker = Talker(config, policy_path, make_policy, progress)
    return talker.make(job, inputs, resume=resume, judge=judge)
