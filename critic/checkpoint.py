"""What a critic's directory must hold, read and refused before a model loads.

``adapter_config.json`` and ``adapter_model.safetensors`` are PEFT's, ``critic.json`` is the card.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError, model_validator

from ft2.config import Config
from ft2.config.problems import describe
from ft2.critic.calibration import Calibration, Map
from ft2.critic.config import LoraSpec
from ft2.critic.losses import WITH_TIES
from ft2.critic.names import Objective
from ft2.errors import UsageError
from ft2.qwen.spec import QwenSpec
from ft2.runs import hash_file, read_json, write_json

FILES = ("adapter_config.json", "adapter_model.safetensors", "critic.json")
SCHEMA = 1
SAMPLED = "sampled:"
"""How `base_hash` of a foreign model begins."""
BLOCK, BLOCKS = 1 << 16, 64

AGAIN = "train the critic again, or copy its directory anew"
UNLIKE_OURS = (
    "use_rslora", "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
    "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern",
    "layer_replication", "trainable_token_indices", "target_parameters", "exclude_modules",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip
"""Settings of PEFT under which the tensors would act otherwise than ft2's plain LoRA."""

ConfigT = TypeVar("ConfigT", bound=BaseModel)


class CriticCard(Config):
    """What an adapter needs to be asked again exactly as it was trained."""

    questions: dict[str, str]
    """Question of each dimension."""
    model: QwenSpec
    """The Thinker it was trained on."""
    base_sha256: str
    """What `base_hash` said of the base; empty in older cards of foreign models."""
    thresholds: dict[str, float]
    """Log-odds of Yes at which the answer turns, per dimension, fitted on the dev split."""
    objective: Objective = "yes_no"
    """What it was trained with; see `ft2.critic.losses`."""
    tie_widths: dict[str, float] | None = None
    """k (`rao_kupper`) or nu (`davidson`) of each dimension."""
    reference: dict[str, Any] | None = None
    """Log-odds of the dev split's clips, with a name: what percentiles are against; see
    `ft2.critic.reference`."""
    calibration: Calibration | None = None
    """Maps to calibrated P(yes), tie widths, and how they were made. None moves P(yes) by the
    thresholds alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = set(self.questions)
        if not names or set(self.thresholds) != names:
            raise ValueError(f"thresholds of {[*self.thresholds]}, questions {[*self.questions]}")
        if self.objective in WITH_TIES and set(self.tie_widths or {}) != names:
            raise ValueError(f"tie_widths: lacks the tie widths that {self.objective} learned")
        known = self.calibration
        if known is not None and not {*known.maps, *known.ties} <= names:
            raise ValueError("calibration: calibrates unknown dimensions")
        return self

    @property
    def maps(self) -> dict[str, Map]:
        """Maps to calibrated P(yes) of the dimensions that have one."""
        found = self.calibration.maps if self.calibration else {}
        return {name: one.model_dump() for name, one in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for ``critic.json``."""
        known = self.calibration
        made = None if known is None else known.model_dump(mode="json", exclude_unset=True)
        return {**self.model_dump(mode="json"), "calibration": made}


def write_card(directory: Path, card: CriticCard) -> None:
    """Write ``critic.json``."""
    write_json(directory / FILES[2], {"schema": SCHEMA, **card.to_dict()})


def read_card(directory: Path) -> CriticCard:
    """Return what ``critic.json`` of an adapter says.

    Raises:
        UsageError: It is no adapter of ft2's critic, damaged, or of a later schema.
    """
    path = directory / FILES[2]
    if not path.is_file():
        inner = directory / "adapter"
        hint = f"did you mean {inner}?" if inner.is_dir() else "train one: ft2 critic train"
        raise UsageError(f"{directory} holds no critic (no critic.json)", hint)
    data = _read_object(path)
    if data.pop("schema", None) != SCHEMA:
        raise UsageError(f"{path} is not of schema {SCHEMA}", "train the critic again")
    return _validated(CriticCard, data, path)


