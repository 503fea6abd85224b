"""Tasks of Meta-World, their instructions and horizons. No simulator here."""

from simplevla.errors import UserError
from simplevla.types import Task

INSTRUCTIONS = {
    "assembly-v3": "put the ring over the red peg",
    "basketball-v3": "drop the orange ball through the hoop",
    "bin-picking-v3": "move the green block from the red bin into the blue bin",
    "box-close-v3": "put the lid onto the wooden box",
    "button-press-topdown-v3": "press the red button down from above",
    "button-press-topdown-wall-v3": "press the red button down from above, past the wall",
    "button-press-v3": "push the red button in from the front",
    "button-press-wall-v3": "push the red button in from the front, past the wall",
    "coffee-button-v3": "press the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine to the green marker",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial",
    "disassemble-v3": "lift the ring off the red peg",
    "door-close-v3": "push the open safe door shut",
    "door-lock-v3": "turn the handle down to lock the safe",
    "door-open-v3": "pull the safe door open by its handle",
    "door-unlock-v3": "turn the handle sideways to unlock the safe",
    "hand-insert-v3": "reach into the hole in the table down to the blue marker",
    "drawer-close-v3": "push the green drawer shut",
    "drawer-open-v3": "pull the green drawer open by its handle",
    "faucet-open-v3": "turn the faucet open",
    "faucet-close-v3": "turn the faucet closed",
    "hammer-v3": "take the hammer and drive the nail into the wooden box",
    "handle-press-side-v3": "press the handle down while it points sideways",
    "handle-press-v3": "press the handle down while it points forwards",
    "handle-pull-side-v3": "pull the handle up while it points sideways",
    "handle-pull-v3": "pull the handle up while it points forwards",
    "lever-pull-v3": "push the lever up",
    "pick-place-wall-v3": "pick up the red puck and bring it over the wall to the blue marker",
    "pick-out-of-hole-v3": "lift the red puck out of the hole and bring it to the blue marker",
    "pick-place-v3": "pick up the red puck and bring it to the blue marker",
    "plate-slide-v3": "slide the plate forwards into the goal",
    "plate-slide-side-v3": "slide the plate sideways into the goal",
    "plate-slide-back-v3": "slide the plate back out of the goal",
    "plate-slide-back-side-v3": "slide the plate sideways out of the goal",
    "peg-insert-side-v3": "insert the green peg sideways into the hole of the red box",
    "peg-unplug-side-v3": "pull the plug sideways out of the socket",
    "soccer-v3": "push the football into the goal",
    "stick-push-v3": "take the blue stick and push the thermos with it to the green marker",
    "stick-pull-v3": "take the blue stick and pull the thermos with it to the green marker",
    "push-v3": "push the red puck to the green marker",
    "push-wall-v3": "push the red puck around the wall to the green marker",
    "push-back-v3": "pull the red puck back to the green marker",
    "reach-v3": "move the gripper to the red marker",
    "reach-wall-v3": "move the gripper past the wall to the red marker",
    "shelf-place-v3": "put the blue block onto the shelf",
    "sweep-into-v3": "sweep the brown block into the hole in the table",
    "sweep-v3": "sweep the brown block off the edge of the table",
    "window-open-v3": "slide the window open",
    "window-close-v3": "slide the window closed",
}
"""Task, under the benchmark's name and in its order -> instruction. The benchmark has no language; these are ours."""

TRAIN_STATES, TEST_STATES = 100, 50

HORIZONS = {
    "short": (
        200,
        "the benchmark's scripted experts need 32 to 137 env steps on average; only push-back-v3's is slower, at 271",
    ),
    "metaworld": (500, "the benchmark's own max_path_length, the same for every task"),
}
"""Horizon protocol -> env steps, and why that many."""


def tasks(protocol: str) -> tuple[Task, ...]:
    """All 50 tasks in the benchmark's own order.

    Raises:
        UserError: unknown horizon protocol.
    """
    if protocol not in HORIZONS:
        raise UserError(
            f"suite.horizon_protocol is {protocol!r}; Meta-World has the horizon protocols {' and '.join(HORIZONS)}"
        )
    steps, reason = HORIZONS[protocol]
    return tuple(
        Task(name=name, instruction=instruction, horizon=steps, horizon_reason=reason)
        for name, instruction in INSTRUCTIONS.items()
    )
