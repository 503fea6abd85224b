"""Evaluations in which the policy is told another sentence than the task's own."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from simplevla.config import EvalConfig, RolloutConfig, SuiteConfig
from simplevla.evaluation.compare import compare
from simplevla.evaluation.evaluate import BLANK, evaluate
from simplevla.evaluation.result import EvaluationResult, read_result, result_table, write_result
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.suites.registry import make_suite
from small_tinyvla import for_fake_suite

TASKS = ("reach", "far", "near")
SUITE = SuiteConfig(name="fake_suite:make", tasks=("reach", "near"))
Told = Callable[..., tuple[EvaluationResult, list[str], np.ndarray]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("told") / "policy"
    for_fake_suite(TASKS).save(folder)
    return folder


@pytest.fixture
def told(policy: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """An evaluation with the sentences and the chunks of all its decisions."""

    def run(**settings: Any) -> tuple[EvaluationResult, list[str], np.ndarray]:
        sentences, chunks, real = [], [], TinyVLA.act

        def noted(self: TinyVLA, batch: Any, *rest: Any) -> Any:
            sample = real(self, batch, *rest)
            sentences.extend(batch.instructions)
            chunks.append(sample.actions)
            return sample

        with monkeypatch.context() as patch:
            patch.setattr(TinyVLA, "act", noted)
            rollout = RolloutConfig(workers=1, slots_per_worker=2)
            result = evaluate(policy, SUITE, rollout, EvalConfig(episodes_per_task=1, **settings))
        return result, sentences, np.concatenate(chunks)

    return run


@pytest.mark.parametrize(
    ("settings", "sentence", "said"),
    [
        ({"instruction_of": "far"}, "do far", "in every task it is told 'do far', the instruction of 'far'"),
        ({"instruction": False}, BLANK, "it is told no instruction, but a blank"),
    ],
)
def test_the_policy_is_told_the_sentence_and_the_result_says_so(
    told: Told, policy: Path, tmp_path: Path, settings: dict, sentence: str, said: str
) -> None:
    own, own_sentences, _ = told()
    result, sentences, chunks = told(**settings)
    assert set(own_sentences) == {"do reach", "do near"}
    assert set(sentences) == {sentence}
    suite, model = make_suite(SUITE), TinyVLA.load(policy)
    environment = suite.make_environment()
    for task in suite.tasks:
        seen = environment.reset(task, 4)
        expected = model.act_on(seen, sentence)
        assert any(np.allclose(chunk, expected, atol=1e-5) for chunk in chunks)
        assert not np.allclose(expected, model.act_on(seen, task.instruction), atol=1e-5)

    assert own.told is None
    assert result.told == sentence
    assert said in result.differences
    assert not any("told" in difference for difference in own.differences)
    write_result(tmp_path / "told.json", result)
    assert read_result(tmp_path / "told.json") == result
    screen = io.StringIO()
    Console(width=200, file=screen).print(result_table(result))
    assert said in " ".join(screen.getvalue().split())
    assert f"B not as trained: {said}" in compare(own, result).notes


def test_an_unknown_task_is_one_clear_line(told: Told) -> None:
    with pytest.raises(
        ValueError, match=r"^instruction_of is 'fra'; suite 'fake' has the tasks reach, far, near, trivial"
    ):
        told(instruction_of="fra")


def test_no_instruction_and_another_one_contradict_each_other(told: Told) -> None:
    with pytest.raises(ValueError, match="instruction_of is 'far' and has no effect: instruction is off"):
        told(instruction_of="far", instruction=False)
