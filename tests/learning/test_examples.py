"""The examples do what they say, on a few demonstrations and updates."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simplevla

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_main_job_and_one_observation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shorter = {
        "demos": {"episodes": 30, "workers": 1},
        "sft": {"batches": 25, "batch_size": 32, "validate_every": 25, "eval_episodes_per_task": 0},
        "rl": {
            "minibatches": 1,
            "updates": 1,
            "eval_every": 0,
            "sampling": simplevla.SamplingConfig(groups=2, group_size=2, dynamic=False),
        },
        "eval": {"episodes_per_task": 1},
    }
    example("train_tabletop").main(tmp_path, **shorter)
    assert "imitation" in capsys.readouterr().out
    chunk = example("act").main(str(tmp_path / "sft" / "policy"))
    assert chunk.shape == (4, len(simplevla.make_suite(simplevla.SuiteConfig(name="tabletop")).spec.action_names))
    again = example("act").main(str(tmp_path / "sft" / "policy"))
    np.testing.assert_array_equal(again, chunk)
