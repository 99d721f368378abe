"""Names of published tensors: which file a set of names is, and the names ft2 gives them.

A transformer comes in the official naming of Wan2.1 (``blocks.N.self_attn.q``) or in diffusers'
(``blocks.N.attn1.to_q``); the audio branch of FantasyTalking in four layouts. All of them map to
diffusers' names with ``proj_model.*`` and ``blocks.N.attn2.processor.{k,v}_proj.weight``.
Only names and shapes are looked at here, so nothing heavy is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_PREFIX = "model.diffusion_model."
_PROJECTION = re.compile(r"(?:.*\.)?proj_model\.(proj\.weight|norm\.weight|norm\.bias)$")
_PROCESSOR = re.compile(
    r"(?:.*\.)?blocks\.(\d+)\.(?:cross_attn|attn2)\.(?:processor\.)?([kv])_proj\.weight$"
)
_OFFICIAL = re.compile(r"(?:.*\.)?blocks\.(\d+)\.self_attn\.q\.weight$")
_DIFFUSERS = re.compile(r"(?:.*\.)?blocks\.(\d+)\.attn1\.to_q\.weight$")
_TEXT = re.compile(r"blocks\.(\d+)\.attn\.q\.weight$")
_IMAGE = re.compile(r"visual\.transformer\.(\d+)\.norm1\.weight$")
_CODEC = re.compile(r"encoder\.downsamples\.(\d+)\.residual\.2\.weight$")
_KINDS = {
    "official Wan transformer": _OFFICIAL,
    "diffusers Wan transformer": _DIFFUSERS,
    "official Wan text encoder (umT5)": _TEXT,
    "official Wan image encoder (open-CLIP)": _IMAGE,
    "official Wan codec (VAE)": _CODEC,
}


def audio_name(name: str) -> str | None:
    """Return ft2's name of a tensor of the audio branch in any of its layouts, else None."""
    if match := _PROJECTION.match(name):
        return f"proj_model.{match[1]}"
    if match := _PROCESSOR.match(name):
        return f"blocks.{match[1]}.attn2.processor.{match[2]}_proj.weight"
    return None


def is_official(names: Iterable[str]) -> bool:
    """Say whether a transformer's tensors have Wan's own names rather than diffusers'."""
    return any(".self_attn." in f".{name}" or "time_embedding." in name for name in names)


def canonical_names(names: Sequence[str], official: bool) -> dict[str, str]:
    """Return ft2's name for each tensor of a transformer file.

    Args:
        names: names in one file; those of the audio branch may be among them.
        official: the file has Wan's own names (`is_official` over all files of a transformer: a
            single shard need not show it).
    """
    found = {name: audio_name(name) for name in names}
    rest = [name for name, known in found.items() if known is None]
    if official:
        from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

        renamed = convert_wan_transformer_to_diffusers({name: name for name in rest})
        other = {old: new for new, old in renamed.items()}
    else:
        other = {name: name.removeprefix(_PREFIX) for name in rest}
    return {name: known or other[name] for name, known in found.items()}


def grouped(names: Iterable[str]) -> str:
    """Return all names in a few words: those that differ only in a number are counted."""
    counts = Counter(re.sub(r"((?:^|[._])(?:blocks?|layers))\.\d+", r"\1.N", n) for n in names)
    return ", ".join(
        name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()
    )


def audio_layout(names: Sequence[str]) -> str:
    """Return which published layout the audio branch in a file has."""
    if is_official(names) or any(_DIFFUSERS.match(name) for name in names):
        return "inside a whole transformer"
    processors = [name for name in names if _PROCESSOR.match(name)]
    if not any(".processor." in name for name in processors):
        return "without 'processor' (ComfyUI)"
    if any(name.startswith("audio_processor.") for name in names):
        return "official"
    return "flat"


def describe_names(shapes: Mapping[str, Sequence[int]]) -> dict[str, object]:
    """Return what a file of weights is, from its tensors' names and shapes.

    Returns:
        ``layout``; ``blocks`` and ``width`` (of the first block); ``audio_branch`` with its layout,
        blocks and whether it is complete; ``expert`` for LoRA files; nothing for other files.
    """
    names = list(shapes)
    found: dict[str, object] = {}
    for layout, pattern in _KINDS.items():
        blocks = {int(match[1]) for name in names if (match := pattern.match(name))}
        if blocks:
            query = next(name for name in names if pattern.match(name))
            found |= {"layout": layout, "blocks": len(blocks)}
            found["width"] = int(shapes[query][0])
    audio = [name for name in names if audio_name(name)]
    if audio:
        depth = len({match[1] for name in audio if (match := _PROCESSOR.match(name))})
        complete = len(audio) == 2 * depth + 3
        found["audio_branch"] = (
            f"{audio_layout(names)} layout, {depth} blocks, {len(audio)} tensors,"
            f" {'complete' if complete else f'{2 * depth + 3} needed'}"
        )
    if not found and any(".lora_A." in name for name in names):
        found["layout"] = "LoRA adapter"
    return found
