"""Results and model card that a reward model's run leaves beside the weights."""

import json
from pathlib import Path
from typing import Any

from hf_rlhf.evaluation.report_card.guard import read_report_card
from hf_rlhf.models.load import public_name
from hf_rlhf.recipes.arguments import ModelArguments, RewardArguments
from hf_rlhf.recipes.common import base_and_adapter

RESULT_FILE = "evaluation.json"
RESULTS = {
    "train_rows": "Pairs that were trained on, or groups of rated completions; of an ensemble, the mean over members.",
    "reload_gap": "Largest difference between the rewards of 8 training texts in memory and after the saved model was"
    " loaded again: 0 but for rounding.",
    "padding_gap": "Largest difference between their rewards alone, beside others in a batch, and padded on either"
    " side.",
    "merged_gap": "Largest difference between their rewards by the saved model and by the plain classifier in merged/.",
    "eval_accuracy": "Share of the evaluation pairs in which the chosen completion has the higher reward; a tie counts"
    " half. Of rated groups: of all pairs of one prompt with different ratings; with reward_loss=binary, the share of"
    " completions on their side of 0.",
    "eval_accuracy_low": "Lower bound of its 95 % interval (Wilson; of rated groups, with one draw a group).",
    "eval_accuracy_high": "Upper bound of it.",
    "eval_margin": "Mean reward of the chosen completion minus that of the rejected one.",
    "eval_rows": "Pairs, or groups, that were evaluated.",
    "eval_threshold": "With reward_loss=binary: the least reward that is flagged, chosen on half of the held-out"
    " prompts.",
    "eval_precision": "Share of the rows flagged from that threshold on whose label is 1, on the other half.",
    "eval_recall": "Share of the rows with label 1 that are flagged from that threshold on, on the other half.",
    "eval_average_precision": "Mean precision over all thresholds, weighted by the recall that each adds.",
    "eval_disagreement": "Of an ensemble: mean over completions of the standard deviation over its members.",
}
"""Results of `train_reward_model`; without an evaluation set, those of training and round trip alone."""


def write_results(folder: Path, metrics: dict[str, float]) -> None:
    """Write evaluation.json."""
    (folder / RESULT_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def write_card(
    folder: Path,
    script: RewardArguments,
    training: Any,
    model: ModelArguments,
    metrics: dict[str, float],
    vocabulary: int | None,
    start: dict[str, Any],
) -> None:
    """Write README.md, the model card."""
    from hf_rlhf.hub.model_card import hub_names, reward_model_card

    results = {"trained on": f"{metrics['train_rows']:.0f} rows"} if script.rates else {
        "pairs trained on": f"{metrics['train_rows']:.0f}"
    }  # fmt: skip
    if "eval_accuracy" in metrics:
        results["held-out accuracy"] = (
            f"{metrics['eval_accuracy']:.3f} (95% interval {metrics['eval_accuracy_low']:.3f} to"
            f" {metrics['eval_accuracy_high']:.3f}, {metrics['eval_rows']:.0f} {'rows' if script.rates else 'pairs'})"
        )
    if "eval_disagreement" in metrics:
        results["disagreement of the members (standard deviation)"] = f"{metrics['eval_disagreement']:.3g}"
    names = "learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_length seed"
    settings = {name: getattr(training, name) for name in names.split()} | start
    card = reward_model_card(
        model_id=training.hub_model_id or folder.name,
        base_model=public_name(base_and_adapter(model)[0]),
        results=results,
        report_card=read_report_card(folder),
        settings=settings | ({"reward_loss": script.reward_loss} if script.rates else {}),
        datasets=hub_names(*script.dataset_names()),
        adapter=model.use_peft,
        loss=script.reward_loss if script.rates else None,
        members=script.num_reward_models if script.num_reward_models > 1 else 0,
        combination=script.ensemble_reward,
        vocabulary=vocabulary,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
