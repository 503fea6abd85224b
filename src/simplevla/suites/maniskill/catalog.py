"""Tasks of ManiSkill, their instructions and horizons. No simulator here."""

from simplevla.errors import UserError
from simplevla.types import Task

INSTRUCTIONS = {
    "PickCube-v1": "pick up the red cube and bring it to the green ball",
    "PushCube-v1": "push the blue cube away onto the target",
    "PullCube-v1": "pull the blue cube back onto the target",
    "StackCube-v1": "put the red cube onto the green cube",
    "LiftPegUpright-v1": "stand the peg upright",
    "PlaceSphere-v1": "put the blue ball into the white tray",
    "PokeCube-v1": "push the red cube onto the target with the blue peg",
}
"""Task, under the benchmark's name -> instruction. The benchmark has no language; these are ours."""
TRAIN_STATES, TEST_STATES = 100, 50
HORIZON = (50, "the benchmark's own max_episode_steps, the same for every task")
HORIZONS = {
    "LiftPegUpright-v1": (80, "the hand turns by 0.04 rad an env step, so the scripted expert needs 41 to 72 of them"),
}
"""Task -> env steps, where they aren't the benchmark's, and why that many."""


def tasks(protocol: str) -> tuple[Task, ...]:
    """The seven tasks.

    Raises:
        UserError: unknown horizon protocol.
    """
    if protocol != "maniskill":
        raise UserError(f"suite.horizon_protocol is {protocol!r}; ManiSkill has the horizon protocol maniskill")
    made = []
    for name, instruction in INSTRUCTIONS.items():
        steps, reason = HORIZONS.get(name, HORIZON)
        made.append(Task(name=name, instruction=instruction, horizon=steps, horizon_reason=reason))
    return tuple(made)
