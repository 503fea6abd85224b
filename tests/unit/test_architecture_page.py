"""The picture in docs/architecture.md is what the imports say."""

import re
from pathlib import Path

from test_import_ranks import RANKS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_ranks_are_those_that_the_imports_are_held_to() -> None:
    said = re.search(r"imports from lower ranks only:\s+(.*?)\n\n", PAGE, flags=re.DOTALL)
    assert said is not None
    told = [{name.strip() for name in rank.split(",")} for rank in said[1].split("<")]
    ranks = sorted(set(RANKS.values()))
    assert told == [{name for name, rank in RANKS.items() if rank == number} for number in ranks]


def test_the_picture_has_every_package_and_module_and_no_other() -> None:
    picture = PAGE[PAGE.index("    src/simplevla/") : PAGE.index("A file imports from lower ranks only")]
    heads = [re.split(r"\s{2,}", line.strip())[0] for line in picture.splitlines()[1:] if line.strip()]
    told = {name.strip("/").removesuffix(".py") for head in heads for name in head.split()}
    there = {
        path.stem
        for path in (ROOT / "src" / "simplevla").iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("__")
    }
    assert told == there == set(RANKS)


def test_the_main_loop_has_the_steps_in_the_order_of_the_page() -> None:
    loop = (ROOT / "src" / "simplevla" / "training" / "loop.py").read_text()
    steps = ["rollouts.collect(", "group_relative_advantages(", "learner.update(", "_evaluate(", "save_checkpoint("]
    start = loop.index("while progress.update < config.updates")
    places = [loop.index(step, start) for step in steps]
    assert places == sorted(places)
    assert loop[start : places[-1]].count("\n") < 50
    assert "rollout -> reward -> selection -> advantage -> update -> evaluation -> checkpoint" in PAGE
