"""The page about a campaign of `reliability.py`."""

from typing import Any

ROWS = (
    ("kill -9, then the same command or --resume", "kills", "tried", "survived"),
    ("faults of workers", "workers", "tried", "survived"),
    ("full disk", "disk", "tried", "survived"),
)
MEANING = {
    "kills": "After each kill the same command, or `--resume` where a run had begun, ends as the uninterrupted one: the same files, byte "
    "for byte, less times and paths; TensorBoard's files, HTML pages, manifests, stages.json and environment.json aren't compared. "
    "Killed are processes forked from one that has imported everything, `new process` apart; `file operation` is before one that the "
    "process was about to do: each one up to its first checkpoint, for `continual` and `demo` some of the later ones too.",
    "workers": "A fault of the simulator: `repaired` are those after which the command ends by itself as without any (killed, exits, "
    "segmentation faults, hangs, exceptions, deaths while starting, deaths of a replacement); `refused` are broken contracts (NaN, "
    "shapes, success that is no bool) and faults without end: one clear error, and without the fault the same command goes on to the "
    "right end.",
    "disk": "A file system of 64 MB in memory with a part of the space that the command needs. Survived is one line that names the file "
    "and the remedy, and after space was made the same end as without.",
}


def page(result: dict[str, Any]) -> str:
    """Markdown."""
    parts = result["parts"]
    lines = ["# Reliability", "", "| what | tried | survived |", "|---|---|---|"]
    lines += [f"| {what} | {parts[p][tried]} | {parts[p][kept]} |" for what, p, tried, kept in ROWS if p in parts]
    if "inputs" in parts:
        lines.append(
            f"| bad inputs | {result['bad_inputs']} | {result['bad_inputs'] - parts['inputs']['tracebacks'] - parts['inputs']['hangs']} |"
        )
    lines += [
        "",
        f"Tracebacks {result['tracebacks']}, hangs {result['hangs']}, results lost {result['results_lost']}, left behind {result['left_behind']} "
        "(processes, names in shared memory, unfinished files).",
    ]
    for name, record in parts.items():
        lines += ["", f"## {name}", ""]
        lines += [MEANING[name], ""] if name in MEANING else []
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
