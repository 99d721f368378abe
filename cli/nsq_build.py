"""What `ft2 nsq build` wires together: the plan, the generators and the critic."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.cli.options import make_progress
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.critic.score import CriticScorer
    from ft2.generator.config import GenerateConfig
    from ft2.nsq.config import NsqConfig
    from ft2.nsq.judging import LazyScorer, StoredOnly
    from ft2.nsq.protocols import Generator

_BITS_PER_PIXEL = 0.2
"""About what an h264 file of a talking head takes at crf 10, per pixel and frame."""
_ROW_BYTES = 1500
"""About what a pair takes in `pairs` and its views together."""


def plan_build(settings: "NsqConfig") -> dict[str, Any]:
    """Return what a build would make; what is missing yet is listed by its key, not an error.

    Raises:
        UsageError: an input is there and wrong.
    """
    from ft2.nsq.candidates import read_folder
    from ft2.nsq.splits import check_splits
    from ft2.pairs import read_conditions

    _read_generator(settings)
    missing = _missing(settings)
    plan: dict[str, Any] = {
        "generator": settings.generator,
        "policies": []
        if settings.generator is None
        else [settings.policy or "base", *settings.more_policies],
        "folders": list(settings.folders),
        "critic": settings.critic,
        "workers": f"{settings.workers.count or 1} {settings.workers.kind}",
    }
    if Path(settings.conditions).is_file():
        conditions = read_conditions(settings.conditions)
        check_splits(conditions, settings.filters.portrait_bits)
        by_id = {c.condition_id: c for c in conditions}
        manifests = [Path(path) for path in settings.folders if Path(path).is_file()]
        given = [read_folder(path, by_id) for path in manifests]
        made = len(conditions) * settings.num_candidates * len(plan["policies"])
        found = sum(len(clips) for folder in given for clips in folder.values())
        plan |= _sizes(settings, len(conditions), made, found)
    return plan | {"missing": missing}


def _read_generator(settings: "NsqConfig") -> "GenerateConfig | None":
    """Return how candidates are made, None where none are."""
    if settings.generator is None:
        return None
    from ft2.generator.checks import load_sampling

    return load_sampling(settings.generator)


def _missing(settings: "NsqConfig") -> dict[str, str]:
    """Return the inputs of a build that are not there: what to say, by config key."""
    wanted = [("conditions", settings.conditions, "the conditions", " (ft2 nsq plan)")]
    if _stored_critic(settings) is None:
        wanted += [("critic", settings.critic, "the critic", " (ft2 critic train)")]
    elif settings.store is not None:
        wanted += [("store", settings.store, "the score store", "")]
    if settings.policy is not None:
        wanted += [("policy", settings.policy, "the policy", " (ft2 tlpo train)")]
    more = [(p, "the policy", " (ft2 tlpo train)") for p in settings.more_policies]
    wanted += [(f"more_policies.{i}", *words) for i, words in enumerate(more)]
    wanted += [(f"folders.{i}", p, "the manifest", "") for i, p in enumerate(settings.folders)]
    return {
        key: f"{what} {path} {'do' if key == 'conditions' else 'does'} not exist{how}"
        for key, path, what, how in wanted
        if not Path(path).exists()
    }


def _sizes(settings: "NsqConfig", conditions: int, made: int, found: int) -> dict[str, Any]:
    """Return counts, GPU hours and bytes of a build."""
    clip = settings.clip
    pairs = conditions * settings.pairing.max_per_condition
    video = clip.width * clip.height * clip.num_frames * _BITS_PER_PIXEL / 8
    hours = settings.seconds_per_clip and made * settings.seconds_per_clip / 3600
    return {
        "conditions": conditions,
        "candidates": settings.num_candidates,
        "clips": made + found,
        "clips_to_generate": made,
        "most_pairs_per_store": pairs,
        "gpu_hours": "unknown: set seconds_per_clip" if hours is None else round(hours, 1),
        "about_gb": round(((made + found) * (video + 2 * clip.num_samples)
                           + 4 * pairs * _ROW_BYTES) / 1e9, 3),
    }  # fmt: skip


def run_build(settings: "NsqConfig", output: Path, resume: bool, quiet: bool) -> dict[str, Any]:
    """Load the generators and build the dataset; the critic is loaded when a clip needs it.

    Raises:
        UsageError: an input is missing or wrong.
    """
    from ft2.nsq.build import build as build_dataset

    missing = _missing(settings)
    if missing:
        raise UsageError("; ".join(missing.values()), f"make it, or set {', '.join(missing)}")
    generate = _read_generator(settings)
    generators = [] if generate is None else make_generators(settings, generate)
    scorer = lazy_scorer(settings)
    progress = make_progress(quiet)
    return build_dataset(settings, output, generators, scorer, resume=resume, progress=progress)


def make_generators(settings: "NsqConfig", generate: Any) -> "Sequence[Generator]":
    """Return a sampler for the policy and for each further one; the model is loaded once."""
    from ft2.generator.sample import Sampler
    from ft2.tlpo.policy import load_policy
    from ft2.wan.weights import load_talking_model

    samplers: list[Generator] = []
    for path in (settings.policy, *settings.more_policies):
        model = load_talking_model(generate.model, generate.device)
        policy = None if path is None else load_policy(path, model)
        samplers.append(Sampler(model, generate, policy, policy_name(path)))
    return samplers


def policy_name(path: str | None) -> str:
    """Return how rows name a policy: its directory's name and a hash of its files, no path."""
    return "base" if path is None else f"{Path(path).resolve().name} {fingerprint(Path(path))}"


