"""Every setting of every config is read by the entry point that takes it, or refused or warned of there.

Reads are recorded in tiny real runs. A field that nobody reads must be said when it has another value, or be in
`ELSEWHERE` with the reason. That a field is read doesn't mean that it matters: tests/unit/test_effect.py has those that
only some policies use.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import simplevla
from simplevla import effect
from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.config import (
    DemosConfig,
    DenoisingConfig,
    EvalConfig,
    LearnersConfig,
    LossConfig,
    OptimizerConfig,
    RayConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.generate import Schedule
from simplevla.errors import UserError
from simplevla.suites.registry import make_suite
from simplevla.training.continual import _check_effect
from small_tinyvla import for_fake_suite

Reads = set[tuple[type, str]]
Check = Callable[[Any], None]

TASKS = ("reach", "crash_once")
SUITE = SuiteConfig(name="fake_suite:make", tasks=TASKS)
ROLLOUT = RolloutConfig(workers=1, slots_per_worker=4)
CONFIGS = (
    *(AdapterConfig, ContinualConfig, DemosConfig, DenoisingConfig, EvalConfig, LearnersConfig, LossConfig),
    *(OptimizerConfig, RayConfig, RolloutConfig, SamplingConfig, SFTConfig, SuiteConfig, TrainConfig),
)
ELSEWHERE = {
    (SuiteConfig, name): "a suite's own factory reads or refuses it; the embedded one does, below"
    for name in ("image_size", "horizon_protocol", "visuals", "stepping", "sentences", "test_states")
} | {
    (TrainConfig, "title"): "the report reads it",
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """(class, field) of each read by the program's own code; checks of configs and copies of them don't count."""
    found: Reads = set()

    def record_reads(cls: type) -> None:
        names = {field.name for field in fields(cls)}

        def read(self: Any, name: str) -> Any:
            if name in names:
                caller = sys._getframe(1)
                where, function = caller.f_globals["__name__"], caller.f_code.co_name
                if where.startswith("simplevla.") and where != "simplevla.effect" and function != "__post_init__":
                    found.add((type(self), name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", read)

    for cls in CONFIGS:
        record_reads(cls)
    return found


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FAKE_SUITE_FOLDER", str(tmp_path))
    for_fake_suite(TASKS).save(tmp_path / "base")
    return str(tmp_path / "base")


def unread(cls: type, reads: Reads) -> list[str]:
    """Fields without another config in them that nobody read, and that have no place in `ELSEWHERE`."""
    return [
        field.name for field in fields(cls) if (cls, field.name) not in reads and (cls, field.name) not in ELSEWHERE
    ]


def said(check: Check, config: Any) -> bool:
    """True if `check` refuses the config, or warns of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check(config)
        except UserError:
            return True
    return bool(caught)


def other(value: Any) -> Any:
    """Another value of a setting that nobody reads."""
    if isinstance(value, SuiteConfig):
        return SuiteConfig(name="metaworld")
    if isinstance(value, str):
        return {"": "auto", "full": "copies", "entry": "chunk", "sde": "noise"}[value]
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2 + 0.125


def assert_read_or_said(config: Any, cls: type, reads: Reads, check: Check, part: str = "") -> None:
    silent = []
    for name in unread(cls, reads):
        owner = getattr(config, part) if part else config
        changed = replace(owner, **{name: other(getattr(owner, name))})
        assert changed != owner, name
        if not said(check, replace(config, **{part: changed}) if part else changed):
            silent.append(name)
    assert silent == [], f"{cls.__name__}: neither read nor said"


def reinforcement(base: str) -> TrainConfig:
    return TrainConfig(
        suite=SUITE,
        policy=base,
        updates=1,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4),
        loss=LossConfig(clip_low=0.01, clip_high=0.01),
        optimizer=OptimizerConfig(lr=1e-3),
        rollout=ROLLOUT,
        eval_every=1,
        eval_episodes_per_task=1,
    )


