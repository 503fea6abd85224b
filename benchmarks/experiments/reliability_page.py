"""The page about a campaign of `reliability.py`."""

from typing import Any

ROWS = (
    ("kill -9, then the same command or --resume", "kill_points", "kill_survived"),
    ("faults of workers", "worker_faults", "worker_survived"),
    ("full disk", "full_disk", "full_disk_survived"),
)
MEANING = {
    "kills": "After each kill the same command, or `--resume` where a run had begun, ends as the uninterrupted one. Its files are the same, "
    "byte for byte, but for times and paths. TensorBoard's files, HTML pages, manifests, stages.json and environment.json aren't compared. "
    "Killed are processes forked from one that has imported everything; `new process` is a command started anew. `file operation` is a "
    "kill before a file operation: each one up to the first checkpoint, for `continual` and `demo` some of the later ones too.",
    "workers": "Faults of the simulator. After a `repaired` one the command ends by itself as without it: a kill, an exit, a "
    "segmentation fault, a hang, an exception, a death while starting, the death of a replacement. A `refused` one is a broken contract "
    "(NaN, a shape, success that is no bool) or a fault without end. The command ends with one clear error; without the fault the same "
    "command goes on to the right end.",
    "disk": "A file system of 64 MB in memory has a part of the space that the command needs. The command survived if it names the file "
    "and the remedy in one line, and ends as without the fault once there is space.",
}


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    parts = result["parts"]
    rows = [(what, result[tried], result[kept]) for what, tried, kept in ROWS if result[tried]]
    if "inputs" in parts:
        tried = result["bad_inputs"]
        rows.append(("bad inputs", tried, tried - parts["inputs"]["tracebacks"] - parts["inputs"]["hangs"]))
    survived, tried = sum(kept for _, _, kept in rows), sum(tried for _, tried, _ in rows)
    lines = [
        "# Reliability",
        "",
        f"Commands survived {survived:,} of {tried:,} kills, faults of simulators, full disks and bad inputs.",
        "",
        "| what | tried | survived |",
        "|---|---|---|",
        *(f"| {what} | {tried} | {kept} |" for what, tried, kept in rows),
        "",
        f"Tracebacks {result['tracebacks']}, hangs {result['hangs']}, results lost {result['results_lost']}, left behind {result['left_behind']} "
        "(processes, names in shared memory, unfinished files).",
    ]
    first_kills = next((name for name in parts if name.startswith("kills")), None)
    for name, record in parts.items():
        lines += ["", f"## {name}", ""]
        kind = name.split("-")[0]
        lines += [MEANING[kind], ""] if kind in MEANING and name in (kind, first_kills) else []
        if "by_kind" in record:
            lines += ["| kind | survived | tried |", "|---|---|---|"]
            lines += [f"| {kind} | {kept} | {tried} |" for kind, (kept, tried) in record["by_kind"].items()]
            lines += [""]
        if name == "soak":
            lines += soak_lines(record)
        lines += [f"- Not survived: {failure}" for failure in record.get("failures", [])]
        lines += ["", f"`{record['command']}`, commit {record['commit'][:12]}, {record['minutes']:.0f} minutes."]
    return "\n".join([*lines, "", f"Measured on {result['machine']}, seed {result['seed']}.", ""])


def soak_lines(record: dict[str, Any]) -> list[str]:
    """What happened to memory, descriptors and threads."""
    return [
        f"`train` for {record['soak_minutes']:g} minutes, {record['updates']} updates, with its workers, sampled {record['samples']} times. "
        f"After the first fifth: {record['megabytes_per_hour']:+.1f} MB, {record['descriptors_per_hour']:+.1f} file descriptors and "
        f"{record['threads_per_hour']:+.1f} threads an hour: {'flat' if record['flat'] else 'not flat'}.",
        "",
        "| minute | resident MB | descriptors | threads |",
        "|---|---|---|---|",
        *(f"| {' | '.join(map(str, row))} |" for row in record["table"]),
    ]
