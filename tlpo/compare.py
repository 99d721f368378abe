"""Methods against each other on one dataset: equal budgets, several seeds, one table.

A method is trained anew for every seed. What is swept (a method's candidates, and those of the
experts that most methods rest on) is chosen with the first seed on validation conditions and kept
for the others; the test conditions are sampled once a seed, with the chosen one. Judging is the
caller's.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from ft2.errors import UsageError
from ft2.runs import read_json, write_json
from ft2.tlpo.compare_table import BASE, Rows, mean_gain, summarise
from ft2.tlpo.compare_train import Bench, Chosen, Trial, expert_method, make_policy
from ft2.tlpo.methods import Method
from ft2.tlpo.policy import load_policy

SPLITS: Final[tuple[Literal["validation"], Literal["test"]]] = ("validation", "test")


def compare(bench: Bench, methods: Mapping[str, Method], seeds: Sequence[int]) -> dict[str, Any]:
    """Train, sample and judge every method with every seed and return the table.

    What is done already is read back from ``bench.output``, so that a stopped comparison goes on.

    Returns:
        ``{"scores", "difference_to_base", "wins"}``: method to column to estimate with interval;
        ``chosen``: what the sweep of the first seed took, by method; ``seeds``; ``conditions``.

    Raises:
        UsageError: Fewer than one seed, or a method's changes do not fit the configs.
    """
    if not seeds:
        raise UsageError("no seeds to compare with", "give at least three")
    rows: dict[str, Rows] = {BASE: []}
    base = {split: bench.score(BASE, None, split) for split in SPLITS}
    chosen: dict[str, dict[str, Any]] = {}
    for dimension in bench.candidates:
        name, method = f"expert-{dimension}", expert_method(bench, dimension)
        bench.progress.update("compare", 0, len(methods) * len(seeds), f"{name}, sweep")
        chosen[name] = choose(bench, name, method, seeds[0], base["validation"], chosen)
    for run, seed in enumerate(seeds):
        rows[BASE] += [{**row, "run": run} for row in base["test"]]
        for place, (name, method) in enumerate(methods.items()):
            done, total = len(methods) * run + place, len(methods) * len(seeds)
            bench.progress.update("compare", done, total, f"{name}, seed {seed}")
            if not run:
                chosen[name] = choose(bench, name, method, seed, base["validation"], chosen)
            trial = Trial(name, method, chosen[name]["candidate"], seed)
            found = _test_rows(bench, trial, chosen)
            rows.setdefault(name, []).extend({**row, "run": run} for row in found)
    table = summarise(rows, (*bench.columns, *bench.reported))
    conditions = len({row["condition"] for row in base["test"]})
    return {**table, "chosen": chosen, "seeds": list(seeds), "conditions": conditions}


def choose(
    bench: Bench,
    name: str,
    method: Method,
    seed: int,
    base: Rows,
    chosen: Chosen,
) -> dict[str, Any]:
    """Return the best candidate of a method on validation conditions, and the whole sweep.

    Returns:
        ``candidate`` (its number), ``changes``, and ``sweep``: every candidate's changes and mean
        gain over the base; kept in a file. A method of one candidate is not sampled.
    """
    record = bench.output / "sweeps" / f"{Trial(name, method, 0, seed).slug}.json"
    if record.is_file():
        kept: dict[str, Any] = read_json(record)
        return kept
    sweep: list[dict[str, Any]] = []
    for number, changes in enumerate(method.candidates):
        gain = float("nan")
        if len(method.candidates) > 1:
            trial = Trial(name, method, number, seed)
            policy = load_policy(make_policy(bench, trial, chosen), bench.model)
            rows = bench.score(f"{trial.slug}-{seed}-{number}", policy, "validation")
            gain = mean_gain(rows, base, bench.columns)
        sweep.append({"changes": dict(changes), "validation_gain": gain})
    gains = [entry["validation_gain"] for entry in sweep]
    best = max(range(len(gains)), key=lambda i: (gains[i] == gains[i], gains[i]))
    found = {"candidate": best, "seed": seed, "changes": sweep[best]["changes"], "sweep": sweep}
    write_json(record, found)
    return found


def _test_rows(bench: Bench, trial: Trial, chosen: Chosen) -> Rows:
    record = bench.output / f"seed-{trial.seed}" / f"{trial.slug}.json"
    if record.is_file():
        kept: Rows = read_json(record)
        return kept
    policy = load_policy(make_policy(bench, trial, chosen), bench.model)
    found = bench.score(f"{trial.slug}-{trial.seed}", policy, "test")
    write_json(record, found)
    return found
