"""Is the policy really better? The policy against its start, and other models, on held-out prompts."""

import importlib.util
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from hf_rlhf.checkpoint.lock import locked
from hf_rlhf.credentials import without_secrets
from hf_rlhf.data.held_out import prompt_key
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.likelihood import KL_ESTIMATOR, completion_kl
from hf_rlhf.evaluation.metrics import summarize
from hf_rlhf.evaluation.opinions import JUDGE, PEOPLE, REWARD, Opinions, in_words, result_of
from hf_rlhf.evaluation.policy_page import write_policy_page
from hf_rlhf.evaluation.text_measures import measure_texts
from hf_rlhf.hub.model_card import shown_name
from hf_rlhf.models.adapter_files import adapter_folder
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import DataArguments
from hf_rlhf.recipes.common import RunResult
from hf_rlhf.recipes.datasets import training_prompt_keys
from hf_rlhf.recipes.evaluate_arguments import EvaluateArguments
from hf_rlhf.recipes.evaluate_completions import (
    Work,
    read_completions,
    read_likelihood,
    read_logprobs,
    require_same_settings,
    sample,
    why_no_kl,
)
from hf_rlhf.recipes.evaluate_models import ComparedModel, Prompts, compared_models, prompts_of, sampling_of
from hf_rlhf.recipes.evaluate_opinions import (
    load_judge,
    opinions_by_judge,
    opinions_by_people,
    opinions_by_rewards,
    require_judge,
    reward_completions,
)
from hf_rlhf.recipes.reward_flags import load_rewards, reward_sources
from hf_rlhf.records import METRICS_FILE, read_settings, versions, write_json_lines, write_settings, write_whole
from hf_rlhf.rewards.cache import RewardCache
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.similarity import PACKAGE, Similarity
from hf_rlhf.types import Reward, Trajectory

RESULTS_FILE, SAMPLES_FILE, PAGE_FILE = "evaluation.json", "samples.jsonl", "evaluation.html"

logger = logging.getLogger(__name__)


