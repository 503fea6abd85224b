import json

import pytest

from simplevla.checked import from_dict
from simplevla.config import LossConfig, SamplingConfig, SuiteConfig, TrainConfig, to_dict
from simplevla.errors import UserError


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'clip_hihg' in LossConfig.*Did you mean 'clip_high'\?"):
        from_dict(TrainConfig, {"loss": {"clip_hihg": 0.28}})


def test_unknown_key_at_the_top_lists_what_is_known() -> None:
    with pytest.raises(ValueError, match="unknown key 'zzz' in TrainConfig; expected one of suite, policy, updates"):
        from_dict(TrainConfig, {"zzz": 1})


def test_survives_json() -> None:
    config = TrainConfig(
        suite=SuiteConfig(name="lever", tasks=("left", "right")),
        sampling=SamplingConfig(groups=4, group_size=2),
        loss=LossConfig(clip_high=0.2, aggregation="unit"),
    )
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size is 1; expected at least 2"):
        SamplingConfig(group_size=1)


def test_groups_stay_whole() -> None:
    with pytest.raises(ValueError, match=r"minibatches is 5; expected 1 to sampling.groups \(4\)"):
        TrainConfig(sampling=SamplingConfig(groups=4), minibatches=5)


@pytest.mark.parametrize(
    ("low", "high", "problem"),
    [
        (0.0, 0.28, "clip_low is 0.0; expected above 0"),
        (1.0, 0.28, "clip_low is 1.0; expected below 1"),
        (0.2, 0.0, "clip_high is 0.0; expected above 0"),
    ],
)
def test_clip_bounds(low: float, high: float, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        LossConfig(clip_low=low, clip_high=high)


def test_defaults_are_the_paper_s() -> None:
    config = TrainConfig()
    assert (config.sampling.groups, config.sampling.group_size, config.sampling.temperature) == (64, 8, 1.0)
    assert (config.loss.clip_low, config.loss.clip_high, config.loss.aggregation) == (0.2, 0.28, "episode")
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.minibatches) == (None, 0.01, 4)
