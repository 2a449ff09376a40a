"""Cards of datasets: metadata that names their files, and a body that says where the rows come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.hub.model_card import hub_names, render, shown_name
from hf_rlhf.ppo.trajectories import COLUMNS

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


def trajectory_card(
    *,
    dataset_id: str,
    rows: Mapping[int, int],
    rewards: Sequence[str],
    base_model: str | None = None,
    dataset: str | None = None,
    reward_sources: Sequence[str] = (),
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    license: str | None = None,
) -> str:
    """Return the README of the trajectories of a PPO run.

    Args:
        dataset_id: where it will be loaded from ("owner/name").
        rows: completions of each iteration that was written.
        rewards: names in the column `rewards`.
        base_model, dataset, reward_sources: of the run; a local path is shown by its last part.
        settings, versions: of the run, as the card shows them.
        license: of the dataset.
    """
    from huggingface_hub import DatasetCardData

    metadata = DatasetCardData(
        license=license,
        tags=["hf_rlhf", "rlhf", "ppo", "trajectories"],
        source_datasets=hub_names(dataset) or None,
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "iteration-*.parquet"}]}],
    )
    body = render(
        "trajectories.md.j2",
        name=dataset_id.rsplit("/", 1)[-1],
        dataset_id=dataset_id,
        rows=rows,
        rewards=rewards,
        base_model=None if base_model is None else shown_name(base_model),
        dataset=None if dataset is None else shown_name(dataset),
        reward_sources=reward_sources,
        settings=settings,
        versions=versions,
        columns=COLUMNS,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"
