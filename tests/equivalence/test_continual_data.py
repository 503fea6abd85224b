"""Continual training from demonstrations: given ones, the expert's, and those of earlier tasks."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from continual_runs import IMITATION, ORDER, TASKS, config, demonstrations, saved_base, weights
from simplevla.adapters.config import Structure
from simplevla.config import (
    DemosConfig,
    SFTConfig,
)
from simplevla.report.continual import write_continual_report
from simplevla.training import continual as room
from simplevla.training.continual import continual


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_base(tmp_path_factory.mktemp("base") / "policy")


def test_a_moved_run_goes_on_inside_a_task(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(base, tasks=("reach",), data=(demonstrations(tmp_path, "reach"),), warmup=IMITATION)
    real_train, real_sft = room.train, room.sft
    monkeypatch.chdir(tmp_path)

    def cut(stage: Callable[..., Any], key: str) -> Callable[..., Any]:
        def first_half(given: Any, run: Path, *more: Any) -> None:
            stage(replace(given, **{key: 1}), run, *more)
            written = json.loads((run / "config.json").read_text())
            (run / "config.json").write_text(json.dumps({**written, key: getattr(given, key)}))
            raise KeyboardInterrupt

        return first_half

    for name, real, key in (("sft", real_sft, "batches"), ("train", real_train, "updates")):
        monkeypatch.setattr(room, name, cut(real, key))
        with pytest.raises(KeyboardInterrupt):
            # By another spelling than before, of another place.
            continual(settings, Path("run") if name == "sft" else tmp_path / "moved" / "run", resume=name == "train")
        monkeypatch.setattr(room, name, real)
        if name == "sft":
            (tmp_path / "moved").mkdir()
            (tmp_path / "run").rename(tmp_path / "moved" / "run")
    (tmp_path / "moved" / "run").rename(tmp_path / "again")
    result = continual(settings, Path("again"), resume=True)
    assert result["stages"][0]["updates"] == 2
    # What was asked for is compared as ever.
    other = replace(settings, train=replace(settings.train, updates=3))
    with pytest.raises(ValueError, match="another config: train"):
        continual(other, Path("again"), resume=True)


def test_a_warm_up_trains_the_adapter_alone(base: Path, tmp_path: Path) -> None:
    warm = config(
        base,
        tasks=("reach",),
        warmup_demos=4,
        demos=DemosConfig(workers=1),
        warmup=SFTConfig(batches=3, batch_size=4, validate_every=3),
    )
    continual(warm, tmp_path / "run")
    stage = tmp_path / "run" / "1_reach"
    adapter = "adapters/reach/adapter_model.safetensors"
    assert weights(stage / "warmup/policy/model.safetensors") == weights(base / "model.safetensors")
    assert weights(stage / "warmup/policy" / adapter) != weights(stage / "start" / adapter)
    assert json.loads((stage / "rl/config.json").read_text())["policy"] == str(stage / "warmup/policy")


@pytest.mark.parametrize("structure", ["shared", "per_task", "merge_then_new", "full"])
def test_tasks_are_learned_from_their_own_data_alone(
    base: Path, tmp_path: Path, structure: Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_expert(*_: object) -> None:
        raise AssertionError("an expert is asked")

    monkeypatch.setattr(room, "generate", no_expert)
    data = tuple(demonstrations(tmp_path / "data", task) for task in ORDER)
    share = 0.25 if structure in ("shared", "full") else 0.0
    settings = config(base, structure=structure, stages="sft", data=data, warmup=IMITATION, replay_share=share)
    result = continual(settings, tmp_path / "run")
    assert [len(row) for row in result["matrix"]] == [3, 3, 3]
    assert [(stage["task"], stage["updates"], stage["episodes"]) for stage in result["stages"]] == [
        (task, 0, 0) for task in ORDER
    ]
    for number, task in enumerate(ORDER, start=1):
        folder = tmp_path / "run" / f"{number}_{task}"
        learned = json.loads((folder / "warmup/config.json").read_text())
        assert learned["dataset"] == str(tmp_path / "data" / task)
        assert learned["replay"] == ([str(tmp_path / "data/reach")] if task == "far" and share else [])
        assert not learned["replay"] or learned["replay_share"] == share
        assert not (folder / "rl").exists()
    # The second task begins with what the first one left.
    second = json.loads((tmp_path / "run/2_far/start/trained_on.json").read_text())
    assert "do reach" in json.dumps(second)
    assert continual(settings, tmp_path / "run", resume=True) == json.loads(json.dumps(result))
    write_continual_report(tmp_path / "run")


def test_a_task_with_data_begins_with_imitation_and_one_without_with_rl(base: Path, tmp_path: Path) -> None:
    data, made = (demonstrations(tmp_path / "data", "far"),), []

    def noted(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: made.append(name) or make(*arguments)

    makers = room.Makers(
        engine=noted("engine", room.local_engine),
        learner=noted("learner", room.Learner),
        imitator=noted("imitator", room.Imitator),
    )
    continual(config(base, data=data, warmup=IMITATION), tmp_path / "run", makers=makers)
    assert sorted(made) == ["engine", "engine", "imitator", "learner", "learner"]
    starts = [
        json.loads((tmp_path / "run" / stage / "rl/config.json").read_text())["policy"]
        for stage in ("1_reach", "2_far")
    ]
    assert starts == [str(tmp_path / "run/1_reach/start"), str(tmp_path / "run/2_far/warmup/policy")]


def test_demonstrations_of_all_tasks_before_are_replayed(base: Path, tmp_path: Path) -> None:
    given = config(base, tasks=TASKS, data=("near=somewhere",))
    assert room._demonstrations(given, "far", tmp_path) == ["somewhere"]
    both = replace(given, warmup_demos=2)
    assert room._demonstrations(both, "far", tmp_path) == [
        str(tmp_path / "1_reach/demos"),
        "somewhere",
        str(tmp_path / "3_far/demos"),
    ]
    assert room._demonstrations(both, "near", tmp_path)[1:] == ["somewhere"]


def test_data_that_do_not_fit_are_refused_before_anything_is_trained(base: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"data": ("reach",)}, r"data is \('reach',\); expected TASK=FOLDER, each task once"),
        ({"data": ("reach=a", "reach=b")}, "each task once"),
        ({"data": ("raech=a",)}, "data has raech; expected some of the tasks reach, far"),
        ({"data": ("reach=a",), "stages": "rl"}, "stages is 'rl', which learns from no demonstrations"),
        (
            {"data": ("reach=a",), "stages": "sft"},
            "stages is 'sft', and far has no demonstrations; give --data far=FOLDER",
        ),
        ({"stages": "sft+rl"}, "reach, far has no demonstrations"),
        ({"replay_share": 0.5}, "replay_share is 0.5, and no task has demonstrations"),
        ({"replay_share": 1.0, "warmup_demos": 1}, "replay_share is 1.0"),
        (
            {"replay_share": 0.1, "warmup_demos": 1, "warmup": IMITATION},
            "batches of 4 is 0 samples; expected at least one",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            config(base, **changes)
    other = demonstrations(tmp_path / "data", "near").replace("near=", "reach=")
    with pytest.raises(ValueError, match=r"demonstrations of reach, say 'do near'; the suite says 'do reach'"):
        continual(config(base, data=(other,)), tmp_path / "run")
    turned = demonstrations(tmp_path / "turned", "reach", cameras=("front", "side"))
    with pytest.raises(ValueError, match="the policy looks through wrist, the demonstrations of reach has front, side"):
        continual(config(base, data=(turned,)), tmp_path / "run")
    sides = {"reach": 32, "far": 16}
    data = tuple(demonstrations(tmp_path / "sizes", task, side=side) for task, side in sides.items())
    with pytest.raises(
        ValueError, match=r"camera 'front' has 16 x 16 pixels in .*far and 32 x 32 in .*reach; a batch of both"
    ):
        continual(config(base, data=data, replay_share=0.5, warmup=IMITATION), tmp_path / "run")
    assert not (tmp_path / "run/1_reach").exists()
