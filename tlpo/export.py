"""Experts and static mixes as one LoRA file for other programs, in their key forms.

Names on both sides are Wan's own: ``attn1.to_q`` of diffusers is ``self_attn.q`` there. The scale
alpha / rank is folded into the up-projection, so that a consumer's scale of 1 is ours. The audio
branch has no place in these programs; its adapters are left out, and the caller is told.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ft2.errors import UsageError
from ft2.lora import PEFT_PREFIX, read_adapter
from ft2.runs import save_tensors
from ft2.tlpo.experts import find_adapter
from ft2.tlpo.policy_files import POLICY_FILE, read_policy

ExportFormat = Literal["comfyui", "kohya", "diffsynth"]

WAN_NAMES = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
"""Names of a block's linears: diffusers' and Wan's."""

Delta = tuple[Tensor, Tensor]
"""(A [r, in], B [out, r]) with ``B A`` the change of a weight at strength 1."""


@dataclass(frozen=True)
class Mix:
    """One LoRA: the changes of linears, by diffusers name (``blocks.0.attn1.to_q``)."""

    deltas: Mapping[str, Delta]
    about: Mapping[str, str]
    """What it is made of, for the file's metadata."""


def load_mix(path: Path) -> Mix:
    """Return what a run, an adapter or a policy directory amounts to as one LoRA.

    A policy with constant weights is exact; of a learned gate or a table it is the average over
    the noise levels, layer by layer.

    Raises:
        UsageError: The path holds none of these, or a gate without its average.
    """
    for folder in (path, path / "policy"):
        if (folder / POLICY_FILE).is_file():
            return _policy_mix(folder)
    deltas = _deltas(find_adapter(path))
    if not any(name.startswith("blocks.") for name in deltas):
        raise UsageError(
            f"{path} is a LoRA of another network, such as a critic's, not an expert",
            hint="give the run of ft2 tlpo train, or a policy",
        )
    return Mix(deltas, {"expert": str(path.name), "weights": "1"})


def _policy_mix(folder: Path) -> Mix:
    record = read_policy(folder)
    names, gate = record["experts"], record["gate"]
    weights = gate.get("weights") if gate["form"] == "constant" else record.get("average")
    if weights is None:
        raise UsageError(
            f"{folder} does not hold the average of its gate",
            hint="train the gate again with ft2 tlpo train, or mix with ft2 tlpo merge",
        )
    parts = [_deltas(folder / "experts" / name) for name in names]
    mixed: dict[str, Delta] = {}
    for name in parts[0]:
        own = weights[_layer(name)] if isinstance(weights[0], Sequence) else weights
        downs, ups = zip(*(part[name] for part in parts), strict=True)
        mixed[name] = (
            torch.cat(downs),
            torch.cat([w * up for w, up in zip(own, ups, strict=True)], dim=1),
        )
    kind = "constant" if gate["form"] == "constant" else "average over noise levels"
    return Mix(mixed, {"experts": " ".join(names), "weights": kind})


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _deltas(adapter: Path) -> dict[str, Delta]:
    config, tensors = read_adapter(adapter)
    scale = float(config["lora_alpha"]) / int(config["r"])
    found = {}
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix(PEFT_PREFIX).removesuffix(".lora_A.weight")
            up = tensors[key.replace(".lora_A.", ".lora_B.")]
            found[name] = (down.float(), scale * up.float())
    return found


def export_tensors(mix: Mix, form: ExportFormat) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors in a program's key form, and the names of linears that were left out.

    Args:
        mix: From `load_mix`.
        form: ``comfyui`` (diffusers reads it too), ``kohya`` (musubi-tuner; every linear of every
            block, with zeros where there is no adapter), or ``diffsynth``.
    """
    known: dict[str, Delta] = {}
    left_out = []
    for name, delta in mix.deltas.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        if match and match[2] in WAN_NAMES:
            known[f"blocks.{match[1]}.{WAN_NAMES[match[2]]}"] = delta
        else:
            left_out.append(name)
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in (_complete(known) if form == "kohya" else known).items():
        if form == "comfyui":
            tensors[f"diffusion_model.{name}.lora_A.weight"] = down
            tensors[f"diffusion_model.{name}.lora_B.weight"] = up
        elif form == "diffsynth":
            tensors[f"{name}.lora_A.default.weight"] = down
            tensors[f"{name}.lora_B.default.weight"] = up
        else:
            key = "lora_unet_" + name.replace(".", "_")
            tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = down, up
            tensors[f"{key}.alpha"] = torch.tensor(float(len(down)))
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, left_out


def _complete(known: Mapping[str, Delta]) -> dict[str, Delta]:
    """Add adapters of zeros, of rank 1, for the linears that musubi's readers insist on.

    Raises:
        UsageError: The feed-forward linears' width is not known from any adapter.
    """
    sizes = {name.split(".", 2)[2]: (a.shape[1], b.shape[0]) for name, (a, b) in known.items()}
    dim = next((size[0] for name, size in sizes.items() if name == "self_attn.q"), None)
    ffn = next((size[1] for name, size in sizes.items() if name == "ffn.0"), None)
    if dim is None or ffn is None:
        raise UsageError(
            "kohya's form needs adapters on self-attention's q and on ffn.0",
            hint="export as comfyui, which may hold any linears",
        )
    wanted = {
        name: (dim, dim) for name in WAN_NAMES.values() if "attn" in name and "_img" not in name
    }
    wanted |= {"ffn.0": (dim, ffn), "ffn.2": (ffn, dim)}
    images = [name for name in sizes if name.endswith("_img")]
    if images:
        wanted |= dict.fromkeys(("cross_attn.k_img", "cross_attn.v_img"), (dim, dim))
    blocks = sorted({_layer(name) for name in known})
    whole = {}
    for block in range(blocks[-1] + 1):
        for name, (width, out) in wanted.items():
            zeros = torch.zeros(1, width), torch.zeros(out, 1)
            whole[f"blocks.{block}.{name}"] = known.get(f"blocks.{block}.{name}", zeros)
    return whole


def export_lora(path: Path, form: ExportFormat, output: Path) -> dict[str, object]:
    """Write one LoRA file for another program.

    Args:
        path: A run, an adapter or a policy directory.
        form: The program's key form.
        output: The safetensors file; its parent is made if absent.

    Returns:
        ``linears``, ``rank`` (greatest), ``left_out`` (how many linears, and which kinds),
        ``what`` and ``file``.

    Raises:
        UsageError: Nothing to export.
    """
    mix = load_mix(path)
    tensors, left_out = export_tensors(mix, form)
    if not tensors:
        raise UsageError(f"{path} adapts no linear that {form} knows")
    save_tensors(output, tensors, {**mix.about, "made_by": "ft2 tlpo export"})
    kinds = sorted({name.split(".", 2)[2] for name in left_out})
    return {
        "file": str(output),
        "format": form,
        "what": dict(mix.about),
        "linears": len(mix.deltas) - len(left_out),
        "rank": max(len(down) for down, _ in mix.deltas.values()),
        "left_out": {"linears": len(left_out), "kinds": kinds},
    }
