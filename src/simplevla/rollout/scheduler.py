"""Rolls episodes out in many slots at once: simulators and policy overlap, and timing decides nothing.

The slots form two halves. While the policy acts for one, the workers simulate the other. A turn waits until every slot
of its half has answered, handles the answers in slot order and batches the policy over them; so which observations
share a batch follows from the episodes alone, and the same requests give the same bits.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch

from simplevla.allocation import keep_freed_memory
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.errors import UserError
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.acting import check_sample
from simplevla.rollout.crew import Crew, Errors, Loss, cores, worker_count
from simplevla.rollout.observing import observe
from simplevla.rollout.starts import Starts
from simplevla.rollout.workers import Reply, Reset, Step, Worker
from simplevla.suites.base import SuiteSpec
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

log = logging.getLogger(__name__)

Source = Callable[[], EpisodeRequest | None]
Sink = Callable[[Episode], None]
MakeWorker = Callable[[SuiteConfig, SuiteSpec, int, int], Worker]


class Engine(Protocol):
    """Engine that rolls episodes out: the one below, or one on other machines."""

    stats: "RolloutStats"

    def __enter__(self) -> "Engine": ...

    def __exit__(self, *exception: object) -> None: ...

    def reset_stats(self) -> None: ...

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None: ...


SLOW_RESET_TURNS = 24
"""Turns of its half that a slot may miss while it changes its task, where that is slow, before the others wait for it.

That is about as long as building a scene of LIBERO takes, but counted in turns, so that timing decides nothing.
"""
LOOK_AHEAD = 8
"""Requests per slot among which a slot looks for its own task, where changing it is slow: one group of the paper."""


@dataclass
class RolloutStats:
    """Totals since the engine was made or `reset_stats` was called."""

    env_steps: int = 0
    """Simulated, those of episodes that were run again included."""
    decisions: int = 0
    """Chunks that the policy drew."""
    episodes: int = 0
    """Handed to the sink."""
    worker_restarts: int = 0
    """Workers that died or hung and were replaced."""
    retries: int = 0
    """Episodes that were started again because their environment or worker broke."""
    env_errors: int = 0
    """Episodes that ended ENV_ERROR after `max_attempts`."""
    unlike_starts: int = 0
    """Episodes whose first observation isn't that of another one from the same initial state."""
    policy_s: float = 0.0
    """Seconds in the policy, copies to and from its device included."""
    wait_s: float = 0.0
    """Waiting for simulators."""
    wall_s: float = 0.0
    errors: Errors = field(default_factory=Errors)
    """Faults so far: each exception of an environment and each lost worker."""


@dataclass
class _Running:
    """An episode in a slot; the lists grow by one entry per decision."""

    request: EpisodeRequest
    failures: int = 0
    broken: bool = False
    error: str = ""
    """The last fault that broke it."""

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forgets what happened so far."""
        self.generator = self.request.generator()
        self.env_steps = 0
        self.images: list[dict[str, np.ndarray]] = []
        self.state: list[np.ndarray] = []
        self.trace: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.executed: list[int] = []

    def episode(self, status: EpisodeStatus) -> Episode:
        if status is EpisodeStatus.ENV_ERROR:
            return Episode(request=self.request, status=status, error=self.error)
        if not self.state:
            return Episode(request=self.request, status=status, env_steps=self.env_steps)
        return Episode(
            request=self.request,
            status=status,
            env_steps=self.env_steps,
            images={name: np.stack([images[name] for images in self.images]) for name in self.images[0]},
            state=np.stack(self.state),
            trace=np.stack(self.trace),
            logprobs=np.stack(self.logprobs),
            executed=np.array(self.executed, np.int64),
            actions=np.stack(self.actions),
        )


@dataclass(eq=False)
class _Slot:
    """A place for one environment."""

    worker: Worker
    index: int
    """Among the worker's slots."""
    half: int
    running: _Running | None = None
    busy: bool = False
    """A command is out."""
    reply: Reply = field(default_factory=lambda: Reply("done"))
    task: str = ""
    """Task of the last episode."""
    away: int = 0
    """Turns that it may still miss."""

    def send(self, command: Reset | Step) -> None:
        self.busy = True
        self.worker.send(command)

    def reset(self) -> None:
        assert self.running is not None
        request = self.running.request
        self.task = request.task.name
        self.send(Reset(self.index, request.task.name, request.initial_state))


