"""A saved policy as bytes, which travel through Ray's object store to machines that share no disk."""

import tempfile
from pathlib import Path

from simplevla.adapters.load import load_policy
from simplevla.policies.base import Policy


def packed(policy: Policy) -> dict[str, bytes]:
    """Path in the policy's folder -> content."""
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def unpacked(files: dict[str, bytes]) -> Policy:
    """The policy that `packed` was given."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_bytes(content)
        return load_policy(folder)
