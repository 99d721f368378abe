"""`ft2 nsq push`: the real client of the Hub against one on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from loopback_hub import TOKEN, Hub, loopback_hub
from nsq_fakes import ColourScorer, HashGenerator
from typer.testing import CliRunner

from ft2.cli.nsq import app
from ft2.errors import RunError, UsageError
from ft2.hub import PlannedFile, PushPlan, _groups, find_secret, push
from ft2.nsq.build import build
from ft2.nsq.card import REQUIRED
from ft2.nsq.config import CardConfig, NsqConfig
from ft2.nsq.publish import local_secrets, maker, parquet_name, plan_push, read_card
from ft2.runs import Silent, read_json

FACTS = CardConfig(**{name: f"The fact {name}." for name in REQUIRED} | {"license": "cc-by-4.0"})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    with loopback_hub() as running:
        yield running


def send(dataset: Path, hub: Hub, plan: PushPlan, **options: object) -> str:
    api = huggingface_hub.HfApi(endpoint=hub.url, token=options.pop("token", TOKEN))  # type: ignore[arg-type]
    secrets = local_secrets(dataset)
    return push(plan, maker(dataset, FACTS), secrets=secrets, api=api, **options)  # type: ignore[arg-type]


def test_push_is_one_commit_of_parquet_card_and_manifest(dataset: Path, hub: Hub) -> None:
    plan = plan_push(dataset, "me/talking", FACTS)
    assert send(dataset, hub, plan) == f"{hub.url}/datasets/me/talking"
    files = hub.files("me/talking")
    shards = {p.relative_to(dataset).as_posix() for p in (dataset / "data").rglob("*.arrow")}
    texts = {"README.md", "manifest.json", "stats.json", ".gitattributes"}
    assert set(files) == {parquet_name(s) for s in shards} | texts
    assert len(hub.commits) == 1
    assert hub.repos["me/talking"]["private"] is True
    head = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    infos = {info["config_name"]: info for info in head["dataset_info"]}
    assert set(infos) == {"pairs", "clips", "motion", "lip", "quality", "fusion"}
    train = infos["pairs"]["splits"][0]
    assert train["num_examples"] == read_json(dataset / "stats.json")["splits"][0]["pairs"]
    assert infos["clips"]["download_size"] == sum(
        len(data) for name, data in files.items() if name.startswith("data/clips/")
    )
    for fact in REQUIRED:
        assert getattr(FACTS, fact) in files["README.md"].decode()


def test_no_file_has_a_local_path_or_the_token(dataset: Path, hub: Hub, tmp_path: Path) -> None:
    send(dataset, hub, plan_push(dataset, "me/talking", FACTS))
    wanted = [str(tmp_path), str(Path.home()), str(Path.cwd()), TOKEN, "conditions.jsonl"]
    for name, data in hub.files("me/talking").items():
        for text in wanted:
            assert text.encode() not in data, (name, text)


def test_cut_push_shows_nothing_and_goes_on(dataset: Path, hub: Hub) -> None:
    plan = plan_push(dataset, "me/talking", FACTS)
    hub.cut_after = 5
    with pytest.raises(RunError, match="was cut") as caught:
        send(dataset, hub, plan)
    assert "push again" in caught.value.hint
    assert set(hub.files("me/talking")) == {".gitattributes"}
    assert hub.puts == 5
    hub.cut_after = None
    send(dataset, hub, plan)
    shards = [f for f in plan.files if f.rows is not None]
    assert hub.puts == len(shards)
    assert len(hub.files("me/talking")) == len(plan.files) + 1


def test_commits_stay_below_a_hundred_files() -> None:
    """430 shards and a card, as at 410,000 pairs."""
    files = tuple(PlannedFile(f"{i}.parquet", 1, 10) for i in range(431))
    assert PushPlan("me/many", True, files).to_json()["commits"] == 5
    groups = _groups(files)
    assert [file for group in groups for file in group] == list(files)
    assert {len(group) for group in groups} <= {86, 87}
    assert _groups(files[:99]) == [files[:99]]


def test_many_files_go_up_in_several_commits_and_show_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five commits of a pull request, and a cut between two of them."""
    monkeypatch.setattr("ft2.hub._MOST_FILES", 9)
    names = [f"data/clips/train-{i:05d}-of-00043.parquet" for i in range(43)]
    files = [PlannedFile(name, 1, 10) for name in [*names, "README.md"]]
    plan = PushPlan("me/many", True, tuple(files))

    def make(file: PlannedFile, folder: Path) -> Path:
        path = folder / file.path.replace("/", "--")
        path.write_bytes(f"content of {file.path}".encode())
        return path

    api = huggingface_hub.HfApi(endpoint=hub.url, token=TOKEN)
    hub.cut_at_commit = 3
    with pytest.raises(RunError, match="was cut"):
        push(plan, make, secrets=[], api=api)
    assert set(hub.files("me/many")) == {".gitattributes"}
    assert (len(hub.commits), hub.puts) == (3, 43)
    hub.cut_at_commit = None
    push(plan, make, secrets=[], api=api)
    assert len(hub.files("me/many")) == 45
    assert hub.puts == 43
    assert len(hub.repos["me/many"]["requests"]) == 1
    assert max(len(names) for names in hub.commits) < 10
    assert sum(len(names) for names in hub.commits) == 44
    assert "README.md" in hub.commits[-1]


