"""Whether a policy fits a base, from their files alone: a model of 14B takes minutes to load."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ft2.lora import install_experts, load_expert, read_adapter, remove_experts
from ft2.runs import load_tensors
from ft2.tlpo.cache import base_hash
from ft2.tlpo.experts import check_base, find_adapter
from ft2.tlpo.policy import load_gate
from ft2.tlpo.policy_files import check_files, find_policy, read_policy
from ft2.wan.places import read_architecture, weights_dir
from ft2.wan.spec import WanSpec
from ft2.wan.weights import meta_dit


def check_fit(policy: Path, spec: WanSpec) -> None:
    """Refuse a policy or an expert that `load_policy` would refuse for a base; load neither.

    Of published weights the shapes alone are compared: their hash takes the loaded model.

    Args:
        policy: As of `load_policy`.
        spec: The base.

    Raises:
        UsageError: A file is missing or another, or was trained on another base.
    """
    folder = find_policy(policy)
    if folder is None:
        adapters = {"": find_adapter(policy)}
    else:
        record = read_policy(folder)
        check_files(folder, record.get("sha256", {}))
        adapters = {name: folder / "experts" / name for name in record["experts"]}
    dit, base = meta_dit(spec), files_hash(spec)
    for name, adapter in adapters.items():
        config, _ = read_adapter(adapter)
        if base is not None:
            check_base(name, adapter, base)
        rank = int(config["r"])
        remove_experts(dit)
        install_experts(dit, config["target_modules"], 1, rank, config["lora_alpha"])
        load_expert(dit, 0, adapter)
    if folder is not None:
        load_gate(folder, dit)


def files_hash(spec: WanSpec) -> str | None:
    """Return the `model_hash` of ft2's own weights, from their files; None for published ones."""
    architecture, folder = read_architecture(spec), weights_dir(spec)
    if architecture.latent.codec == "wan_vae":
        return None
    names = ["dit", "codec", "text", "image", *(["speech"] if architecture.audio.tower_dim else [])]
    parts = {name: load_tensors(folder / f"{name}.safetensors")[0] for name in names}
    codec = parts.pop("codec")
    space = {k.removeprefix("space."): v for k, v in codec.items() if k.startswith("space.")}
    own = {k: v for k, v in codec.items() if not k.startswith("space.")}
    states: list[Mapping[str, Tensor]] = [parts.pop("dit"), own, space, *parts.values()]
    return base_hash(architecture, states)
