"""`hf-rlhf <command>`: the recipes from the command line.

Exit status: 0 done, 1 a run that failed (NaN losses, a full disk), 2 wrong input, 3 trained and saved but not pushed to
the Hub, 130 or 143 stopped by SIGINT or SIGTERM.
"""

import io
import sys
from collections.abc import Callable, Sequence

from hf_rlhf.credentials import printable_lines
from hf_rlhf.errors import InputError, PushError, RunFailed, RunStopped, did_you_mean


def sft(argv: Sequence[str]) -> None:
    """Fine-tune a language model on demonstrations."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.arguments import DataArguments, ModelArguments, SFTTrainingArguments
    from hf_rlhf.recipes.sft import train_sft

    train_sft(*parse_arguments([DataArguments, SFTTrainingArguments, ModelArguments], argv, "hf-rlhf sft"))


def reward(argv: Sequence[str]) -> None:
    """Train a reward model on preferences."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.arguments import ModelArguments, RewardArguments, RewardTrainingArguments
    from hf_rlhf.recipes.reward import train_reward_model

    result = train_reward_model(
        *parse_arguments([RewardArguments, RewardTrainingArguments, ModelArguments], argv, "hf-rlhf reward")
    )
    _print_result(result)


def report_card(argv: Sequence[str]) -> None:
    """Say how good a reward model is, and what it learned."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.report_card import ReportCardArguments, report_card

    if argv and not argv[0].startswith("-"):
        argv = ["--reward_model_path", *argv]
    report_card(*parse_arguments([ReportCardArguments], argv, "hf-rlhf report-card"))


def ppo(argv: Sequence[str]) -> None:
    """Train a policy with PPO against rewards."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.ppo.config import PPOConfig
    from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments
    from hf_rlhf.recipes.ppo import train_ppo

    _print_result(train_ppo(*parse_arguments([PPOArguments, PPOConfig, ModelArguments], argv, "hf-rlhf ppo")))


def show(argv: Sequence[str]) -> None:
    """Show the trajectories of a PPO run token by token, in the terminal or as a page, or push them as a dataset."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.show import ShowArguments, show_run

    if argv and not argv[0].startswith("-"):
        argv = ["--run_dir", *argv]
    show_run(*parse_arguments([ShowArguments], argv, "hf-rlhf show"))


def plan(argv: Sequence[str]) -> None:
    """Predict the memory and time of a PPO run before it is started (takes the flags of ppo)."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.ppo.config import PPOConfig
    from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments
    from hf_rlhf.recipes.plan import PlanArguments, plan_run

    plan_run(*parse_arguments([PlanArguments, PPOArguments, PPOConfig, ModelArguments], argv, "hf-rlhf plan"))


def data(argv: Sequence[str]) -> None:
    """Check the rows that a stage would train on and describe them: data sft, data reward or data ppo."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.ppo.config import PPOConfig
    from hf_rlhf.recipes import arguments as of
    from hf_rlhf.recipes.data import STAGES, DataCommandArguments, report_data

    stage, *flags = argv or [""]
    if stage in ("-h", "--help"):
        print(f"usage: hf-rlhf data <{' | '.join(STAGES)}> and the flags of that stage")
        return
    if stage not in STAGES:
        raise InputError(
            f"the stage is missing. Name it, as in `hf-rlhf data {' | '.join(STAGES)}`, and then give its flags"
        )
    stage_classes = {
        "sft": [of.DataArguments, of.SFTTrainingArguments],
        "reward": [of.RewardArguments, of.RewardTrainingArguments],
        "ppo": [of.PPOArguments, PPOConfig],
    }[stage]
    classes = [DataCommandArguments, *stage_classes, of.ModelArguments]
    report_data(stage, *parse_arguments(classes, flags, f"hf-rlhf data {stage}"))


def score(argv: Sequence[str]) -> None:
    """Score the completions of a dataset: fill the cache of rewards, write the scores, filter the rows."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.score import ScoreArguments, score_dataset

    if argv and not argv[0].startswith("-"):
        argv = ["--dataset_name", *argv]
    score_dataset(*parse_arguments([ScoreArguments], argv, "hf-rlhf score"))


def doctor(argv: Sequence[str]) -> None:
    """Say what is wrong with a PPO run, by its numbers, and what to change."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.doctor import DoctorArguments, examine_run

    if argv and not argv[0].startswith("-"):
        argv = ["--run_dir", *argv]
    examine_run(*parse_arguments([DoctorArguments], argv, "hf-rlhf doctor"))


def evaluate(argv: Sequence[str]) -> None:
    """Compare a policy to its start and to other models on held-out prompts: win rates, KL, diversity, lengths."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.evaluate import evaluate_policy
    from hf_rlhf.recipes.evaluate_arguments import EvaluateArguments

    if argv and not argv[0].startswith("-"):
        argv = ["--policy", *argv]
    _print_result(evaluate_policy(*parse_arguments([EvaluateArguments], argv, "hf-rlhf evaluate")))


