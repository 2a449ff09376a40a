"""Rounds of feedback: sample -> ask -> convert -> reward model -> PPO -> evaluate, and again.

Each step leaves its result in a folder of its round, which the next one reads; the answers are in one store. People may
take days: a run that waits for them ends, and the same command resumes it. So it does after a kill at any moment.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.checkpoint.lock import locked
from hf_rlhf.errors import InputError, RunStopped
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.page.server import require_extra
from hf_rlhf.models.adapter_files import adapter_base, adapter_folder
from hf_rlhf.progress import duration, say
from hf_rlhf.recipes.arguments import ModelArguments
from hf_rlhf.recipes.common import RunResult, tokenizer_of
from hf_rlhf.recipes.stages import STAGE_FILE, run_stage
from hf_rlhf.records import changed_settings, write_settings, write_whole
from hf_rlhf.rounds.arguments import (
    CANDIDATES,
    EVALUATION,
    MAY_CHANGE,
    ME,
    POLICY,
    PREFERENCES,
    PROMPTS,
    REWARD_MODEL,
    START,
    RoundsArguments,
)
from hf_rlhf.rounds.candidates import make_candidates, round_folder, split_prompts, tasks_of_round
from hf_rlhf.rounds.evaluation import comparison_tasks, evaluate_round, sample_start
from hf_rlhf.rounds.labels import annotators_of, ask, open_store
from hf_rlhf.rounds.loop import Loop
from hf_rlhf.rounds.results import RESULTS_FILE, write_results
from hf_rlhf.rounds.training import (
    ppo_settings,
    remove_checkpoints,
    reward_settings,
    train_policy,
    train_reward,
    write_preferences,
)

FORM_FILE = "form.json"


class Step(NamedTuple):
    """A step of a round that leaves a folder."""

    folder: str
    title: str
    make: Callable[[Loop, int, Path], None]
    settings: str  # flags that change what it makes


STEPS = (
    Step(
        CANDIDATES,
        "sample candidates and choose questions",
        lambda loop, number, folder: make_candidates(loop.args, loop.model, loop.root, number, folder),
        "questions held_out_questions prompts_per_round candidates_per_prompt choose max_completion_length temperature",
    ),
    Step(
        PREFERENCES,
        "turn the answers into preferences",
        lambda loop, number, folder: write_preferences(loop.args, loop.store, loop.root, number, folder),
        "",
    ),
    Step(
        REWARD_MODEL,
        "train the reward model on all preferences so far",
        lambda loop, number, folder: train_reward(loop.args, loop.model, loop.root, number, folder),
        "num_reward_models reward_learning_rate reward_epochs reward_batch_size reward_options",
    ),
    Step(
        POLICY,
        "train the policy with PPO",
        lambda loop, number, folder: train_policy(loop.args, loop.model, loop.root, number, folder),
        "ppo_iterations rollout_batch_size num_ppo_epochs ppo_learning_rate kl_coef kl_to ppo_options"
        " max_completion_length temperature",
    ),
    Step(
        EVALUATION,
        "evaluate on held-out prompts",
        lambda loop, number, folder: evaluate_round(loop.args, loop.model, loop.root, number, folder),
        "max_completion_length temperature",
    ),
)


def run_rounds(args: RoundsArguments, model: ModelArguments) -> RunResult:
    """Run all rounds, or resume them where they are, and write rounds.json and report.html.

    Where people answer, the run ends when it waits for them, and says how they answer; the same command resumes. With
    annotator=me it serves the page itself, and continues when all is answered.

    Raises `InputError` for anything wrong in the flags or the data, before a model is trained; `RunStopped` after a
    signal during training.
    """
    root = Path(args.output_dir)
    form = args.read_form()
    _require_sound(args, model, root, form)
    try:
        with locked(root):
            return _run(args, model, root, form)
    except RunStopped as stop:
        stop.message = "stopped by a signal. The results so far are kept, and the same command resumes from them"
        raise


def _require_sound(args: RoundsArguments, model: ModelArguments, root: Path, form: Form) -> None:
    """Raise `InputError` for flags with which some step could not work, before the first begins."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("rounds run in one process. Start them without a launcher.")
    if args.dataset_name is None:
        raise InputError("dataset_name is missing. Give a Hub name, a folder or a file.")
    if not model.use_peft:
        raise InputError("use_peft=False is invalid: rounds train adapters on one base. Omit it.")
    name = model.model_name_or_path
    if args.num_reward_models > 1 and adapter_base(adapter_folder(name)) is not None:
        raise InputError(
            f"num_reward_models={args.num_reward_models} is invalid: {name!r} is an adapter, and members start from a"
            " base. Merge it into its base first."
        )
    if args.annotator == ME:
        require_extra()
    args.read_guidelines()
    reward_settings(args, 1, root / REWARD_MODEL)
    ppo_settings(args, 1, root / POLICY)
    if not tokenizer_of(model).chat_template:
        raise InputError(f"model_name_or_path={name} is invalid: it has no chat template. Give an instruct model.")
    _require_same(args, model, root, form)


