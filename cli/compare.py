"""A comparison of methods, judged by the ground truth of puppets (`ft2 tlpo compare`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ft2.cli.compare_config import CompareConfig
from ft2.cli.demo_evaluate import COLUMNS, score_policy
from ft2.config import load_config
from ft2.critic.api import TalkingCritic
from ft2.errors import UsageError
from ft2.files import read_json, write_atomic, write_json
from ft2.generator.checks import load_sampling
from ft2.generator.config import GenerateConfig
from ft2.generator.sample import Sampler
from ft2.pairs import DIMENSIONS, Dimension, read_conditions
from ft2.report import charts
from ft2.report.data import Estimate, ScoreRow
from ft2.report.plain import page
from ft2.runs import Progress, RunDir
from ft2.tlpo.compare import compare
from ft2.tlpo.compare_config import check_conditions, check_trials, trained_conditions
from ft2.tlpo.compare_table import BASE, Rows, markdown
from ft2.tlpo.compare_train import Bench
from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.tlpo.data import check_dataset
from ft2.tlpo.methods import METHODS, Changes, Method

if TYPE_CHECKING:
    from ft2.tlpo.policy import Policy

Split = Literal["validation", "test"]
CRITIC_COLUMNS = tuple(f"critic {dimension}" for dimension in DIMENSIONS)
"""P(yes) of the critic, which may have made the pairs: beside the judges, never among them."""


def methods_of(settings: CompareConfig) -> dict[str, Method]:
    """Return the methods with what the config sweeps."""
    return {
        name: replace(METHODS[name], candidates=settings.sweep.get(name, METHODS[name].candidates))
        for name in settings.methods
    }


def check_inputs(settings: CompareConfig) -> dict[str, Any]:
    """Return the plan of a comparison, refusing missing files before anything loads.

    Raises:
        UsageError: A file is missing, a condition is in two of dataset, validation and test, a
            preset or a candidate of a sweep does not fit, or a view has too few pairs.
    """
    for path in (settings.dataset, settings.validation, settings.test):
        if not path.exists():
            raise UsageError(f"{path} does not exist", "set dataset, validation and test")
    if settings.critic is not None and not (settings.critic / "critic.json").is_file():
        raise UsageError(
            f"there is no trained critic in '{settings.critic}'", "critic=RUN/adapter of a critic"
        )
    ids = {
        split: {c.condition_id for c in read_conditions(path)}
        for split, path in (("validation", settings.validation), ("test", settings.test))
    }
    shared = ids["validation"] & ids["test"]
    if shared:
        raise UsageError(
            f"{len(shared)} conditions are both in validation and in test: {sorted(shared)[0]}",
            "what is chosen on validation may not be measured on it",
        )
    _, stages, fusion = load_stages(settings, settings.cache or Path("cache"))
    check_dataset(settings.dataset)
    check_conditions(ids, trained_conditions(fusion))
    check_trials(stages, fusion, methods_of(settings), swept_experts(settings))
    methods, runs = methods_of(settings), len(settings.seeds)
    experts = [len(sets) for name, sets in settings.sweep.items() if name not in METHODS]
    tried = sum(experts) + sum(len(m.candidates) for m in methods.values() if len(m.candidates) > 1)
    clips = runs * len(methods) * len(ids["test"]) + tried * len(ids["validation"])
    trained = [m for m in methods.values() if m.kind in ("single", "gate")]
    return {
        "methods": list(methods),
        "seeds": list(settings.seeds),
        "test_conditions": len(ids["test"]),
        "validation_conditions": len(ids["validation"]),
        "trainings": runs * (3 + len(trained))
        + sum(len(m.candidates) - 1 for m in trained)
        + sum(experts)
        - len(experts),
        "clips": len(settings.samples) * (clips + sum(map(len, ids.values()))),
    }


def load_stages(
    settings: CompareConfig, cache: Path
) -> tuple[GenerateConfig, dict[Dimension, ExpertConfig], FusionConfig]:
    """Return the configs of sampling, experts and gate: the family's presets with the overrides.

    Raises:
        UsageError: There is no such family, or an override does not fit.
    """
    family, extra = settings.family, settings.overrides
    data = [f"dataset={settings.dataset}", f"cache={cache}"]

    def overrides(name: str) -> list[str]:
        return [*extra.get(name, []), *data]

    generate = load_sampling(f"{family}/generate", extra.get("generate", []))
    experts = {
        d: load_config(ExpertConfig, f"{family}/expert-{d}", overrides(f"expert-{d}"))
        for d in DIMENSIONS
    }
    return generate, experts, load_config(FusionConfig, f"{family}/fusion", overrides("fusion"))


def swept_experts(settings: CompareConfig) -> dict[Dimension, Sequence[Changes]]:
    """Return what the config sweeps of the experts themselves."""
    return {d: settings.sweep[f"expert-{d}"] for d in DIMENSIONS if f"expert-{d}" in settings.sweep}


def run_compare(
    settings: CompareConfig, output: Path, *, resume: bool, progress: Progress
) -> dict[str, Any]:
    """Train, sample and judge everything; write ``table.json``, ``table.md``, ``report.html``."""
    from ft2.wan.weights import load_talking_model

    run = RunDir.open(output, config=settings, resume=resume)
    if run.result is not None:
        return run.result
    generate, experts, fusion = load_stages(settings, settings.cache or output / "cache")
    model = load_talking_model(generate.model, generate.device)
    files: dict[Split, Path] = {"validation": settings.validation, "test": settings.test}
    critic = None if settings.critic is None else TalkingCritic.from_pretrained(settings.critic)

    def score(name: str, policy: "Policy | None", split: Split) -> Rows:
        conditions = read_conditions(files[split])
        folder = output / "clips" / split / name

        def clips() -> dict[tuple[str, int], Path]:
            sampler = Sampler(model, generate, policy, name)
            made = sampler.generate(conditions, settings.samples, folder)
            return {(clip.condition_id, clip.seed): clip.video for clip in made}

        found = score_policy(name, conditions, clips, folder, model.clip, progress)
        if critic is not None and split == "test":
            found = ask_critic(critic, found, folder)
        return [{**row, "group": row["utterance"]} for row in found]

    shown = CRITIC_COLUMNS if critic is not None else ()
    swept = swept_experts(settings)
    bench = Bench(experts, fusion, model, score, output, COLUMNS, shown, progress, swept)
    table: dict[str, Any] = {}
    for count in range(1, len(settings.seeds) + 1):  # a table after each seed
        table = compare(bench, methods_of(settings), settings.seeds[:count])
        write_json(output / "table.json", table)
        write_atomic(output / "table.md", markdown(table, (*COLUMNS, *shown)))
        write_atomic(output / "report.html", report_page(table))
    run.finish(table)
    return table


def ask_critic(critic: TalkingCritic, rows: Rows, folder: Path) -> Rows:
    """Return the rows with the critic's P(yes) of their clips in a folder; kept in a file."""
    record = folder / "critic.json"
    if record.exists():
        kept: Rows = read_json(record)
        return kept
    scores = critic.score(videos=[folder / f"{r['condition']}-{r['seed']:04d}.mp4" for r in rows])
    found = [
        {**row, **{f"critic {d}": score.p.get(d) for d in DIMENSIONS}}
        for row, score in zip(rows, scores, strict=True)
    ]
    write_json(record, found)
    return found


def report_page(
    table: dict[str, Any],
    title: str = "Methods compared",
    columns: Sequence[str] = (*COLUMNS, *CRITIC_COLUMNS),
    base: str = BASE,
) -> str:
    """Return the table's page: one chart of differences to the base for each column."""
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [
        f'<p class="note">Difference to {base} on {table["conditions"]} held-out conditions, '
        f"{len(table['seeds'])} training seeds, 95 % intervals over utterances.</p>",
        '<div class="charts">',
    ]
    for column in columns:
        rows = [
            ScoreRow(name, {column: _estimate(cells[column])})
            for name, cells in table["difference_to_base"].items()
            if column in cells
        ]  # fmt: skip
        if not rows:
            continue
        rows.insert(0, ScoreRow(base, {column: Estimate(0.0, None, None, 0)}))  # the dashed line
        chart = charts.dots(rows, column, f"{column}: difference to {base}")
        parts.append(f"<figure><b>{escape(column)}</b>{chart}</figure>")
    return page(title, [*parts, "</div>"])


def _estimate(cell: Mapping[str, Any]) -> Estimate:
    return Estimate(cell["value"], cell["low"], cell["high"], cell["n"])
