"""Names and rates of LIBERO's observations and actions, for those who have no simulator."""

STATE_NAMES = (
    "hand_x_m",
    "hand_y_m",
    "hand_z_m",
    "hand_rotation_x_rad",
    "hand_rotation_y_rad",
    "hand_rotation_z_rad",
    "finger_left_m",
    "finger_right_m",
)
ACTION_NAMES = (
    "delta_x_50mm",
    "delta_y_50mm",
    "delta_z_50mm",
    "rotate_x_0.5rad",
    "rotate_y_0.5rad",
    "rotate_z_0.5rad",
    "gripper_minus_opens_plus_closes",
)
CONTROL_HZ = 20.0
PICK_AND_PLACE: dict[str, tuple[str, ...]] = {
    "libero_object": (),
    "libero_spatial": (),
    "libero_goal": (
        "put_the_bowl_on_the_stove",
        "put_the_wine_bottle_on_top_of_the_cabinet",
        "put_the_bowl_on_top_of_the_cabinet",
        "put_the_cream_cheese_in_the_bowl",
        "put_the_bowl_on_the_plate",
    ),
}
"""Suites with an expert, and their tasks that it solves; empty means all."""

PERTURBATIONS = ("swap", "object", "lan", "task")
"""LIBERO-PRO's kinds (arXiv 2510.03827): moved objects, other looks, other words, another task in the same scene."""


def published_instruction(task_name: str) -> str:
    """Instruction of published demonstrations and checkpoints: the task's name without its scene, as words.

    >>> published_instruction("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet")
    'close the top drawer of the cabinet'
    """
    words = task_name.split("_")
    scene = next((i for i, word in enumerate(words) if word.startswith("SCENE")), -1)
    return " ".join(words[scene + 1 :]).lower()
