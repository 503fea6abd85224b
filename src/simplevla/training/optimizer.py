"""AdamW in float32, whatever the policy's own precision is; what imitation and RL step with."""

import math
from collections.abc import Collection, Mapping
from typing import Self

import torch
from torch import Tensor

from simplevla.config import OptimizerConfig
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.training.quantised import adamw_8bit, keep_unequal_parts, plain, quantised, shape_of, stepping
from simplevla.training.ranks import full_tensor, sharded_like


class UpdateRefused(UserError):
    """An optimizer step would have done harm and wasn't taken; the message names the update or the batch."""


class MasterAdamW:
    """AdamW whose gradients add up, and whose steps are taken, in float32.

    bfloat16 has 8 significant bits: a step of 5e-6 on a weight of 0.02 is below half of the last one and would be lost,
    as would a small micro-batch's gradient in the sum of the others. So each bfloat16 or float16 parameter has a
    float32 copy, its *master*, which is stepped, and the parameter is the master rounded (mixed precision training,
    arXiv 1710.03740). A parameter of higher precision is its own master, and nothing is copied.

    Args:
        parameters: by name, all that is trained.
        undecayed: names of those that weight decay spares.
        fused: torch's fused kernel instead of its default.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        settings: OptimizerConfig,
        undecayed: Collection[str] = (),
        fused: bool = False,
    ) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        self.fused = fused and settings.moments == "float32"
        self.masters = {
            name: p.detach().float().requires_grad_() if p.dtype.itemsize < 4 else p
            for name, p in self.parameters.items()
        }
        groups = [
            {"params": [p for name, p in self.masters.items() if (name in undecayed) == spared], **decay}
            for spared, decay in ((False, {}), (True, {"weight_decay": 0.0}))
        ]
        groups = [group for group in groups if group["params"]]
        self.adamw: torch.optim.Optimizer
        if settings.moments == "8bit":
            self.adamw = adamw_8bit(groups, settings)
            keep_unequal_parts(self.adamw, self.masters.values())
        else:
            self.adamw = torch.optim.AdamW(
                groups,
                lr=settings.lr or 0.0,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=self.fused,
            )

    @classmethod
    def of_policy(cls, policy: Policy, settings: OptimizerConfig, fused: bool) -> Self:
        """The optimizer of all that the policy lets be trained.

        Raises:
            UserError: that is nothing.
        """
        parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        if not parameters:
            raise UserError("the policy has no parameter that requires a gradient; unfreeze what is to be trained")
        return cls(parameters, settings, policy.spared_from_decay(), fused)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.adamw.param_groups[0]["lr"])

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for tensor in (*self.parameters.values(), *self.masters.values()):
            tensor.grad = None

    def require_finite(self, what: str, value: float, place: str) -> None:
        """Refuses a loss or a gradient norm that is infinite or no number, and forgets all gradients.

        Args:
            place: names update or batch in the error.

        Raises:
            UpdateRefused: it isn't finite.
        """
        if not math.isfinite(value):
            self.zero_grad()
            raise UpdateRefused(
                f"the {what} is {value} in {place}; this step was not taken. Lower optimizer.lr, or look for extreme "
                "observations or actions; the last checkpoint is intact."
            )

    def collect_gradients(self) -> None:
        """Adds the gradients that a backward pass left in the parameters to the masters'; call it after each."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is parameter or parameter.grad is None:
                continue
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def clip_gradients(self) -> float:
        """Clips the collected gradients to `settings.max_grad_norm`; returns their L2 norm before."""
        return float(full_tensor(torch.nn.utils.clip_grad_norm_(self.masters.values(), self.settings.max_grad_norm)))

    def take_step(self, number: int, place: str, schedule: float = 1.0) -> float:
        """One step along the collected gradients, clipped, at the learning rate of step `number`; returns their norm.

        The learning rate grows linearly over `settings.warmup_steps`.

        Args:
            number: steps taken before this one.
            place: names update or batch in an error.
            schedule: factor of the learning rate.

        Raises:
            UpdateRefused: the norm isn't finite; nothing has changed.
        """
        norm = self.clip_gradients()
        self.require_finite("gradient norm", norm, place)
        assert self.settings.lr is not None, "the run chooses one"
        self.step(self.settings.lr * (min(1.0, (number + 1) / max(self.settings.warmup_steps, 1)) * schedule))
        return norm

    def step(self, lr: float) -> None:
        """One step along the collected gradients, which are forgotten then."""
        for group in self.adamw.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if self.settings.moments == "8bit":
            with stepping(next(iter(self.masters.values())).device):
                self.adamw.step()
        else:
            self.adamw.step()
        self._round()
        self.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """Whole tensors as `kind/parameter name`: `master` where there is one, and AdamW's `exp_avg`, `exp_avg_sq` and
        `step`; a quantised moment is two tensors, `exp_avg.codes` and `exp_avg.scale`."""
        return {
            f"{part}/{name}": full_tensor(tensor.detach()).cpu().contiguous()
            for name, master in self.masters.items()
            for kind, value in {
                **({"master": master} if self._rounded(name) else {}),
                **self.adamw.state.get(master, {}),
            }.items()
            for part, tensor in plain(kind, value).items()
        }

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Goes on with what `state` returned.

        Raises:
            UserError: the tensors belong to another architecture, to other trainable parameters, or to parameters of
                another precision; nothing is changed then.
        """
        states: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            if name not in self.masters:
                raise UserError(
                    f"the checkpoint's optimizer has state for {name!r}, which isn't a trainable parameter of this "
                    "policy: it comes from another architecture. Resume with the policy that started the run."
                )
            expected = shape_of(kind, self.masters[name])
            if value.shape != expected:
                raise UserError(
                    f"the checkpoint's optimizer has {name!r} with shape {tuple(value.shape)}; expected {expected}: it "
                    "comes from another architecture. Resume with the policy that started the run."
                )
            if "." in kind and self.settings.moments != "8bit":
                raise UserError(
                    f"the checkpoint's optimizer has {kind!r} of {name!r}, a moment of 8 bits; optimizer.moments is "
                    f"{self.settings.moments}. Resume with optimizer.moments 8bit."
                )
            states.setdefault(name, {})[kind] = value
        for name in self.masters:
            if ("master" in states.get(name, {})) != self._rounded(name):
                raise UserError(
                    f"the checkpoint's optimizer has {'no' if self._rounded(name) else 'a'} float32 master of {name!r}, "
                    f"which is {self.parameters[name].dtype} in this policy: it was trained in another precision. Resume "
                    "with the policy that started the run."
                )
        self.adamw.state.clear()
        for name, state in states.items():
            master = self.masters[name]
            if self._rounded(name):
                with torch.no_grad():
                    master.copy_(sharded_like(state.pop("master"), master))
            if state:
                self.adamw.state[master] = self._restored(state, master)
        self._round()

    def _restored(self, state: dict[str, Tensor], master: Tensor) -> dict[str, Tensor]:
        restored = {}
        for kind, value in state.items():
            moment, _, part = kind.partition(".")
            if kind == "step":
                restored[kind] = value.clone().to(master.device if self.fused else "cpu")
            elif part == "codes":
                restored[moment] = quantised(moment, value, state[f"{moment}.scale"], master)
            elif not part:
                restored[kind] = sharded_like(value, master.detach())
        return restored

    def _rounded(self, name: str) -> bool:
        """True if the parameter is a rounded copy of its master."""
        return self.masters[name] is not self.parameters[name]

    @torch.no_grad()
    def _round(self) -> None:
        for name, parameter in self.parameters.items():
            if self._rounded(name):
                parameter.copy_(self.masters[name])
