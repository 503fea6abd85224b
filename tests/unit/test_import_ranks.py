"""The packages import in one direction, and each heavy stack in one place (docs/architecture.md)."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "simplevla"

RANKS = {
    "errors": -3,
    "checked": -2,
    "record": -2,
    "reading": -1,
    "types": 0,
    "config": 0,
    "hub": 0,
    "allocation": 0,
    "storage": 0,
    "terminal": 0,
    "algorithm": 1,
    "effect": 1,
    "progress": 1,
    "suites": 2,
    "policies": 2,
    "adapters": 3,
    "rollout": 3,
    "demonstrations": 4,
    "serving": 4,
    "evaluation": 5,
    "novelty": 6,
    "training": 6,
    "report": 7,
    "distributed": 8,
    "planning": 9,
    "runs": 9,
    "recipes": 10,
    "commands": 11,
    "cli": 12,
}
ALLOWED = {
    "mujoco": {"suites"},
    "libero": {"suites"},
    "robosuite": {"suites"},
    "metaworld": {"suites"},
    "mani_skill": {"suites"},
    "sapien": {"suites"},
    "gymnasium": {"suites"},
    "transformers": {"policies", "adapters"},
    "peft": {"policies", "adapters"},
    "accelerate": {"policies", "adapters"},
    "ray": {"distributed"},
    "torchao": {"training"},
    "websockets": {"serving"},
    "msgpack": {"serving"},
    "h5py": {"demonstrations"},
    "wandb": {"training"},
    "trackio": {"training"},
    "huggingface_hub": {"hub", "evaluation"},
}
MODULE = re.compile(r"simplevla(\.\w+)+(:\w+)?")
WITHOUT_TORCH = (
    "types.py",
    "config.py",
    "reading.py",
    "suites",
    "rollout/workers.py",
    "rollout/crew.py",
    "demonstrations/expert.py",
)


def imported(tree: ast.AST, module: tuple[str, ...]) -> Iterator[str]:
    """Absolute names of all that is imported anywhere in the file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value):
            # A name for importlib.
            yield node.value.replace(":", ".")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module[: len(module) - node.level], base]).strip(".")
            if base == "simplevla":
                yield from (f"simplevla.{alias.name}" for alias in node.names)
            else:
                yield base


def problems(name: str, source: str) -> list[str]:
    """What is wrong with the imports of the file `name`, relative to the package, such as `suites/base.py`."""
    parts = Path(name).with_suffix("").parts
    room = parts[0]
    tree = ast.parse(source)
    found = [
        f"{name} imports {target} at its top; it takes a second, so import it in the functions that use it"
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in imported(node, ("simplevla", *parts))
        if target.startswith("scipy")
    ]
    for target in imported(tree, ("simplevla", *parts)):
        words = target.split(".")
        if words[0] in ALLOWED and room not in ALLOWED[words[0]]:
            found.append(f"{name} imports {target}, allowed in {', '.join(sorted(ALLOWED[words[0]]))}")
        if words[0] == "torch" and any(Path(name).is_relative_to(p) for p in WITHOUT_TORCH):
            found.append(f"{name} imports {target}; torch must not be needed here")
        if words[0] != "simplevla" or len(words) < 2 or words[1] == "__version__":
            continue
        if words[1] not in RANKS:
            found.append(f"{name} imports {target}, which has no rank")
        elif words[1] != room and RANKS[words[1]] >= RANKS[room]:
            found.append(f"{name} (rank {RANKS[room]}) imports {target} (rank {RANKS[words[1]]})")
        elif words[1] == room == "policies" and _sibling_policy(parts, words):
            found.append(f"{name} imports another policy: {target}")
    return found


def _sibling_policy(parts: tuple[str, ...], words: list[str]) -> bool:
    inside = len(parts) > 2
    other_package = len(words) > 2 and (SOURCE / "policies" / words[2]).is_dir()
    return inside and other_package and words[2] != parts[1]


def test_the_whole_tree() -> None:
    files = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]
    assert len(files) > 15
    found = [p for path in files for p in problems(path.relative_to(SOURCE).as_posix(), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        (
            "evaluation/a.py",
            "from simplevla.training.loop import train",
            "(rank 5) imports simplevla.training.loop (rank 6)",
        ),
        ("suites/a.py", "import simplevla.policies.base", "imports simplevla.policies.base (rank 2)"),
        ("algorithm/a.py", "def f():\n    from simplevla import policies", "imports simplevla.policies (rank 2)"),
        ("rollout/a.py", "from ..training import loop", "imports simplevla.training (rank 6)"),
        (
            "rollout/a.py",
            "from simplevla.demonstrations.expert import Attempt",
            "(rank 3) imports simplevla.demonstrations.expert (rank 4)",
        ),
        ("demonstrations/a.py", "import mujoco", "imports mujoco, allowed in suites"),
        ("training/a.py", "from transformers import X", "imports transformers, allowed in adapters, policies"),
        ("evaluation/a.py", "from scipy.stats import norm", "imports scipy.stats at its top"),
        ("suites/a/b.py", "import torch.nn", "torch must not be needed here"),
        ("rollout/workers.py", "from torch import Tensor", "torch must not be needed here"),
        ("cli.py", "import simplevla.cellar", "which has no rank"),
        ("policies/a.py", 'f = import_module("simplevla.adapters.bank")', "imports simplevla.adapters.bank (rank 3)"),
    ],
)
def test_each_rule_is_seen(name: str, source: str, problem: str) -> None:
    found = problems(name, source)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    "source",
    [
        "from simplevla.algorithm import loss",
        "import torch",
        "from . import checkpoint",
        "from simplevla import __version__",
    ],
)
def test_what_is_allowed(source: str) -> None:
    assert problems("training/loop.py", source) == []


@pytest.mark.parametrize(
    "module", ["config", "types", "recipes", "cli", "suites.registry", "rollout.workers", "rollout.crew"]
)
def test_loads_no_torch(module: str) -> None:
    code = (
        f"import sys, simplevla.{module}; print([n for n in ('torch', 'mujoco', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
