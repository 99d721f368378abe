"""The comparison's machinery on a toy world, where a policy's score is read off its latents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tlpo_toys import SHAPE, World, expert_config, merit, sample, toy_conditioning

from ft2.errors import UsageError
from ft2.runs import read_json
from ft2.tlpo.compare import compare
from ft2.tlpo.compare_table import markdown, mean_gain, summarise
from ft2.tlpo.compare_train import Bench, Trial, make_policy
from ft2.tlpo.config import DpoConfig, FusionConfig
from ft2.tlpo.methods import METHODS, Method, changed
from ft2.tlpo.policy import Policy, load_policy

COLUMNS = ("motion", "lip", "quality")


def bench_of(world: World, folder: Path, asked: list[tuple[str, str]]) -> Bench:
    experts = {d: expert_config(world, d, steps=2) for d in COLUMNS}
    experts = {
        d: changed(c, {"loop.eval_pairs": 2, "loop.eval_every": 2}) for d, c in experts.items()
    }
    shared = experts["motion"].model_dump(exclude={"stage", "dimension", "lora"})
    fusion = FusionConfig(**{**shared, "dpo": DpoConfig(beta=60)})

    def score(name: str, policy: Policy | None, split: str) -> list[dict[str, object]]:
        asked.append((name, split))
        cond = toy_conditioning(6, seed=77 if split == "test" else 78)
        noise = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
        made = sample(world.model, cond, noise, None if policy is None else policy.gate)
        scores = {c: merit(made, i).tolist() for i, c in enumerate(COLUMNS)}
        return [
            {"condition": f"c{i}", "seed": 0, "group": i // 2, **{c: scores[c][i] for c in COLUMNS}}
            for i in range(6)
        ]

    return Bench(experts, fusion, world.model, score, folder, COLUMNS)


def test_every_method_of_the_table_is_trained_and_judged(world: World, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []
    bench = bench_of(world, tmp_path, asked)
    methods = {
        name: METHODS[name]
        for name in ("dpo", "merge tuned", "switch", "gate", "gate average",
                     "gate without timestep")
    }  # fmt: skip
    table = compare(bench, methods, [0])
    assert list(table["scores"]) == ["base", *methods]
    assert table["conditions"] == 6
    for name in methods:
        for column in COLUMNS:
            cell = table["difference_to_base"][name][column]
            assert cell["low"] <= cell["value"] <= cell["high"]
            assert cell["num_groups"] == 3
            assert 0 <= table["wins"][name][column]["value"] <= 1
    tests = [name for name, split in asked if split == "test"]
    assert sorted(tests) == sorted(["base", *(f"{n.replace(' ', '-')}-0" for n in methods)])
    sweep = table["chosen"]["merge tuned"]
    best = max(sweep["sweep"], key=lambda entry: entry["validation_gain"])
    assert sweep["changes"] == best["changes"]
    single = read_json(tmp_path / "seed-0/dpo-0/result.json")
    assert single["steps"] == 8
    assert single["dimension"] == "mixed"
    text = markdown(table, COLUMNS)
    assert text.count("\n| ") == len(methods) + 1
    asked.clear()
    again = compare(bench, methods, [0])
    assert again["scores"] == table["scores"]
    assert [name for name, _ in asked] == ["base", "base"]  # the rest was kept

    switch = load_policy(tmp_path / "seed-0/switch-0", world.model)
    weights = switch.gate(torch.tensor([0.1, 0.5, 0.9]))[:, 0]
    assert weights.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    gate = load_policy(tmp_path / "seed-0/gate-0", world.model)
    mean = gate.gate(torch.linspace(0.02, 1, 50)).mean(0)
    average = load_policy(tmp_path / "seed-0/gate-average-0", world.model)
    torch.testing.assert_close(average.gate(torch.tensor([0.3]))[0], mean, rtol=1e-5, atol=1e-5)
    flat = load_policy(tmp_path / "seed-0/gate-without-timestep-0", world.model)
    two = flat.gate(torch.tensor([0.1, 0.9]))
    assert torch.equal(two[0], two[1])


def test_a_sweep_is_of_the_first_seed_and_more_steps_go_on_from_fewer(
    world: World, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []
    bench = bench_of(world, tmp_path, asked)
    half = {"loop.num_steps": 4}
    other = {"dpo.beta": 300.0}
    swept = replace(METHODS["ipo"], candidates=(half, {}, {**other, **half}))
    methods = {"ipo": swept, "gate": replace(METHODS["gate"], candidates=({}, other)),
               "gate average": METHODS["gate average"]}  # fmt: skip
    table = compare(bench, methods, [3, 4])
    seen = [name for name, split in asked if split == "validation"]
    assert seen == ["base", "ipo-3-0", "ipo-3-1", "ipo-3-2", "gate-3-0", "gate-3-1"]
    number = table["chosen"]["ipo"]["candidate"]
    made = {p.name for p in (tmp_path / "seed-4").iterdir() if p.name.startswith("ipo-")}
    assert made == {f"ipo-{number}"}
    gate = f"gate-{table['chosen']['gate']['candidate']}"
    for seed in (3, 4):  # the average is of the chosen gate
        learned = read_json(tmp_path / f"seed-{seed}/{gate}/policy/policy.json")["average"]
        mean = load_policy(tmp_path / f"seed-{seed}/gate-average-0", world.model)
        assert torch.allclose(mean.gate(torch.tensor([0.5]))[0], torch.tensor(learned))

    whole = bench_of(world, tmp_path / "whole", [])
    path = make_policy(whole, Trial("ipo", METHODS["ipo"], 0, 3), {})
    straight = (path / "adapter/adapter_model.safetensors").read_bytes()
    went_on = tmp_path / "seed-3/ipo-1"
    assert (went_on / "adapter/adapter_model.safetensors").read_bytes() == straight
    steps = [
        line for line in (went_on / "metrics.jsonl").read_text().splitlines() if "loss" in line
    ]
    assert len(steps) == 8
    assert read_json(tmp_path / "seed-3/ipo-0/result.json")["steps"] == 4


def test_experts_are_swept_alone_and_the_chosen_ones_are_what_methods_rest_on(
    world: World, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []
    plain = bench_of(world, tmp_path, asked)
    sets = ({"engine.learning_rate": 1e-9}, {}, {"dpo.beta": 300.0})
    bench = replace(plain, candidates={"lip": sets})
    table = compare(bench, {"merge 1": METHODS["merge 1"]}, [3, 4])
    seen = [name for name, split in asked if split == "validation"]
    assert seen == ["base", *(f"expert-lip-3-{n}" for n in range(3))]
    sweep = table["chosen"]["expert-lip"]
    gains = [entry["validation_gain"] for entry in sweep["sweep"]]
    assert abs(gains[0]) < 1e-6 < abs(gains[1])  # one that learns nothing gains nothing
    number = sweep["candidate"]
    assert gains[number] == max(gains)
    for seed in (3, 4):
        used = tmp_path / f"seed-{seed}/merge-1-0/experts/lip/adapter_model.safetensors"
        own = tmp_path / f"seed-{seed}/expert-lip-{number}/adapter/adapter_model.safetensors"
        assert used.read_bytes() == own.read_bytes()
        assert (tmp_path / f"seed-{seed}/expert-motion-0/result.json").is_file()
    made = {p.name for p in (tmp_path / "seed-4").iterdir() if p.name.startswith("expert-lip")}
    assert made == {f"expert-lip-{number}"}
    long = replace(bench_of(world, tmp_path / "long", []),
                   candidates={"lip": ({"loop.num_steps": 3},)})  # fmt: skip
    with pytest.raises(UsageError, match="expert-lip' with 3 steps exceeds 2"):
        compare(long, {"merge 1": METHODS["merge 1"]}, [5])


def rows(values: list[float], run: int = 0) -> list[dict[str, object]]:
    return [
        {"condition": i, "seed": 0, "group": i, "run": run, "motion": v}
        for i, v in enumerate(values)
    ]


def test_differences_are_paired_and_ties_are_half_a_win() -> None:
    base, ours = [0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 3.0, 2.0]
    table = summarise({"base": rows(base), "x": rows(ours)}, ["motion"])
    assert table["difference_to_base"]["x"]["motion"]["value"] == pytest.approx(0.25)
    assert table["wins"]["x"]["motion"]["value"] == pytest.approx(2.5 / 4)
    deviation = torch.tensor(base).std(unbiased=False)
    assert mean_gain(rows(ours), rows(base), ["motion"]) == pytest.approx(0.25 / float(deviation))


def test_wrong_changes_are_refused(world: World, tmp_path: Path) -> None:
    bench = bench_of(world, tmp_path, [])
    with pytest.raises(UsageError, match=r"dpo\.betta"):
        changed(bench.fusion, {"dpo.betta": 3})
    with pytest.raises(UsageError, match="beta"):
        changed(bench.fusion, {"dpo.beta": -3})
    with pytest.raises(UsageError, match="seeds"):
        compare(bench, {}, [])
    with pytest.raises(UsageError, match="edges"):
        make_policy(bench, Trial("switch", Method("switch", {"edges": (0.5,)}), 0, 0), {})
    with pytest.raises(UsageError, match="before it"):
        make_policy(bench, Trial("gate average", METHODS["gate average"], 0, 0), {})
    long = Method("single", {}, ({"loop.num_steps": 9},))
    with pytest.raises(UsageError, match="budget, 8"):
        make_policy(bench, Trial("dpo", long, 0, 0), {})
