"""What stands behind the page of ``ft2 generate --ui``: one job at a time, and its results."""

from __future__ import annotations

import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from json import dumps
from pathlib import Path
from typing import Any

from ft2.errors import Ft2Error, Interrupted, RunError, UsageError
from ft2.generator.best import Judge
from ft2.generator.checks import Inputs, check_inputs
from ft2.generator.config import GenerateConfig
from ft2.generator.record import Job, Record
from ft2.generator.run import RESUME, Talker
from ft2.generator.uploads import Uploads
from ft2.pairs import Scores
from ft2.runs import Progress

VIDEO = "talking.mp4"


class Busy(Ft2Error):
    """A video is being made already."""


class JobProgress:
    """Progress that can be asked for and that ends the work; it passes on what it is told.

    Attributes:
        stage: what is done now, such as ``sample seed 0``.
        done: steps of it that are taken.
        total: its steps.
    """

    def __init__(self, inner: Progress) -> None:
        """Begin with nothing done."""
        self.stage, self.done, self.total = "", 0, 1
        self._inner, self._ended = inner, threading.Event()

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Note ``done`` of ``total`` steps.

        Raises:
            Interrupted: the work is to end.
        """
        self.stage, self.done, self.total = stage, done, total
        self._inner.update(stage, done, total, note)
        if self._ended.is_set():
            raise Interrupted(signal.SIGINT)

    def begin(self) -> None:
        """Start anew."""
        self.stage, self.done, self.total = "encode", 0, 1
        self._ended.clear()

    def end(self) -> None:
        """End the work at its next step."""
        self._ended.set()


@dataclass
class Made:
    """A job that was begun.

    Attributes:
        number: names its folder.
        remarks: what a person should know about the inputs.
        state: ``running``, ``done``, ``failed`` or ``stopped``.
        error: what went wrong.
        hint: what to do about it.
        videos: names of video and record, and the seed, of each video.
        candidates: scores of all seeds, where a critic chose.
    """

    number: int
    remarks: list[str]
    state: str = "running"
    error: str = ""
    hint: str = ""
    videos: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)


class Desk:
    """Makes one video (or several seeds of one) at a time, from uploads and settings.

    Everything of the model happens in one thread. A job's folder ``OUTPUT/0001`` holds its inputs,
    its videos and their records; of a job that fails or is stopped nothing stays.

    Attributes:
        uploads: what was sent in this session.
    """

    def __init__(
        self,
        talker: Talker,
        progress: JobProgress,
        configure: Callable[[Sequence[str]], GenerateConfig],
        keys: Sequence[str],
        output: Path,
        policy: Path | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Begin a session with a loaded model.

        Args:
            talker: model and policy; reports to `progress`.
            progress: how far the job is.
            configure: returns the config with ``KEY=VALUE`` settings on top.
            keys: the settings that may be changed.
            output: directory of the jobs' folders; made with the first one.
            policy: the talker's policy, for the records.
            judge: chooses the best of several seeds.
        """
        self._talker, self._progress, self._configure = talker, progress, configure
        self._keys, self._output, self._policy, self._judge = keys, output, policy, judge
        self.uploads = Uploads()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ft2")
        self._lock, self._busy = threading.Lock(), False
        self._jobs: list[Made] = []

    def state(self) -> dict[str, Any]:
        """Return the jobs of this session and how far the running one is; JSON."""
        p = self._progress
        progress = {"stage": p.stage, "done": p.done, "total": p.total} if self._busy else None
        return {"jobs": [vars(job) for job in self._jobs], "progress": progress}

    def file(self, number: int, name: str) -> Path | None:
        """Return a video or record of a finished job, None if there is no such one."""
        for job in self._jobs:
            names = [video[part] for video in job.videos for part in ("video", "record")]
            if job.number == number and name in names:
                return self._output / f"{number:04}" / name
        return None

    def start(self, portrait: str, audio: str, settings: Mapping[str, Any]) -> None:
        """Check inputs (keys of uploads) and settings, and begin to make the video.

        Raises:
            Busy: another one is being made.
            UsageError: an input or a setting cannot be used; nothing was begun.
            RunError: the output cannot be written.
        """
        with self._lock:
            if self._busy:
                raise Busy("a video is being made already", "wait until it is done, or stop it")
            self._busy = True
        try:
            picture = self.uploads.find("portrait", portrait)
            sound = self.uploads.find("audio", audio)
            config = self._config(settings)
            self._progress.begin()
            output = self._output / "new" / VIDEO
            with self.uploads.named_plainly():
                checked = self._pool.submit(
                    check_inputs, config, picture, sound, output, self._judge
                ).result()
            job = self._place(config, picture, sound)
        except BaseException:
            self._busy = False
            raise
        made = Made(int(job.output.parent.name), checked.remarks)
        self._jobs.append(made)
        self._pool.submit(self._make, job, checked, made)

    def stop(self) -> None:
        """End the running job at its next step."""
        self._progress.end()

    def close(self) -> None:
        """End everything and remove the uploads; finished jobs keep their own."""
        self.stop()
        self._pool.shutdown(wait=True)
        self.uploads.remove()

    def _config(self, settings: Mapping[str, Any]) -> GenerateConfig:
        unknown = sorted(set(settings) - set(self._keys))
        if unknown:
            raise UsageError(f"the page cannot change {', '.join(unknown)}")
        return self._configure([f"{key}={dumps(value)}" for key, value in settings.items()])

    def _place(self, config: GenerateConfig, picture: Path, sound: Path) -> Job:
        """Copy the uploads into a new folder and return the job that works there."""
        folder = self._output
        try:
            self._output.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in self._output.iterdir()]
            last = max((int(name) for name in names if re.fullmatch(r"\d{4,}", name)), default=0)
            folder = self._output / f"{last + 1:04}"
            folder.mkdir()
            places = folder / f"portrait-{picture.name}", folder / f"audio-{sound.name}"
            shutil.copyfile(picture, places[0])
            shutil.copyfile(sound, places[1])
        except OSError as error:
            self._forget(folder)
            hint = "make room, or start again with another -o"
            raise RunError(f"cannot write into '{folder}': {error.strerror}", hint) from error
        return Job(config, *places, folder / VIDEO, self._policy)

    def _forget(self, folder: Path) -> None:
        """Remove a job's folder, and the output if nothing else is in it."""
        if folder != self._output:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self._output.rmdir()

    def _make(self, job: Job, inputs: Inputs, made: Made) -> None:
        """Make a job's videos; whatever goes wrong is noted for the page."""
        try:
            record = self._talker.make(job, inputs, judge=self._watched_judge())
            made.videos, made.candidates = _shown(record), record.get("candidates", [])
            made.state = "done"
        except Interrupted:
            made.state, made.error = "stopped", "stopped: nothing was kept"
        except Ft2Error as error:
            made.state, made.error = "failed", error.message
            made.hint = error.hint.replace(RESUME, "make it again")
        except Exception as error:  # noqa: BLE001 - as in ft2.__main__, but the page goes on
            made.state, made.error = "failed", f"{type(error).__name__}: {error}"
        finally:
            if made.state != "done":
                self._forget(job.output.parent)
            self._busy = False

    def _watched_judge(self) -> Judge | None:
        """Return the judge as one that also reports."""
        judge = self._judge

        def score(paths: Sequence[Path]) -> list[Scores]:
            assert judge is not None
            self._progress.update("score the videos", 0, 1)
            return judge.score(paths)

        return None if judge is None else replace(judge, score=score)


def _shown(record: Record) -> list[dict[str, Any]]:
    """Return names and seeds of a job's videos."""
    first = record["config"]["seed"]
    paths = [Path(name) for name in record.get("videos", [record["video"]])]
    return [
        {"video": path.name, "record": path.with_suffix(".json").name, "seed": first + place}
        for place, path in enumerate(paths)
    ]
