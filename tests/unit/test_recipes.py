from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from simplevla import recipes
from simplevla.evaluation.result import Broken, EvaluationResult, Outcome
from simplevla.recipes.openvla_oft import PUBLISHED
from simplevla.recipes.parity import parity
from simplevla.suites.registry import make_suite


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_recipes_have_the_published_numbers(name: str) -> None:
    config = recipes.TRAIN[name]()
    sampling, loss, optimizer = config.sampling, config.loss, config.optimizer
    assert (sampling.groups, sampling.group_size, sampling.temperature) == (64, 8, 1.6)
    assert (sampling.filter_low, sampling.filter_high, sampling.dynamic) == (0.1, 0.9, True)
    assert (loss.clip_low, loss.clip_high, loss.aggregation) == (0.2, 0.28, "episode")
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.max_grad_norm) == (
        5e-6,
        (0.9, 0.999),
        0.01,
        1.0,
    )
    # 512 episodes in mini-batches of 128, evaluated every fourth update.
    assert (config.minibatches, config.eval_every) == (4, 4)
    suite = {"spatial": "libero_spatial", "object": "libero_object", "goal": "libero_goal", "long": "libero_10"}
    assert config.suite.name == suite[name.split("_")[1]]
    assert (config.suite.visuals, config.suite.horizon_protocol, config.suite.image_size) == ("stock", "simplevla", 256)


@pytest.mark.parametrize(("name", "horizon"), [("spatial", 280), ("object", 280), ("goal", 300), ("long", 520)])
def test_smolvla_is_evaluated_as_lerobot_does(name: str, horizon: int) -> None:
    suite = make_suite(recipes.TRAIN[f"libero_{name}_smolvla"]().suite)
    assert {task.horizon for task in suite.tasks} == {horizon}
    assert (suite.spec.cameras, len(suite.spec.state_names)) == ({"fixed": (256, 256), "wrist": (256, 256)}, 8)
    assert {key: suite.protocol[key] for key in ("visuals", "stepping", "sentences")} == {
        "visuals": "stock",
        "stepping": "stock",
        "sentences": "published",
    }


def test_a_report_s_title_is_the_recipe() -> None:
    assert {name: recipe().title for name, recipe in recipes.TRAIN.items()} == {name: name for name in recipes.TRAIN}
    assert all(recipe().train.title == name for name, recipe in recipes.CONTINUAL.items())


def evaluated(solved: int, n: int, split: str) -> EvaluationResult:
    outcomes = tuple(Outcome(task="a", initial_state=i, success=i < solved, env_steps=1) for i in range(n))
    return EvaluationResult(
        suite="libero_spatial",
        split=split,
        protocol={"visuals": "stock"},
        horizons={"a": 512},
        greedy=True,
        temperature=None,
        seed=0,
        episodes=outcomes,
        broken=(),
        wall_s=1.0,
        versions={},
        commit="",
        policy=None,
        policy_sha256=None,
    )


def compared(result: EvaluationResult) -> str:
    suite: Any = SimpleNamespace(name="libero_spatial", protocol={"visuals": "stock"})
    return parity("libero_spatial_one_demo", result, suite)


def test_parity_with_the_published_success() -> None:
    # 318 and 491 of 500 were published. 290 of 500: z = (0.636 - 0.58) / sqrt(2 * 0.608 * 0.392 / 500) = 1.81, p = 0.07.
    sft, rl = compared(evaluated(290, 500, "all")).splitlines()
    assert sft == "published SFT 63.6 %, here 58.0 %: p = 0.08, no difference seen"
    assert rl.startswith("published SFT + RL 98.2 %, here 58.0 %: p = ")
    assert rl.endswith("differs")
    # 250 of 500: z = 4.3.
    assert compared(evaluated(250, 500, "all")).splitlines()[0].endswith("differs")
    assert compared(evaluated(491, 500, "all")).splitlines()[1].endswith("no difference seen")


def test_parity_is_with_an_evaluation_as_published_alone() -> None:
    whole = evaluated(318, 499, "all")
    others = {
        "500 episodes of split 'train' for 500 (--split all)": evaluated(60, 500, "train"),
        "100 episodes of split 'test' for 500 (--split all)": evaluated(60, 100, "test"),
        "1 of 500 episodes broken by the environment": replace(whole, broken=(Broken("a", 499),)),
        "suite libero_object_swap for libero_spatial": replace(evaluated(318, 500, "all"), suite="libero_object_swap"),
        "visuals lite for stock": replace(evaluated(318, 500, "all"), protocol={"visuals": "lite"}),
        "sampled at temperature 1 for greedy": replace(evaluated(318, 500, "all"), greedy=False, temperature=1.0),
    }
    for words, result in others.items():
        assert compared(result).endswith(f"not compared, since this evaluation differs: {words}")


def test_the_published_successes_average_to_the_papers_means() -> None:
    for demos, sft, rl in (("one_demo", 48.9, 96.9), ("all_demos", 91.0, 99.1)):
        found = [PUBLISHED[f"libero_{suite}_{demos}"] for suite in ("spatial", "object", "goal", "long")]
        assert sum(x.sft for x in found) / 4 == pytest.approx(sft, abs=0.06)
        assert sum(x.rl for x in found) / 4 == pytest.approx(rl, abs=0.06)
