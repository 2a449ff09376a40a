"""The card of a dataset of feedback: metadata that names its files, and a body that says where the rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_rlhf.hub.model_card import render

_OF_TASKS = {
    "preferences": "reward-model training on pairs",
    "sft": "supervised fine-tuning",
    "kto": "training on labels (KTO)",
    "ratings": "reward-model training on ratings",
    "rankings": "reward-model training on rankings",
}


def feedback_card(*, dataset_id: str, report: Mapping[str, Any], license: str | None = None) -> str:
    """Return the README of a dataset that `hf_rlhf.feedback.exports.write_exports` wrote.

    Args:
        dataset_id: where it will be loaded from ("owner/name").
        report: that of the export.
        license: of the dataset.
    """
    from huggingface_hub import DatasetCardData

    names = sorted({name.removesuffix(".jsonl").removesuffix("_eval") for name in report["files"]} - {"events"})
    configs: list[dict[str, Any]] = []
    for name in names:
        splits = {"train": f"{name}.jsonl", "test": f"{name}_eval.jsonl"}
        files = [{"split": split, "path": path} for split, path in splits.items() if path in report["files"]]
        configs.append({"config_name": name, "data_files": files})
    if configs:
        first = next((each for each in configs if each["config_name"] == "preferences"), configs[0])
        first["default"] = True
    tags = ["hf_rlhf", "rlhf", "human-feedback", *(["trl", "preference"] if "preferences" in names else [])]
    metadata = DatasetCardData(license=license, tags=tags, configs=configs or None)
    body = render(
        "feedback.md.j2",
        name=dataset_id.rsplit("/", 1)[-1],
        dataset_id=dataset_id,
        kinds=[
            (
                name,
                _OF_TASKS.get(name, "analysis"),
                report["files"].get(f"{name}.jsonl", 0),
                report["files"].get(f"{name}_eval.jsonl", 0),
            )
            for name in names
        ],
        conversion=report["conversion"],
        agreement=report["agreement"],
        license=license,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"