class RolloutEngine:
    """Worker processes with environments, and the loop that keeps them and a policy busy. Use it as a context manager.

    For a fixed number of workers the same requests give bit-identical episodes in the same order of `sink` calls.

    Args:
        suite: built here for its specification, and in every worker.
        config: processes, slots, timeouts.
        chunk_length: H of the policies that will be run.
        make_worker: of (suite, its spec, slots, chunk_length); local processes unless told otherwise.

    Raises:
        SuiteError: an environment can't be built.
    """

    def __init__(
        self, suite: SuiteConfig, config: RolloutConfig, chunk_length: int, make_worker: MakeWorker = Worker
    ) -> None:
        keep_freed_memory()
        built = make_suite(suite)
        self.spec = built.spec
        self.chunk_length = chunk_length
        self.stats = RolloutStats()
        self._suite_name = built.name
        self._task_names = {task.name for task in built.tasks}
        self._keep_tasks = built.task_change_is_slow
        self._waiting: list[EpisodeRequest] = []
        self._gone = ""
        """The reason why no environment will run another episode; empty while they do."""
        self._compares_starts = not built.real_world
        self._starts = Starts()
        self._told = False
        slots_per_worker = 1 if built.one_environment_per_process else config.slots_per_worker
        self.config = replace(config, workers=worker_count(built, config.workers))
        self._crew = Crew(
            partial(make_worker, suite, self.spec, slots_per_worker, chunk_length),
            self.config.workers,
            built.name,
            config.chunk_timeout_s,
        )
        self._workers = self._crew.workers
        self._slots = [
            _Slot(worker, index, (index + number) % 2)
            for index in range(slots_per_worker)
            for number, worker in enumerate(self._workers)
        ]
        self._slot_of = {(slot.worker, slot.index): slot for slot in self._slots}
        self._halves = [[slot for slot in self._slots if slot.half == half] for half in (0, 1)]

    def __enter__(self) -> "RolloutEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. May be called more than once."""
        self._crew.close()

    @property
    def slots(self) -> int:
        """Environments."""
        return len(self._slots)

    def reset_stats(self) -> None:
        self.stats = RolloutStats()

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None:
        """Rolls out what `source` asks for until nothing is in flight and `source` says None.

        Any exception, Ctrl-C included, ends the workers and closes the engine.

        Args:
            policy: acts in evaluation mode, on the device of its parameters; its modes are restored afterwards.
            source: asked whenever a slot is free. None: nothing to start now; asked again after a finished episode.
            sink: gets each finished episode, those that ended ENV_ERROR too.
            record: if false, episodes carry status and env_steps and no arrays.

        Raises:
            SuiteError: the suite breaks its contract.
            UserError: policy and suite don't fit, or the engine is closed.
        """
        if not self._crew.close.alive:
            raise UserError("this RolloutEngine is closed (an error in an earlier run closes it too); make a new one")
        self._check_fit(policy)
        started = time.perf_counter()
        try:
            with _evaluation_mode(policy), _threads(self._policy_threads()):
                self._waiting = []
                for slot in self._slots:
                    # What was rolled out before leaves nothing: a resumed run has other slots with other tasks.
                    slot.task, slot.away = "", 0
                self._fill(source)
                half = 0
                while any(slot.running for slot in self._slots):
                    ready, finished = self._turn(half)
                    for episode in finished:
                        sink(episode)
                    if finished:
                        # Before the policy acts, so that the resets run meanwhile.
                        self._fill(source)
                    if ready:
                        self._act(policy, sampling, ready, record)
                    half = 1 - half
        except BaseException:
            self.close()
            raise
        finally:
            self.stats.wall_s += time.perf_counter() - started

    def _policy_threads(self) -> int:
        return policy_threads(self.config) if self._workers[0].shares_cores else cores()

    def _check_fit(self, policy: Policy) -> None:
        if policy.action_dim != len(self.spec.action_names):
            raise UserError(
                f"the policy has {policy.action_dim} action dimensions; suite {self._suite_name!r} expects "
                f"{len(self.spec.action_names)} ({', '.join(self.spec.action_names)}). "
                "Use a policy that was trained for this suite."
            )
        if policy.chunk_length != self.chunk_length:
            raise UserError(
                f"the policy's chunks have {policy.chunk_length} actions, this engine's {self.chunk_length}; "
                "make the engine with chunk_length=policy.chunk_length"
            )

    def _fill(self, source: Source) -> None:
        """Starts requested episodes in free slots, where the fewest others run, as long as there are both."""
        free = [slot for slot in self._slots if slot.running is None]
        self._ask(source, LOOK_AHEAD * len(self._slots) if self._keep_tasks else len(free))
        load: dict[object, int] = {}
        for slot in self._slots:
            for place in (slot.worker, slot.half):
                load[place] = load.get(place, 0) + (slot.running is not None)
        while free and self._waiting:
            slot = min(free, key=lambda slot: (load[slot.worker], load[slot.half]))
            free.remove(slot)
            load[slot.worker] += 1
            load[slot.half] += 1
            slot.running = _Running(self._waiting.pop(self._choose(slot)))
            if self._keep_tasks and slot.running.request.task.name != slot.task:
                slot.away = SLOW_RESET_TURNS
            if self._gone:
                slot.running.error, slot.running.broken = self._gone, True
            else:
                slot.reset()
        self._crew.flush()

    def _ask(self, source: Source, count: int) -> None:
        """Asks for requests until `count` wait, or there are none now."""
        while len(self._waiting) < count and (request := source()) is not None:
            if request.task.name not in self._task_names:
                raise UserError(
                    f"task {request.task.name!r} isn't one of this engine's suite {self._suite_name!r}; "
                    f"it has: {', '.join(sorted(self._task_names))}"
                )
            self._waiting.append(request)

    def _choose(self, slot: _Slot) -> int:
        """Index of the waiting request that the slot takes: usually the first.

        Where changing the task is slow, a request of the slot's own task goes before, then one of a task that no slot
        has; else the first, so that no slot idles."""
        if not self._keep_tasks:
            return 0
        tasks = [request.task.name for request in self._waiting]
        if slot.task in tasks:
            return tasks.index(slot.task)
        taken = {other.task for other in self._slots}
        return next((i for i, task in enumerate(tasks) if task not in taken), 0)

    def _turn(self, half: int) -> tuple[list[_Slot], list[Episode]]:
        """Waits for the half's answers; returns the slots that need a decision and the episodes that ended."""
        started = time.perf_counter()
        slots = [slot for slot in self._halves[half] if slot.running is not None and slot.away == 0]
        for slot in self._halves[half]:
            slot.away = max(0, slot.away - 1)
        while any(slot.busy for slot in slots):
            self._receive()
        self.stats.wait_s += time.perf_counter() - started
        ready, finished = [], []
        for slot in slots:
            status = self._advance(slot)
            if status is None:
                ready.append(slot)
                continue
            assert slot.running is not None
            finished.append(slot.running.episode(status))
            slot.running = None
            self.stats.episodes += 1
            self.stats.env_errors += status is EpisodeStatus.ENV_ERROR
        return ready, finished

    def _advance(self, slot: _Slot) -> EpisodeStatus | None:
        """Takes the slot's answer into its episode; returns how the episode ended, or None if it goes on."""
        running, reply = slot.running, slot.reply
        assert running is not None
        if running.broken:
            return EpisodeStatus.ENV_ERROR
        if reply.executed:
            running.executed.append(reply.executed)
            running.env_steps += reply.executed
            self.stats.env_steps += reply.executed
        if reply.success:
            return EpisodeStatus.SUCCESS
        over = reply.failed or running.env_steps >= running.request.task.horizon
        return EpisodeStatus.TIMEOUT if over else None

    def _act(self, policy: Policy, sampling: Sampling, slots: list[_Slot], record: bool) -> None:
        """One batch of decisions; the chunks are sent before anything is recorded, so that recording costs no wait."""
        started = time.perf_counter()
        running = [slot.running for slot in slots if slot.running is not None]
        batch = observe(
            [(slot.worker.arrays, slot.index) for slot in slots],
            [episode.request for episode in running],
            [episode.env_steps > 0 or not policy.shares_observations for episode in running],
        )
        if self._compares_starts:
            self._compare_starts(slots)
        parameter = next(policy.parameters(), None)
        device = parameter.device if parameter is not None else torch.device("cpu")
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self.config.bfloat16):
            sample = policy.act(batch.to(device), sampling, [episode.generator for episode in running])
            trace, logprobs = sample.trace.cpu().numpy(), sample.logprobs.float().cpu().numpy()
        actions = np.asarray(sample.actions, np.float32)
        state = batch.state.numpy()[batch.observed()]
        chunk = self.chunk_length, policy.action_dim
        check_sample(actions, logprobs, trace, chunk, [episode.request for episode in running], state)
        for row, (slot, episode) in enumerate(zip(slots, running, strict=True)):
            left = episode.request.task.horizon - episode.env_steps
            count = min(self.chunk_length, left)
            slot.worker.arrays.actions[slot.index, :count] = actions[row, :count]
            slot.send(Step(slot.index, count, last=count == left))
        self._crew.flush()
        self.stats.policy_s += time.perf_counter() - started
        self.stats.decisions += len(slots)
        if not record:
            return
        images = {} if policy.scores_from_trace else {name: image.numpy() for name, image in batch.images.items()}
        for row, (episode, observed) in enumerate(zip(running, batch.observed(), strict=True)):
            episode.images.append({name: array[observed] for name, array in images.items()})
            episode.state.append(state[row])
            episode.trace.append(trace[row])
            episode.logprobs.append(logprobs[row])
            episode.actions.append(actions[row])

    def _compare_starts(self, slots: list[_Slot]) -> None:
        """Counts episodes that begin unlike their siblings, since rewards are compared as if only actions differed."""
        for slot in slots:
            assert slot.running is not None
            if slot.running.env_steps == 0:
                request = slot.running.request
                task, state = request.task.name, request.initial_state
                difference = self._starts.difference(task, state, slot.worker.arrays, slot.index)
                self.stats.unlike_starts += bool(difference)
                if difference and not self._told:
                    self._told = True
                    log.warning(
                        "task %r, initial state %d doesn't always begin in the same way: its first observations differ in %s. Siblings "
                        "must begin alike: let the suite's reset depend on task and initial state alone (simplevla check-suite %s)",
                        *(task, state, difference, self._suite_name),
                    )

    def _receive(self) -> None:
        """Waits for at least one answer or loss, and handles what there is."""
        for worker, event in self._crew.receive():
            if isinstance(event, Loss):
                self._recover(worker, event)
                continue
            slot = self._slot_of[worker, event.slot]
            slot.busy, slot.reply = False, event
            if event.kind in ("env_error", "gone"):
                self._gone = event.text if event.kind == "gone" else self._gone
                self.stats.errors.add(event.error, event.text)
                self._run_again(slot, event.text, failed=True)

    def _recover(self, worker: Worker, loss: Loss) -> None:
        """Runs the episodes of a replaced worker again.

        The command that it was executing broke it: only that episode has failed an attempt. With none, nobody is known
        to be innocent, and all have; while it was starting, none has.
        """
        self.stats.worker_restarts += 1
        self.stats.errors.add(loss.error, loss.text)
        for slot in self._slots:
            if slot.worker is worker and slot.running is not None and not slot.running.broken:
                self._run_again(slot, loss.text, failed=loss.blames(slot.index))

    def _run_again(self, slot: _Slot, reason: str, failed: bool) -> None:
        """Starts the slot's episode again, with the same seed, unless it has failed too often."""
        running = slot.running
        assert running is not None
        slot.busy, slot.reply = False, Reply("done", slot.index)
        running.begin()
        running.failures += failed
        if failed:
            running.error = reason
            task, attempt = running.request.task.name, f"{running.failures} of {self.config.max_attempts}"
            log.warning("task %r, attempt %s failed in the environment: %s", task, attempt, reason)
        if self._gone or running.failures >= self.config.max_attempts:
            running.broken = True
        else:
            self.stats.retries += 1
            slot.reset()


def policy_threads(config: RolloutConfig) -> int:
    """Threads that the policy's process may use, since the workers need their cores."""
    return max(1, cores() - (config.workers or cores()))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Leaves the workers their cores: torch's threads wait for one another, so one without a core stalls them all."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _evaluation_mode(policy: Policy) -> Iterator[None]:
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
