"""`import simplevla` offers what a user needs, and the examples run."""

import subprocess
import sys
from pathlib import Path

import pytest

import simplevla

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_names_are_offered_without_importing_torch() -> None:
    code = "import sys, simplevla; simplevla.TrainConfig, simplevla.recipes.SFT, simplevla.make_suite; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {"train", "sft", "generate", "evaluate", "load_policy", "make_suite", "recipes", "Recorder"} <= set(
        simplevla.__all__
    )
    for name in simplevla.__all__:
        assert getattr(simplevla, name) is not None
    with pytest.raises(AttributeError, match="trian"):
        simplevla.trian  # noqa: B018
    # A package of the same name would hide it.
    assert callable(simplevla.write_report)
    assert not any((Path(simplevla.__file__).parent / name).is_dir() for name in simplevla.__all__ if name != "recipes")


def test_configs_take_folders_as_path_and_as_text() -> None:
    folder = Path("runs") / "demos"
    made = simplevla.SFTConfig(dataset=folder, policy=folder, replay=(folder,))
    assert made == simplevla.SFTConfig(dataset="runs/demos", policy="runs/demos", replay=("runs/demos",))
    assert simplevla.TrainConfig(policy=folder).policy == "runs/demos"


def test_importing_is_quiet_about_libraries_that_nobody_asked_for() -> None:
    code = "import simplevla, torchao, transformers"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
