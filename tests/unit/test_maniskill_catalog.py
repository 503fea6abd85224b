"""ManiSkill's task list and errors, without the benchmark's package."""

import sys

import pytest

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.recipes import maniskill
from simplevla.suites.maniskill import catalog
from simplevla.suites.registry import make_suite


def test_every_task_has_an_instruction_of_its_own_and_a_reason_for_its_horizon() -> None:
    tasks = catalog.tasks("maniskill")
    assert len({task.instruction for task in tasks}) == len(tasks) == 7
    assert {task.horizon for task in tasks} == {50, 80}
    assert all(task.horizon_reason for task in tasks)
    assert set(maniskill.TASKS) <= {task.name for task in tasks}


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "simplevla.suites.maniskill.suite", raising=False)
    monkeypatch.setitem(sys.modules, "mani_skill", None)
    with pytest.raises(UserError, match=r"pip install 'simplevla\[maniskill\]'") as caught:
        make_suite(SuiteConfig(name="maniskill"))
    assert "\n" not in str(caught.value)