def read_lora(directory: Path) -> LoraSpec:
    """Return rank and scale of an adapter whose files are all there.

    Raises:
        UsageError: A file is missing or damaged, or the adapter is no plain LoRA.
    """
    for name in FILES[:2]:
        if not (directory / name).is_file():
            raise UsageError(f"{directory} lacks {name}", "train the critic: ft2 critic train")
    path = directory / FILES[0]
    settings = _read_object(path)
    unlike = {name: settings[name] for name in UNLIKE_OURS if settings.get(name)}
    for name, ours in (("peft_type", "LORA"), ("bias", "none")):
        if settings.get(name, ours) != ours:
            unlike[name] = settings[name]
    if unlike:
        name, value = next(iter(unlike.items()))
        raise UsageError(
            f"{path}: {name} is {json.dumps(value)}; ft2's critics are plain LoRAs, and its scores "
            "would be those of another adapter",
            "give an adapter that `ft2 critic train` wrote",
        )
    given = {"rank": settings.get("r"), "alpha": settings.get("lora_alpha")}
    for key, value in zip(("r", "lora_alpha"), given.values(), strict=True):
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise UsageError(f"{path}: {key} must be a number above 0, got {value!r}", AGAIN)
    spec = _validated(LoraSpec, given, path)
    _check_tensors(directory / FILES[1])
    return spec


def _check_tensors(path: Path) -> None:
    """Refuse a safetensors file whose header and size do not fit."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"'{path}' is not a readable safetensors file: {error}", AGAIN) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except UsageError as error:
        raise UsageError(error.message, AGAIN) from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold a JSON object, not {type(data).__name__}", AGAIN)
    return data


def _validated(cls: type[ConfigT], data: dict[str, Any], path: Path) -> ConfigT:
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        first = describe(cls, error.errors()[0], {})
        if len(first) > 300:
            first = f"{first[:300]}..."
        raise UsageError(f"{path} is damaged or of another ft2: {first}", AGAIN) from error


def base_hash(path: Path) -> str:
    """Return what a base's weights are told apart by.

    Of ft2's own ``thinker.safetensors`` the sha256. Of a foreign model, whose weights may be tens
    of GB, ``sampled:`` and the sha256 over ``config.json`` and each weights file's name, size and
    64 blocks of 64 KiB spread evenly over it, the first (names, types and shapes of the tensors)
    and the last among them: another training differs nearly everywhere and is seen; a change of
    single weights may not be. Empty where there are no weights.
    """
    own = path / "thinker.safetensors"
    if own.is_file():
        return hash_file(own)
    weights = sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))
    if not weights:
        return ""
    digest = hashlib.sha256()
    config = path / "config.json"
    digest.update(config.read_bytes() if config.is_file() else b"")
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        last = max(size - BLOCK, 0)
        with file.open("rb") as stream:
            for start in sorted({last * n // (BLOCKS - 1) for n in range(BLOCKS)}):
                stream.seek(start)
                digest.update(stream.read(BLOCK))
    return SAMPLED + digest.hexdigest()


def match_base(card: CriticCard, base: Path, directory: Path) -> str:
    """Return the hash of a base, refused if it is not the one that a critic was trained on.

    An older card of a foreign model names no base and passes.

    Raises:
        UsageError: It is another.
    """
    actual, recorded = base_hash(base), card.base_sha256
    if recorded and actual != recorded:
        kind = "sha256 of samples" if recorded.startswith(SAMPLED) else "sha256"
        wanted, found = (name.removeprefix(SAMPLED)[:12] for name in (recorded, actual))
        raise UsageError(
            f"{directory} was trained on another base ({kind} {wanted}, {base} has "
            f"{found or 'none'})",
            "train the critic again on this base (ft2 critic train), or give it the weights files "
            "it was trained on",
        )
    return actual
