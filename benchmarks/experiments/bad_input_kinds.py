"""Folders and files that simplevla reads: how a valid one is made, and all that reads it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import made_dataset
import made_openvla_checkpoint
import made_tinyvla_checkpoint
import small_tinyvla as small
from adapted_tinyvla import make_bank
from simplevla import cli
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.files import layout, list_cards, read_card
from simplevla.adapters.load import load_bank, load_policy
from simplevla.adapters.metrics import SuccessMatrix
from simplevla.config import SuiteConfig, TrainConfig, to_dict
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError
from simplevla.evaluation.result import Broken, EvaluationResult, Outcome, write_result
from simplevla.planning import unfilled
from simplevla.policies.base import Sampling
from simplevla.policies.openvla_oft.published import import_openvla_oft
from simplevla.policies.tinyvla.published import import_tinyvla
from simplevla.report.continual import write_continual_report
from simplevla.report.page import write_report
from simplevla.report.videos import Clip, Clips, encode_video
from simplevla.rollout.crew import Errors
from simplevla.rollout.states import StateSampler
from simplevla.storage import read_as, write_json
from simplevla.suites.registry import make_suite
from simplevla.training.checkpoint import save_checkpoint
from simplevla.training.imitation import sft_stage
from simplevla.training.run_folder import load_config, newest_checkpoint, record_facts
from simplevla.training.runlog import environment_facts


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of folder."""

    make: Callable[[Path], object]
    """Writes a valid one into a new folder."""
    use: Callable[[Path], object]
    """Reads it, in every way in which the program does."""


class ExitedWith(Exception):
    """A command ended as a fault of the program."""