def test_train(base: str, tmp_path: Path, reads: Reads) -> None:
    config = reinforcement(base)
    simplevla.train(config, tmp_path / "run")

    def check(config: TrainConfig) -> None:
        effect.check_train(config, for_fake_suite(TASKS).unused_settings)

    parts = ("suite", "sampling", "loss", "denoising", "optimizer", "rollout", "ray")
    assert set(parts) == {field.name for field in fields(config) if type(getattr(config, field.name)) in CONFIGS}
    assert_read_or_said(config, TrainConfig, reads, check)
    for part in parts:
        assert_read_or_said(config, type(getattr(config, part)), reads, check, part)


def test_sft(base: str, tmp_path: Path, reads: Reads) -> None:
    generated(tmp_path / "demos")
    reads.clear()
    config = SFTConfig(dataset=str(tmp_path / "demos"), batches=1, batch_size=4, chunk_length=4)
    simplevla.sft(config, tmp_path / "run")
    assert_read_or_said(config, SFTConfig, reads, effect.check_sft)
    assert_read_or_said(config, OptimizerConfig, reads, effect.check_sft, "optimizer")
    assert_read_or_said(config, LearnersConfig, reads, effect.check_sft, "ray")
    # With closed-loop episodes the suite is read.
    reads.clear()
    simplevla.sft(replace(config, suite=SUITE, eval_episodes_per_task=1), tmp_path / "other")
    assert_read_or_said(config, SuiteConfig, reads, effect.check_sft, "suite")
    assert "suite" not in unread(SFTConfig, reads)


def test_evaluate(base: str, reads: Reads) -> None:
    simplevla.evaluate(base, SUITE, ROLLOUT, EvalConfig(episodes_per_task=1))
    assert_read_or_said(EvalConfig(), EvalConfig, reads, effect.check_eval)
    for cls in (SuiteConfig, RolloutConfig):
        assert unread(cls, reads) == []


def generated(folder: Path) -> DemosConfig:
    config = DemosConfig(suite=replace(SUITE, tasks=("reach", "near")), episodes=2, workers=1)
    simplevla.generate(config, folder, progress=False)
    return config


def test_generate(tmp_path: Path, reads: Reads) -> None:
    config = generated(tmp_path / "demos")
    # Most is read in worker processes: the same attempt here, in which each env step is disturbed.
    suite = make_suite(config.suite)
    schedule = Schedule(replace(config, noise_probability=1, levels=2, hesitation=1), suite)
    assert schedule.attempt(0, 0).run(suite, suite.make_environment(), lambda: None) is not None
    assert unread(DemosConfig, reads) == []
    assert unread(SuiteConfig, reads) == []


def test_continual(base: str, tmp_path: Path, reads: Reads) -> None:
    suite = replace(SUITE, tasks=("reach", "near"))
    config = ContinualConfig(
        train=replace(reinforcement(base), suite=suite),
        tasks=("near", "reach"),
        adapter=AdapterConfig(rank=2, alpha=2),
        warmup_demos=1,
        demos=DemosConfig(workers=1),
        warmup=SFTConfig(batches=1, batch_size=4),
        replay_share=0.25,
    )
    simplevla.continual(config, tmp_path / "run")
    assert_read_or_said(config, ContinualConfig, reads, _check_effect)
    assert_read_or_said(config, AdapterConfig, reads, _check_effect, "adapter")
    assert "task 2 of 2, reach: imitation" in (tmp_path / "run" / "run.log").read_text()
    assert "update 0  eval 100.0%" in (tmp_path / "run" / "1_near" / "rl" / "run.log").read_text()


def test_the_embedded_suite_reads_or_refuses_each(reads: Reads) -> None:
    make_suite(SuiteConfig())
    names = {field.name for field in fields(SuiteConfig)}
    # Three are read by name, in a loop.
    assert {name for cls, name in reads if cls is SuiteConfig} == names


def test_a_setting_that_nobody_reads_is_seen(reads: Reads) -> None:
    make_suite(SuiteConfig(name="fake_suite:make"))
    reads.discard((SuiteConfig, "tasks"))
    assert unread(SuiteConfig, reads) == ["tasks"]
    assert not said(lambda config: effect.check_train(config, {}), TrainConfig(seed=1))
    with pytest.raises(AssertionError, match="neither read nor said"):
        assert_read_or_said(LossConfig(), LossConfig, reads | {(LossConfig, "aggregation")}, lambda config: None)
