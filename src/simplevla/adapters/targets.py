"""Search for the modules that an adapter's targets name."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from simplevla.adapters.config import AdapterConfig
from simplevla.errors import UserError
from simplevla.policies.base import Policy

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers that both kinds of adapter can change; peft has no LoRA for transposed convolutions."""
SHOWN = 6


def match_modules(policy: Policy, config: AdapterConfig) -> list[str]:
    """Names of the modules that `config.targets` mean, in the policy's order. Call it on a policy without adapters.

    Raises:
        UserError: a target matches no module, or more than a reader of it would expect: a container's name, a pattern
            that reaches over several groups, or not `config.expect_modules` in all. The message says what was matched.
    """
    layers = {name: module for name, module in policy.named_modules() if isinstance(module, ADAPTABLE)}
    groups = {
        group: [name for name in layers if _below(name, patterns)]
        for group, patterns in policy.adapter_groups().items()
    }
    chosen: set[str] = set()
    for target in config.targets:
        chosen.update(_match(target, layers, groups, policy))
    modules = [name for name in layers if name in chosen]
    if config.expect_modules is not None and len(modules) != config.expect_modules:
        raise UserError(
            f"targets {_quote(config.targets)} match {len(modules)} modules, expect_modules is {config.expect_modules}. "
            f"Matched: {_some(modules)}"
        )
    for name in modules:
        _check_convolution(name, layers[name])
    return modules


def match_as_peft(policy: Policy, settings: Mapping[str, Any]) -> set[str]:
    """Names of the modules that peft would adapt with these settings of its `adapter_config.json`.

    Raises:
        UserError: peft can't understand them.
    """
    try:
        config = LoraConfig(**settings)
        return {name for name, _ in policy.named_modules() if check_target_module_exists(config, name)}
    except (ValueError, TypeError, re.error) as error:
        raise UserError(f"peft can't find modules by {dict(settings)} ({error})") from error


def _match(target: str, layers: Mapping[str, nn.Module], groups: dict[str, list[str]], policy: Policy) -> list[str]:
    if target in groups:
        if not groups[target]:
            raise UserError(f"target group {target!r} has no linear or convolution layer in this policy; leave it out")
        return groups[target]
    if target in layers:
        return [target]
    if any(sign in target for sign in "*?["):
        matched = fnmatch.filter(layers, target)
        touched = [group for group, names in _exclusive(groups).items() if set(names) & set(matched)]
        if len(touched) > 1:
            raise UserError(
                f"target pattern {target!r} matches {len(matched)} modules in the groups {', '.join(touched)}: "
                f"{_some(matched)}. If all are meant, name the groups; else make the pattern narrower"
            )
        if matched:
            return matched
    inside = [name for name in layers if name.startswith(f"{target}.")]
    if inside:
        raise UserError(
            f"target {target!r} is no layer but holds {len(inside)}: {_some(inside)}. "
            f"If all are meant, write {target + '.*'!r}"
        )
    present = dict(policy.named_modules())
    if target in present:
        kinds = ", ".join(kind.__name__ for kind in ADAPTABLE)
        raise UserError(f"target {target!r} is a {type(present[target]).__name__}; adapters change {kinds}")
    ending = [name for name in layers if name.endswith(f".{target}")]
    near = difflib.get_close_matches(target, [*groups, *layers], n=3, cutoff=0.5)
    hint = (
        f" {len(ending)} end with it ({_some(ending)}): write {'*.' + target!r}"
        if ending
        else f" Did you mean {_quote(near)}?"
        if near
        else ""
    )
    raise UserError(
        f"target {target!r} matches no module; expected a group ({', '.join(groups)}), the name of a layer or a "
        f"pattern.{hint}"
    )


def _exclusive(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    """Groups that are not parts of others, as `sublayers` is of `language`."""
    return {
        group: names
        for group, names in groups.items()
        if not any(set(names) < set(others) for other, others in groups.items() if other != group)
    }


def _below(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def _check_convolution(name: str, layer: nn.Module) -> None:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return
    plain = layer.groups == 1 and layer.padding_mode == "zeros" and set(layer.dilation) == {1}
    if not plain:
        raise UserError(
            f"target {name!r} has groups {layer.groups}, dilation {layer.dilation}, padding mode {layer.padding_mode!r}; "
            "adapters change convolutions with 1, 1 and 'zeros'. Leave it out of the targets"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _quote(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