def fingerprint(folder: Path) -> str:
    """Return 12 hex digits over the names and bytes of the weights and records in a directory."""
    from ft2.runs import hash_file

    kinds = (".json", ".safetensors", ".yaml")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in kinds and path.is_file() and "checkpoints" not in path.parts:
            digest.update(f"{path.relative_to(folder).as_posix()}:{hash_file(path)}\n".encode())
    return digest.hexdigest()[:12]


def load_scorer(settings: "NsqConfig") -> "CriticScorer":
    """Return the critic that a build asks; its run directory or its adapter may be named.

    Its name is a hash of all its files, so that a new calibration counts as a new critic.

    Raises:
        UsageError: there is no trained critic.
    """
    from ft2.critic.score import CriticScorer

    path = _adapter(settings)
    scorer = CriticScorer(
        path, batch_size=settings.critic_batch_size, device=settings.critic_device
    )
    scorer.name = f"critic {fingerprint(path)}"
    return scorer


def _stored_critic(settings: "NsqConfig") -> str | None:
    """Return NAME of ``critic: store:NAME``, "" of ``critic: store``, None of a directory."""
    kind, _, name = settings.critic.partition(":")
    return name if kind == "store" else None


def lazy_scorer(settings: "NsqConfig") -> "LazyScorer | StoredOnly":
    """Return the critic, loaded by whichever process first needs it, or only its stored scores.

    Raises:
        UsageError: there is no trained critic, or a store has several and none is named.
    """
    from ft2.nsq.judging import LazyScorer, StoredOnly
    from ft2.nsq.store import ScoreStore

    name = _stored_critic(settings)
    if name is not None:
        if settings.store is None:
            raise UsageError(f"critic={settings.critic} needs a store", "name it: store=FILE")
        with ScoreStore(Path(settings.store)) as store:
            return StoredOnly(name or store.only_critic())
    from ft2.critic.score import check_base

    path = _adapter(settings)
    check_base(path)
    return LazyScorer(f"critic {fingerprint(path)}", partial(load_scorer, settings))


def _adapter(settings: "NsqConfig") -> Path:
    path = Path(settings.critic)
    return path / "adapter" if (path / "adapter").is_dir() else path