def test_repository_that_has_files_wants_update(dataset: Path, hub: Hub) -> None:
    plan = plan_push(dataset, "me/talking", FACTS)
    send(dataset, hub, plan)
    with pytest.raises(UsageError, match=r"me/talking exists and has \d+ files"):
        send(dataset, hub, plan)
    send(dataset, hub, plan, update=True)
    assert len(hub.commits) == 2


def test_revoked_token_publishes_nothing(dataset: Path, hub: Hub) -> None:
    plan = plan_push(dataset, "me/talking", FACTS)
    with pytest.raises(RunError, match=r"refused the token \(HTTP 401\)") as caught:
        send(dataset, hub, plan, token="hf_" + "old" * 12)
    assert "hf auth login" in caught.value.hint
    assert not hub.repos


def test_token_revoked_in_the_middle_shows_nothing(dataset: Path, hub: Hub) -> None:
    plan = plan_push(dataset, "me/talking", FACTS)

    class Revoking:
        def update(self, stage: str, done: int, total: int, note: str = "") -> None:
            hub.token = "another"

    with pytest.raises(RunError, match="HTTP 401"):
        send(dataset, hub, plan, progress=Revoking())
    assert set(hub.files("me/talking")) == {".gitattributes"}


@pytest.mark.parametrize("secret", [TOKEN, str(Path.home()) + "/x"])
def test_secret_in_a_file_stops_the_push(
    config: NsqConfig, tmp_path: Path, hub: Hub, secret: str
) -> None:
    path = Path(config.conditions)
    path.write_text(path.read_text().replace("person 4 talks", f"see {secret}"))
    build(config, tmp_path / "out", HashGenerator(), ColourScorer(), progress=Silent())
    plan = plan_push(tmp_path / "out", "me/talking", FACTS)
    with pytest.raises(RunError, match="must not be published") as caught:
        send(tmp_path / "out", hub, plan)
    assert TOKEN not in caught.value.message
    assert not hub.commits


def test_secret_across_two_blocks_is_found(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * ((1 << 22) - 5) + b"/home/somebody" + b"y" * 100)
    with pytest.raises(RunError, match="/home/somebody"):
        find_secret(path, "f", ["/home/somebody"])
    find_secret(path, "f", ["/home/nobody"])


def test_missing_facts_and_damage_are_refused(dataset: Path) -> None:
    bare = read_card(dataset, None)
    with pytest.raises(UsageError, match="does not state: license, consent, portraits_license"):
        plan_push(dataset, "me/talking", bare)
    facts = dataset.parent / "facts.yaml"
    facts.write_text(yaml.safe_dump({"consent": "All agreed.", "license": "cc0-1.0"}))
    card = read_card(dataset, facts)
    assert (card.consent, card.pretty_name) == ("All agreed.", "Talking-NSQ")
    with pytest.raises(UsageError, match="does not state: portraits_license"):
        plan_push(dataset, "me/talking", card)
    shard = next((dataset / "data" / "pairs").glob("train-*"))
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(UsageError, match="not sound"):
        plan_push(dataset, "me/talking", FACTS)


@pytest.mark.parametrize("repo", ["a/b/c", "", "/x", "me/my data"])
def test_bad_repository_names_are_refused(dataset: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="no repository name"):
        plan_push(dataset, repo, FACTS)


def test_command_plans_and_pushes_and_datasets_reads_the_repository(
    dataset: Path, hub: Hub
) -> None:
    runner, base = CliRunner(), ["push", str(dataset), "--repo", "me/talking"]
    for flags in ([], ["-n", "-y"]):
        assert isinstance(runner.invoke(app, [*base, *flags]).exception, UsageError)
    facts = dataset.parent / "facts.yaml"
    facts.write_text(yaml.safe_dump(FACTS.model_dump(mode="json")))
    result = runner.invoke(app, [*base, "--card", str(facts), "-n", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads((dataset / "push-plan.json").read_text())
    assert (plan["repo"], plan["private"]) == ("me/talking", True)
    assert plan["num_files"] == len(plan["files"])
    assert "Labels come from a model" in (dataset / "push-card.md").read_text()
    assert not hub.repos
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    env["HF_HOME"] = str(dataset.parent / "hf")
    code = """
from datasets import load_dataset
lip = load_dataset("me/talking", "lip", split="train")
clips = load_dataset("me/talking", "clips", split="train")
assert clips[lip[0]["chosen_row"]]["clip_id"] == lip[0]["chosen"]
stream = load_dataset("me/talking", split="train", streaming=True)
print(len(lip), len(clips), sum(1 for _ in stream))
"""
    command = [sys.executable, "-m", "ft2", "nsq", *base, "--card", str(facts), "-y", "-q"]
    for words in (command, [sys.executable, "-c", code]):
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    stats = read_json(dataset / "stats.json")["splits"][0]
    assert done.stdout.split() == [str(stats[k]) for k in ("lip", "clips", "pairs")]
