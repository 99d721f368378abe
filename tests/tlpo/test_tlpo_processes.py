"""Processes of every engine: killed, ended, with a dropped pair, another number, a full disk."""

import json
import signal
from pathlib import Path

import pytest
from tlpo_workers import finish, start

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

SCRIPT = """
import json, resource, signal
from ft2.engine import DeepSpeedEngine, TorchEngine
from ft2.errors import Ft2Error
from ft2.lora import expert_parameters, install_experts, remove_experts, save_expert
from ft2.runs import Silent
from ft2.tlpo.cache import Cache
from ft2.tlpo.config import FusionConfig

config = toys.expert_config(world, steps=6)
loop = config.loop.model_copy(update={"checkpoint_every": 2, "eval_every": 6})
config = config.model_copy(update={"engine": engine, "loop": loop})
Engine = TorchEngine if kind == "torch" else DeepSpeedEngine
save, latents = Engine.save, Cache.latents


def killed_save(self, directory):
    save(self, directory)
    if self.steps == 4 and rank == 0:  # written, and not yet published
        os.kill(os.getpid(), signal.SIGKILL)


def full_save(self, directory):
    if self.steps == 4 and rank == 1:  # one process has no room
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    try:
        save(self, directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


calls = 0
def spoiled(self, keys):
    global calls
    calls += 1
    found = latents(self, keys)
    if rank == 1 and calls % 3 == 0:
        found[:] = float("nan")
    return found


class Term(Silent):
    def update(self, stage, done, total, note=""):
        if rank == 1 and done == 3 and stage.startswith("expert"):
            os.kill(os.getpid(), signal.SIGTERM)


def gate_config():
    experts = {name: out / "experts" / name for name in ("motion", "lip", "quality")}
    with rank_zero_first(engine):
        if rank == 0:
            install_experts(world.model.dit, toys.TARGETS, 3, 2, 2.0)
            torch.manual_seed(0)
            for parameter in expert_parameters(world.model.dit):
                torch.nn.init.normal_(parameter, std=0.1)
            for index, (name, folder) in enumerate(experts.items()):
                save_expert(world.model.dit, index, folder / "adapter", {"dimension": name})
            remove_experts(world.model.dit)
    shared = config.model_dump(exclude={"stage", "dimension", "lora"})
    return FusionConfig(**shared, experts=experts)


for job in jobs:
    name, _, how = job.partition("+")
    Engine.save = {"kill": killed_save, "full": full_save}.get(how, save)
    Cache.latents = spoiled if how == "drop" else latents
    progress = Term() if how == "term" else Silent()
    keep_hash(out / f"{job}-hash-{rank}")
    said = "done"
    try:
        if name == "gate":
            train_fusion(gate_config(), out / name, model=world.model, progress=progress)
        else:
            train_expert(config, out / name, model=world.model, resume=True, progress=progress)
    except Ft2Error as error:
        said = f"{error} {getattr(error, 'hint', '')}"
    (out / f"{job}-{rank}.txt").write_text(said)
"""


def weights(out: Path, name: str) -> bytes:
    return (out / name / "adapter" / "adapter_model.safetensors").read_bytes()


def metrics(out: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(x) for x in (out / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["torch", "1", "2", "3"])
def test_processes_survive_what_ends_them(tmp_path: Path, kind: str) -> None:
    ranks = 1 if kind == "torch" else 2
    killed = start(SCRIPT, tmp_path, ranks, kind, 2, "straight", "killed+kill")
    killed[0].wait(900)
    assert killed[0].returncode == -signal.SIGKILL
    for worker in killed[1:]:
        worker.kill()  # as torchrun does with the others
        worker.communicate()
    latest = (tmp_path / "killed" / "checkpoints" / "latest").read_text().strip()
    assert latest == "000002"  # the one of step 4 was being written

    jobs = {
        "torch": ["killed"],
        "1": ["killed"],
        "2": ["killed", "ended+term", "ended", "dropped+drop", "full+full", "full", "cut"],
        "3": ["killed", "ended+term", "ended", "dropped+drop", "gate+drop"],
    }[kind]
    finish(start(SCRIPT, tmp_path, ranks, kind, 2, *jobs))

    def said(job: str) -> list[str]:
        return [(tmp_path / f"{job}-{rank}.txt").read_text() for rank in range(ranks)]

    assert weights(tmp_path, "killed") == weights(tmp_path, "straight")
    steps = [line["step"] for line in metrics(tmp_path, "killed")]
    assert steps == [1, 2, 3, 4, 5, 6]
    if "ended" in jobs:
        for text in said("ended+term"):  # the signal came to one of them
            assert "SIGTERM" in text
            assert "a checkpoint of step 3 is saved" in text
        assert weights(tmp_path, "ended") == weights(tmp_path, "straight")
    if "full" in jobs:
        told = said("full+full")
        assert all("the checkpoint of step 4 could not be written" in text for text in told)
        assert all("the checkpoint of step 2 is whole" in text for text in told)
        assert "another process could not write its part" in told[0]
        assert weights(tmp_path, "full") == weights(tmp_path, "straight")
    for job in {"dropped+drop", "gate+drop"} & set(jobs):
        assert said(job) == ["done", "done"]
        hashes = {(tmp_path / f"{job}-hash-{rank}").read_text() for rank in range(ranks)}
        assert len(hashes) == 1, "every process holds the same weights"
        name = job.partition("+")[0]
        assert sum(int(str(line["dropped"])) for line in metrics(tmp_path, name)) > 0
    if "cut" in jobs:
        (tmp_path / "cut" / "result.json").unlink()
        finish(start(SCRIPT, tmp_path, 1, kind, 2, "cut"))
        assert "was saved by 2 processes, this run has 1" in said("cut")[0]
        assert "resume with --nproc-per-node 2" in said("cut")[0]
