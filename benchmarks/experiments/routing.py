"""Which adapter does the nearest instruction choose? `python -m benchmarks.experiments.routing`; writes docs/results/routing.{json,md}.

Needs no trained adapter: the router looks at instructions only. The paraphrases were written before the router was tried on them.
"""

from pathlib import Path

from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.routing import NearestRouter, RoutingAccuracy, routing_accuracy
from simplevla.config import SuiteConfig
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.statistics import wilson
from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PARAPHRASES = {
    "press_button": (
        "push the button down",
        "hit the button",
        "press down on the button please",
        "activate the switch",
    ),
    "slide_lid": ("open the orange lid", "slide the cover open", "move the lid aside", "shove the orange lid away"),
    "push_to_strip": (
        "move the blue block to the purple strip",
        "shove the blue cube onto the strip",
        "push blue onto purple",
        "get the blue block over the purple line",
    ),
    "lift_block": (
        "pick up the red block",
        "raise the red block",
        "lift the red cube",
        "hold the red block in the air",
    ),
    "place_on_plate": (
        "put the green block on the plate",
        "set the green cube onto the plate",
        "move the green block to the plate",
        "drop the green block on the dish",
    ),
    "stack_blocks": (
        "put the red block on the blue block",
        "stack red on blue",
        "place the red cube on top of the blue cube",
        "build a tower of red and blue",
    ),
}
TEMPLATES = ("put the {} into the basket", "grab the {}, then drop it in the basket", "the {} belongs in the basket")


def bank_for(instructions: dict[str, str]) -> AdapterBank:
    """An untrained adapter per task on a small policy."""
    values = {"mean": [0.0], "std": [1.0], "min": [-1.0], "max": [1.0], "q01": [-1.0], "q99": [1.0]}
    policy = TinyVLA.create(
        "nano",
        cameras=("a",),
        state_dim=1,
        action_dim=1,
        chunk_length=1,
        instructions=instructions.values(),
        statistics=Statistics(state=values, action=values),
    )
    bank = AdapterBank(policy)
    for name, instruction in instructions.items():
        bank.add(name, AdapterConfig(rank=1, targets=("head",)), instructions=[instruction])
    return bank


def row(suite: str, what: str, found: RoutingAccuracy) -> tuple[dict, str]:
    low, high = wilson(found.correct, found.n)
    mistakes = "; ".join(f'"{text}" → {chosen}' for text, _, chosen in found.mistakes) or "none"
    line = f"| {suite} | {what} | {found.correct} of {found.n} | {low:.0%} to {high:.0%} | {mistakes} |"
    return {
        "suite": suite,
        "instructions": what,
        "correct": found.correct,
        "n": found.n,
        "mistakes": found.mistakes,
    }, line


def main() -> None:
    tabletop = {task.name: task.instruction for task in make_suite(SuiteConfig(name="tabletop")).tasks}
    libero = {task.name: task.instruction for task in make_suite(SuiteConfig(name="libero_object")).tasks}
    reworded = [(text, task) for task, texts in PARAPHRASES.items() for text in texts]
    things = [
        (template.format(text.removeprefix("pick up the ").removesuffix(" and place it in the basket")), task)
        for task, text in libero.items()
        for template in TEMPLATES
    ]
    results, lines = [], []
    for suite, instructions, pairs in (("tabletop", tabletop, reworded), ("libero_object", libero, things)):
        router = NearestRouter(bank_for(instructions))
        own = [(text, task) for task, text in instructions.items()]
        for what, asked in (("its own", own), ("paraphrases", pairs)):
            result, line = row(suite, what, routing_accuracy(router, asked))
            results.append(result)
            lines.append(line)
            print(line)
    write_json(RESULTS / "routing.json", {"rows": results, "commit": commit()})
    right = " and ".join(
        f"{result['correct']} of {result['n']} paraphrases on {result['suite']}"
        for result in results
        if result["instructions"] == "paraphrases"
    )
    text = f"""# Routing by the nearest instruction

The nearest instruction names the right adapter for {right}.

| suite | instructions | right | 95 % Wilson | mistakes |
|---|---|---|---|---|
{chr(10).join(lines)}

- Command: `python -m benchmarks.experiments.routing`. Commit {commit()}. Data: `routing.json`.
- One adapter for each task. The router compares hashed words and letters, and knows no synonyms.
- Routing by the exact instruction (`TaskRouter`) is right by construction, and refuses what it doesn't know.
"""
    write_atomically(RESULTS / "routing.md", text.encode())


if __name__ == "__main__":
    main()
