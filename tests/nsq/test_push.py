"""`ft2.hub` and `ft2 nsq push` against a Hub made of a dictionary."""

import json
from pathlib import Path

import pytest
from nsq_fakes import ColourScorer, HashGenerator
from typer.testing import CliRunner

from ft2.errors import RunError, UsageError
from ft2.hub import plan_push, push
from ft2.nsq.build import build
from ft2.nsq.config import NsqConfig
from ft2.runs import Silent, hash_file


class DictHub:
    """Remembers what it was given; fails after `limit` uploads."""

    def __init__(self, limit: int = 999) -> None:
        self.files: dict[str, bytes] = {}
        self.order: list[str] = []
        self.repos: dict[str, bool] = {}
        self.limit = limit

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert repo_type == "dataset"
        assert exist_ok
        self.repos[repo_id] = private

    def upload_file(
        self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, repo_type: str
    ) -> None:
        assert repo_type == "dataset"
        assert repo_id in self.repos
        if len(self.order) >= self.limit:
            raise ConnectionError("the line is cut")
        self.files[path_in_repo] = Path(path_or_fileobj).read_bytes()
        self.order.append(path_in_repo)


@pytest.fixture
def dataset(config: NsqConfig, tmp_path: Path) -> Path:
    build(config, tmp_path / "out", HashGenerator(), ColourScorer(), progress=Silent())
    return tmp_path / "out"


def test_push_uploads_card_manifest_and_shards_only(dataset: Path) -> None:
    hub = DictHub()
    plan = plan_push(dataset, "me/talking")
    assert push(dataset, plan, hub).endswith("/datasets/me/talking")
    shards = {p.relative_to(dataset).as_posix() for p in dataset.rglob("*.arrow")}
    assert set(hub.files) == shards | {"README.md", "manifest.json"}
    assert all(data == (dataset / name).read_bytes() for name, data in hub.files.items())
    assert set(hub.order[-2:]) == {"README.md", "manifest.json"}
    assert hub.repos == {"me/talking": True}
    assert plan.total_bytes == sum(len(data) for data in hub.files.values())


def test_failed_push_says_how_to_go_on(dataset: Path) -> None:
    with pytest.raises(RunError, match="line is cut") as caught:
        push(dataset, plan_push(dataset, "me/talking"), DictHub(limit=2))
    assert "push again" in caught.value.hint


def test_changed_shard_and_unfinished_dataset_are_refused(dataset: Path) -> None:
    shard = next(dataset.rglob("pairs/train-*.arrow"))
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(UsageError, match="not what the manifest says"):
        plan_push(dataset, "me/talking")
    with pytest.raises(UsageError, match=r"no manifest\.json"):
        plan_push(dataset / "data", "me/talking")


@pytest.mark.parametrize("repo", ["a/b/c", "", "/x", "me/my data"])
def test_bad_repository_names_are_refused(dataset: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="no repository name"):
        plan_push(dataset, repo)


def test_command_wants_exactly_one_of_dry_run_and_yes(dataset: Path) -> None:
    from ft2.cli.nsq import app

    runner = CliRunner()
    for flags in ([], ["-n", "-y"]):
        result = runner.invoke(app, ["push", str(dataset), "--repo", "me/talking", *flags])
        assert isinstance(result.exception, UsageError)
    assert not (dataset / "push-plan.json").exists()
    result = runner.invoke(app, ["push", str(dataset), "--repo", "me/talking", "-n", "--json"])
    assert result.exit_code == 0, result.output
    plan = json.loads((dataset / "push-plan.json").read_text())
    assert plan["repo"] == "me/talking"
    for file in plan["files"]:
        assert file["sha256"] == hash_file(dataset / file["path"])