def evaluate_policy(args: EvaluateArguments) -> RunResult:
    """Compare a policy to its baselines; write evaluation.json, samples.jsonl and evaluation.html to `output_dir`.

    Raises `InputError` for anything wrong in the flags, the prompts or the models, before the first is sampled from;
    `EndpointError` where a server fails. What was sampled and answered is kept, and used when the command is repeated.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("hf-rlhf evaluate runs in one process. Start it without a launcher.")
    folder = Path(args.output_dir)
    sources = reward_sources(args)
    require_judge(args, folder)
    models = compared_models(args)
    _require_own_folder(folder, models)
    sampling, template = sampling_of(args)
    prompts = prompts_of(args, models, sampling, template)
    notes = [note for note in (_known_prompts_note(args, prompts[0]),) if note]
    work = Work(args, folder, sampling, template, _read_text(args.perplexity_text))
    if functions := [source for source in sources if callable(source)]:
        Rewards(functions).require_columns([name for name in prompts[0].rows[0] if name != "prompt_ids"])
    with locked(folder):
        for model, each in zip(models, prompts, strict=True):
            require_same_settings(work, model, each)
        write_settings(folder, args)
        say(f"{len(prompts[0].rows)} held-out prompts; policy against {', '.join(model.name for model in models[1:])}")
        for model, each in zip(models, prompts, strict=True):
            sample(work, model, each, prompts[0])
        written = {model.name: read_completions(work, model, each) for model, each in zip(models, prompts, strict=True)}
        by_model = None if not sources else reward_completions(_rewards(args, sources), written, args.batch_size)
        judge = load_judge(args) if args.judge_model is not None else None
        names = [model.name for model in models[1:]]
        found: list[Opinions] = []
        for name in names:
            found += opinions_by_rewards(by_model, name) if by_model else []
            found += [opinions_by_judge(args, folder, judge, written, name)] if judge is not None else []
        found += opinions_by_people(folder, written, names) if args.annotator is not None else []
        results = _results(work, models, prompts, written, found, notes)
        return _write(work, results, _samples(written, by_model, found))


def _require_own_folder(folder: Path, models: Sequence[ComparedModel]) -> None:
    """Raise `InputError` for a folder that holds a model or a run, whose files the results would take the place of."""
    same = [
        model.path for model in models if folder.is_dir() and os.path.isdir(model.path) and folder.samefile(model.path)
    ]
    if same or (folder / METRICS_FILE).exists() or any(folder.glob("*.safetensors")):
        raise InputError(
            f"output_dir={str(folder)!r} is invalid: it holds a model or a run, whose files would be overwritten."
            " Choose another folder."
        )


def _rewards(args: EvaluateArguments, sources: list[Any]) -> Rewards:
    rewards = load_rewards(args, sources)
    if args.reward_cache is not None:
        rewards.use_cache(RewardCache(args.reward_cache))
    return rewards


def _read_text(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"perplexity_text={name} is invalid: it cannot be read ({reason}). Check the path.") from error


# --- what a reader has to know ------------------------------------------------------------------------------------


def _known_prompts_note(args: EvaluateArguments, prompts: Prompts) -> str | None:
    """Return a note on prompts that the policy was trained on, and warn of them; None where the record names none."""
    recorded = read_settings(Path(adapter_folder(str(args.policy))))
    if not recorded.get("dataset_name") and not recorded.get("datasets"):
        return (
            "The policy has no record of the prompts that it was trained on, so it was not checked that these are new."
        )
    known = {each.name for each in fields(DataArguments)}
    data = DataArguments(**{name: value for name, value in recorded.items() if name in known and name != "resume"})
    try:
        trained = training_prompt_keys(data)
    except InputError as error:
        return f"It was not checked that the prompts are new: those of training cannot be read ({error})."
    shared = sum(prompt_key(row["prompt"]) in trained for row in prompts.rows)
    if not shared:
        return None
    note = (
        f"{shared} of {len(prompts.rows)} prompts are among those that the policy was trained on, so they are not held"
        " out."
    )
    logger.warning("%s The win rates are too high for new prompts. Give others as dataset_name.", note)
    return note


def _notes(work: Work, results: Mapping[str, Any], notes: Sequence[str]) -> list[str]:
    args = work.args
    recorded = read_settings(Path(adapter_folder(str(args.policy))))
    trained = [recorded.get("reward_model_path"), *(recorded.get("reward_funcs") or ())]
    said = [
        "Every model got the same prompts and, where it samples by transformers, the same random numbers. A tie counts"
        " half. The intervals of win rates are Wilson's, and those at equal length the wider of a bootstrap over"
        " prompts and a normal approximation, all of 95%. They do not cover the choice of the prompts or of the judge.",
        "At equal length: a logistic regression of the preference on the length difference in characters, at 0 (after"
        " Dubois et al. 2024, arXiv:2404.04475, without its term for the difficulty of an instruction).",
        *notes,
    ]
    if shared := [shown_name(each) for each in args.reward_names if each in trained]:
        said.append(
            f"PPO trained against {', '.join(shared)}: a win rate by it shows that the training worked, and not that"
            " the policy is better."
        )
    said += [
        f"{each['baseline']}, by {each['name']}: {each['length_controlled']['reason']}."
        for each in results["comparisons"]
        if each["length_controlled"] and each["length_controlled"]["reason"]
    ]
    said += [
        f"KL to {name} was not measured: {each['reason']}." for name, each in results["kl"].items() if "reason" in each
    ]
    said.append(
        "Refusals are found by how a completion begins, in English. Distinct n-grams fall with the amount of text, and"
        " self-similarity depends on the prompts: compare both between models only."
    )
    return said


# --- the numbers --------------------------------------------------------------------------------------------------


def _results(
    work: Work,
    models: Sequence[ComparedModel],
    prompts: Sequence[Prompts],
    written: Mapping[str, Sequence[Trajectory]],
    opinions: Sequence[Opinions],
    notes: Sequence[str],
) -> dict[str, Any]:
    embed, embedded_by = _embeddings(work)
    texts = {name: [each.text for each in trajectories] for name, trajectories in written.items()}
    results: dict[str, Any] = {
        "policy": shown_name(str(work.args.policy)),
        "dataset": shown_name(str(work.args.dataset_name)),
        "prompts": len(prompts[0].rows),
        "models": {model.name: model.path for model in models},
        "comparisons": [
            result_of(each, texts[models[0].name], texts[each.baseline], seed=work.args.seed) for each in opinions
        ],
        "measures": {name: asdict(measure_texts(trajectories, embed)) for name, trajectories in written.items()},
        "self_similarity_by": embedded_by,
        "kl": {
            model.name: _kl(work, models[0], model, why_no_kl(work, model, each, prompts[0]))
            for model, each in zip(models[1:], prompts[1:], strict=True)
        },
        "perplexity": {model.name: _perplexity(work, model) for model in models} if work.text is not None else {},
        "sampling": {**asdict(work.sampling), "chat_template_kwargs": dict(work.template)},
        "settings": _given(work.args),
        "versions": versions(),
    }
    return {"headline": _headline(results), **results, "notes": _notes(work, results, notes)}


def _given(args: EvaluateArguments) -> dict[str, Any]:
    """Return the flags that are not at their default."""
    values = without_secrets(asdict(args))
    return {each.name: values[each.name] for each in fields(args) if values[each.name] != each.default}


def _embeddings(work: Work) -> tuple[Any, str]:
    """Return what gives sentence embeddings, and its name; words alone where their package is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None, "words"
    model = Similarity()
    model.to(work.device)
    return model.embed, "all-MiniLM-L6-v2"


