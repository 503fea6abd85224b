"""Policies and datasets from the hub and to it, spoken with a stand-in for its HTTP."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants

import adapted_tinyvla
import made_dataset
import small_tinyvla
from fake_hub import TOKEN, FakeHub
from simplevla import cli, hub
from simplevla.adapters.config import ContinualConfig
from simplevla.adapters.load import load_policy
from simplevla.config import (
    EvalConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.result import read_result, write_result
from simplevla.policies.base import Policy, Sampling
from simplevla.report.evidence import gather_evidence
from simplevla.report.origin import Origin, origin_of
from simplevla.storage import read_json
from simplevla.training import continual
from simplevla.training.imitation import sft
from simplevla.training.loop import train

SUITE = SuiteConfig(name="fake_suite:make", tasks=("reach", "near"))


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The stand-in, an account there, and an empty cache."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with FakeHub() as there:
        monkeypatch.setattr(constants, "ENDPOINT", there.url)
        template = there.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield there


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Folder of a policy that acts on the fake suite."""
    folder = tmp_path / "run" / "policy"
    small_tinyvla.for_fake_suite(("reach", "near")).save(folder)
    return folder


def actions(policy: Policy) -> np.ndarray:
    observations = small_tinyvla.observations(["do reach", "do near"])
    return policy.act(observations, Sampling(greedy=True), [np.random.default_rng(0)] * 2).actions


