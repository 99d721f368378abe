"""`ft2 tlpo merge`, `export`, `push` and `compare`: what is made of trained experts."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ft2.cli.options import (
    ConfigArgs,
    DryRun,
    Json,
    Output,
    PlannedOutput,
    Quiet,
    Resume,
    Yes,
    emit,
    make_progress,
    require_output,
    say,
    split_config_args,
)
from ft2.cli.push import Public, Repo, Update, check_push, run_push
from ft2.errors import UsageError

if TYPE_CHECKING:
    from ft2.tlpo.experts import ExpertName


def refuse_file(folder: Path) -> None:
    """Refuse a folder to write to where it, or what it would lie in, is a file.

    Raises:
        UsageError: It is one.
    """
    for place in (folder, *folder.parents):
        if place.is_file():
            raise UsageError(f"the output '{place}' is a file", "choose another --output")


def export(
    policy: Annotated[
        Path, typer.Option("--policy", metavar="DIR", help="An expert's run, or a policy.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The safetensors file to write.")
    ],
    form: Annotated[
        str, typer.Option("--format", help="comfyui (diffusers too), kohya or diffsynth.")
    ] = "comfyui",
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write an expert, or a policy's average over the noise levels, as one LoRA for others."""
    from ft2.tlpo.export import ExportFormat, export_lora, export_tensors, load_mix

    if form not in get_args(ExportFormat):
        raise UsageError(f"unknown format '{form}'", f"one of {', '.join(get_args(ExportFormat))}")
    if output.exists():
        raise UsageError(f"the output '{output}' already exists", "choose another --output")
    if output.suffix != ".safetensors":
        raise UsageError(
            f"the output '{output}' would be a safetensors file under another name",
            f"write it to {output.with_suffix('.safetensors')}",
        )
    refuse_file(output.parent)
    if dry_run:
        tensors, left_out = export_tensors(load_mix(policy), form)  # type: ignore[arg-type]
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        emit({"tensors": len(tensors), "bytes": size, "left_out": len(left_out)}, json)
        return
    result: dict[str, Any] = export_lora(policy, form, output)  # type: ignore[arg-type]
    lost = result["left_out"]
    if lost["linears"]:
        kinds = ", ".join(lost["kinds"])
        say(f"left out, because {form} has no place for them: {lost['linears']} linears ({kinds})")
    emit(result, json)


def merge(
    output: Output,
    expert: Annotated[
        list[Path],
        typer.Option("--expert", metavar="DIR", help="An expert's run; give one a dimension."),
    ],
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="Constant weight: one for all (2/3 by default) or one each."),
    ] = None,
    switch: Annotated[
        list[float] | None,
        typer.Option("--switch", help="Noise level (0 to 1) where the next expert takes over."),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Join experts into a policy: constant weights, or a hard switch in the order given.

    With --switch 0.3 --switch 0.6 the first expert acts alone below noise level 0.3, the second
    up to 0.6, the third above.
    """
    from ft2.tlpo.experts import EXPERT_NAMES, expert_dimension, find_adapter
    from ft2.tlpo.policy_files import save_policy

    found: dict[ExpertName, Path] = {}
    for path in expert:
        adapter = find_adapter(path)
        name = expert_dimension(adapter)
        if name in found:
            raise UsageError(f"two {name} experts: {found[name]} and {adapter}")
        found[name] = adapter
    if output.exists():
        raise UsageError(f"the output '{output}' already exists", "choose another --output")
    refuse_file(output.parent)
    if weight and switch:
        raise UsageError("--weight and --switch exclude each other", "give one of the two")
    for value in (*(weight or ()), *(switch or ())):
        if not math.isfinite(value):
            raise UsageError(f"{value} is no weight and no noise level", "give a finite number")
    result: dict[str, Any] = {"experts": {name: str(path) for name, path in found.items()}}
    weights = list(weight or [2 / 3])
    if len(weights) not in (1, len(found)):
        raise UsageError(f"{len(weights)} weights for {len(found)} experts", "one, or one each")
    if switch:
        gate: Any = _switch(list(found), list(found.values()), switch)
        result["switch"] = switch
    else:
        given = weights * (len(found) if len(weights) == 1 else 1)
        by_name = dict(zip(found, given, strict=True))
        gate = [by_name[name] for name in EXPERT_NAMES if name in by_name]
        result["weights"] = by_name
    if not dry_run:
        save_policy(output, found, gate)
        say(f"use it with: ft2 generate --policy {output}")
    emit({"output": str(output), **result}, json)


def _switch(names: list["ExpertName"], adapters: list[Path], edges: list[float]) -> object:
    """Return the table of a hard switch between experts in the order given."""
    import torch

    from ft2.lora import read_adapter
    from ft2.tlpo.experts import EXPERT_NAMES
    from ft2.tlpo.gate import GateTable

    if len(names) == 1:
        raise UsageError(
            "--switch switches between experts, and there is only one",
            "give --expert twice or more",
        )
    rising = sorted(set(edges)) == edges and edges[0] > 0 and edges[-1] < 1
    if len(edges) != len(names) - 1 or not rising:
        raise UsageError(
            f"--switch {' '.join(map(str, edges))} for {len(names)} experts",
            f"give {len(names) - 1} rising noise levels between 0 and 1",
        )  # fmt: skip
    keys = read_adapter(adapters[0])[1]
    layers = 1 + max(int(key.split("blocks.")[1].split(".")[0]) for key in keys)
    columns = [name for name in EXPERT_NAMES if name in names]
    rows = torch.tensor([[float(name == active) for name in columns] for active in names])
    return GateTable(torch.tensor(edges), rows[:, None].expand(-1, layers, -1))


def push(
    policy: Annotated[
        Path, typer.Option("--policy", metavar="DIR", help="A fusion run, or a merge.")
    ],
    repo: Repo,
    public: Public = False,
    update: Update = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish a policy with its card on the Hugging Face Hub: -n prints the plan, -y does it."""
    from ft2.tlpo.card import plan_policy_push, policy_card, policy_dir, policy_maker

    check_push("weights", dry_run=dry_run, yes=yes)
    folder = policy_dir(policy)
    run_push(
        plan_policy_push(policy, repo, private=not public), folder,
        lambda: policy_card(folder), policy_maker(folder),
        kind="model", dry_run=dry_run, update=update, json=json, quiet=quiet,
    )  # fmt: skip


def compare(
    config: ConfigArgs = None,
    output: PlannedOutput = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train every method of the table anew for each seed, sample, judge, and write the table.

    For puppet conditions, whose ground truth is known: dataset=DIR validation=FILE test=FILE.
    """
    from ft2.cli.compare import check_inputs, run_compare
    from ft2.cli.compare_config import CompareConfig
    from ft2.config import load_config
    from ft2.runs import check_output

    settings = load_config(CompareConfig, *split_config_args(config))
    plan = check_inputs(settings)
    if dry_run:
        emit(plan, json)
        return
    output = require_output(output)
    check_output(output, resume=resume)
    table = run_compare(settings, output, resume=resume, progress=make_progress(quiet))
    say(f"the table is in {output / 'table.md'}, its charts in {output / 'report.html'}")
    shown = {name: table[name] for name in ("conditions", "seeds", "difference_to_base")}
    emit({"output": str(output), **shown}, json)
