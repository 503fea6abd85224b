"""Curves have the names of metrics.jsonl, in the groups of docs/metrics.md."""

import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simplevla.training.curves import GROUPS, curves
from simplevla.training.runlog import TEXTS, MetricsFile, RunLog

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
SECTIONS = {
    "counters": "Counters",
    "sampling": "Sampling",
    "update": "Update",
    "speed": "Speed",
    "evaluation": "Evaluation during training",
}


def section(title: str) -> set[str]:
    """Keys of the tables of a section that are numbers, but for the x-axis."""
    text = re.split(r"^## ", PAGE.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`[^|]*)\|", text, flags=re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)} - TEXTS - {"update"}


def test_the_groups_are_the_sections_of_the_page() -> None:
    assert {name: set(keys) for name, keys in GROUPS.items()} == {
        name: section(title) for name, title in SECTIONS.items()
    }


def test_each_number_is_in_its_group_and_each_task_by_itself() -> None:
    row = {
        "update": 3,
        "approx_kl": 0.5,
        "eval_success": None,
        "unheard_of": 1,
        "success_by_task": {"press": [1, 4], "slide": [0, 0]},
        "eval_by_task": {"press": (3, 4)},
        "warnings": ["approx_kl"],
        "errors": {"ValueError": 2},
    }
    assert curves(row, "update") == {
        "update/approx_kl": 0.5,
        "other/unheard_of": 1,
        "success_by_task/press": 0.25,
        "eval_by_task/press": 0.75,
    }
    assert curves({"batch": 5, "loss": 0.5, "success/press": 1.0}, "batch", "sft") == {
        "sft/loss": 0.5,
        "success/press": 1.0,
    }


def test_tensorboard_has_each_task_by_update(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write({"update": 3, "train_success": 0.5, "success_by_task": {"press": [1, 2], "slide": [0, 0]}})
        log.write({"update": 4, "train_success": 0.75, "success_by_task": {"press": [2, 2], "slide": [1, 4]}})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    seen = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert seen == {
        "sampling/train_success": [(3, 0.5), (4, 0.75)],
        "success_by_task/press": [(3, 0.5), (4, 1.0)],
        "success_by_task/slide": [(4, 0.25)],
    }


def test_imitation_s_loss_isn_t_in_rl_s_group(tmp_path: Path) -> None:
    with MetricsFile(tmp_path, 0, 0, "batch", group="sft") as log:
        log.write({"batch": 1, "loss": 0.5, "success/press": 0.25})
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["scalars"] == ["sft/loss", "success/press"]
