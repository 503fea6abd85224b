"""Choices of cameras, features, instructions and episodes that a dataset doesn't have: one line each, before training."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_dataset import write
from simplevla.checked import from_dict
from simplevla.cli import main
from simplevla.config import SFTConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError
from simplevla.reading import ReadingConfig
from simplevla.training.imitation import sft

FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cameras", ["fixed"], "cameras is 'fixed'; expected NAME=FEATURE"),
        ("cameras", ["=observation.images.front"], "cameras is '=observation.images.front'; expected NAME=FEATURE"),
        ("cameras", ["fixed="], "cameras is 'fixed='; expected NAME=FEATURE"),
        ("cameras", [f"a={FRONT}", f"a={WRIST}"], "cameras has 'a' twice"),
        ("cameras", [f"a={FRONT}", f"b={FRONT}"], f"cameras has the feature '{FRONT}' twice"),
        ("cameras", [f"../a={FRONT}"], r"cameras names one '../a'; expected letters"),
        ("instructions", ["lift the block"], "instructions is 'lift the block'; expected 'OLD SENTENCE=NEW SENTENCE'"),
        ("instructions", ["lift the block= "], "instructions is 'lift the block= '; expected"),
        ("instructions", ["a=b", "a=c"], "instructions has 'a' twice"),
        ("episodes", "0-2", "episodes is '0-2'; expected numbers and ranges from 0 up, such as 0:100,130"),
        ("episodes", "0:2,", "episodes is '0:2,'"),
        ("episodes", "-1", "episodes is '-1'"),
        ("episodes", "0:2:1", "episodes is '0:2:1'"),
        ("episodes", "٣", "episodes is '٣'"),
        ("idle_frames", "skip", "idle_frames is 'skip'; expected 'keep' or 'drop'"),
    ],
)
def test_settings_of_another_form(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(SFTConfig, {key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cameras", ["a=observation.images.frnt"], f"a=observation.images.frnt; .*data has the cameras '{FRONT}'"),
        ("cameras", ["a=action"], f"a=action; .*data has the cameras .*'{WRIST}'"),
        ("state", "observation.sate", "no feature 'observation.sate'; it has: 'observation.state', .* --state FEATURE"),
        ("actions", "actions", "no feature 'actions'; it has: 'action', .*; name one by --actions FEATURE"),
        ("state", FRONT, rf"feature '{FRONT}' has shape \[6, 8, 3\]; expected one dimension"),
        (
            "instructions",
            ["lift the clock=x"],
            "replaces 'lift the clock'; .* has 'lift the block', 'press the button'",
        ),
        (
            "episodes",
            "0:4",
            r"episodes '0:4' of .*data isn't all there: it has the episodes 0 to 2; expected such as 0:3",
        ),
        ("episodes", "0,3", "episodes '3' of .* isn't all there"),
        ("episodes", "3:", "episodes '3:' of .* is empty"),
        ("episodes", "1:1", "episodes '1:1' of .* is empty"),
        ("episodes", "2:1", "episodes '2:1' of .* is empty"),
    ],
)
def test_a_dataset_that_has_no_such_thing(folder: Path, key: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LeRobotDataset(folder, from_dict(ReadingConfig, {key: value}))


def test_a_depth_map_is_no_camera(folder: Path) -> None:
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][FRONT] |= {"shape": [6, 8, 1]}
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=rf"cameras has a={FRONT}, whose shape is \[6, 8, 1\]: a depth map"):
        LeRobotDataset(folder, ReadingConfig(cameras=(f"a={FRONT}",)))


def test_a_map_that_misses_a_camera_of_the_policy(folder: Path, tmp_path: Path) -> None:
    given = (f"fixed={FRONT}", f"hand={WRIST}")
    first = SFTConfig(dataset=str(folder), batches=1, batch_size=2, shift_pixels=0, cameras=given)
    policy = sft(first, tmp_path / "first")
    again = replace(first, policy=str(policy))
    expected = (
        rf"looks through .*hand, the dataset .*data has .*\. Name its cameras: --cameras fixed={FRONT} hand={WRIST}$"
    )
    for cameras in (given[:1], (), (f"fixed={FRONT}", f"wrist={WRIST}")):
        with pytest.raises(UserError, match=expected):
            sft(replace(again, cameras=cameras), tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_choice_without_frames(folder: Path) -> None:

    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([*rows, rows[0] | {"episode_index": 3, "length": 0}]), path)
    assert LeRobotDataset(folder, ReadingConfig(episodes="2:")).num_frames == 4
    with pytest.raises(UserError, match="the episodes '3' have no frames; choose others"):
        LeRobotDataset(folder, ReadingConfig(episodes="3"))


def test_a_missing_file_of_a_chosen_episode_is_still_an_error(folder: Path) -> None:
    (folder / "data/chunk-000/file-000.parquet").unlink()
    with pytest.raises(UserError, match=r"file-000.parquet is missing; copy the dataset's data/ folder"):
        LeRobotDataset(folder, ReadingConfig(episodes="1")).load_all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cameras", f"a={FRONT}", "b=nowhere"], f"cameras has b=nowhere; FOLDER has the cameras '{FRONT}'"),
        (["--episodes", "0:9"], "episodes '0:9' of FOLDER isn't all there"),
        (["--state", "action", "--actions", "nowhere"], "FOLDER has no feature 'nowhere'"),
        (["--instructions", "a b=c d"], "instructions replaces 'a b'; FOLDER has 'lift the block'"),
    ],
)
def test_the_command_says_it_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["sft", "--dataset", str(folder), "--run", str(tmp_path / "run"), *flags]) == 2
    lines = capsys.readouterr().err.replace(str(folder), "FOLDER").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()
