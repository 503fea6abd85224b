import errno
import json
import os

import pytest

from simplevla.report.page import write_report
from simplevla.storage import write_json


def make_run(run, **files):
    contents = {
        "config.json": "{}",
        "metrics.jsonl": '{"update": 1, "train_success": 0.5}\n',
        **files,
    }
    for name, content in contents.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"updates": ', r"config\.json is not valid JSON"),
        ("environment.json", "[1]", r"environment\.json holds a JSON list; expected an object"),
        ("config.json", '{"policy": 3}', r"config\.json: Start\.policy is 3; expected a text"),
        ("environment.json", '{"date": "yesterday"}', r"environment\.json: Facts\.date is 'yesterday'"),
        ("policy/model.safetensors", "short", r"model\.safetensors is damaged"),
        ("metrics.jsonl", '{"update": 1}\n{"update": 2, "tr\n', r"metrics\.jsonl, line 2 is not valid JSON"),
        (
            "metrics.jsonl",
            '{"update": 1, "entropy": "low"}\n',
            r"metrics\.jsonl, line 1: entropy is 'low'; expected a finite",
        ),
        (
            "metrics.jsonl",
            '{"update": 1, "errors": {"hung": "5"}}\n',
            r"line 1: Texts\.errors\.hung is '5'; expected a whole",
        ),
        ("metrics.jsonl", "[" * 200_000 + "\n", r"line 1 is not valid JSON \(recursion limit exceeded"),
        (
            "metrics.jsonl",
            '{"update": 1}\n{"loss": 2}\n',
            r"metrics\.jsonl, line 2: update is None; expected a whole number",
        ),
        ("eval/before.json", "{}", r"before\.json: key 'suite' is missing"),
        ("videos/after.json", '{"clips": [{}]}', r"after\.json: Clip lacks 'task'"),
    ],
)
def test_a_damaged_part_is_named_and_the_old_page_stays(tmp_path, name, content, message):
    make_run(tmp_path, **{"policy/config.json": "{}", name: content})
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


@pytest.mark.parametrize(
    ("row", "message"),
    [('{"batch": ', "line 2 is not valid JSON"), ('{"batch": 1.5}', "line 2: batch is 1.5; expected a whole number")],
)
def test_a_damaged_history_of_the_imitation_is_named(tmp_path, row, message):
    make_run(tmp_path / "rl", **{"config.json": json.dumps({"policy": str(tmp_path / "sft" / "policy")})})
    make_run(tmp_path / "sft", **{"metrics.jsonl": f'{{"batch": 1}}\n{row}\n'})
    with pytest.raises(ValueError, match=rf"sft/metrics\.jsonl, {message}"):
        write_report(tmp_path / "rl")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_page_and_no_scraps(tmp_path, monkeypatch):
    make_run(tmp_path)
    page = write_report(tmp_path)
    before = page.read_bytes()
    (tmp_path / "metrics.jsonl").write_text('{"update": 1, "train_success": 0.9}\n')

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path)
    assert page.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "metrics.jsonl", "report.html"]


def test_a_result_with_nan_is_refused_before_the_file_is_touched(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"rate": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"rate": float("nan")})
    assert json.loads(path.read_text()) == {"rate": 0.5}