def _kl(work: Work, policy: ComparedModel, baseline: ComparedModel, unknown: str | None) -> dict[str, Any]:
    if unknown is not None:
        return {"reason": unknown}
    own, other = (read_logprobs(work, model) for model in (policy, baseline))
    mask = lengths_to_mask(torch.tensor(list(map(len, own))), max(1, *map(len, own)))
    padded = [pad_sequences(each, 0.0, dtype=torch.float32, min_length=1) for each in (own, other)]
    by_completion = completion_kl(padded[0], padded[1], mask)
    tokens = sum(map(len, own))
    return {
        "estimator": KL_ESTIMATOR,
        "per_completion": asdict(summarize(by_completion)),
        "per_token": sum(by_completion) / tokens if tokens else 0.0,
    }


def _perplexity(work: Work, model: ComparedModel) -> dict[str, Any]:
    found = read_likelihood(work, model)
    assert found is not None, "it was measured"
    return {
        "perplexity": found.perplexity,
        "bits_per_character": found.bits_per_character,
        "tokens": found.tokens,
    }


def _headline(results: Mapping[str, Any]) -> str:
    """Return the most trusted comparison with the first baseline as a sentence: people, else a judge, else a reward."""
    first = next(iter(results["kl"]))
    found = [each for each in results["comparisons"] if each["baseline"] == first and each["win_rate"]]
    for by in (PEOPLE, JUDGE, REWARD):
        for each in found:
            if each["by"] == by:
                return in_words(each)
    return f"{results['prompts']} held-out prompts; no reward, judge or annotator compared the completions."


def _samples(
    written: Mapping[str, Sequence[Trajectory]],
    by_model: Mapping[str, Sequence[Reward]] | None,
    opinions: Sequence[Opinions],
) -> list[dict[str, Any]]:
    """Return each prompt with the completions of all models, their rewards, and who preferred which."""
    first = next(iter(written.values()))
    return [
        {
            "prompt": trajectory.prompt,
            "completions": {name: each[number].text for name, each in written.items()},
            "finished": {name: each[number].completion.stopped for name, each in written.items()},
            "rewards": {name: each[number].parts for name, each in (by_model or {}).items()},
            "preferences": [
                {"by": each.by, "name": each.name, "baseline": each.baseline, "policy": each.preferences[number]}
                for each in opinions
            ],
        }
        for number, trajectory in enumerate(first)
    ]


def _write(work: Work, results: dict[str, Any], samples: list[dict[str, Any]]) -> RunResult:
    from rich.console import Console

    from hf_rlhf.evaluation.policy_tables import terminal_tables

    write_json_lines(work.folder / SAMPLES_FILE, samples)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(work.folder / RESULTS_FILE, text)
    write_policy_page(work.folder / PAGE_FILE, results, samples)
    console = Console()
    for table in terminal_tables(results):
        console.print(table)
    say(results["headline"])
    for note in results["notes"][2:]:
        say(f"- {note}")
    numbers = {
        f"win_rate/{each['baseline']}/{each['name']}": each["win_rate"]["rate"]
        for each in results["comparisons"]
        if each["win_rate"]
    }
    return RunResult(work.folder, numbers)
