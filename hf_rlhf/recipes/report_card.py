"""Report cards: of a reward model at the end of its training, of any reward by a command, and as PPO asks for them."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.lock import require_folder_name
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.preferences import check_no_leak, prepare_loaded_preferences
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.distributed import failing_together, rank
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.report_card.card import CARD_FILE, PAGE_FILE, ReportCard, make_report_card
from hf_rlhf.evaluation.report_card.guard import CardStatus, card_status, weights_of
from hf_rlhf.evaluation.report_card.probes import PROBE_ROWS
from hf_rlhf.evaluation.reward_model import Pairs, RatedGroups
from hf_rlhf.hub.model_card import shown_name
from hf_rlhf.models.precision import current_device
from hf_rlhf.models.reward_model import load_reward_tokenizer
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import flag
from hf_rlhf.rewards.ensemble import EnsembleFile, ensemble_folder
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.named import load_named_function, names_function
from hf_rlhf.rewards.sources import require_reachable, resolve_rewards

logger = logging.getLogger(__name__)


@dataclass
class ReportCardArguments:
    """Reward to measure, the pairs to measure it on, and where the card goes."""

    reward_model_path: str | None = flag(None, "Reward model (folder or Hub name), file.py:name, or a named reward.")
    dataset_name: str | None = flag(None, "Held-out pairs: Hub name, folder or file.")
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_split: str = flag("train", "Split of dataset_name; a file has train alone.")
    train_dataset_name: str | None = flag(
        None, "Pairs that the model was trained on: the bag of words learns from them. Without, it is cross-validated."
    )
    max_samples: int | None = flag(None, "Use only the first pairs.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows; one more is an error.")
    output_dir: str | None = flag(None, "Folder for the card; by default that of the model, where PPO looks for it.")
    overwrite: bool = flag(False, "Replace a card that is there.")
    as_messages: bool | None = flag(
        None,
        "Read a prompt and answers that are text as messages of user and assistant. By default true of a set with the"
        " column subset (RewardBench), if the model has a chat template.",
    )
    max_length: int | None = flag(None, "Skip and count pairs with more tokens; by default those that the model takes.")
    batch_size: int = flag(32, "Texts that the model scores at once.")
    probe_rows: int = flag(PROBE_ROWS, "Answers that each probe damages; 0 runs none.")
    seed: int = flag(0, "Seed of the probes.")


def report_card(args: ReportCardArguments) -> Path:
    """Measure a reward, print the verdict and write report_card.json and report_card.html; return the page's path.

    Raises `InputError` for anything wrong in the flags, the pairs or the model, before anything is scored.
    """
    name = _checked(args)
    folder = _output_folder(args, name)
    function = load_named_function(name, flag="reward_model_path") if names_function(name) else None
    require_reachable([function])
    if function is None:
        load_reward_tokenizer(name)  # which says at once that there is no such model
    pairs, train = _sets(args)
    reward = function or _model(name, args.batch_size)
    if _reads_messages(args, pairs, reward):
        pairs = pairs.as_messages()
        say("prompts and answers are read as messages of user and assistant, by the model's chat template")
    card = make_report_card(
        reward,
        pairs,
        train=train,
        model=shown_name(name),
        dataset=shown_name(str(args.dataset_name)),
        max_length=args.max_length,
        probe_rows=args.probe_rows,
        weights=weights_of(name) if os.path.isdir(name) else {},
        seed=args.seed,
    )
    page = card.write(folder)
    say(summary(card))
    say(f"saved to {page} and {CARD_FILE} beside it")
    return page


def card_of_run(
    folder: Path,
    reward: Callable[..., Any],
    held_out: Pairs | RatedGroups,
    train: Pairs | RatedGroups,
    data: Any,
    *,
    skipped: int,
    limit: int | None,
) -> ReportCard | None:
    """Make the card of the reward model that a run saved in `folder`, and print its verdict; nothing is written.

    Of rated groups, it is measured on one pair of each. None, and said, where no group has a pair.

    Args:
        folder: of the saved model.
        reward: the saved model, loaded again.
        held_out: the pairs or groups that it is measured on.
        train: those that it was trained on, or `MAX_TRAIN_PAIRS` of them.
        data: the flags that name them.
        skipped: pairs or groups that are not among `held_out` because they are longer than `limit` tokens.
        limit: most tokens of a text.
    """
    pairs, known = (each.one_pair_each() if isinstance(each, RatedGroups) else each for each in (held_out, train))
    if pairs is None:
        say("no report card: no group of the evaluation set has two completions of different rating")
        return None
    names = [data.eval_dataset_name] if data.eval_dataset_name else data.dataset_names()
    card = make_report_card(
        reward,
        pairs,
        train=known,
        model=folder.absolute().name,
        dataset=", ".join(map(shown_name, names)),
        max_length=limit,
        skipped_before=skipped,
    )
    say(summary(card))
    return card


def summary(card: ReportCard) -> str:
    """Return the verdict, its reasons and the accuracy by length ratio as lines for a terminal."""
    verdict = card.verdict
    lines = [verdict.headline]
    lines += [f"  - {each.what} {each.figure[:1].upper()}{each.figure[1:]}. {each.do}" for each in verdict.reasons]
    lines += ["  rules on the same pairs: " + ", ".join(f"{each.name} {each.accuracy:.1%}" for each in card.baselines)]
    for name in ("length_ratio", "subset"):
        lines += [
            f"  {each.name}: {each.accuracy:.1%} of {each.n} (95% interval {each.low:.1%} to {each.high:.1%})"
            for each in card.tables.get(name, ())
        ]
    lines += [f"  section {each.name}: {each.accuracy:.1%}" for each in card.sections]
    return "\n".join(lines)


def check_report_cards(
    rewards: Sequence[Any],
    *,
    required: bool,
    ensemble_reward: str | None = None,
    ensemble_std_coef: float | None = None,
) -> list[CardStatus]:
    """Print the verdict of each reward model among `rewards`, and warn where there is none or it is not good.

    Warn also of an ensemble whose card is of another combination.

    Raises `InputError` with `required` unless every reward model has a card of its weights that lets it be used, and
    where there is no reward model.
    """
    with failing_together():
        models = [reward for reward in rewards if isinstance(reward, str) and not names_function(reward)]
        for model in models:
            load_reward_tokenizer(model)  # which says if there is no such model at all
        found = [card_status(model) for model in models]
    if required and not found:
        raise InputError(
            "require_report_card=True is invalid: no reward is a model, and only models have report cards. Omit it."
        )
    if required and (refused := [status for status in found if not status.is_usable]):
        raise InputError(
            f"reward model {refused[0].model!r}: {refused[0].words}\nrequire_report_card=True refuses it. Train a"
            " better one or mend its card, or omit require_report_card."
        )
    for status in found if rank() == 0 else ():
        if status.is_good:
            say(f"reward model {status.model}: {status.words}")
        else:
            logger.warning("reward model %s: %s", status.model, status.words)
        if status.has_verdict and (words := _other_combination(status.model, ensemble_reward, ensemble_std_coef)):
            logger.warning("reward model %s: %s", status.model, words)
    return found


def _other_combination(model: str, ensemble_reward: str | None, ensemble_std_coef: float | None) -> str | None:
    """Return a warning where `model` is an ensemble whose card measured another combination than this one."""
    folder = ensemble_folder(model)
    if folder is None:
        return None
    file = EnsembleFile.read(folder)
    used, measured = file.combined(ensemble_reward, ensemble_std_coef), file.combined()
    if used == measured:
        return None
    return (
        f"its report card is of ensemble_reward {measured}, and this run uses {used}: the verdict and the figures are"
        " of another reward. Train with --resume auto and this ensemble_reward to write a card of it"
    )


def _checked(args: ReportCardArguments) -> str:
    """Return the name of the reward. Raises `InputError` for wrong flags."""
    for name, needed in (("reward_model_path", args.reward_model_path), ("dataset_name", args.dataset_name)):
        if not needed:
            raise InputError(f"{name} is missing. Use: hf-rlhf report-card MODEL --dataset_name HELD_OUT_PAIRS")
    for name, least in (("max_samples", 1), ("max_length", 1), ("batch_size", 1), ("probe_rows", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"{name}={value} is invalid: it must be at least {least}.")
    return str(args.reward_model_path)


def _output_folder(args: ReportCardArguments, name: str) -> Path:
    if args.output_dir is None and not os.path.isdir(name):
        raise InputError(f"output_dir is missing: {name!r} is no folder that the card could lie in. Give one.")
    folder = Path(args.output_dir or name)
    require_folder_name(folder)
    there = [file for file in (CARD_FILE, PAGE_FILE) if (folder / file).exists()]
    if there and not args.overwrite:
        raise InputError(
            f"output_dir={str(folder)!r} holds {there[0]} already. Set overwrite to true to replace it, or give another"
            " output_dir."
        )
    return folder


def _sets(args: ReportCardArguments) -> tuple[Pairs, Pairs | None]:
    """Return the pairs to measure on and those of training. Raises `InputError` for bad rows, and for common pairs."""
    rows = _rows(str(args.dataset_name), args, args.dataset_split)
    if args.max_samples is not None and args.max_samples < len(rows.dataset):
        rows = rows.select(range(args.max_samples))
    held_out = prepare_loaded_preferences(rows)
    say(str(held_out.report))
    if args.train_dataset_name is None:
        return Pairs.from_dataset(held_out.dataset), None
    train = prepare_loaded_preferences(_rows(args.train_dataset_name, args, "train"))
    say(str(train.report))
    check_no_leak(train.dataset, held_out.dataset, source=rows.source)
    return Pairs.from_dataset(held_out.dataset), Pairs.from_dataset(train.dataset)


def _rows(name: str, args: ReportCardArguments, split: str) -> LoadedRows:
    return read_rows(name, split=split, config_name=args.dataset_config, skip_bad_rows=args.skip_bad_rows)


def _model(name: str, batch_size: int) -> Callable[..., Any]:
    rewards = resolve_rewards([name], None, policy=None, device=current_device(), weights=None)
    reward = rewards.functions[0]
    assert isinstance(reward, LearnedReward)
    reward.batch_size = batch_size
    return reward


def _reads_messages(args: ReportCardArguments, pairs: Pairs, reward: Callable[..., Any]) -> bool:
    is_text = isinstance(pairs.chosen[0], str) and any(pairs.prompts)
    has_template = isinstance(reward, LearnedReward) and bool(reward.tokenizer.chat_template)
    if args.as_messages is None:
        return is_text and has_template and "subset" in pairs.about
    if args.as_messages and not is_text:
        raise InputError("as_messages=True is invalid: the pairs are no texts with a prompt. Omit it.")
    return args.as_messages
