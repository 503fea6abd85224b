"""The main job from Python: demonstrations, imitation, RL, and success on held-out states before and after."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import simplevla
from simplevla import recipes

RECIPE = "tabletop_nano"


def main(folder: Path, **shorter: dict[str, Any]) -> None:
    """Runs all stages in `folder`. `demos`, `sft`, `rl` and `eval` change fields of the stages' configs.

    A shorter job: main(folder, sft={"batches": 100}, rl={"updates": 2}, eval={"episodes_per_task": 5})
    """
    demos, sft, rl = folder / "demos", folder / "sft", folder / "rl"
    simplevla.generate(replace(recipes.DEMOS[RECIPE](), **shorter.get("demos", {})), demos)
    start = simplevla.sft(replace(recipes.SFT[RECIPE](), dataset=str(demos), **shorter.get("sft", {})), sft)
    config = replace(recipes.TRAIN[RECIPE](), policy=str(start), **shorter.get("rl", {}))
    print(simplevla.train(config, rl).message)
    states = simplevla.EvalConfig(**shorter.get("eval", {}))
    for name, policy in (("imitation", start), ("RL", rl / "policy")):
        print(name, simplevla.evaluate(policy, config.suite, config=states).overall)
    print(f"curves: tensorboard --logdir {folder}\nreport with films: simplevla report {rl}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
