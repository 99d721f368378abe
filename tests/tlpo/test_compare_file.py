"""The file of the published comparison is known to work: its keys fit, its runs run."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tlpo_toys import SHAPE, World, expert_config, merit, sample, toy_conditioning

from ft2.cli.compare import methods_of
from ft2.cli.compare_config import CompareConfig
from ft2.config import load_config
from ft2.generator.config import GenerateConfig
from ft2.pairs import DIMENSIONS
from ft2.tlpo.compare import compare
from ft2.tlpo.compare_train import Bench
from ft2.tlpo.config import ExpertConfig, FusionConfig
from ft2.tlpo.methods import METHODS, changed

FILE = Path(__file__).parents[2] / "benchmarks" / "tlpo_compare.yaml"
WINDOWS = FILE.with_name("tlpo_compare_windows.yaml")
STEPS = "loop.num_steps"


def stages(settings: CompareConfig) -> tuple[dict[Any, ExpertConfig], FusionConfig]:
    """Return the presets with the file's changes, as `ft2 tlpo compare` reads them."""
    own = settings.overrides
    experts = {
        d: load_config(ExpertConfig, f"nano/expert-{d}", own[f"expert-{d}"]) for d in DIMENSIONS
    }
    return experts, load_config(FusionConfig, "nano/fusion", own["fusion"])


def test_every_candidate_fits_its_config_and_its_budget() -> None:
    settings = load_config(CompareConfig, str(FILE))
    load_config(GenerateConfig, "nano/generate", settings.overrides["generate"])
    experts, fusion = stages(settings)
    budget = sum(e.loop.num_steps for e in experts.values()) + fusion.loop.num_steps
    assert budget == 160
    methods = methods_of(settings)
    assert list(methods) == list(METHODS)
    for name, method in methods.items():
        for number in range(len(method.candidates)):
            changes = method.of(number)
            if method.kind == "single":
                one = changed(experts["motion"], {"dimension": "mixed", STEPS: budget, **changes})
                assert one.loop.num_steps in (20, 40, 80, 160), name
                assert one.lora.rank in (16, 48), name
            elif method.kind == "gate":
                assert changed(fusion, changes).loop.num_steps <= fusion.loop.num_steps
        ranks = [method.of(n).get("lora.rank") for n in range(len(method.candidates))]
        assert method.kind != "single" or 3 * experts["motion"].lora.rank in ranks, name
    for d, config in experts.items():
        for changes in settings.sweep[f"expert-{d}"]:
            assert changed(config, changes).loop.num_steps <= config.loop.num_steps


def test_experts_on_windows_of_noise_leave_no_level_out() -> None:
    settings = load_config(CompareConfig, str(WINDOWS))
    experts, fusion = stages(settings)
    windows = sorted(config.sigma.window for config in experts.values())
    assert [low for low, _ in windows] == [0.0, *(high for _, high in windows[:-1])]
    assert windows[-1][1] == 1.0
    methods = methods_of(settings)
    assert [high for _, high in windows[:-1]] == list(methods["switch"].of(0)["edges"])  # type: ignore[call-overload]
    for number in range(len(methods["gate"].candidates)):
        changed(fusion, methods["gate"].of(number))


def small(path: Path) -> Path:
    """Write the file with a 40th of its steps, one seed and no critic."""
    data = yaml.safe_load(FILE.read_text())
    data |= {"seeds": [0], "critic": None, "overrides": copy.deepcopy(data["overrides"])}
    for name, count in {f"expert-{d}": 1 for d in DIMENSIONS}.items():
        data["overrides"][name].append(f"{STEPS}={count}")
    data["overrides"]["fusion"].append(f"{STEPS}=1")
    for candidates in data["sweep"].values():
        for candidate in candidates:
            if STEPS in candidate:
                candidate[STEPS] = {80: 2}.get(candidate[STEPS], 1)
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.slow
def test_the_whole_comparison_runs_with_a_tiny_budget(world: World, tmp_path: Path) -> None:
    """All fourteen methods with all candidates of the file, on a toy's pairs and samples."""
    settings = load_config(CompareConfig, str(small(tmp_path / "compare.yaml")))
    experts, fusion = stages(settings)
    toy = expert_config(world).model_dump(include={"dataset", "cache", "encoding", "lora"})
    experts = {d: changed(c, toy) for d, c in experts.items()}
    fusion = changed(fusion, {k: v for k, v in toy.items() if k != "lora"})

    def score(name: str, policy: Any, split: str) -> list[dict[str, Any]]:
        cond = toy_conditioning(4, seed=77 if split == "test" else 78)
        noise = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
        made = sample(world.model, cond, noise, None if policy is None else policy.gate)
        columns = {d: merit(made, i).tolist() for i, d in enumerate(DIMENSIONS)}
        return [
            {"condition": f"c{i}", "seed": 0, "group": i, **{d: columns[d][i] for d in DIMENSIONS}}
            for i in range(4)
        ]

    swept = {d: settings.sweep[f"expert-{d}"] for d in DIMENSIONS}
    bench = Bench(experts, fusion, world.model, score, tmp_path, DIMENSIONS, candidates=swept)
    table = compare(bench, methods_of(settings), settings.seeds)
    assert list(table["difference_to_base"]) == list(METHODS)
    for name, candidates in settings.sweep.items():
        gains = [entry["validation_gain"] for entry in table["chosen"][name]["sweep"]]
        assert len(gains) == len(candidates)
        assert all(gain == gain for gain in gains)
    for name, cells in table["difference_to_base"].items():
        assert set(cells) == set(DIMENSIONS), name
