"""`ft2 tlpo push`: plan, card and upload of a policy, against a stand-in for the Hub's client."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_export import expert

from ft2.__main__ import main
from ft2.errors import RunError, UsageError
from ft2.hub import push
from ft2.tlpo.card import plan_policy_push, policy_maker
from ft2.tlpo.policy_files import save_policy


class Hub:
    """Keeps what a push sends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.kinds: set[str] = set()

    def whoami(self) -> None:
        pass

    def create_repo(self, repo: str, *, repo_type: str, private: bool, exist_ok: bool) -> object:
        self.kinds.add(repo_type)
        assert private
        return SimpleNamespace(repo_id=f"me/{repo}", __str__=lambda _: repo)

    def list_repo_files(self, repo: str, *, repo_type: str) -> list[str]:
        return sorted(self.files)

    def preupload_lfs_files(self, repo: str, *, additions: list, repo_type: str) -> None:
        for operation in additions:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def create_commit(self, repo: str, operations: list, *, repo_type: str, **_: object) -> None:
        self.kinds.add(repo_type)
        assert len(operations) == len(self.files)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    experts = {name: expert(tmp_path, name, seed) for seed, name in enumerate(("motion", "lip"))}
    save_policy(tmp_path / "policy", experts, [0.5, 0.75], base="abc")
    return tmp_path / "policy"


def test_a_policy_goes_up_whole_with_its_card(policy: Path) -> None:
    plan, hub = plan_policy_push(policy, "gate"), Hub()
    push(plan, policy_maker(policy), secrets=["/secret/place"], api=hub, kind="model")  # type: ignore[arg-type]
    assert hub.kinds == {"model"}
    assert set(hub.files) == {
        "README.md", "policy.json",
        *(f"experts/{n}/{f}" for n in ("motion", "lip")
          for f in ("adapter_config.json", "adapter_model.safetensors")),
    }  # fmt: skip
    card = hub.files["README.md"].decode()
    assert "motion, lip" in card
    assert "`abc`" in card
    assert json.loads((policy / "policy.json").read_text())["sha256"]["lip"] in card
    with pytest.raises(UsageError, match="exists and has 6 files"):
        push(plan, policy_maker(policy), secrets=[], api=hub, kind="model")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="must not be published"):
        push(plan, policy_maker(policy), secrets=["abc"], api=Hub(), kind="model")  # type: ignore[arg-type]


def test_changed_files_and_bad_names_are_refused(policy: Path) -> None:
    with pytest.raises(UsageError, match="no repository name"):
        plan_policy_push(policy, "a b")
    with pytest.raises(UsageError, match="holds no policy"):
        plan_policy_push(policy / "experts", "x")
    file = policy / "experts/lip/adapter_model.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(UsageError, match="is not the file"):
        plan_policy_push(policy, "x")


def test_the_command_plans_and_wants_a_yes(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["tlpo", "push", "--policy", str(policy), "--repo", "gate"]
    with pytest.raises(SystemExit) as stop:
        main(call)
    assert stop.value.code == 2
    assert "-y uploads" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main([*call, "-n", "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["num_files"] == 6
    assert (policy / "push-card.md").is_file()
