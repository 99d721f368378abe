"""Worker processes and Ray actors: the same results as in one process, also when one is killed."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nsq_fakes import ColourScorer, HashGenerator
from test_build import fingerprint

from ft2.errors import RunError
from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig, WorkersConfig
from ft2.nsq.judging import LazyScorer
from ft2.nsq.store import ScoreStore
from ft2.nsq.workers import LocalWorkers
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


def published(folder: Path) -> dict[str, str]:
    """Hashes of the dataset; the record of scores follows the chunks."""
    found = fingerprint(folder)
    return {name: digest for name, digest in found.items() if not name.startswith("scores/")}


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
    config: NsqConfig, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole build on two nodes: an actor is killed in the middle and starts again by itself."""
    import ray
    from ray.cluster_utils import Cluster

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
        workers = WorkersConfig(kind="ray", count=2)
        wanted = {"workers": workers, "chunk_conditions": 5, "critic_batch_size": 4}
        out, scorer = tmp_path / "out", LazyScorer("colour-scorer", deadly)
        build(config.model_copy(update=wanted), out, HashGenerator(), scorer, progress=Silent())
        assert (tmp_path / "killed").exists()
        assert published(out) == published(built)
        with ScoreStore(out / "scores" / "store.sqlite") as store:
            assert store.critics() == {"colour-scorer": 30}
    finally:
        ray.shutdown()
        cluster.shutdown()
