"""The training loop that both stages share: steps, held-out evaluation, checkpoints, stopping."""

import time
from dataclasses import asdict, dataclass
from signal import SIGTERM

import torch
from torch import Tensor

from ft2.engine import Engine
from ft2.errors import Interrupted
from ft2.runs import Interrupts, Progress, RunDir, read_json, write_json
from ft2.tlpo.config import LoopConfig, StageConfig
from ft2.tlpo.data import PairData, evaluation_noise, pair_order, step_draws
from ft2.tlpo.dpo import implicit_accuracy
from ft2.tlpo.step import PreferenceStep

Metrics = dict[str, float]


@dataclass
class StopRule:
    """Exponential mean of the gradient factor; the run ends when it falls too low."""

    limit: float
    decay: float
    total: float = 0.0
    weight: float = 0.0
    stopped: bool = False

    def update(self, factor: float) -> None:
        """Add one step's factor; set ``stopped`` when training should end."""
        self.total = self.decay * self.total + (1 - self.decay) * factor
        self.weight = self.decay * self.weight + (1 - self.decay)
        self.stopped = self.weight > 0.5 and self.total / self.weight < self.limit


class HeldOut:
    """Evaluation on pairs of unseen conditions, at fixed noise levels and with fixed noise.

    It uses no global random state, and keeps the reference's errors after the first time.
    """

    def __init__(
        self, step: PreferenceStep, data: PairData, config: LoopConfig, batch: int
    ) -> None:
        """Take at most ``config.eval_pairs`` pairs of ``data``, in order."""
        self._step, self._data, self._config, self._batch = step, data, config, batch
        self._count = min(len(data), config.eval_pairs)
        self._reference: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def __call__(self, device: torch.device) -> dict[str, object]:
        """Return the results by name; only ``pairs`` if there are none.

        They are ``implicit_accuracy`` (errors averaged over noise levels), ``d_chosen``,
        ``d_rejected``, and ``accuracy_by_sigma`` in the order of ``config.eval_sigmas``.
        """
        if not self._count:
            return {"pairs": 0}
        sides: list[tuple[Tensor, Tensor]] = []
        for number, start in enumerate(range(0, self._count, self._batch)):
            index = list(range(start, min(start + self._batch, self._count)))
            sides.append(self._differences(number, index, device))
        d_chosen, d_rejected = (torch.cat(side).double().cpu() for side in zip(*sides, strict=True))
        by_sigma = implicit_accuracy(d_chosen, d_rejected).mean(0)
        accuracy = implicit_accuracy(d_chosen.mean(1), d_rejected.mean(1))
        return {
            "pairs": self._count,
            "implicit_accuracy": float(accuracy.mean()),
            "d_chosen": float(d_chosen.mean()),
            "d_rejected": float(d_rejected.mean()),
            "accuracy_by_sigma": [float(value) for value in by_sigma],
        }

    def _differences(
        self, number: int, index: list[int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        batch = self._data.batch(index, device)
        levels = torch.tensor(self._config.eval_sigmas)
        sigma = levels.expand(len(index), -1).to(device)
        noise = torch.stack([
            evaluation_noise(self._config.seed, self._data.pairs[i].pair_id, len(levels),
                             batch.chosen.shape[1:])
            for i in index
        ]).to(device)  # fmt: skip
        if len(self._reference) <= number:
            self._reference.append(self._step.reference_errors(batch, sigma, noise))
        policy = self._step.policy_errors(batch, sigma, noise)
        reference = self._reference[number]
        return policy[0] - reference[0], policy[1] - reference[1]


def train_step(
    engine: Engine, data: PairData, config: StageConfig, step: int, device: torch.device
) -> Metrics:
    """Do one optimiser step and return its metrics, averaged over micro-batches and ranks."""
    micro, accumulation = config.engine.micro_batch_size, config.engine.accumulation_steps
    size = micro * accumulation * engine.world_size
    order = pair_order(len(data), config.loop.seed, step * size, size)
    total: Metrics = {}
    for turn in range(accumulation):
        first = (turn * engine.world_size + engine.rank) * micro
        places = list(range(first, first + micro))
        batch = data.batch([order[place] for place in places], device)
        sigma, noise = step_draws(
            config.sigma, config.loop.seed, step, places, size, batch.chosen.shape[1:]
        )
        loss, metrics = engine(batch, sigma.to(device), noise.to(device))
        engine.backward(loss)
        for name, value in metrics.items():
            total[name] = total.get(name, 0.0) + value / accumulation
    info = engine.step()
    total = _all_ranks(total, engine, device)
    return {**total, "grad_norm": info.grad_norm, "learning_rate": info.learning_rate}


def _all_ranks(metrics: Metrics, engine: Engine, device: torch.device) -> Metrics:
    if engine.world_size == 1:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    means = (values / engine.world_size).tolist()
    return dict(zip(metrics, means, strict=True))


def run_loop(
    run: RunDir,
    engine: Engine,
    held_out: HeldOut,
    data: PairData,
    config: StageConfig,
    device: torch.device,
    stage: str,
    progress: Progress,
) -> dict[str, object]:
    """Train until the last step or the stop rule, from the last checkpoint if there is one.

    Returns:
        ``steps``, ``stopped`` (why), and the first and last held-out evaluation.

    Raises:
        Interrupted: A signal came; a checkpoint is saved.
    """
    rule = StopRule(config.dpo.min_gradient_factor, config.dpo.stop_decay)
    step = _restore(run, engine, rule)
    run.rewind(step)
    loop, start_file = config.loop, run.path / "held_out_start.json"
    found: dict[str, object] | None = None
    with Interrupts() as interrupts:
        if step == 0:
            write_json(start_file, held_out(device))
        while step < loop.num_steps and not rule.stopped:
            clock = time.monotonic()
            metrics = train_step(engine, data, config, step, device)
            step += 1
            rule.update(metrics["gradient_factor"])
            values: dict[str, object] = dict(metrics)
            found = held_out(device) if step % loop.eval_every == 0 else None
            values |= {f"held_out_{k}": v for k, v in (found or {}).items()}
            run.log(step, **values, seconds=round(time.monotonic() - clock, 3))
            progress.update(stage, step, loop.num_steps, _note(metrics))
            signal = _any_rank(interrupts.pending is not None, engine, device)
            due = step % loop.checkpoint_every == 0 or step == loop.num_steps
            if signal or due or rule.stopped:
                _save(run, engine, rule, step)
            if signal:
                hint = f"a checkpoint of step {step} is saved; go on with --resume"
                interrupts.check(hint)
                raise Interrupted(SIGTERM, hint)
    return {
        "steps": step,
        "stopped": f"gradient factor below {rule.limit}" if rule.stopped else "last step",
        "held_out_start": read_json(start_file),
        "held_out": found or held_out(device),
    }


def _note(metrics: Metrics) -> str:
    return f"loss {metrics['loss']:.3f}, implicit accuracy {metrics['implicit_accuracy']:.2f}"


def _any_rank(flag: bool, engine: Engine, device: torch.device) -> bool:
    if engine.world_size == 1:
        return flag
    total = torch.tensor([float(flag)], device=device)
    torch.distributed.all_reduce(total)
    return bool(total.item())


def _save(run: RunDir, engine: Engine, rule: StopRule, step: int) -> None:
    with run.checkpoint(step) as folder:
        engine.save(folder)
        if engine.rank == 0:
            write_json(folder / "loop.json", {"step": step, **asdict(rule)})


def _restore(run: RunDir, engine: Engine, rule: StopRule) -> int:
    """Load the newest checkpoint into engine and rule and return its step, or 0."""
    latest = run.latest()
    if latest is None:
        return 0
    step, folder = latest
    engine.load(folder)
    state = read_json(folder / "loop.json")
    rule.total, rule.weight, rule.stopped = state["total"], state["weight"], state["stopped"]
    return step
