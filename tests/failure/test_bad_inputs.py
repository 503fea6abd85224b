"""Bad input of every kind ends well or with one line; the whole campaign is benchmarks/experiments/bad_inputs.py."""

import io
import json
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import small_tinyvla as small
from benchmarks.experiments.bad_input_changes import WRITTEN
from benchmarks.experiments.bad_inputs import Inputs
from simplevla import cli
from simplevla.adapters.load import load_policy
from simplevla.config import SuiteConfig
from simplevla.errors import UserError, one_line
from simplevla.policies.published import read_tensors
from simplevla.policies.tinyvla.published_pickle import read_pickle
from simplevla.storage import read_json
from simplevla.suites.registry import make_suite
from simplevla.terminal import Console


@pytest.mark.timeout(120)
def test_a_hundred_inputs_of_the_campaign(tmp_path: Path) -> None:
    inputs = Inputs(seed=0, work=tmp_path)
    # Those that were written by hand come first.
    written = len(WRITTEN)
    tried = [inputs.attempt(number) for number in (*range(0, written, 2), *range(written, written + 45))]
    assert len(tried) > 100
    assert [f"{what}\n{trace}" for what, trace in tried if trace] == []


def test_the_campaign_sees_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(path: Path) -> None:
        raise KeyError(path)

    inputs = Inputs(seed=0, work=tmp_path)
    monkeypatch.setattr("simplevla.policies.load.read_json", careless)
    what, trace = inputs.attempt(0)
    assert what == "0, policy"
    assert "KeyError" in trace


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 300 + "1" + "}" * 300, '{"a": ' + "9" * 5000 + "}"])
def test_json_that_is_too_deep_or_too_long_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_is_as_large_as_settings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplevla.storage.LONGEST_JSON", 10)
    (tmp_path / "a.json").write_text('{"a": "long enough"}')
    with pytest.raises(UserError, match=r"a\.json has 20 bytes; expected a JSON file of at most 10"):
        read_json(tmp_path / "a.json")


def test_shared_lists_in_a_pickle_count_as_often_as_they_are_there(tmp_path: Path) -> None:
    values: list = [0.0, 1.0]
    for _ in range(26):
        values = [values, values]
    file = tmp_path / "stats.pkl"
    file.write_bytes(pickle.dumps(values))
    assert file.stat().st_size < 300
    started = time.process_time()
    with pytest.raises(UserError, match=r"stats\.pkl holds more than 1000000 values"):
        read_pickle(file)
    assert time.process_time() - started < 0.5
    deep: list = []
    for _ in range(100):
        deep = [deep]
    file.write_bytes(pickle.dumps(deep))
    with pytest.raises(UserError, match="nested more than 50 levels deep"):
        read_pickle(file)
    # LONG_BINPUT: the reader would make room for two thousand million entries.
    file.write_bytes(b"\x80\x04]r\xff\xff\xff\x7f.")
    with pytest.raises(UserError, match="more than 200000 values"):
        read_pickle(file)
    shared = np.ones(3)
    file.write_bytes(pickle.dumps({"a": shared, "b": [shared, shared]}))
    assert read_pickle(file)["b"][1].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
    ],
    ids=["sparse", "expanded", "meta", "complex"],
)
def test_a_tensor_whose_numbers_are_not_in_the_file_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"weight": tensor}, tmp_path / "weights.bin")
    with pytest.raises(
        UserError, match=r"weights\.bin holds weight as a .*expected one whose numbers are all in the file"
    ):
        read_tensors([tmp_path / "weights.bin"])


def test_ids_that_have_no_row_in_the_embedding_are_refused(tmp_path: Path) -> None:
    small.make().save(tmp_path)
    file = tmp_path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 5000, "content": "<new>"})
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(
        UserError, match=r"the tokenizer has the id .* for '<new>'; expected ids below the policy's vocab_size"
    ):
        load_policy(tmp_path)


def test_sizes_that_the_weights_do_not_have_are_never_made(tmp_path: Path) -> None:
    small.make().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    # Of a terabyte.
    config["language"] |= {"hidden_size": 2**16, "mlp_size": 2**18, "layers": 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"doesn't fit the config.json beside it"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("json:loads", "suite 'json:loads': its factory raised TypeError"),
        ("json:nothing", "module 'json' has no 'nothing'"),
        (":", "suite ':' can't be imported"),
        ("..:make", r"suite '\.\.:make' can't be imported"),
        ("builtins:repr", "its factory made a str; expected a Suite"),
    ],
)
def test_a_factory_that_makes_no_suite_is_named(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_suite(SuiteConfig(name=name))


def test_names_and_errors_are_shown_as_they_are() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system="standard")
    console.print("[red]a[/] [/] :cat: \x1b]0;title\x07", highlight=False)
    assert screen.getvalue() == "[red]a[/] [/] :cat: ?]0;title?\n"
    line = one_line("a\nb\x1b[31m" + "x" * 10**6)
    assert line.startswith("a b?[31mxxx")
    assert len(line) < 2100


def test_an_error_of_the_disk_says_which_file_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(arguments: list[str]) -> int:
        raise PermissionError(13, "Permission denied", str(tmp_path / "here"))

    monkeypatch.setitem(cli.COMMANDS, "list", (denied, ""))
    assert cli.main(["list"]) == cli.EXIT_ERROR
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'here'}: Permission denied. Choose a folder that you may write to.\n"
