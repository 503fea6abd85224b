"""The model card of a policy: what it is, how to load it, what trained it, and its measured success."""

import contextlib
from pathlib import Path

import jinja2

from simplevla.errors import UserError
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.result import EvaluationResult, read_result
from simplevla.policies.base import Policy
from simplevla.policies.trained_on import TrainedOn
from simplevla.storage import read_json

WORDS = {
    "sft": "Imitation of demonstrations",
    "rl": "Reinforcement learning (GRPO, one bit per episode)",
    "published": "As published elsewhere",
    "unknown": "Not recorded",
}
"""Stage of training -> its words."""


def model_card(policy: Policy, folder: Path, name: str, licence: str) -> str:
    """Markdown of the card, with the metadata that the hub reads.

    Args:
        folder: where `policy` was loaded from; its evaluations are looked for beside it.
        name: of the repository, OWNER/NAME.
        licence: its identifier on the hub.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = results_beside(folder)
    stages = policy.trained_on or (TrainedOn(stage="unknown"),)
    environment = folder.parent / "environment.json"
    metadata = ModelCardData(
        model_name=name,
        license=licence,
        library_name="simplevla",
        pipeline_tag="robotics",
        tags=["robotics", "vision-language-action", *dict.fromkeys(stage.stage for stage in stages)],
        eval_results=[
            EvalResult(
                task_type="robotics",
                dataset_type=result.suite,
                dataset_name=f"{result.suite}, {result.states}",
                # The hub merges what doesn't differ in type, configuration and split.
                dataset_config=", ".join(
                    [result.states, result.how, *(f"{k} {v}" for k, v in result.protocol.items())]
                ),
                dataset_split=result.split,
                metric_type="success_rate",
                metric_value=result.overall.rate,
            )
            for result in results
            if result.overall.n and result.as_saved
        ],
    )
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("simplevla.evaluation", "."), undefined=jinja2.StrictUndefined, autoescape=False
    )
    return templates.get_template("card.md.jinja").render(
        metadata=metadata.to_yaml(),
        name=name,
        policy=policy,
        architecture=read_json(folder / "config.json")["architecture"],
        parameters=f"{sum(parameter.numel() for parameter in policy.parameters()) / 1e6:.2f}",
        adapters=sorted(path.parent.name for path in folder.glob("adapters/*/adapter.json")),
        last=stages[-1],
        stages=stages,
        commit=read_json(environment).get("commit") if environment.is_file() else None,
        results=results,
        WORDS=WORDS,
    )


def results_beside(folder: Path) -> list[EvaluationResult]:
    """Evaluations of the policy in `folder`, from the files beside it and in `eval/` there, as a run's are."""
    fingerprint, found = policy_fingerprint(folder), []
    for file in sorted([*folder.parent.glob("*.json"), *folder.parent.glob("eval/*.json")]):
        # Most of these files are something else.
        with contextlib.suppress(UserError):
            if read_json(file).get("policy_sha256") == fingerprint:
                found.append(read_result(file))
    return found
