"""Private parts of PyTorch that the package uses are listed, with the versions that they were tested with."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(r"torch(\.\w+)*\._(?!_)\w+(\.\w+)*")


def private_names(source: str) -> Iterator[str]:
    """Names of PyTorch with a part that begins with an underscore: imported, looked up or in a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        else:
            continue
        yield from (name.removesuffix(".default") for name in names if PRIVATE.fullmatch(name))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from torch.utils._pytree import tree_map", "torch.utils._pytree.tree_map"),
        ("from torch import _dynamo", "torch._dynamo"),
        ("import torch._dynamo", "torch._dynamo"),
        ("torch._C._nn.gelu(x)", "torch._C._nn.gelu"),
    ],
)
def test_a_private_name_is_seen(source: str, name: str) -> None:
    assert name in set(private_names(source))
    assert not list(private_names("from torch.utils.checkpoint import checkpoint\ntorch.__version__\nself._torch.x"))


def test_all_private_names_are_listed() -> None:
    used = {
        (name, path.relative_to(ROOT / "src" / "simplevla").as_posix())
        for path in (ROOT / "src").rglob("*.py")
        for name in private_names(path.read_text())
    }
    listed = re.findall(
        r"^\| `(torch\.[\w.]+)` \| `?([\w/.]+)`? \|", (ROOT / "docs" / "dependencies.md").read_text(), re.M
    )
    assert used == set(listed)
    assert not any("unittest" in path.read_text() for path in (ROOT / "src").rglob("*.py"))


def test_only_the_version_that_was_tested_is_admitted() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    pinned = re.search(r"^torch==(\d+)\.(\d+)\.\d+$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    major, minor = map(int, pinned.groups())
    assert f"torch>={major}.{minor},<{major}.{minor + 1}" in wanted
