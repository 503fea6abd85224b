import io
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla import cli
from simplevla.config import EvalConfig, RolloutConfig, SuiteConfig, TrainConfig, to_dict
from simplevla.errors import UserError
from simplevla.evaluation import evaluate as evaluation
from simplevla.evaluation.evaluate import evaluation_request
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.result import read_result, write_result
from simplevla.policies.base import ActionSample
from simplevla.report import evidence
from simplevla.report.choice import choose_states
from simplevla.report.page import write_report
from simplevla.report.videos import encode_video, read_clips, record_videos
from simplevla.rollout.workers import SuiteError
from simplevla.storage import FolderLock, read_json, write_json
from simplevla.suites.base import Environment, Suite, SuiteSpec
from simplevla.types import ChunkResult, Observation, Task


class Corridor(Environment):
    """Solved when the agent has moved 8 cells; the picture's brightness is its position."""

    def reset(self, task, initial_state):
        self.cell, self.chunks = initial_state, []
        return self.observe()

    def observe(self):
        return Observation(images={"front": self.render()}, state=np.array([self.cell], np.float32))

    def step_chunk(self, actions):
        self.chunks.append(len(actions))
        self.cell += int(actions.sum())
        return ChunkResult(observation=self.observe(), executed=len(actions), success=self.cell >= 8)

    def render(self):
        return np.full((33, 48, 3), 20 * self.cell, np.uint8)


class CorridorSuite(Suite):
    name = "corridor"
    protocol = {}  # noqa: RUF012
    spec = SuiteSpec(
        cameras={"front": (33, 48)},
        state_names=("cell",),
        action_names=("cells",),
        action_low=(0.0,),
        action_high=(1.0,),
        control_hz=10.0,
    )
    tasks = (Task(name="walk", instruction="walk to the end", horizon=7, horizon_reason="test"),)

    def initial_states(self, task, split):
        return [0, 5]

    def make_environment(self):
        self.environment = Corridor()
        return self.environment


