"""Where the stages of a build run: in this process, in worker processes, or on a Ray cluster.

A stage is a picklable callable from a batch (a list) to a result. Results come in the order of the
batches, and no more than `queue` batches wait for each worker.
"""

import multiprocessing
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, Protocol, TypeVar

from ft2.errors import MissingExtra, RunError

BatchT = TypeVar("BatchT")
ResultT = TypeVar("ResultT")

_stages: dict[bytes, Callable[[Any], Any]] = {}


class Workers(Protocol):
    """Runs a stage over batches."""

    def map(
        self, stage: Callable[[BatchT], ResultT], batches: Iterable[BatchT]
    ) -> Iterator[ResultT]:
        """Yield the stage's result of every batch, in order."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class Here:
    """Runs stages in this process."""

    def map(
        self, stage: Callable[[BatchT], ResultT], batches: Iterable[BatchT]
    ) -> Iterator[ResultT]:
        """Yield the stage's result of every batch."""
        yield from map(stage, batches)

    def close(self) -> None:
        """Do nothing."""


class LocalWorkers:
    """Runs stages in worker processes of this machine."""

    def __init__(self, count: int, queue: int = 2) -> None:
        """Start `count` processes; each has at most `queue` batches waiting."""
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_ignore_interrupts)
        self._limit = count * (1 + queue)

    def map(
        self, stage: Callable[[BatchT], ResultT], batches: Iterable[BatchT]
    ) -> Iterator[ResultT]:
        """Yield the stage's result of every batch, in order.

        Raises:
            RunError: a worker process died.
        """
        packed = pickle.dumps(stage)
        waiting: deque[Future[ResultT]] = deque()
        try:
            for batch in batches:
                waiting.append(self._pool.submit(_run, packed, batch))
                if len(waiting) >= self._limit:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died (out of memory, or killed)",
                "what was judged is kept: go on with --resume, with fewer workers.count",
            ) from error

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)


class RayWorkers:
    """Runs stages as actors of a Ray cluster; an actor that dies is started again."""

    def __init__(self, count: int, gpus: float = 0.0, address: str | None = None) -> None:
        """Join the cluster at `address` (None: the running one, else a new one on this machine).

        Raises:
            MissingExtra: Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "ray") from error
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        self._count, self._gpus = count, gpus

    def map(
        self, stage: Callable[[BatchT], ResultT], batches: Iterable[BatchT]
    ) -> Iterator[ResultT]:
        """Yield the stage's result of every batch, in order.

        Raises:
            RunError: the cluster gave up.
        """
        import ray
        import ray.data
        from ray.exceptions import RayError

        items = [{"index": i, "batch": pickle.dumps(b)} for i, b in enumerate(batches)]
        if not items:
            return
        done: dict[int, ResultT] = {}
        try:
            rows = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                _RayStage,
                fn_constructor_args=(pickle.dumps(stage),),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=self._count),
                num_cpus=1,
                num_gpus=self._gpus,
            )
            wanted = 0
            for row in rows.iter_rows():
                done[row["index"]] = pickle.loads(row["result"])  # noqa: S301 - own actors' answer
                while wanted in done:
                    yield done.pop(wanted)
                    wanted += 1
        except RayError as error:
            raise RunError(
                f"the Ray cluster failed: {error}", "what was judged is kept: go on with --resume"
            ) from error

    def close(self) -> None:
        """Leave the cluster running."""


class _RayStage:
    """A stage as a Ray Data actor."""

    def __init__(self, packed: bytes) -> None:
        self._stage = pickle.loads(packed)  # noqa: S301 - made by the same program

    def __call__(self, rows: dict[str, Any]) -> dict[str, list[Any]]:
        batches = [pickle.loads(batch) for batch in rows["batch"]]  # noqa: S301 - same program
        results = [pickle.dumps(self._stage(batch)) for batch in batches]
        return {"index": list(rows["index"]), "result": results}


def start_workers(
    kind: Literal["local", "ray"], count: int, queue: int, gpus: float, address: str | None
) -> Workers:
    """Return the workers that a config asks for; none means this process."""
    if not count:
        return Here()
    return LocalWorkers(count, queue) if kind == "local" else RayWorkers(count, gpus, address)


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the one that waits for us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(packed: bytes, batch: Any) -> Any:
    if packed not in _stages:
        _stages.clear()
        _stages[packed] = pickle.loads(packed)  # noqa: S301 - sent by the parent process
    return _stages[packed](batch)


def cut_batches(items: list[BatchT], size: int) -> Iterator[list[BatchT]]:
    """Yield the items in lists of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