def quickstart(argv: Sequence[str]) -> None:
    """Let a small model learn from feedback, end to end, on this machine."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.quickstart.arguments import QuickstartArguments
    from hf_rlhf.quickstart.run import run_quickstart

    run_quickstart(*parse_arguments([QuickstartArguments], argv, "hf-rlhf quickstart"))


def ai_feedback(argv: Sequence[str]) -> None:
    """Let a model criticize, revise and compare replies by principles; write demonstrations and preferences."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.ai_feedback import write_ai_feedback
    from hf_rlhf.recipes.ai_feedback_arguments import AIFeedbackArguments

    _print_result(write_ai_feedback(*parse_arguments([AIFeedbackArguments], argv, "hf-rlhf ai-feedback")))


def feedback(argv: Sequence[str]) -> None:
    """Import feedback, export it as rows to train on, report the agreement, or push it to the Hub."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes import feedback as of
    from hf_rlhf.recipes import feedback_arguments as arguments

    action, *flags = argv or [""]
    if action in ("-h", "--help"):
        print(f"usage: hf-rlhf feedback <{' | '.join(of.ACTIONS)}> [STORE] and the flags of that action")
        return
    if action not in of.ACTIONS:
        what = f"unknown action {action!r}. {did_you_mean(action, of.ACTIONS)}" if action else "the action is missing. "
        raise InputError(f"{what}Name it, as in `hf-rlhf feedback {' | '.join(of.ACTIONS)}`, then give its flags")
    if flags and not flags[0].startswith("-"):
        flags = ["--store", *flags]
    run, kind = {
        "import": (of.import_feedback, arguments.ImportArguments),
        "export": (of.export_feedback, arguments.ExportArguments),
        "report": (of.report_feedback, arguments.ReportArguments),
        "push": (of.push_feedback, arguments.PushArguments),
    }[action]
    run(*parse_arguments([arguments.StoreArguments, kind], flags, f"hf-rlhf feedback {action}"))


def rounds(argv: Sequence[str]) -> None:
    """Sample, ask annotators, train a reward model and the policy, and again; continue where people had to answer."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.arguments import ModelArguments
    from hf_rlhf.rounds.arguments import RoundsArguments
    from hf_rlhf.rounds.run import run_rounds

    run_rounds(*parse_arguments([RoundsArguments, ModelArguments], argv, "hf-rlhf rounds"))


def segments(argv: Sequence[str]) -> None:
    """Let a policy play a game, and ask which of two segments of its episodes is better."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.arguments import ModelArguments
    from hf_rlhf.recipes.segments import SegmentsArguments, ask_about_segments

    _print_result(ask_about_segments(*parse_arguments([SegmentsArguments, ModelArguments], argv, "hf-rlhf segments")))


def label(argv: Sequence[str]) -> None:
    """Let people compare, rank, rate, correct and mark completions on a page in the browser."""
    from hf_rlhf.cli.parsing import parse_arguments
    from hf_rlhf.recipes.label import label_dataset
    from hf_rlhf.recipes.label_arguments import LabelArguments

    if argv and not argv[0].startswith("-"):
        argv = ["--dataset_name", *argv]
    label_dataset(*parse_arguments([LabelArguments], argv, "hf-rlhf label"))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "quickstart": quickstart,
    "ai-feedback": ai_feedback,
    "feedback": feedback,
    "rounds": rounds,
    "segments": segments,
    "label": label,
    "sft": sft,
    "reward": reward,
    "report-card": report_card,
    "ppo": ppo,
    "doctor": doctor,
    "show": show,
    "plan": plan,
    "data": data,
    "score": score,
    "evaluate": evaluate,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is: rows may hold what a terminal cannot show
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    try:
        if argv[0] not in COMMANDS:
            meant = did_you_mean(argv[0], COMMANDS)
            raise InputError(f"unknown command {argv[0]!r}. {meant}The commands are {', '.join(COMMANDS)}")
        if "-h" not in argv and "--help" not in argv:
            from hf_rlhf.progress import quiet_libraries

            quiet_libraries()
        COMMANDS[argv[0]](argv[1:])
        _close_process_group()
    except InputError as error:
        _complain("error", error)
        return 2
    except PushError as error:
        _complain("error", error)
        return 3
    except (FloatingPointError, RunFailed) as error:
        _complain("the run failed", error)
        return 1
    except RunStopped as stop:
        print(stop, file=sys.stderr)
        _close_process_group()
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _complain(what: str, error: Exception) -> None:
    """Print an error without the access tokens and escape sequences that quoted names and rows may hold."""
    print(printable_lines(f"{what}: {error}"), file=sys.stderr)


def _close_process_group() -> None:
    import gc

    from hf_rlhf.distributed import close

    gc.collect()  # a trainer refers to itself, and to DDP
    close()


def usage() -> str:
    """Return the list of commands, one per line."""
    lines = [f"  {name:<12} {(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: hf-rlhf <command> [--config file.yaml] [--key value ...]", "", *lines, "", "hf-rlhf <command> --help"]
    )


def _print_result(result) -> None:
    import os

    if os.environ.get("RANK", "0") != "0":
        return
    for name, value in result.metrics.items():
        print(f"{name:<32} {value:.4g}")
    print(f"saved to {result.output_dir}")


if __name__ == "__main__":
    sys.exit(main())