def command(*arguments: str) -> None:
    """Run one of simplevla's commands; a user's error is one, whoever prints it."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    if code == cli.EXIT_FAULT:
        raise ExitedWith(f"exit code {code}: {' '.join(arguments)[:300]}")


def _policy(folder: Path) -> None:
    policy = load_policy(folder)
    batch = small.observations(list(small.INSTRUCTIONS))
    policy.act(batch, Sampling(), [np.random.default_rng(i) for i in range(len(batch))])
    unfilled.saved(folder)


def _bank(folder: Path) -> None:
    list_cards(folder)
    command("adapters", "list", str(folder))
    command("adapters", "route", str(folder), "press it")
    load_bank(folder)


def _adapter(folder: Path) -> None:
    read_card(folder)
    layout(folder)
    command("adapters", "show", str(folder))
    AdapterBank(small.make()).load(folder)


def _without_card(folder: Path) -> None:
    make_bank().export("lora", folder)
    (folder / "adapter.json").unlink()
    tensors = folder / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes().replace(b'"card":', b'"none":'))


def _dataset(folder: Path) -> None:
    dataset = LeRobotDataset(folder)
    _ = dataset.statistics
    dataset.load_all()
    dataset.statistics_for_policy("quantile")
    sft_stage(dataset)


def _videos(folder: Path) -> None:
    made_dataset.write(folder)
    made_dataset.to_videos(folder, [[0, 1], [2]])


def _result(solved: str, **changes: Any) -> EvaluationResult:
    errors = Errors()
    errors.add("environment raised OSError", "OSError: [/] no such body", 2)
    outcomes = tuple(
        Outcome(task="lift", initial_state=i, success=flag == "1", env_steps=5) for i, flag in enumerate(solved)
    )
    values: dict[str, Any] = {
        "suite": "toy",
        "split": "test",
        "protocol": {"renderer": "egl", "rate": 2.5},
        "horizons": {"lift": 30},
        "greedy": False,
        "temperature": 1.0,
        "seed": 0,
        "episodes": outcomes,
        "broken": (Broken("lift", 99, "[red]"),),
        "errors": errors,
        "wall_s": 1.0,
        "versions": {"torch": "2"},
        "commit": "0123",
    }
    return EvaluationResult(**{**values, **changes})


def _results(folder: Path) -> None:
    write_result(folder / "a.json", _result("1010"))
    write_result(folder / "b.json", _result("1110"))


def _run(folder: Path) -> None:
    config = TrainConfig(policy=str(folder / "nowhere"), updates=2)
    write_json(folder / "config.json", to_dict(config))
    record_facts(folder, environment_facts(0, {"renderer": "egl"}), 0)
    rows = [
        {"update": 0, "eval_success": 0.2, "eval_low": 0.1, "eval_high": 0.4, "eval_n": 10},
        {
            "update": 1,
            "train_success": 0.3,
            "episodes_total": 15,
            "elapsed_s": 60.0,
            "approx_kl": 0.001,
            "entropy": 0.9,
        },
        {"update": 2, "train_success": 0.6, "success_by_task": {"lift": [1, 2]}, "warnings": ["entropy"]},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval").mkdir()
    (folder / "videos").mkdir()
    for name, solved in (("before", "1000"), ("after", "1110")):
        write_result(folder / "eval" / f"{name}.json", _result(solved, policy_sha256=name))
        data, ending = encode_video([np.zeros((8, 8, 3), np.uint8)] * 2, 10.0)
        (folder / "videos" / f"{name}{ending}").write_bytes(data)
        clip = Clip(
            task="lift",
            instruction="lift it",
            initial_state=1,
            success=True,
            env_steps=5,
            file=f"{name}{ending}",
            policy_sha256=name,
        )
        write_json(folder / "videos" / f"{name}.json", asdict(Clips(clips=(clip,))))
    state = {
        "progress": {"update": 2, "episodes": 30, "env_steps": 300, "elapsed_s": 2.5},
        "sampler": StateSampler(make_suite(SuiteConfig()), 0).state_dict(),
        "optimizer_steps": 8,
        "metrics_bytes": 10,
    }
    save_checkpoint(folder / "checkpoints", 2, small.make(), {"a": torch.zeros(2)}, state, keep=2)


def _read_run(folder: Path) -> None:
    command("report", str(folder))
    write_report(folder)
    suite = make_suite(load_config(TrainConfig, folder).suite)
    checkpoint = newest_checkpoint(folder, "update", 1)
    if checkpoint is not None:
        StateSampler(suite, 0).load_state_dict(checkpoint.state["sampler"])
    record_facts(folder, {}, 2)


def _continual(folder: Path) -> None:
    matrix = SuccessMatrix(tasks=("lift", "push"), order=("push",), solved=((1, 2), (3, 8)), n=((10, 10), (10, 10)))
    stage = {
        "task": "push",
        "outcome": "finished",
        "message": "done",
        "updates": 2,
        "episodes": 30,
        "minutes": 1.5,
        "curve": [0.2, 0.8],
        "trained_parameters": 10,
        "adapter_bytes": None,
    }
    rest = {"start_from": "base", "episodes": 30, "stages": [stage], "protocol": {"renderer": "egl"}, "commit": "0123"}
    curves = {"push": [0.2, 0.8]}
    write_json(
        folder / "continual.json",
        {**matrix.to_dict("per_task", 3, curves), "libero": matrix.libero(curves), "doubts": [], **rest},
    )


def _tinyvla_lora(folder: Path) -> None:
    made_tinyvla_checkpoint.write_lora(folder, made_tinyvla_checkpoint.published_model())


def _import_tinyvla(folder: Path) -> None:
    with _new(folder) as out:
        import_tinyvla(folder, out, cameras=made_tinyvla_checkpoint.CAMERAS)


def _import_openvla(folder: Path) -> None:
    with _new(folder) as out:
        import_openvla_oft(folder, out, cameras=("fixed",))


def _openvla_policy(folder: Path) -> None:
    published = folder.with_name(f"{folder.name}_published")
    made_openvla_checkpoint.write(published)
    import_openvla_oft(published, folder, cameras=("fixed",))
    shutil.rmtree(published)


def _load(folder: Path) -> None:
    load_policy(folder)
    unfilled.saved(folder)


def _partial(folder: Path) -> None:
    """A generation that was interrupted after two episodes."""
    with made_dataset.DatasetWriter(folder / "data", made_dataset.spec(), made_dataset.INSTRUCTIONS, {"a": 1}) as out:
        for episode in made_dataset.episodes()[0][:2]:
            out.add(episode)
        out._write_pending()


def _resume(folder: Path) -> None:
    with made_dataset.DatasetWriter(folder / "data", made_dataset.spec(), made_dataset.INSTRUCTIONS, {"a": 1}) as out:
        for episode in made_dataset.episodes()[0][out.next_episode :]:
            out.add(episode)
        out.finish()


class _new:
    """A name for a policy folder beside `folder`, removed at the end."""

    def __init__(self, folder: Path) -> None:
        self._out = folder.with_name(f"{folder.name}_policy")

    def __enter__(self) -> Path:
        return self._out

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._out, ignore_errors=True)


def _arguments(folder: Path) -> None:
    arguments = json.loads((folder / "arguments.json").read_text())
    if "\0" in "".join(arguments):
        # The system passes none.
        raise UserError("an argument holds a zero byte")
    command(*arguments)


KINDS = {
    "policy": Kind(make=lambda folder: small.make().save(folder), use=_policy),
    "diffusion policy": Kind(make=lambda folder: small.make(head="diffusion").save(folder), use=_policy),
    "policy with adapters": Kind(make=lambda folder: make_bank().save(folder), use=_bank),
    "adapter": Kind(make=lambda folder: make_bank().export("lora", folder), use=_adapter),
    "adapter of peft": Kind(make=_without_card, use=_adapter),
    "dataset": Kind(make=made_dataset.write, use=_dataset),
    "dataset with videos": Kind(make=_videos, use=_dataset),
    "interrupted dataset": Kind(make=_partial, use=_resume),
    "OpenVLA-OFT policy": Kind(make=_openvla_policy, use=_load),
    "results": Kind(make=_results, use=lambda f: command("compare", str(f / "a.json"), str(f / "b.json"))),
    "run": Kind(make=_run, use=_read_run),
    "run's config": Kind(
        make=lambda folder: write_json(folder / "config.json", to_dict(TrainConfig())),
        use=lambda folder: read_as(folder / "config.json", TrainConfig),
    ),
    "continual run": Kind(make=_continual, use=write_continual_report),
    "published TinyVLA": Kind(
        make=lambda folder: made_tinyvla_checkpoint.write_whole(folder, made_tinyvla_checkpoint.published_model()),
        use=_import_tinyvla,
    ),
    "published TinyVLA with LoRA": Kind(make=_tinyvla_lora, use=_import_tinyvla),
    "published OpenVLA-OFT": Kind(make=made_openvla_checkpoint.write, use=_import_openvla),
    "arguments": Kind(make=lambda folder: write_json(folder / "arguments.json", {}), use=_arguments),
}
"""By name."""