def _require_same(args: RoundsArguments, model: ModelArguments, root: Path, form: Form) -> None:
    """Raise `InputError` for a flag, or a form, that all rounds share and that an earlier start had otherwise."""
    if not (root / PROMPTS / STAGE_FILE).is_file():
        return
    per_step = {name for step in STEPS for name in step.settings.split()} | {"comparisons"}
    changed = changed_settings(root, args, model)
    for name, (before, now) in changed.items():
        if name not in MAY_CHANGE and name not in per_step:
            raise InputError(
                f"{name}={now} is invalid: the rounds in {root} were begun with {before}. Set it to that, or choose"
                " another output_dir."
            )

    asked = root / PROMPTS / FORM_FILE
    if asked.is_file() and json.loads(asked.read_text(encoding="utf-8")) != form.to_json():
        raise InputError(
            f"form={args.form} is invalid: the rounds in {root} were begun with another content of it, which {asked}"
            " has. Give that, or choose another output_dir."
        )


def _begin(args: RoundsArguments, model: ModelArguments, form: Form, folder: Path) -> None:
    """Write the prompts, and the form with which all questions are asked."""
    split_prompts(args, model, folder)
    write_whole(folder / FORM_FILE, json.dumps(form.to_json(), indent=2, ensure_ascii=False) + "\n")


def _run(args: RoundsArguments, model: ModelArguments, root: Path, form: Form) -> RunResult:
    begun = time.perf_counter()
    say(f"{args.rounds} rounds in {root}; what is there already is reused.")
    annotators = annotators_of(args, form)
    run_stage(root / PROMPTS, {}, lambda folder: _begin(args, model, form, folder))
    write_settings(root, args, model)
    with open_store(args, root) as store:
        loop = Loop(args, model, root, store, form, annotators)
        start = "sample replies of the start"
        _step(root / START, start, {}, lambda folder: sample_start(args, model, root, folder))
        for number in range(1, args.rounds + 1):
            say(f"\nRound {number} of {args.rounds}  ({duration(time.perf_counter() - begun)} so far)")
            if not _round(loop, number):
                return RunResult(root)
    results = json.loads((root / RESULTS_FILE).read_text(encoding="utf-8"))
    say(f"\n{results['headline']}\nLook at it:   {root / 'report.html'}")
    say(f"The policy:   {round_folder(root, args.rounds) / POLICY}")
    return RunResult(root, {name: value for name, value in results["last"].items() if isinstance(value, float)})


def _round(loop: Loop, number: int) -> bool:
    """Run one round; return False where it waits for people."""
    folder = round_folder(loop.root, number)
    for step in STEPS:
        settings = {name: getattr(loop.args, name) for name in step.settings.split()}
        settings = json.loads(json.dumps(settings | {"round": number}, default=str))
        _step(
            folder / step.folder,
            step.title,
            settings,
            lambda scratch, step=step: step.make(loop, number, scratch),
        )
        if step.folder == CANDIDATES and not (folder / PREFERENCES / STAGE_FILE).is_file():
            asked = tasks_of_round(loop.root, number, loop.form)
            if not ask(loop.store, asked, loop.annotators, loop.args):
                return False
        if step.folder in (REWARD_MODEL, POLICY):
            remove_checkpoints(folder / step.folder)
    asked = comparison_tasks(loop.args, loop.root, number, loop.form)
    if not ask(loop.store, asked, loop.annotators, loop.args):
        return False
    if not round_folder(loop.root, number + 1).exists():  # or the results have that round already
        write_results(loop, number)
    return True


def _step(folder: Path, title: str, settings: dict[str, Any], make: Callable[[Path], None]) -> None:
    """Run a step unless its folder is there. A folder that was made with other flags is kept, and that is said."""
    begun = time.perf_counter()
    kept = folder / STAGE_FILE
    if kept.is_file():
        recorded = json.loads(kept.read_text(encoding="utf-8"))
        changed = [f"{name}={recorded[name]}" for name in settings if recorded.get(name) != settings[name]]
        note = f"; it was made with {', '.join(changed)}" if changed else ""
        say(f"  {title}: reused{note}")
        return
    say(f"  {title} ...")
    run_stage(folder, settings, make)
    say(f"     {duration(time.perf_counter() - begun)}, in {folder}")
