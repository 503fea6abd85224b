import numpy as np
import pytest

from fake_suite import REGULAR, FakeEnvironment, FakeSuite
from simplevla.config import SuiteConfig
from simplevla.rollout.workers import (
    Reset,
    SimulatorSlots,
    SlotArrays,
    Step,
    SuiteError,
    check_observation,
    check_result,
)
from simplevla.suites.registry import make_suite
from simplevla.types import ChunkResult, Observation, Task

SPEC = FakeSuite.spec


def observation(**changes: object) -> Observation:
    images = {"front": np.zeros((8, 8, 3), np.uint8), "wrist": np.zeros((4, 6, 3), np.uint8)}
    values = {"images": images, "state": np.zeros(3, np.float32), **changes}
    return Observation(**values)  # type: ignore[arg-type]


def result(executed: object = 4, success: object = False) -> ChunkResult:
    return ChunkResult(observation=observation(), executed=executed, success=success)  # type: ignore[arg-type]


def test_slot_arrays_partition_the_memory() -> None:
    # 2 slots x (4 B x (4 actions x 2 dimensions + 3 state) + 3 x (64 + 24) pixels) = 2 x (44 + 264)
    assert SlotArrays.nbytes(SPEC, slots=2, chunk_length=4) == 616
    memory = bytearray(616)
    arrays = SlotArrays.over(memory, SPEC, slots=2, chunk_length=4)
    views = [arrays.actions, arrays.state, arrays.images["front"], arrays.images["wrist"]]
    assert [view.shape for view in views] == [(2, 4, 2), (2, 3), (2, 8, 8, 3), (2, 4, 6, 3)]
    for number, view in enumerate(views, start=1):
        view.view(np.uint8)[:] = number
    # No byte is left out, and none is shared: a later view overwrites no earlier one.
    assert np.bincount(np.frombuffer(memory, np.uint8), minlength=5).tolist() == [0, 64, 24, 384, 144]


@pytest.mark.parametrize(
    ("forward", "last", "renders", "success"), [(0.0, False, 2, False), (0.0, True, 1, False), (1.0, False, 1, True)]
)
def test_nobody_looks_at_the_end_of_an_episode(forward: float, last: bool, renders: int, success: bool) -> None:
    memory = bytearray(SlotArrays.nbytes(SPEC, slots=1, chunk_length=4))
    arrays = SlotArrays.over(memory, SPEC, slots=1, chunk_length=4)
    server = SimulatorSlots(make_suite(SuiteConfig(name="fake_suite:make")), 1, arrays)
    assert server.execute(Reset(0, "reach", 0)).kind == "done"
    arrays.actions[0, :, 0] = forward
    reply = server.execute(Step(0, 4, last))
    assert (reply.kind, reply.success) == ("done", success)
    assert server.environments[0].renders == renders  # type: ignore[union-attr]
    assert arrays.state[0, 2] == renders


class Sharing(FakeEnvironment):
    """Renders a group's first observation once."""

    def reset_unseen(self, task: Task, initial_state: int) -> None:
        self.reset(task, initial_state)
        self.renders = 0


@pytest.mark.parametrize(("shares", "renders"), [(True, [1, 0, 1, 1]), (False, [1, 1, 1, 1])])
def test_the_first_of_siblings_renders_for_all(
    shares: bool, renders: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = FakeSuite(REGULAR)
    if shares:
        monkeypatch.setattr(suite, "make_environment", Sharing)
    arrays = SlotArrays.over(bytearray(SlotArrays.nbytes(SPEC, slots=4, chunk_length=4)), SPEC, 4, 4)
    server = SimulatorSlots(suite, 4, arrays)
    for slot, state in enumerate([0, 0, 1, 0]):
        assert server.execute(Reset(slot, "reach", state)).kind == "done"
    assert [environment.renders for environment in server.environments] == renders  # type: ignore[union-attr]
    goals = np.array([0.4, 0.4, 0.45, 0.4], np.float32)
    assert np.array_equal(arrays.state[:, 1], goals)
    assert (arrays.images["wrist"][:, :-1] == 1).all()
    assert arrays.images["wrist"][:, -1, -1, 0].tolist() == [int(100 * goal) for goal in goals]
    assert np.array_equal([environment.goal for environment in server.environments], goals)  # type: ignore[union-attr]


def test_what_siblings_see_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulator may hand out the picture that it renders into next."""
    seen = observation()

    class Reusing(Sharing):
        def observe(self) -> Observation:
            seen.state[1] += 1
            return seen

    suite = FakeSuite(REGULAR)
    monkeypatch.setattr(suite, "make_environment", Reusing)
    arrays = SlotArrays.over(bytearray(SlotArrays.nbytes(SPEC, slots=2, chunk_length=4)), SPEC, 2, 4)
    server = SimulatorSlots(suite, 2, arrays)
    server.execute(Reset(0, "reach", 0))
    server.execute(Reset(1, "reach", 0))
    assert arrays.state[:, 1].tolist() == [1, 1]


def test_a_correct_observation_passes() -> None:
    check_observation(observation(), SPEC)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"state": np.zeros(4, np.float32)}, r"state is float32 \(4,\); expected float32 \(3,\)"),
        ({"state": np.zeros(3)}, r"state is float64 \(3,\); expected float32 \(3,\)"),
        ({"state": [0.0, 0.0, 0.0]}, r"state is list; expected float32 \(3,\)"),
        ({"state": np.array([0, np.nan, 0], np.float32)}, "NaN or infinite values: {'goal_m': nan}"),
        ({"state": np.array([0, 0, np.inf], np.float32)}, "NaN or infinite values: {'renders': inf}"),
        ({"images": {}}, r"cameras \[\]; expected \['front', 'wrist'\]"),
        (
            {"images": {"front": np.zeros((8, 8, 3), np.uint8), "wrist": np.zeros((6, 4, 3), np.uint8)}},
            r"image 'wrist' is uint8 \(6, 4, 3\); expected uint8 \(4, 6, 3\)",
        ),
        (
            {"images": {"front": np.zeros((8, 8, 3), np.float32), "wrist": np.zeros((4, 6, 3), np.uint8)}},
            r"image 'front' is float32 \(8, 8, 3\); expected uint8",
        ),
    ],
)
def test_a_wrong_observation_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        check_observation(observation(**wrong), SPEC)


def test_an_observation_of_another_type_is_named() -> None:
    with pytest.raises(SuiteError, match="is a dict; expected simplevla"):
        check_observation({"state": 0}, SPEC)


def test_correct_results_pass() -> None:
    check_result(result(4, False), 4)
    check_result(result(np.int64(1), np.bool_(True)), 4)


@pytest.mark.parametrize(
    ("executed", "success", "message"),
    [
        (4, 1, "success is 1 of type int; expected True or False"),
        (4, 0.0, "success is 0.0 of type float"),
        (4, np.float32(1), "of type float32; expected True or False"),
        (4, None, "success is None"),
        (0, True, "executed is 0 of 4 actions; expected an int from 1 to 4"),
        (5, True, "executed is 5 of 4 actions"),
        (2.0, True, "executed is 2.0 of 4 actions"),
        (3, False, "executed is 3 of 4 actions without success"),
    ],
)
def test_a_wrong_result_is_named(executed: object, success: object, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        check_result(result(executed, success), 4)


def test_a_result_of_another_type_is_named() -> None:
    with pytest.raises(SuiteError, match="returned a tuple; expected simplevla"):
        check_result((1, 2), 4)
