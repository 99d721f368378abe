"""From the demo's results to its page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft2.cli import demo_evaluate as evaluation
from ft2.cli.demo_clips import pair_examples, samples
from ft2.cli.demo_page import commands, made_files, notes
from ft2.cli.demo_table import CRITIC_ROWS
from ft2.pairs import DIMENSIONS, Condition, read_conditions
from ft2.report import (
    Curve,
    Estimate,
    Expert,
    GateMap,
    Report,
    ScoreRow,
    Stage,
    Trained,
    write_report,
)

if TYPE_CHECKING:
    from ft2.cli.demo_stages import Demo

Results = Mapping[str, Any]

JUDGES = {
    "motion": "Minus the departure from natural head motion: too rough, too still, repeated. "
    "0 is natural; higher is better.",
    "lip": "Concordance of the tracked mouth with the mouth that the speech asks for. 1 is equal, "
    "0 unrelated; higher is better.",
    "quality": "Minus the log distance to clean pictures of the face. About 0 is clean; higher is "
    "better.",
    evaluation.LANDMARKS: "An independent judge: correlation of the lips' opening, found by face "
    "landmarks, with the speech.",
}


def make_report(demo: "Demo", results: Results) -> Path:
    """Copy the clips that the page shows beside it, write the page and return its path."""
    media = demo.output / "clips"
    conditions = read_conditions(demo.output / "world" / "test-conditions.jsonl")
    rows = score_rows(results["evaluate"]["result"])
    policy = next(row for row in rows if row.highlight)
    report = Report(
        title="From ratings to a better talking face",
        lead=_lead(results),
        headline=[rows[0], policy],
        stages=_stages(results),
        trained=_trained(demo, results),
        samples=samples(demo, conditions, media),
        critic=_critic(results["critic"]["result"]),
        critic_note=_critic_note(results["critic"]["result"]["table"]),
        pairs=results["nsq"]["result"]["splits"],
        pair_examples=pair_examples(demo.output / "nsq", media),
        experts=[_expert(demo, results, d) for d in DIMENSIONS],
        gate=_gate(demo),
        scores=rows,
        scores_note=_scores_note(demo, conditions),
        judges=JUDGES,
        files=made_files(demo.output),
        commands=commands(demo),
        notes=notes(),
    )
    return write_report(report, demo.output / "report.html")


def score_rows(result: Mapping[str, Any]) -> list[ScoreRow]:
    """Return one row a policy: mean scores, and differences to the base."""
    return [
        ScoreRow(
            "gated policy" if name == evaluation.POLICY else name,
            {column: _estimate(value) for column, value in values.items()},
            highlight=name == evaluation.POLICY,
            delta={
                column: _estimate(value)
                for column, value in result["difference_to_base"].get(name, {}).items()
            },
        )
        for name, values in result["scores"].items()
    ]


def _estimate(value: Mapping[str, Any]) -> Estimate:
    return Estimate(value["value"], value.get("low"), value.get("high"), value.get("n"))


def _lead(results: Results) -> str:
    gain = results["evaluate"]["result"]["difference_to_base"][evaluation.POLICY]
    clear = [d for d in DIMENSIONS if gain[d]["low"] > 0]
    worse = [d for d in DIMENSIONS if gain[d]["high"] < 0]
    unclear = [d for d in DIMENSIONS if d not in clear and d not in worse]
    parts = [
        f"{word} on {_list(names)}"
        for word, names in (
            ("clearly better", clear),
            ("clearly worse", worse),
            ("not clearly different", unclear),
        )
        if names
    ]
    return (
        "A critic learned from rated clips to judge motion, lips and picture; it ranked what the "
        "base generator makes; three experts and a gate learned from that ranking. Judged by "
        f"ground truth on unseen faces and speech, the policy is {_list(parts)}."
    )


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _stages(results: Results) -> list[Stage]:
    return [
        Stage(name, record["seconds"], record["peak_mb"], record["found"])
        for name, record in results.items()
    ]


def _trained(demo: "Demo", results: Results) -> list[Trained]:
    from ft2.lora import expert_parameters

    critic, tlpo = results["critic"]["result"]["train"], results["tlpo"]["result"]
    own = results["ratings"]["result"]["own-train.jsonl"]
    experts = sum(p.numel() for p in expert_parameters(demo.model.dit))
    dit = sum(p.numel() for p in demo.model.dit.parameters()) - experts
    rows = [
        Trained(
            "Base generator",
            "Puppet clips of training faces and voices; motion, lips and picture of each spoiled "
            "with probability one half, independently; came with the package",
            f"{dit / 1e6:.1f} M parameters",
            None,
        ),
        Trained(
            "Critic",
            f"{critic['ratings']['train']} rated clips, {own} of them generated; LoRA on a base "
            "that had seen dense targets and plain questions, never a rating or its questions",
            f"{_count(critic['trainable_parameters'])} parameters, {critic['steps']} steps",
            critic["seconds"]["total"],
        ),
    ]
    for name, expert in tlpo["experts"].items():
        size = f"{_count(expert['parameters'])} parameters, {expert['steps']} steps"
        data = f"{expert['pairs']} pairs of the base's own clips that the critic decided on {name}"
        rows.append(Trained(f"{name.capitalize()} expert", data, size, expert["seconds"]))
    fusion = tlpo["fusion"]
    size = f"{_count(fusion['parameters'])} parameters, {fusion['steps']} steps"
    store = demo.configs.fusion.store
    which = "with three Yes against three No" if store == "fusion" else f"of the store {store}"
    data = f"{fusion['pairs']} pairs {which}; experts frozen"
    rows.append(Trained("Fusion gate", data, size, fusion["seconds"]))
    return rows


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def _critic(result: Mapping[str, Any]) -> list[ScoreRow]:
    return [
        ScoreRow(
            label,
            {d: _estimate(v) for d, v in result["accuracy"][row].items() if v is not None},
            highlight=row in ("critic", "generated"),
        )
        for row, label in CRITIC_ROWS.items()
    ]


def _critic_note(table: Mapping[str, Any]) -> str:
    swapped = table["rows"]["audio_swapped_detected"].get("lip")
    text = (
        f"Share of right answers on {table['clips']} clips of {table['identities']} variations of "
        f"one photographed face and {table['utterances']} utterances that no training saw; the "
        "rows of generated clips likewise, on clips that the base made."
    )
    if swapped:
        share = swapped["accuracy"]["value"]
        text += (
            f" With another clip's sound, the critic says “not in sync” for {share:.0%} of them."
        )
    return text


def _expert(demo: "Demo", results: Results, dimension: str) -> Expert:
    trained = results["tlpo"]["result"]["experts"][dimension]
    lines = (demo.output / f"expert-{dimension}" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    steps = [m["step"] for m in metrics]
    held = [(0, trained["held_out_start"].get("implicit_accuracy"))]
    held += [(m["step"], m.get("held_out_implicit_accuracy")) for m in metrics]
    held.append((trained["steps"], trained["held_out"] and trained["held_out"]["value"]))
    known = sorted({step: value for step, value in held if value is not None}.items())
    accuracies = [Curve("training", steps, _smooth([m["implicit_accuracy"] for m in metrics]))]
    if known:
        accuracies.append(Curve("held out", [s for s, _ in known], [v for _, v in known], True))
    beta = demo.configs.experts[dimension].dpo.beta  # type: ignore[index]
    return Expert(
        dimension,
        [Curve("training", steps, _smooth([m["loss"] for m in metrics]))],
        accuracies,
        _estimate(trained["held_out"]) if trained["held_out"] else None,
        f"Beta {beta:g}; {trained['steps']} steps, ended by: {trained['stopped']}.",
    )


def _smooth(values: Sequence[float], window: int = 9) -> list[float]:
    """Return a centred moving mean that shrinks at the ends."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def _gate(demo: "Demo") -> GateMap:
    from ft2.flow import shifted_sigmas
    from ft2.tlpo.policy import load_policy

    config = demo.configs.generate
    sigmas = shifted_sigmas(config.steps, config.shift)[:-1]
    policy = load_policy(demo.output / "fusion", demo.model)
    table = policy.table(sigmas)
    weights: dict[str, Any] = {d: table[:, :, k].T.tolist() for k, d in enumerate(policy.experts)}
    return GateMap([1000 * s for s in sigmas.tolist()], weights)


def _scores_note(demo: "Demo", conditions: Sequence[Condition]) -> str:
    faces = len({c.identity_id for c in conditions})
    people = f"{faces} variations of one photographed face"
    seeds = "one clip" if demo.settings.test_seeds == 1 else f"{demo.settings.test_seeds} clips"
    return (
        f"Means over {len(conditions)} held-out conditions ({people}, other sentences and "
        f"voices), {seeds} each, judged by what the puppet world knows; the critic's ratings "
        "of generated clips came from the same judges, on other clips. Whiskers and small figures "
        "are 95 % intervals, bootstrap over utterances. The dashed "
        "line is the base. Merges run all three experts at one constant strength, without a gate."
    )
