"""Model cards of policies and reward models: metadata for the Hub, and a body that says what was measured.

Values are data: none is read as a template. Short values are escaped for Markdown, and whatever a model or a user wrote
at length stands in a fenced block whose fence is longer than any run of backticks inside.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hf_rlhf.evaluation.metrics import BeforeAfter
from hf_rlhf.evaluation.report import SamplePair


def policy_card(
    *,
    model_id: str,
    base_model: str,
    description: str = "",
    headline: str = "",
    results: Sequence[BeforeAfter] = (),
    settings: Mapping[str, Any] | None = None,
    samples: Sequence[SamplePair] = (),
    curve_image: str | None = None,
    reward_model: str | None = None,
    usage: str | None = None,
    datasets: Sequence[str] = (),
    adapter: bool = True,
    end_ids: Sequence[int] | None = None,
    vocabulary: int | None = None,
    license: str | None = None,
    language: str = "en",
    demonstration: bool = False,
    simulated_annotator: bool = False,
    limits: Sequence[str] = (),
) -> str:
    """Return the README of a model trained by PPO: a LoRA adapter, or full weights (`adapter=False`).

    `model_id` is where it will be loaded from ("owner/name"), `base_model` what it was trained on; a local path is
    shown by its last part only and stays out of the metadata. `end_ids` are the tokens that end an answer, where the
    generation config of an adapter's base does not have them all. `vocabulary` is the number of embeddings that an
    adapter needs, where its base has others. `curve_image` is a path inside the repository, `usage` code that shows how
    to load and prompt the model when the general one would not do.
    """
    return _card(
        "policy.md.j2",
        tags=["hf_rlhf", "ppo", "rlhf"],
        pipeline_tag="text-generation",
        model_id=model_id,
        base_model=base_model,
        description=description,
        headline=headline,
        results=[(row.metric, *row.formatted()) for row in results],
        settings=settings or {},
        samples=samples,
        curve_image=quote(curve_image) if curve_image else None,
        reward_model=reward_model,
        usage=usage,
        datasets=datasets,
        adapter=adapter,
        end_ids=list(end_ids) if adapter and end_ids else None,
        vocabulary=vocabulary,
        license=license,
        language=language,
        demonstration=demonstration,
        simulated_annotator=simulated_annotator,
        limits=limits,
    )


def reward_model_card(
    *,
    model_id: str,
    base_model: str,
    description: str = "",
    headline: str = "",
    results: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    report_card: Mapping[str, Any] | None = None,
    curve_image: str | None = None,
    datasets: Sequence[str] = (),
    adapter: bool = True,
    loss: str | None = None,
    members: int = 0,
    combination: str = "mean",
    vocabulary: int | None = None,
    license: str | None = None,
    language: str = "en",
    demonstration: bool = False,
    simulated_annotator: bool = False,
    limits: Sequence[str] = (),
) -> str:
    """Return the README of a reward model.

    The model is a LoRA adapter with a score head, or every weight.

    The fields are those of `policy_card`; `results` maps each metric to its value ("held-out accuracy": 0.91), and
    `report_card` is the content of report_card.json. `loss` is that of rated completions, None for pairs and TRL's
    `RewardTrainer`. An ensemble has `members` adapters, whose rewards are combined by `combination`.
    """
    return _card(
        "reward_model.md.j2",
        tags=["hf_rlhf", "reward-model", "rlhf", *(() if loss else ("trl", "reward-trainer"))],
        loss=loss,
        members=members,
        combination=combination,
        pipeline_tag="text-classification",
        model_id=model_id,
        base_model=base_model,
        description=description,
        headline=headline,
        results=results or {},
        settings=settings or {},
        report_card=report_card,
        curve_image=quote(curve_image) if curve_image else None,
        datasets=datasets,
        adapter=adapter,
        vocabulary=vocabulary,
        license=license,
        language=language,
        demonstration=demonstration,
        simulated_annotator=simulated_annotator,
        limits=limits,
    )


def sft_card(
    *,
    model_id: str,
    base_model: str,
    results: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    adapter: bool = True,
    end_ids: Sequence[int] | None = None,
    vocabulary: int | None = None,
    license: str | None = None,
    language: str = "en",
) -> str:
    """Return the README of a model fine-tuned with TRL's `SFTTrainer`. The fields are those of `policy_card`."""
    return _card(
        "sft.md.j2",
        tags=["hf_rlhf", "sft", "trl"],
        pipeline_tag="text-generation",
        model_id=model_id,
        base_model=base_model,
        results=results or {},
        settings=settings or {},
        datasets=datasets,
        adapter=adapter,
        end_ids=list(end_ids) if adapter and end_ids else None,
        vocabulary=vocabulary,
        license=license,
        language=language,
    )


def template_folder() -> Path:
    """Return the templates' folder: `hf_rlhf/_model_cards` in a wheel, `model_cards` at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "_model_cards", package.parent / "model_cards")
    for folder in folders:
        if (folder / "policy.md.j2").is_file():
            return folder
    raise FileNotFoundError(f"no model card templates in {' or '.join(map(str, folders))}. Install hf-rlhf again")


def _card(
    template: str,
    *,
    tags: list[str],
    pipeline_tag: str,
    model_id: str,
    base_model: str,
    datasets: Sequence[str],
    adapter: bool,
    license: str | None,
    language: str,
    **fields: Any,
) -> str:
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=base_model if is_hub_id(base_model) else None,
        tags=[*tags, "lora"] if adapter else tags,
        pipeline_tag=pipeline_tag,
        license=license,
        language=language,
        datasets=list(datasets) or None,
    )
    body = render(
        template,
        name=model_id.rsplit("/", 1)[-1],
        model_id=model_id,
        base_model=shown_name(base_model),
        datasets=datasets,
        adapter=adapter,
        license=license,
        **fields,
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}"


def render(template: str, **fields: Any) -> str:
    """Return the body of a card; a name that the template lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_folder()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"inline": inline, "fence": fence, "json": json.dumps}
    return environment.get_template(template).render(**fields)


def inline(value: object) -> str:
    """Return one line of plain text in Markdown.

    No HTML, table cell, link, code, emphasis, heading or rule comes out of it.
    """
    line = html.escape(" ".join(str(value).split()), quote=False)
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)  # an underscore between letters is plain already
    return re.sub(r"^([#+=-])", r"\\\1", line)


def fence(text: str, language: str = "") -> str:
    """Return a fenced code block that the text cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}"


def shown_name(name: str) -> str:
    """Return the public name of a model, a dataset or a reward: a Hub name unchanged, the last part of a path."""
    return name if is_hub_id(name) else Path(name).name


def hub_names(*names: str | None) -> list[str]:
    """Return the names that others find on the Hub. Metadata may name no others."""
    return [name for name in names if name and is_hub_id(name)]


def is_hub_id(name: str) -> bool:
    """Return whether a name looks like "name" or "owner/name" and is no folder of this machine."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", name)) and not Path(name).exists()
