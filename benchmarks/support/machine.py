"""What a figure was measured on."""

import os
import platform
from pathlib import Path
from typing import Any


def this_machine() -> str:
    """Cores and their kind: generations of one name differ by two in speed, so family and model are told too (Linux)."""
    kind = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        # One block per core, alike.
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "model name" in fields and "cpu family" in fields:
            kind += f" ({fields['model name']}, family {fields['cpu family']}, model {fields['model']})"
    return f"{os.cpu_count()} cores, {kind}, no GPU"


def machines(rows: list[dict[str, Any]]) -> str:
    """All machines that rows of a record were measured on."""
    return "; ".join(dict.fromkeys(row["machine"] for row in rows))
