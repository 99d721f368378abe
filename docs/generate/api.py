"""The pages of the Python API: one for each package, filled by mkdocstrings from the docstrings."""

from pathlib import Path

PACKAGES = {
    "critic": "Ratings, critic training, scores, the critic's evaluation.",
    "nsq": "Clips, pairs, shards, the card and the Hub.",
    "tlpo": "Loss, experts, gate, policies, comparisons.",
    "generator": "Base training, sampling, windows, records.",
    "config": "Typed configs with presets and overrides.",
    "engine": "One process, or DeepSpeed.",
    "lora": "Expert LoRAs on frozen linears.",
    "media": "Video, sound and pictures in and out.",
    "metrics": "Figures with intervals.",
    "pairs": "What a clip and a pair are, and how they lie on disk.",
    "puppet": "Talking clips with known driving curves and defects.",
    "qwen": "The Thinker behind the critic.",
    "report": "Pages with charts.",
    "wan": "The talking model: transformer, codec, encoders, weights.",
}
"""Package -> what is in it; single modules have a page of their own."""

MODULES = (
    *("board", "errors", "faces", "files", "flow", "hub", "interrupts", "loopback", "outputs"),
    *("record", "runs", "speech"),
)

SOURCE = Path(__file__).resolve().parents[2] / "src" / "ft2"

INDEX = """# Python API

Import packages as `ft2.critic`, `ft2.tlpo` and so on. Start with
[`TalkingCritic`](critic.md#ft2.critic.api.TalkingCritic). Everything whose name has no leading
underscore is listed; only what the how-to pages use is meant to stay as it is between versions.

| package | what |
|---|---|
"""


def pages() -> dict[str, str]:
    """Return Markdown by file name.

    Raises:
        ValueError: A package or module of ft2 is on no page.
    """
    there = {p.parent.name for p in SOURCE.glob("*/__init__.py")} - {"cli", "weights"}
    alone = {p.stem for p in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    if there != set(PACKAGES) or alone != set(MODULES):
        odd = (there ^ set(PACKAGES)) | (alone ^ set(MODULES))
        raise ValueError(f"docs/generate/api.py and src/ft2 differ in {', '.join(sorted(odd))}")
    found = {}
    index = INDEX
    for name, what in PACKAGES.items():
        index += f"| [`ft2.{name}`]({name}.md) | {what} |\n"
        found[f"{name}.md"] = f"# ft2.{name}\n\n::: ft2.{name}\n"
    index += "| [single modules](modules.md) | Errors, files, runs, faces, speech and more. |\n"
    found["modules.md"] = "# Single modules\n\n" + "\n".join(f"::: ft2.{m}\n" for m in MODULES)
    return {"index.md": index, **found}
