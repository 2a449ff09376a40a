"""A small language model learns to be brief and cheerful, from feedback alone, in five stages.

candidates -> preferences -> reward model -> PPO -> evaluation. Each stage leaves its result on disk and is reused when
the command is run again.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.checkpoint.lock import locked
from hf_rlhf.errors import InputError, RunStopped
from hf_rlhf.feedback.page.server import require_extra
from hf_rlhf.models.machine import device_in_words
from hf_rlhf.models.precision import current_device, dtype_name, hardware_in_words, native_dtype
from hf_rlhf.progress import duration
from hf_rlhf.quickstart.arguments import (
    CANDIDATES,
    EVALUATION,
    POLICY,
    PREFERENCES,
    REWARD_MODEL,
    QuickstartArguments,
)
from hf_rlhf.quickstart.budget import plan_quickstart, plan_table, require_size, too_slow
from hf_rlhf.quickstart.comparison import compare
from hf_rlhf.quickstart.person import ANNOTATORS, ME, ask_person
from hf_rlhf.quickstart.replies import SYSTEM_MESSAGE, judge_candidates, sample_candidates
from hf_rlhf.quickstart.results import (
    REPORT_FILE,
    RESULTS_FILE,
    examples,
    headline,
    table,
    write_results,
)
from hf_rlhf.quickstart.training import (
    policy_computation,
    remove_checkpoints,
    train_policy,
    train_reward_model,
)
from hf_rlhf.recipes.stages import run_stage
from hf_rlhf.records import iteration_rows, read_json_lines


def run_quickstart(args: QuickstartArguments) -> dict[str, Any]:
    """Run every stage, or resume or reuse it, and print the result; return its numbers.

    Leaves in `args.output_dir`: candidates, preferences, reward_model, policy (with model card), evaluation,
    report.html.

    Raises `RunStopped` after a signal during training; a kill at any moment loses no more than the work since the last
    batch or checkpoint.
    """
    _require_sound(args)
    root = Path(args.output_dir)
    try:
        with locked(root):
            return _run(args, root)
    except RunStopped as stop:
        stop.message = "stopped by a signal. The results so far are kept, and the same command resumes from them"
        raise


def _require_sound(args: QuickstartArguments) -> None:
    """Raise `InputError` for settings with which no stage can work."""
    require_size(args)
    if args.temperature <= 0:
        raise InputError(f"temperature={args.temperature} must be above 0: replies have to differ to be compared")
    if args.annotator not in ANNOTATORS:
        raise InputError(f"annotator={args.annotator} is invalid: it must be one of {', '.join(ANNOTATORS)}.")
    if args.judgments < 10:
        raise InputError(f"judgments={args.judgments} is invalid: it must be at least 10, to train and to measure.")
    if args.annotator == ME:
        require_extra()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("the quickstart is one process. Start it without a launcher")


def _run(args: QuickstartArguments, root: Path) -> dict[str, Any]:
    from rich.console import Console

    console, started = Console(), time.perf_counter()
    console.print(f"Five stages; each leaves its result in {root}, and a result that is there already is reused.")
    console.print(_dtype_in_words())
    plan = plan_quickstart(args, root)
    args = plan.args
    console.print(plan_table(plan))
    if warning := too_slow(plan):
        console.print(f"[bold]{warning}[/bold]")
    settings: dict[str, Any] = {"version": 3}
    for number, stage in enumerate(STAGES, start=1):
        times = f"about {duration(plan.seconds[stage.folder])}; {duration(time.perf_counter() - started)} so far"
        console.print(f"\n[bold]Stage {number} of {len(STAGES)}: {stage.title}[/bold]  [dim]({times})[/dim]")
        settings = settings | {key: getattr(args, key) for key in stage.settings.split()}
        folder, begun = root / stage.folder, time.perf_counter()
        ran = run_stage(folder, settings, lambda scratch, stage=stage: stage.make(args, root, scratch))
        remove_checkpoints(folder)
        seconds = duration(time.perf_counter() - begun) if ran else "reused"
        console.print(f"     [dim]{_outcome(folder)}  ({seconds}, {folder})[/dim]")
    _show_results(args, root, console)
    console.print(f"[dim]Finished in {duration(time.perf_counter() - started)}.[/dim]")
    return json.loads((root / RESULTS_FILE).read_text(encoding="utf-8"))


def _dtype_in_words() -> str:
    """Describe in which dtype the stages load their models."""
    device = current_device()
    return (
        f"Models are loaded in {dtype_name(native_dtype(device))}: {hardware_in_words(device)}"
        f" ({device_in_words(device)}). A training that resumes keeps the dtype of its checkpoint."
    )


def _settings(args: QuickstartArguments, root: Path) -> dict[str, Any]:
    """Return what report and model card say of a run: flags, and device and dtype that trained the policy."""
    flags = {name: value for name, value in asdict(args).items() if name != "output_dir"}
    return flags | policy_computation(root / POLICY).for_card()


def _show_results(args: QuickstartArguments, root: Path, console: Any) -> None:
    """Write the results and the report, and print what a person looks at first."""
    comparison = compare(args, root / REWARD_MODEL, root / POLICY, root / EVALUATION)
    person = args.annotator == ME
    rows = comparison.rows("reward model's" if person else "annotator")
    title = headline(comparison, "the reward model of your judgments" if person else "the annotator")
    write_results(
        root,
        comparison,
        rows,
        title,
        policy=root / POLICY,
        reward_model=root / REWARD_MODEL,
        settings=_settings(args, root),
        system_message=SYSTEM_MESSAGE,
    )
    console.print(table(rows))
    console.print(examples(comparison))
    console.print(f"[bold]{title}[/bold]\n")
    console.print(
        f"Look at it:   {root / REPORT_FILE}\nThe policy:   {root / POLICY}  (adapter, value head, model card)"
    )


def _preferences(args: QuickstartArguments, root: Path, folder: Path) -> None:
    (ask_person if args.annotator == ME else judge_candidates)(args, root, folder)


def _policy(args: QuickstartArguments, root: Path, folder: Path) -> None:
    train_policy(args, root / REWARD_MODEL, folder)


def _evaluation(args: QuickstartArguments, root: Path, folder: Path) -> None:
    compare(args, root / REWARD_MODEL, root / POLICY, folder)


class Stage(NamedTuple):
    """One of the five stages."""

    folder: str
    title: str
    make: Callable[[QuickstartArguments, Path, Path], None]  # from settings, the root and the folder to fill
    settings: str  # that change its result, besides those of the stages before


STAGES = (
    Stage(
        CANDIDATES,
        "Sample several replies to each message",
        sample_candidates,
        "model_name_or_path seed messages candidates_per_prompt max_completion_length temperature",
    ),
    Stage(
        PREFERENCES,
        "The annotator prefers one of two",
        _preferences,
        "annotator judgments annotator_noise annotator_tie_margin max_preferences",
    ),
    Stage(
        REWARD_MODEL,
        "Train a reward model on the preferences",
        train_reward_model,
        "lora_target_modules reward_learning_rate",
    ),
    Stage(
        POLICY,
        "Train the policy with PPO against the reward model",
        _policy,
        "ppo_iterations num_ppo_epochs ppo_learning_rate kl_coef",
    ),
    Stage(EVALUATION, "Compare with the model it started from, on messages it never saw", _evaluation, ""),
)


def _outcome(folder: Path) -> str:
    """Describe the content of a finished stage in a few words."""
    if folder.name in (CANDIDATES, PREFERENCES):
        rows = len((folder / "train.jsonl").read_text(encoding="utf-8").splitlines())
        held_out = len((folder / "test.jsonl").read_text(encoding="utf-8").splitlines())
        noun = "replies" if folder.name == CANDIDATES else "preferences"
        return f"{rows} {noun}, {held_out} held out"
    if folder.name == REWARD_MODEL:
        accuracy = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        return f"agrees with {accuracy['eval_accuracy']:.0%} of {accuracy['eval_rows']:.0f} held-out preferences"
    if folder.name == EVALUATION:
        return f"{len(read_json_lines(folder / 'after.jsonl'))} replies of each"
    rows = iteration_rows(folder)
    return f"reward {rows[0]['reward']:.2f} -> {rows[-1]['reward']:.2f} in {len(rows)} iterations"
