"""The examples do what they say, on a few demonstrations and updates."""

import importlib.util
from pathlib import Path
from typing import Any

import nbclient
import nbformat
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
        "report": {"episodes_per_task": 1},
    }
    example("train_tabletop").main(tmp_path, **shorter)
    *_, before, after, _, report = capsys.readouterr().out.splitlines()
    for name, line in (("before", before), ("after", after)):
        assert line.startswith(f"{name} RL: ")
        assert line.endswith("of 6")
    assert report == f"report with films: {tmp_path / 'rl' / 'report.html'}"
    chunk = example("act").main(str(tmp_path / "sft" / "policy"))
    assert chunk.shape == (4, len(simplevla.make_suite(simplevla.SuiteConfig(name="tabletop")).spec.action_names))
    again = example("act").main(str(tmp_path / "sft" / "policy"))
    np.testing.assert_array_equal(again, chunk)


SHORTER = """
EPISODES, BATCHES, UPDATES = 20, 25, 1
small = simplevla.SuiteConfig(name="tabletop", tasks=("lift_block", "slide_lid"))
few = simplevla.SamplingConfig(groups=2, group_size=2, dynamic=False)
for recipe, changes in (
    (recipes.DEMOS, {"workers": 1}),
    (recipes.SFT, {"batch_size": 16, "validate_every": 25, "eval_episodes_per_task": 0}),
    (recipes.TRAIN, {"sampling": few, "minibatches": 1, "eval_episodes_per_task": 1}),
):
    made = replace(recipe["tabletop_nano"](), suite=small, **changes)
    recipe["tabletop_nano"] = lambda made=made: made
"""


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLES / "walkthrough.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "EPISODES, BATCHES, UPDATES = 300, 400, 8" in code[0].source
    assert all(cell.execution_count == number for number, cell in enumerate(code, start=1)), "run it whole, then save"
    notebook.cells.insert(notebook.cells.index(code[0]) + 1, nbformat.v4.new_code_cell(SHORTER))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    report = tmp_path / "runs" / "walkthrough" / "rl" / "report.html"
    assert "slide_lid" in report.read_text()
    films = [output for output in code[-2].outputs if output.output_type == "display_data"]
    assert len(films) == 2
    action = code[-1].outputs[0].data["text/plain"]
    assert action.startswith("array([[")
