"""Worker processes and Ray actors: the same results as in one process, also when one is killed."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nsq_fakes import ColourScorer, HashGenerator, coloured_clip

from ft2.errors import RunError
from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig, WorkersConfig
from ft2.nsq.judging import Judge, LazyScorer
from ft2.nsq.workers import LocalWorkers, RayWorkers
from ft2.pairs import Scores
from ft2.runs import Silent, read_json


@dataclass(frozen=True)
class Square:
    """A stage that notes its calls, and can kill its own process once."""

    folder: str
    killer: int | None = None

    def __call__(self, batch: list[int]) -> list[int]:
        flag = Path(self.folder) / "killed"
        if self.killer in batch and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return [x * x for x in batch]


BATCHES = [[2 * i, 2 * i + 1] for i in range(12)]
SQUARES = [[x * x for x in batch] for batch in BATCHES]


def test_local_workers_keep_order_and_bound_the_queue(tmp_path: Path) -> None:
    workers, taken = LocalWorkers(1, queue=2), []

    def batches() -> Sequence[list[int]]:
        for batch in BATCHES:
            taken.append(batch)
            yield batch

    try:
        results = workers.map(Square(str(tmp_path)), batches())  # type: ignore[arg-type]
        assert next(results) == SQUARES[0]
        assert len(taken) == 3
        assert list(results) == SQUARES[1:]
        with pytest.raises(RunError, match="a worker process died") as caught:
            list(workers.map(Square(str(tmp_path), killer=5), iter(BATCHES)))
        assert "--resume" in caught.value.hint
    finally:
        workers.close()


def interrupt_itself(batch: list[int]) -> list[int]:
    os.kill(os.getpid(), signal.SIGINT)
    return batch


def test_ctrl_c_of_a_terminal_leaves_the_workers_alone() -> None:
    workers = LocalWorkers(1)
    try:
        assert list(workers.map(interrupt_itself, iter([[1], [2]]))) == [[1], [2]]
    finally:
        workers.close()


class Deadly(ColourScorer):
    """Kills its own process at one clip, once."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)

    def score(self, paths: Sequence[Path]) -> list[Scores]:
        flag = Path(self.folder) / "killed"
        if any(p.parts[-2:] == ("c2", "0001.mp4") for p in paths) and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(paths)


def deadly() -> Deadly:
    return Deadly(Path(os.environ["FT2_TEST_FLAGS"]))


def test_killed_worker_costs_its_batch_and_nothing_else(
    config: NsqConfig, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FT2_TEST_FLAGS", str(tmp_path))
    scorer = LazyScorer("colour-scorer", deadly)
    config = config.model_copy(update={"workers": WorkersConfig(count=1), "critic_batch_size": 4})
    out = tmp_path / "out"
    with pytest.raises(RunError, match="a worker process died"):
        build(config, out, HashGenerator(), scorer, progress=Silent())
    build(config, out, HashGenerator(), scorer, resume=True, progress=Silent())
    manifests = [read_json(p / "manifest.json") for p in (out, built)]
    assert manifests[0]["tables"] == manifests[1]["tables"]


def add_node(cluster: Any, arguments: dict[str, Any]) -> None:
    """Add a node; Ray gives one 30 seconds to start, which a busy machine may not manage."""
    for attempt in range(5):
        try:
            cluster.add_node(**arguments)
            return
        except Exception as error:
            if attempt == 4 or "timed out during startup" not in str(error):
                raise


@pytest.mark.slow
def test_ray_cluster_loses_nothing_when_a_worker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes judge real clips; an actor is killed in the middle and starts again by itself."""
    import ray
    from ray.cluster_utils import Cluster

    batches = []
    for condition in range(4):
        folder = tmp_path / f"c{condition}"
        folder.mkdir()
        for seed in range(4):
            (folder / f"{seed:04d}.mp4").write_bytes(coloured_clip(f"c{condition}/{seed}", 5))
        paths = sorted(folder.iterdir())
        batches += [paths[:2], paths[2:]]
    expected = [Judge(ColourScorer())(batch) for batch in batches]
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("FT2_TEST_FLAGS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    small = {"object_store_memory": 80_000_000, "num_cpus": 1, "include_dashboard": False}
    cluster = Cluster()
    try:
        add_node(cluster, small)
        add_node(cluster, small)
        ray.init(address=cluster.address, log_to_driver=False)
        judge = Judge(LazyScorer("colour-scorer", deadly))
        assert list(RayWorkers(2).map(judge, iter(batches))) == expected
        assert (tmp_path / "killed").exists()
    finally:
        ray.shutdown()
        cluster.shutdown()