class WalksOneCell(torch.nn.Module):
    """A stub policy of chunk length 5 that records what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def act(self, batch, sampling, generators):
        self.asked.append(
            (float(batch.state[0, 0]), batch.instructions, sampling.greedy, tuple(batch.images["front"].shape))
        )
        return ActionSample(
            actions=np.ones((1, 5, 1), np.float32),
            logprobs=torch.zeros(1, 5),
            trace=torch.zeros(1, 5, dtype=torch.long),
        )


class Notes(WalksOneCell):
    """Also notes what its generator draws first, as a policy that denoises would."""

    def act(self, batch, sampling, generators):
        self.asked.append(float(generators[0].random()))
        return super().act(batch, sampling, generators)


def test_a_film_starts_from_the_noise_that_the_evaluation_starts_from(tmp_path):
    suite, policy = CorridorSuite(), Notes()
    (task,) = suite.tasks
    record_videos(suite, policy, [(task, 0), (task, 5)], tmp_path, "after")
    drawn = [asked for asked in policy.asked if isinstance(asked, float)]
    expected = [evaluation_request(task, state, EvalConfig().seed).generator() for state in (0, 5)]
    # Two decisions from state 0 with one generator, one from state 5.
    first = [expected[0].random(), expected[0].random(), expected[1].random()]
    assert drawn == first
    assert len(set(first)) == 3


def decode(data):
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], float(rate)


def test_a_solved_and_an_unsolved_episode_are_filmed_step_by_step(tmp_path):
    suite, policy = CorridorSuite(), WalksOneCell()
    task = suite.tasks[0]
    clips = record_videos(suite, policy, [(task, 0), (task, 5)], tmp_path, "before")
    # From cell 0 the horizon of 7 ends the episode at cell 7; from cell 5 success comes after 3 env steps.
    assert [(c.initial_state, c.success, c.env_steps) for c in clips] == [(0, False, 7), (5, True, 3)]
    assert policy.asked == [
        (0.0, ["walk to the end"], True, (1, 33, 48, 3)),
        (5.0, ["walk to the end"], True, (1, 33, 48, 3)),
        (5.0, ["walk to the end"], True, (1, 33, 48, 3)),
    ]
    assert suite.environment.chunks == [1, 1, 1]
    frames, rate = decode((tmp_path / "before_walk_005.mp4").read_bytes())
    assert rate == 10.0
    # 4 pictures (cells 5 to 8), then the last one held for 0.6 s at 10 Hz
    brightness = [round(float(frame.mean()) / 20) for frame in frames]
    assert brightness == [5, 6, 7, 8, 8, 8, 8, 8, 8, 8]
    assert frames[0].shape == (34, 48, 3)


def test_a_film_whose_environment_breaks_is_left_out_and_said(tmp_path, monkeypatch):
    class Falling(Corridor):
        def reset(self, task, initial_state):
            if initial_state == 0:
                raise RuntimeError("the floor gave way")
            return super().reset(task, initial_state)

    suite = CorridorSuite()
    monkeypatch.setattr(CorridorSuite, "make_environment", lambda self: Falling())
    task = suite.tasks[0]
    with pytest.warns(
        UserWarning, match=r"no film before RL of task 'walk', initial state 0: .*RuntimeError: the floor"
    ):
        clips = record_videos(suite, WalksOneCell(), [(task, 0), (task, 5)], tmp_path, "before")
    assert [clip.initial_state for clip in clips] == [5]
    assert read_clips(tmp_path, "before") == clips


def test_the_list_of_clips_is_read_back(tmp_path):
    suite = CorridorSuite()
    clips = record_videos(suite, WalksOneCell(), [(suite.tasks[0], 0)], tmp_path, "after")
    assert read_clips(tmp_path, "after") == clips
    assert read_clips(tmp_path, "before") == []


def test_a_missing_video_is_named(tmp_path):
    suite = CorridorSuite()
    record_videos(suite, WalksOneCell(), [(suite.tasks[0], 0)], tmp_path, "after")
    (tmp_path / "after_walk_000.mp4").unlink()
    with pytest.raises(ValueError, match=r"after\.json names after_walk_000\.mp4"):
        read_clips(tmp_path, "after")


def test_without_an_h264_encoder_an_animated_picture_is_made(monkeypatch):
    def no_codec(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(av.codec, "Codec", no_codec)
    data, ending = encode_video([np.full((8, 8, 3), value, np.uint8) for value in (0, 120, 240)], fps=5.0)
    assert ending == ".webp"
    picture = Image.open(io.BytesIO(data))
    # The held copies of the last picture merge with it: 3 pictures, each after 200 ms
    assert picture.n_frames == 3
    picture.seek(1)
    assert picture.convert("RGB").getpixel((4, 4)) == pytest.approx((120, 120, 120), abs=4)


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    """The folder of a run whose policies before and after solve different states of the fake suite."""
    for module in (evidence, evaluation):
        monkeypatch.setattr(module, "load_policy", load_fake_policy)
    FakePolicy(seed=8).save(tmp_path / "start")
    FakePolicy(seed=21).save(tmp_path / "run" / "policy")
    config = TrainConfig(
        suite=SuiteConfig(name="fake_suite:make"),
        policy=str(tmp_path / "start"),
        rollout=RolloutConfig(workers=1, slots_per_worker=2),
    )
    write_json(tmp_path / "run" / "config.json", to_dict(config))
    return tmp_path / "run"


def outcomes(items):
    return {(item.task, item.initial_state): (item.success, item.env_steps) for item in items}


def test_films_are_the_evaluation_s_episodes_each_state_once(finished_run):
    evidence.gather_evidence(finished_run)
    before, after = (read_result(finished_run / "eval" / f"{name}.json") for name in ("before", "after"))
    choice = choose_states(before, after)
    assert len(choice.states) > len(choice.neutral) == 3
    for name, result in (("before", before), ("after", after)):
        clips = read_clips(finished_run / "videos", name)
        assert [(clip.task, clip.initial_state) for clip in clips] == choice.states
        evaluated = outcomes(result.episodes)
        assert outcomes(clips) == {state: evaluated[state] for state in choice.states}
        assert {success for success, _ in outcomes(clips).values()} == {True, False}


def test_the_report_says_in_the_terminal_what_was_evaluated(finished_run, capsys):
    assert cli.main(["report", str(finished_run), "--trust-suite"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("before", "after"):
        result = read_result(finished_run / "eval" / f"{name}.json").overall
        line = next(line for line in lines if line.startswith(f"evaluation {name} RL"))
        assert f"{result.solved} of {result.n} solved" in line


def test_films_are_made_again_only_where_policy_or_states_are_others(finished_run):
    def times():
        return {path: path.stat().st_mtime_ns for path in (finished_run / "videos").iterdir()}

    evidence.gather_evidence(finished_run)
    first, videos = times(), finished_run / "videos"
    evidence.gather_evidence(finished_run)
    assert times() == first
    # Chosen by another rule once.
    listed = read_json(videos / "after.json")["clips"]
    write_json(videos / "after.json", {"clips": listed[:-1]})
    evidence.gather_evidence(finished_run)
    assert read_json(videos / "after.json")["clips"] == listed
    # Evaluated again, and stopped before it was filmed again.
    write_json(videos / "after.json", {"clips": [{**clip, "policy_sha256": "of another"} for clip in listed]})
    evidence.gather_evidence(finished_run)
    assert read_json(videos / "after.json")["clips"] == listed
    assert times()[videos / "before.json"] == first[videos / "before.json"]


def test_a_short_look_is_replaced_by_all_states_and_never_the_other_way(finished_run):
    def results():
        return [read_result(finished_run / "eval" / f"{name}.json") for name in ("before", "after")]

    evidence.gather_evidence(finished_run, episodes_per_task=1)
    tasks = len(results()[0].horizons)
    assert [(len(result.episodes), result.episodes_per_task) for result in results()] == [(tasks, 1)] * 2
    assert results()[0].states == "the first 1 test initial states of each task"
    page = write_report(finished_run).read_text()
    assert "fake, the first 1 test initial states of each task" in page
    evidence.gather_evidence(finished_run)
    whole = results()
    assert [result.episodes_per_task for result in whole] == [0, 0]
    assert len(whole[0].episodes) == len(whole[1].episodes) > tasks
    evidence.gather_evidence(finished_run, episodes_per_task=1)
    assert results() == whole
    # Half of it is worth nothing beside a short one.
    (finished_run / "eval" / "after.json").unlink()
    evidence.gather_evidence(finished_run, episodes_per_task=1)
    assert [result.episodes_per_task for result in results()] == [1, 1]


def test_what_a_killed_evaluation_had_begun_is_removed_and_nobody_else_evaluates_meanwhile(finished_run):
    begun = [finished_run / "videos" / ".before_reach_4.mp4.4711.tmp", finished_run / "eval" / ".before.json.4711.tmp"]
    for path in begun:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    with FolderLock(finished_run), pytest.raises(UserError, match="run is in use by process"):
        evidence.gather_evidence(finished_run)
    evidence.gather_evidence(finished_run)
    assert not [path for path in begun if path.exists()]
    assert len(read_clips(finished_run / "videos", "before")) > 0


def test_a_start_that_is_another_policy_by_now_is_not_taken_for_before(finished_run, tmp_path):
    write_json(finished_run / "environment.json", {"start_policy_sha256": policy_fingerprint(tmp_path / "start")})
    FakePolicy(seed=9).save(tmp_path / "start")
    with pytest.warns(UserWarning, match="isn't the one that .* started from any more"):
        evidence.gather_evidence(finished_run)
    assert not (finished_run / "eval").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"split": "train"},
        {"greedy": False, "temperature": 1.0},
        {"episodes": ()},
        {"protocol": {"suite": "fake", "mujoco": "2.0"}},
    ],
)
def test_an_evaluation_of_something_else_is_not_taken_for_the_run_s(finished_run, change):
    """A file that somebody put there, or from before a package was upgraded."""
    evidence.gather_evidence(finished_run)
    file = finished_run / "eval" / "after.json"
    good = read_result(file)
    write_result(file, replace(good, **change))
    evidence.gather_evidence(finished_run)
    again = read_result(file)
    assert (again.split, again.greedy, again.episodes) == ("test", True, good.episodes)
    assert again.protocol == good.protocol


def test_a_film_s_success_is_what_the_contract_allows(tmp_path):
    class Score(Corridor):
        def step_chunk(self, actions):
            return ChunkResult(observation=self.observe(), executed=len(actions), success="yes")

    suite = CorridorSuite()
    suite.make_environment = Score
    with pytest.raises(SuiteError, match="success is 'yes' of type str"):
        record_videos(suite, WalksOneCell(), [(suite.tasks[0], 0)], tmp_path, "before")
