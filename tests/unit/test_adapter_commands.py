"""`simplevla adapters ...` on a saved policy."""

from pathlib import Path

import pytest

import small_tinyvla as small
from adapted_tinyvla import LORA, base_tensors, make_bank, same
from simplevla import cli
from simplevla.adapters.bank import load_bank


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    make_bank(first=LORA, second=LORA).save(tmp_path / "policy")
    return tmp_path / "policy"


def run(*arguments: object) -> int:
    return cli.main(["adapters", *map(str, arguments)])


def test_list_and_show(policy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("list", policy) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("first", "second", "lora", "lift the red block"))
    assert run("show", policy / "adapters" / "first") == 0
    assert '"rank": 4' in capsys.readouterr().out


def test_a_new_adapter_is_what_training_then_trains(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_bank(policy)
    base = tmp_path / "base"
    small.make().save(base)
    for folder, names in ((policy, ["first", "second", "third"]), (base, ["third"])):
        out = tmp_path / f"{folder.name}_new"
        settings = ("--adapter.rank", 2, "--adapter.targets", "language", "--instructions", "open the drawer")
        assert run("new", folder, out, "--name", "third", *settings) == 0
        bank = load_bank(out)
        assert bank.names == names
        assert (bank.entry("third").config.rank, bank.entry("third").instructions) == (2, ("open the drawer",))
        trained = [name for name, parameter in bank.policy.named_parameters() if parameter.requires_grad]
        assert trained
        assert all(".third." in name and name.startswith("language.") for name in trained)
    assert same(base_tensors(load_bank(tmp_path / "policy_new")), base_tensors(before))
    assert run("new", policy, tmp_path / "on", "--name", "third", "--start-from", "first") == 0
    assert load_bank(tmp_path / "on").entry("third").config == before.entry("first").config
    assert run("new", policy, tmp_path / "taken", "--name", "first") == 2
    assert "first" in capsys.readouterr().err
    assert not (tmp_path / "taken").exists()


def test_an_exported_adapter_goes_into_another_copy_of_its_base(policy: Path, tmp_path: Path) -> None:
    bank = load_bank(policy)
    bank.remove("second")
    bank.save(tmp_path / "one")
    assert run("export", policy, "second", tmp_path / "second") == 0
    assert run("add", tmp_path / "one", tmp_path / "second", tmp_path / "both") == 0
    both, before = load_bank(tmp_path / "both"), load_bank(policy)
    assert both.names == ["first", "second"]
    assert same(base_tensors(both), base_tensors(before))
    for name in both.names:
        assert same(dict(both.parameters(name)), dict(before.parameters(name)))


def test_merge_writes_a_new_policy_and_leaves_the_old(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.read_bytes() for path in policy.rglob("*") if path.is_file()}
    assert run("merge", policy, "first", "second", "--into", "both", "--out", tmp_path / "merged") == 0
    merged = load_bank(tmp_path / "merged")
    assert merged.names == ["first", "second", "both"]
    # Half of each, side by side: ranks add up.
    assert merged.entry("both").config.rank == 8
    assert {path: path.read_bytes() for path in policy.rglob("*") if path.is_file()} == files
    assert run("merge", policy, "first", "second", "--into", "both", "--out", tmp_path / "merged") == 2
    assert "exists already" in capsys.readouterr().err


def test_route_names_the_nearest_and_counts(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instructions = ("please lift the red block", "push the blue block left")
    assert run("route", policy, *instructions, "--expect", "first", "first") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{instructions[0]!r} -> first", f"{instructions[1]!r} -> second", "1 of 2 right"]
    assert run("route", policy, *instructions, "--expect", "first") == 2
    assert "got 2 instructions and 1 in --expect" in capsys.readouterr().err
