"""`ft2 critic push`: plan, card with EvalResult entries, upload to a stand-in for the Hub."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from ft2.__main__ import main
from ft2.critic.card import critic_maker, model_card, plan_critic_push, read_evaluation
from ft2.critic.evaluate import evaluate
from ft2.errors import UsageError
from ft2.hub import push
from ft2.runs import hash_file, write_json


class Hub:
    """Keeps what a push sends."""

    def __init__(self):
        self.files = {}
        self.private = None

    def whoami(self):
        pass

    def create_repo(self, repo, *, repo_type, private, exist_ok):
        assert repo_type == "model"
        self.private = private
        return SimpleNamespace(repo_id=f"me/{repo}")

    def list_repo_files(self, repo, *, repo_type):
        return []

    def preupload_lfs_files(self, repo, *, additions, repo_type):
        for operation in additions:
            self.files[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()

    def create_commit(self, repo, operations, **_):
        return SimpleNamespace(pr_url=None)


@pytest.fixture
def critic(adapter, tmp_path):
    """A copy of a run whose base lay in a private folder."""
    shutil.copytree(adapter.parent, tmp_path / "run")
    folder = tmp_path / "run" / "adapter"
    card = json.loads((folder / "critic.json").read_text())
    card["model"]["weights"] = "/home/someone/models/Qwen2.5-Omni-7B"
    (folder / "critic.json").write_text(json.dumps(card))
    return folder


def test_card_has_facts_and_results(adapter, critic, ratings, tmp_path):
    result = evaluate(ratings, adapter)
    write_json(tmp_path / "eval.json", result)
    figures = read_evaluation(tmp_path / "eval.json", critic)
    text = model_card(critic, figures, "Qwen/Qwen2.5-Omni-7B")
    data = ModelCard(text).data
    assert data.library_name == "peft"
    assert data.pipeline_tag == "video-classification"
    assert data.base_model == "Qwen/Qwen2.5-Omni-7B"
    found = {(r.dataset_config, r.metric_name): r.metric_value for r in data.eval_results}
    for name in ("motion", "lip", "quality"):
        cell = result["rows"]["critic"][name]
        assert found[name, "accuracy"] == pytest.approx(cell["accuracy"]["value"], abs=1e-4)
        assert found[name, "AUC"] == pytest.approx(cell["auc"]["value"], abs=1e-4)
        assert f"| {name} | Is the" in text
    assert {r.dataset_split for r in data.eval_results} == {"test"}
    assert "| untrained |" in text
    assert "Trained on 24 ratings in 6 steps" in text
    assert "None were given" in model_card(critic, None, None)
    with pytest.raises(UsageError, match="no evaluation"):
        read_evaluation(tmp_path / "absent.json", critic)
    with pytest.raises(UsageError, match=r"no eval\.json"):
        read_evaluation(critic / "critic.json", critic)
    facts = result["critic"]
    assert facts["adapter_sha256"] == hash_file(critic / "adapter_model.safetensors")
    assert facts["packages"]["torch"]
    assert facts["preprocessing"]["clip"]["num_frames"] == 9
    refuse_what_is_not_whole(tmp_path / "eval.json", critic)
    card = json.loads((critic / "critic.json").read_text())
    card["thresholds"]["lip"] += 1
    write_json(critic / "critic.json", card)
    with pytest.raises(UsageError, match="figures of another critic"):
        read_evaluation(tmp_path / "eval.json", critic)


def refuse_what_is_not_whole(path, critic):
    whole = json.loads(path.read_text())
    unknown = {key: value for key, value in whole.items() if key != "critic"}
    silent = json.loads(path.read_text())
    silent["rows"]["critic"]["lip"]["accuracy"] = None
    for found, message in (
        ({"rows": {}}, "no whole eval.json: KeyError 'thresholds'"),
        ({"dimensions": {"lip": {"n": 3}}}, "no whole eval.json: KeyError 'strict'"),
        (silent, "no whole eval.json: TypeError"),
        ({"dimensions": {}}, "has no figure"),
        (unknown, "does not say which critic"),
    ):
        write_json(path, found)
        with pytest.raises(UsageError, match=message):
            read_evaluation(path, critic)
    write_json(path, whole)


def test_upload_is_private_and_names_no_folder(critic):
    def card():
        return model_card(critic, None, None)

    plan, hub = plan_critic_push(critic, "mine", card, None, private=True), Hub()
    push(plan, critic_maker(critic, card, None), secrets=["/home/someone"], api=hub, kind="model")
    assert hub.private
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "critic.json"]
    assert sorted(hub.files) == names
    assert json.loads(hub.files["critic.json"])["model"]["weights"] == "Qwen2.5-Omni-7B"
    weights = (critic / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    sizes = {file.path: file.bytes for file in plan.files}
    assert sizes == {name: len(body) for name, body in hub.files.items()}


def test_command_plans_and_wants_a_yes(critic, capsys):
    call = ["critic", "push", "--critic", str(critic.parent), "--repo", "mine"]

    def run(*more):
        with pytest.raises(SystemExit) as stop:
            main([*call, *more])
        return stop.value.code, *capsys.readouterr()

    code, _, err = run()
    assert code == 2
    assert "-y uploads" in err
    assert run("-n", "-y")[0] == 2
    assert run("-n", "--eval", "absent.json")[0] == 2
    code, out, _ = run("-n", "--json")
    assert code == 0
    assert json.loads(out)["private"]
    assert json.loads(out)["num_files"] == 4
    assert "Talking-Critic" in (critic / "push-card.md").read_text()
    (critic / "adapter_model.safetensors").unlink()
    code, _, err = run("-n")
    assert code == 2
    assert "lacks adapter_model.safetensors" in err
