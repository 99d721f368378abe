"""What both stages do before and after their training loop: read, encode, train, report."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from torch import Tensor, nn

from ft2.engine import (
    FrozenWeights,
    autocast,
    check_resumable,
    local_device,
    make_engine,
    rank_zero_first,
)
from ft2.errors import UsageError
from ft2.lora import SharedGate, fused_linears, remove_experts
from ft2.pairs import Preference
from ft2.runs import Progress, RunDir
from ft2.tlpo.cache import Cache, fill_cache, model_hash, unique_clips
from ft2.tlpo.config import ExpertConfig, FusionConfig, StageConfig
from ft2.tlpo.data import PairData, require_pairs
from ft2.tlpo.diagnostics import find_alarms, latent_alarms
from ft2.tlpo.gate import constant_gate
from ft2.tlpo.held_out import HeldOut
from ft2.tlpo.loop import run_loop
from ft2.tlpo.passes import GateFunction
from ft2.tlpo.perf import Clock
from ft2.tlpo.probes import Probe
from ft2.tlpo.reference import StoredReference, reference_identity, stored_reference
from ft2.tlpo.step import PreferenceStep
from ft2.tlpo.update import Training
from ft2.tlpo.views import Weighted, same_format
from ft2.tlpo.work import Held, pair_flops
from ft2.wan.memory import encoders_of
from ft2.wan.model import TalkingModel
from ft2.wan.recompute import recompute_as
from ft2.wan.weights import load_talking_model

Result = dict[str, object]


@dataclass(frozen=True)
class Stage:
    """What a stage works with: run directory, frozen base, encoded pairs."""

    run: RunDir
    model: TalkingModel
    base: str
    data: PairData
    unseen: PairData
    progress: Progress

    def train(
        self,
        config: StageConfig,
        name: str,
        gate: GateFunction,
        reference: GateFunction,
        trainable: Mapping[str, nn.Parameter],
        export: Callable[[], object],
        in_reference: Mapping[str, object],
        keep: Callable[[], object] = lambda: None,
        probe: Probe | None = None,
    ) -> Result:
        """Train, then call ``keep`` on all ranks and ``export`` on rank 0, with whole weights.

        Args:
            config: The stage.
            name: What progress calls it.
            gate: The policy's weights.
            reference: The reference's.
            trainable: Parameters to train, by name.
            export: Writes the artefact.
            in_reference: What acts in the reference beside the base, for stored errors.
            keep: Takes what is wanted of the trained weights: after this ZeRO-3 has them in parts.
            probe: Looks at the trained weights meanwhile.
        """
        frozen = FrozenWeights(self.model.dit, trainable)
        whole = self.model.dit if config.engine.zero_stage == 3 else None
        later = recompute_as(config.gradient_checkpointing)
        device = self.model.device
        clock, work = Clock(device), self._pair_flops(config)
        step = PreferenceStep(
            self.model, gate, reference, trainable, config.dpo, whole, later, clock.part
        )
        engine = make_engine(config.engine, step, self.run.path)
        try:
            stored: StoredReference | None = None
            if config.sigma.stored_draws:
                stored = stored_reference(
                    step, self.data, config, engine,
                    reference_identity(config, self.base, in_reference, self.data.pairs),
                    self.data.cache.path, device, self.progress,
                    autocast(config.engine, device.type),
                )  # fmt: skip
            held_out = HeldOut(step, self.unseen, config.loop, config.engine)
            training = Training(
                self.run, engine, self.data, held_out, config, device, clock, work, stored, probe
            )
            result = run_loop(training, name, self.progress)
            with engine.gathered():
                frozen.check()
                keep()
                if engine.rank == 0:
                    export()
        finally:
            engine.close()
        about: Result = {"pairs": len(self.data), "dropped": self.data.dropped, "base": self.base}
        std = self.data.cache.latent_std([pair.chosen.clip_id for pair in self.data.pairs])
        alarms = [asdict(alarm) for alarm in latent_alarms(std)]
        return {**about, **result, "latent_std": std, "alarms": [*alarms, *self._alarms()]}

    def _pair_flops(self, config: StageConfig) -> float:
        """Return the operations of a pair with the experts that are in the model."""
        assert isinstance(config, ExpertConfig | FusionConfig)
        linears = fused_linears(self.model.dit)
        held = Held.of(
            (n, x.lora_A.numel() + x.lora_B.numel(), x.lora_A.shape[0]) for n, x in linears
        )
        return pair_flops(config, self.model.architecture, held)

    def _alarms(self) -> list[Result]:
        file = self.run.path / "metrics.jsonl"
        if not file.is_file():
            return []
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [asdict(alarm) for alarm in find_alarms(lines)]


def open_stage(
    run: RunDir,
    config: StageConfig,
    pairs: tuple[Weighted, list[Preference]],
    model: TalkingModel | None,
    progress: Progress,
) -> Stage:
    """Load the base if needed, and encode the pairs.

    Raises:
        UsageError: A checkpoint of the run is of another engine or number of processes.
    """
    if (latest := run.latest()) is not None:
        check_resumable(latest[1], config.engine)
    own = model is None
    model = prepare_model(model, config)
    data, unseen = _encode(pairs, config, run, model, progress)
    if own:
        rest_encoders(model)
    return Stage(run, model, model_hash(model), data, unseen, progress)


def rest_encoders(model: TalkingModel) -> None:
    """Have encoders and codec on the CPU but while they are used: training reads the cache."""
    if model.device.type == "cpu":
        return
    for part in encoders_of(model):
        part.to("cpu")
    model.visiting = model.device


def prepare_model(model: TalkingModel | None, config: StageConfig) -> TalkingModel:
    """Return the base, loaded if needed, without experts and frozen."""
    if model is None:
        model = load_talking_model(config.model, local_device(config.device))
    remove_experts(model.dit)
    model.dit.requires_grad_(False)
    model.dit.eval()
    if config.gradient_checkpointing:
        model.dit.enable_gradient_checkpointing(recompute_as(config.gradient_checkpointing))
    else:
        model.dit.disable_gradient_checkpointing()
    return model


def _encode(
    pairs: tuple[Weighted, list[Preference]],
    config: StageConfig,
    run: RunDir,
    model: TalkingModel,
    progress: Progress,
) -> tuple[PairData, PairData]:
    train, unmatched = same_format(pairs[0])
    held_out = same_format(Weighted(pairs[1], None))[0].pairs
    clips = unique_clips([*train.pairs, *held_out])
    folder = config.cache_dir(run.path)
    with rank_zero_first(config.engine):
        cache: Cache = fill_cache(clips, folder, model, config.encoding, progress)
    shape = model.latent_shape()
    data, unseen = (
        PairData(part, cache, config.mask, weights)
        .without_other_shapes(shape)
        .without_small_masks()
        for part, weights in ((train.pairs, train.weights), (held_out, None))
    )
    if unmatched:
        data = replace(data, dropped={**data.dropped, "clips of two formats": unmatched})
    if data.dropped and not data.pairs:
        reasons = ", ".join(f"{count} for: {why}" for why, count in data.dropped.items())
        raise UsageError(
            f"all {len(train.pairs)} training pairs of {config.dataset} were dropped: {reasons}",
            hint="lower mask.min_sum, set encoding.mask=box, or generate clips of the model's size",
        )
    require_pairs(data.pairs, "masked", config.dataset, least=config.engine.micro_batch_size)
    return data, unseen


def constant(model: TalkingModel, weights: tuple[float, ...]) -> GateFunction:
    """Return a gate function of constant weights, which all samples share."""

    def gate(sigma: Tensor) -> SharedGate:
        return SharedGate(constant_gate(1, model.num_layers, weights)[0].to(sigma.device))

    return gate
