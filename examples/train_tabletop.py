"""The main job from Python: demonstrations, imitation, RL, a report, and held-out success before and after."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import simplevla
from simplevla import recipes
from simplevla.evaluation.result import read_result

RECIPE = "tabletop_nano"


def main(folder: Path, **shorter: dict[str, Any]) -> None:
    """Runs all stages in `folder`, as the recipe has them.

    `demos`, `sft` and `rl` change fields of the stages' configs, `report` arguments of `write_report`. A shorter job:
    main(folder, demos={"episodes": 300}, sft={"batches": 400}, rl={"updates": 8}, report={"episodes_per_task": 10})
    """
    demos, sft, rl = folder / "demos", folder / "sft", folder / "rl"
    simplevla.generate(replace(recipes.DEMOS[RECIPE](), **shorter.get("demos", {})), demos)
    start = simplevla.sft(replace(recipes.SFT[RECIPE](), dataset=str(demos), **shorter.get("sft", {})), sft)
    config = replace(recipes.TRAIN[RECIPE](), policy=str(start), **shorter.get("rl", {}))
    print(simplevla.train(config, rl).message)
    report = simplevla.write_report(rl, **shorter.get("report", {}))
    for name in ("before", "after"):
        print(name, "RL:", read_result(rl / "eval" / f"{name}.json").overall)
    print(f"curves: tensorboard --logdir {folder}\nreport with films: {report}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