def rl(policy: str) -> TrainConfig:
    return TrainConfig(
        suite=SUITE,
        policy=policy,
        updates=1,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4),
        optimizer=OptimizerConfig(lr=0.01),
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=0,
    )


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(list(arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_pushed_policy_acts_as_it_did(there: FakeHub, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (policy / "notes.bin").write_bytes(b"\x80\x04K\x01.")
    assert cli.main(["push", str(policy), "me/lifter"]) == 0
    (repository,) = there.repositories.values()
    sha = repository.at("main")
    assert capsys.readouterr().out == f"the policy is hf://me/lifter@{sha}\n"
    assert set(repository.commits[str(sha)]) == {
        *("README.md", "config.json", "statistics.json", "tokenizer.json", "trained_on.json", "model.safetensors")
    }
    assert not repository.private
    assert np.array_equal(actions(load_policy("hf://me/lifter")), actions(load_policy(policy)))


def test_the_command_line_pushes_to_the_hub_that_the_environment_names(
    there: FakeHub, policy: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": there.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "simplevla.cli", "push", str(policy), "me/secret", "--private"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert there.repositories["models", "me/secret"].private


def test_adapters_travel_and_what_a_policy_no_longer_has_goes(there: FakeHub, tmp_path: Path) -> None:
    adapted_tinyvla.make_bank().save(tmp_path / "adapted")
    small_tinyvla.make().save(tmp_path / "plain")
    assert cli.main(["push", str(tmp_path / "adapted"), "me/policy"]) == 0
    first = there.repositories["models", "me/policy"].at("main")
    loaded = load_policy("hf://me/policy")
    assert loaded.adapter_bank is not None
    assert sorted(loaded.adapter_bank.names) == ["bottleneck", "lora"]
    assert cli.main(["adapters", "list", "hf://me/policy"]) == 0
    assert cli.main(["push", str(tmp_path / "plain"), "me/policy"]) == 0
    assert load_policy("hf://me/policy").adapter_bank is None
    # A commit stays what it was.
    assert load_policy(f"hf://me/policy@{first}").adapter_bank is not None


def test_only_a_policy_s_files_are_downloaded(there: FakeHub, policy: Path) -> None:
    (policy / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")
    (policy / "modeling.py").write_text("raise SystemExit")
    there.add("models", "me/policy", policy, inside="runs/7/")
    folder = hub.local_folder("hf://me/policy/runs/7", "model")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "model.safetensors", "statistics.json", "tokenizer.json", "trained_on.json")
    ]
    assert np.array_equal(actions(load_policy("hf://me/policy/runs/7")), actions(load_policy(policy)))


def test_a_run_records_the_commit_and_goes_on_with_it(there: FakeHub, policy: Path, tmp_path: Path) -> None:
    sha = there.add("models", "me/policy", policy)
    train(rl("hf://me/policy"), tmp_path / "rl")
    recorded = f"hf://models/me/policy@{sha}"
    assert read_json(tmp_path / "rl" / "config.json")["policy"] == recorded
    assert hub.pinned(recorded, "model") == recorded
    small_tinyvla.for_fake_suite(("reach", "near", "far")).save(policy)
    there.add("models", "me/policy", policy)
    there.requests.clear()
    train(replace(rl(recorded), updates=2), tmp_path / "rl", resume=True)
    with pytest.raises(UserError, match=r"policy is 'hf://models/me/policy@\w+', the run has 'hf://models/me/policy@"):
        train(rl("hf://me/policy"), tmp_path / "rl", resume=True)
    gather_evidence(tmp_path / "rl")
    started = read_json(tmp_path / "rl" / "environment.json")["start_policy_sha256"]
    before = read_result(tmp_path / "rl" / "eval" / "before.json")
    assert (before.policy_sha256, before.policy) == (started, recorded)
    assert not any(sha in request for request in there.requests), "what is in the cache is downloaded again"


def test_the_report_has_the_curves_that_were_pushed_with_the_first_policy(
    there: FakeHub, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["push", str(policy), "me/policy"]) == 0
    facts = {"start_policy_sha256": policy_fingerprint(policy)}

    def origin() -> Origin:
        config = {"policy": hub.pinned("hf://me/policy", "model")}
        return origin_of(tmp_path / "demo" / "rl", config, facts)

    assert origin().imitation == []
    assert re.fullmatch(r"hf://models/me/policy@\w+ has no metrics.jsonl: it was pushed without", origin().no_imitation)
    assert origin().parts[-1] == "run demo/rl"
    rows = [{"batch": 1, "loss": 2.0}, {"batch": 2, "loss": 1.0}]
    (policy.parent / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["push", str(policy), "me/policy"]) == 0
    assert origin().imitation == rows
    assert origin().parts[0].startswith("tinyvla, head tokens, ")
    assert origin_of(tmp_path, {"policy": "hf://me/none"}, None).no_imitation.startswith(
        "hf://me/none: the hub shows no"
    )


def test_imitation_takes_dataset_and_policy_from_the_hub(there: FakeHub, tmp_path: Path) -> None:
    made_dataset.write(tmp_path / "demos")
    data = there.add("datasets", "me/demos", tmp_path / "demos")
    assert LeRobotDataset("hf://me/demos").num_frames == LeRobotDataset(tmp_path / "demos").num_frames
    settings = SFTConfig(dataset="hf://datasets/me/demos@main", batches=1, batch_size=2, chunk_length=2)
    trained = sft(settings, tmp_path / "sft")
    assert read_json(tmp_path / "sft" / "config.json")["dataset"] == f"hf://datasets/me/demos@{data}"
    start = there.add("models", "me/start", trained)
    sft(replace(settings, policy="hf://me/start", replay=("hf://me/demos",)), tmp_path / "more")
    recorded = read_json(tmp_path / "more" / "config.json")
    assert recorded["policy"] == f"hf://models/me/start@{start}"
    assert recorded["replay"] == [f"hf://datasets/me/demos@{data}"]


def test_continual_training_records_the_commits(
    there: FakeHub, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, demos = there.add("models", "me/policy", policy), there.add("datasets", "me/demos", policy)
    monkeypatch.setattr(continual, "_train_tasks", lambda *_: {})
    settings = ContinualConfig(train=rl("hf://me/policy"), tasks=("near",), data=("near=hf://me/demos",))
    continual.continual(settings, tmp_path / "tasks")
    recorded = read_json(tmp_path / "tasks" / "config.json")
    assert recorded["train"]["policy"] == f"hf://models/me/policy@{start}"
    assert recorded["data"] == [f"near=hf://datasets/me/demos@{demos}"]


def test_the_base_of_continual_training_is_named_as_it_was_given(
    there: FakeHub, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = there.add("models", "me/policy", policy)
    monkeypatch.setattr(continual, "_stage", _no_more)
    train_config = replace(rl("hf://me/policy"), rollout=RolloutConfig(workers=1))
    with pytest.raises(KeyboardInterrupt):
        continual.continual(
            ContinualConfig(train=train_config, tasks=("near",), eval_episodes_per_task=1), tmp_path / "tasks"
        )
    base = read_result(tmp_path / "tasks" / "row_0.json")
    assert (base.policy, base.episodes_per_task) == (f"hf://models/me/policy@{sha}", 1)


def _no_more(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_evaluation_names_the_commit(there: FakeHub, policy: Path) -> None:
    sha = there.add("models", "me/policy", policy)
    result = evaluate("hf://me/policy", SUITE, RolloutConfig(workers=1), EvalConfig(episodes_per_task=1))
    assert result.policy == f"hf://models/me/policy@{sha}"


def test_the_card_says_what_it_is_and_how_well_it_does(there: FakeHub, policy: Path) -> None:
    result = evaluate(policy, SUITE, RolloutConfig(workers=1), EvalConfig(episodes_per_task=2))
    write_result(policy.parent / "eval" / "after.json", result)
    other = replace(result, policy_sha256="0" * 64, split="train")
    write_result(policy.parent / "eval" / "before.json", other)
    failed = tuple(replace(each, success=False) for each in result.episodes)
    trained = replace(result, episodes=failed, split="train")
    write_result(policy.parent / "eval" / "train.json", trained)
    (policy.parent / "environment.json").write_text(json.dumps({"commit": "abc123"}))
    assert cli.main(["push", str(policy), "me/lifter", "--license", "apache-2.0"]) == 0
    repository = there.repositories["models", "me/lifter"]
    card = ModelCard(repository.commits[str(repository.at("main"))]["README.md"].decode())
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "simplevla",
        "robotics",
    )
    found = card.data.eval_results or []
    assert {(each.metric_value, each.dataset_split, each.dataset_name) for each in found} == {
        (each.overall.rate, each.split, f"{each.suite}, {each.states}") for each in (result, trained)
    }
    assert str(result.overall) in card.text
    assert f"| near | {result.by_task['near']} | 2 |" in card.text
    assert 'simplevla.load_policy("hf://me/lifter")' in card.text
    assert "`abc123`" in card.text
    assert "1. Not recorded" in card.text


def test_what_the_hub_refuses_is_one_line(
    there: FakeHub, policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there.add("models", "me/policy", policy)
    there.repositories["models", "me/public"] = there.repositories["models", "me/policy"]
    there.add("models", "me/hidden", policy, private=True)

    def evaluated(source: str) -> str:
        return error_of(capsys, "eval", "--policy", source)

    assert "hf://me/nothing: the hub shows no such model. Check the name; if it is private" in evaluated(
        "hf://me/nothing"
    )
    assert "no such revision of this model" in evaluated("hf://me/policy@v9")
    assert "expected hf://OWNER/NAME[@REVISION][/FOLDER]" in evaluated("hf://policy")
    assert "is a dataset; expected a model" in evaluated("hf://datasets/me/policy")
    assert "holds no policy" in evaluated("hf://me/policy/nowhere")
    assert "already and public" in error_of(capsys, "push", str(policy), "me/public", "--private")
    assert "expected OWNER/NAME" in error_of(capsys, "push", str(policy), "me/policy@main")
    assert "answers 403 (You don't have the rights" in error_of(capsys, "push", str(policy), "others/policy")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "if it is private, log in (`hf auth login`, or HF_TOKEN)" in evaluated("hf://me/hidden")
    assert "answers 401" in error_of(capsys, "push", str(policy), "me/new")


def test_without_a_network_the_cache_serves_what_it_has(
    there: FakeHub, policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sha = there.add("models", "me/policy", policy)
    there.add("models", "me/other", policy)
    online = hub.pinned("hf://me/policy", "model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.pinned("hf://me/policy", "model") == online == f"hf://models/me/policy@{sha}"
    line = error_of(capsys, "eval", "--policy", "hf://me/other")
    assert f"can't be reached (HF_HUB_OFFLINE is set), and the cache {tmp_path / 'cache'} lacks it" in line
    assert "can't be reached (HF_HUB_OFFLINE" in error_of(capsys, "push", str(policy), "me/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "hf://me/other: the hub can't be reached" in error_of(capsys, "eval", "--policy", "hf://me/other")


@pytest.mark.parametrize("content", [{}, {"config.json": "{}"}])
def test_a_folder_that_is_no_policy_isn_t_pushed(
    there: FakeHub, tmp_path: Path, content: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    assert "error: " in error_of(capsys, "push", str(tmp_path), "me/policy")
    assert there.requests == []


def test_a_damaged_policy_isn_t_pushed(there: FakeHub, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_policy(policy)
    with torch.no_grad():
        next(loaded.parameters()).fill_(float("nan"))
    loaded.save(policy)
    assert "no policy that can act" in error_of(capsys, "push", str(policy), "me/policy")
    assert there.repositories == {}
