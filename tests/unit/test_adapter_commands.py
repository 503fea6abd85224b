"""`simplevla adapters ...` on a saved policy."""

import json
from pathlib import Path

import peft
import pytest
import torch

import small_tinyvla as small
from adapted_tinyvla import BOTTLENECK, LORA, base_tensors, make_bank, same
from simplevla import cli
from simplevla.adapters.load import load_bank


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
    shown = json.loads(capsys.readouterr().out)
    assert (shown["config"]["rank"], shown["unknown"]) == (4, None)
    assert shown["layout"].startswith("peft's: PeftModel.from_pretrained")


def test_show_says_that_peft_has_no_bottlenecks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bank(first=BOTTLENECK).export("first", tmp_path / "first")
    assert run("show", tmp_path / "first") == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "simplevla's own (peft has no bottlenecks)"


@pytest.fixture
def milk(tmp_path: Path) -> Path:
    """What peft writes of a LoRA whose matrices are all ones."""
    model = peft.get_peft_model(small.make(), peft.LoraConfig(r=4, target_modules=["head.linear"]))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.fill_(1)
    model.save_pretrained(tmp_path / "exported" / "milk")
    return tmp_path / "exported" / "milk"


def test_what_peft_wrote_is_listed_and_shown_with_what_is_unknown(
    milk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    make_bank(first=LORA).export("first", milk.parent / "first")
    assert run("list", milk.parent) == 0
    rows = capsys.readouterr().out.splitlines()
    assert sum("milk" in row and "unknown" in row for row in rows) == 1
    assert sum("first" in row and "unknown" not in row for row in rows) == 1
    assert run("show", milk) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["name"], shown["base_sha256"], shown["modules"]) == ("milk", None, ["head.linear"])
    assert shown["unknown"].startswith("the base weights and statistics it was trained on")


def test_what_peft_wrote_is_added_routed_merged_and_exported(
    milk: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="has no adapter.json, so the base weights and statistics"):
        assert run("add", policy, milk, tmp_path / "plain") == 0
    with pytest.warns(UserWarning, match="has no adapter.json"):
        assert run("add", policy, milk, tmp_path / "with", "--instructions", "pick up the milk") == 0
    capsys.readouterr()
    assert run("route", tmp_path / "plain", "pick up the milk") == 0
    assert capsys.readouterr().out.startswith("left out, since they have no instructions: milk\n")
    assert run("route", tmp_path / "with", "pick up the milk please") == 0
    assert capsys.readouterr().out == "'pick up the milk please' -> milk\n"
    assert run("export", tmp_path / "with", "milk", tmp_path / "again") == 0
    card = json.loads((tmp_path / "again" / "adapter.json").read_text())
    assert (card["base_assumed"], card["instructions"]) == (True, ["pick up the milk"])
    assert run("merge", tmp_path / "with", "milk", "--into", "twice", "--weights", "2", "--out", tmp_path / "two") == 0
    merged, added = load_bank(tmp_path / "two"), load_bank(tmp_path / "with")
    # alpha / rank is 8 / 4 for peft's, 1 for a merged one's
    up = merged.parameters("twice")["head.linear.lora_B.weight"]
    torch.testing.assert_close(up, torch.full_like(up, 2 * 8 / 4), rtol=0, atol=1e-6)
    assert same(dict(merged.parameters("milk")), dict(added.parameters("milk")))


def test_a_policy_that_can_t_be_written_whole_isn_t_written(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert run("merge", policy, "first", "--into", "huge", "--weights", "1e39", "--out", out) == 2
    assert "adapter 'huge' isn't written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]


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
    assert both.active == "second", "what was added acts"
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
    assert merged.active == "both", "what was merged acts"
    # Half of each, side by side: ranks add up.
    assert merged.entry("both").config.rank == 8
    module = merged.entry("both").modules[0]
    change = {name: merged.carrier(name, module).get_delta_weight(name) for name in merged.names}
    assert change["first"].abs().max() > 0
    torch.testing.assert_close(change["both"], (change["first"] + change["second"]) / 2)
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
