"""AI feedback from flags or from Python: prompts in, demonstrations and preferences by a model out."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_rlhf.checkpoint.lock import locked
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.tokens import row_ids
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.ai.journal import JOURNAL_FILE, Journal
from hf_rlhf.feedback.ai.principles import Principle, load_principles
from hf_rlhf.feedback.ai.results import (
    PREFERENCES_FILE,
    REPORT_FILE,
    SFT_FILE,
    corrected,
    preference_rows,
    report_of,
    sft_rows,
    write_results,
)
from hf_rlhf.feedback.ai.steps import FeedbackSteps
from hf_rlhf.feedback.prompts import feedback_prompts
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.endpoint import EndpointJudge
from hf_rlhf.judges.local import ModelJudge
from hf_rlhf.progress import say
from hf_rlhf.recipes.ai_feedback_arguments import AIFeedbackArguments
from hf_rlhf.recipes.common import RunResult
from hf_rlhf.records import write_settings
from hf_rlhf.types import Message
from hf_rlhf.writers import EndpointWriter, ModelWriter, Writer

_NO_MATTER = ("output_dir", "resume", "api_key_env", "judge_api_key_env", "concurrency", "timeout", "retries", "batch_size", "keep_unfinished", "max_failed_requests", "calibrate", "when_orders_disagree")  # fmt: skip


def write_ai_feedback(args: AIFeedbackArguments) -> RunResult:
    """Sample replies, criticize and revise them by principles, and compare them; write both as datasets.

    `output_dir` gets sft.jsonl (the last revisions), preferences.jsonl and ai_feedback.json, the report.

    Raises `InputError` for anything wrong in the flags or the data, before a model is loaded; `EndpointError` when a
    server fails. What was answered before is kept for `resume`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "ai-feedback runs in one process. Start it without a launcher, or put the model behind a server."
        )
    principles = load_principles(args.principles)
    if args.dataset_name is None:
        raise InputError("dataset_name is missing. Give a Hub name, a folder or a file.")
    rows = read_rows(
        args.dataset_name,
        split=args.dataset_train_split,
        config_name=args.dataset_config,
        skip_bad_rows=args.skip_bad_rows,
    )
    prompts = feedback_prompts(rows, args.system_prompt)[: args.max_prompts]
    folder = Path(args.output_dir)
    with locked(folder):
        _require_place(folder, args.resume)
        writer, judge = _models(args, resumes=(folder / JOURNAL_FILE).is_file())
        _require_room(args, prompts, principles, writer, judge)
        journal = Journal(folder, _made_by(args, prompts, principles, writer, judge))
        write_settings(folder, args)
        say(f"{len(prompts)} prompts, {len(principles)} principles; {writer.name} replies, {judge.name} compares")
        if journal.kept:
            say(f"resuming: {journal.kept} answers are there already")
        steps = FeedbackSteps(
            prompts,
            principles,
            writer,
            judge,
            journal,
            num_completions=args.num_completions,
            num_revisions=args.num_revisions,
            max_completion_length=args.max_completion_length,
            max_critique_length=args.max_critique_length,
            part_size=args.batch_size,
            seed=args.seed,
            max_failed_requests=args.max_failed_requests,
        )
        return _finish(args, folder, steps)


def _finish(args: AIFeedbackArguments, folder: Path, steps: FeedbackSteps) -> RunResult:
    revised, judged = steps.run()
    judged = corrected(judged) if args.calibrate else judged
    demonstrations, left_out = sft_rows(
        steps.prompts, revised, model=steps.writer.name, keep_unfinished=args.keep_unfinished
    )
    preferences = preference_rows(
        steps.prompts, judged, judge=steps.judge.name, when_orders_disagree=args.when_orders_disagree
    )
    report = {
        "model": steps.writer.name,
        "judge": steps.judge.name,
        "prompts": len(steps.prompts),
        "demonstrations": len(demonstrations),
        "revisions_left_out": dict(left_out),
        "preferences": len(preferences),
        "pairs_equal_or_empty": steps.identical_pairs,
        **report_of(judged),
        "failed_requests_of_this_process": steps.failed_requests,
        "questions_of_this_process": dict(steps.judge.counts),
    }
    write_results(folder, demonstrations, preferences, report)
    _say_results(report, args)
    agreement = report["judge_agreement"]
    metrics = {
        "demonstrations": len(demonstrations),
        "preferences": len(preferences),
        **{name: value for name, value in agreement.items() if value is not None},
    }
    return RunResult(folder, metrics)


def _say_results(report: Mapping[str, Any], args: AIFeedbackArguments) -> None:
    agreement = report["judge_agreement"]
    if (share := agreement["survived_share"]) is None:
        say(f"judge: no pair has a readable answer of {agreement['pairs']}")
    else:
        raw = agreement["survived_share_uncorrected"]
        corrected = f" ({raw:.0%} before the correction for the position)" if raw != share else ""
        answered = agreement["pairs"] - agreement["unanswered"]
        say(
            f"judge: {agreement['survived']} of {answered} pairs ({share:.0%}) survive swapping{corrected},"
            f" {agreement['ties']} are ties, {agreement['unanswered']} have no readable answer"
        )
        if (first := agreement["shown_first_share"]) is not None:
            say(f"judge: {first:.0%} of the answers name the reply shown first; 50% is no position bias")
    if left_out := report["revisions_left_out"]:
        say("skipped for sft.jsonl: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))
    for name, count in ((SFT_FILE, report["demonstrations"]), (PREFERENCES_FILE, report["preferences"])):
        if not count and (name != SFT_FILE or args.num_revisions):
            say(f"{name} was not written: it would be empty")


def _models(args: AIFeedbackArguments, *, resumes: bool) -> tuple[Writer, Judge]:
    """Return the model that writes and the judge; one model is loaded once.

    A new run asks the servers first: `EndpointError` where none answers. One that resumes may have all answers.
    """
    connection = {"timeout": args.timeout, "retries": args.retries, "concurrency": args.concurrency, "request": args.request}  # fmt: skip
    judge_model = args.judge_model or args.model_name_or_path
    judge_url, key = args.judge_url, args.judge_api_key_env
    if judge_url is None and args.judge_model is None:
        judge_url, key = args.url, args.api_key_env
    judge: Judge | None = None
    if judge_url is not None:
        judge = EndpointJudge(judge_model, judge_url, max_tokens=args.judge_max_tokens, api_key_env=key, **connection)
        if not resumes:
            judge.chat.endpoint.require_reachable()
    sampling = {"temperature": args.temperature}
    writer: Writer
    if args.url is not None:
        writer = EndpointWriter(
            args.model_name_or_path, args.url, api_key_env=args.api_key_env, **sampling, **connection
        )
        if not resumes:
            writer.chat.endpoint.require_reachable()
    else:
        writer = ModelWriter.load(args.model_name_or_path, dtype=args.dtype, batch_size=args.batch_size, **sampling)
    if judge is None:
        if isinstance(writer, ModelWriter) and judge_model == args.model_name_or_path:
            judge = ModelJudge(writer.model, writer.tokenizer, name=writer.name, batch_size=args.batch_size)
        else:
            judge = ModelJudge.load(judge_model, dtype=args.dtype, batch_size=args.batch_size)
    return writer, judge


def _require_place(folder: Path, resume: str | None) -> None:
    """Raise `InputError` when the folder holds files that this run would write over, or nothing to resume."""
    begun = (folder / JOURNAL_FILE).is_file()
    if resume == "last" and not begun:
        raise InputError(f"resume=last is invalid: {folder} holds no AI feedback to resume. Use auto to begin one.")
    if begun and resume in (None, "never"):
        raise InputError(
            f"output_dir={str(folder)!r} is invalid: it holds AI feedback already. Choose another folder, or continue"
            " it (--resume auto)."
        )
    ours = (SFT_FILE, PREFERENCES_FILE, REPORT_FILE, "config.yaml")
    if not begun and (found := [name for name in ours if (folder / name).exists()]):
        raise InputError(
            f"output_dir={str(folder)!r} is invalid: it holds {found[0]}, which this run would overwrite. Choose"
            " another folder, or move the file away."
        )


def _require_room(
    args: AIFeedbackArguments,
    prompts: Sequence[list[Message]],
    principles: Sequence[Principle],
    writer: Writer,
    judge: Judge,
) -> None:
    """Raise `InputError` for prompts with which the longest dialogue would be beyond a loaded model's positions."""
    prompt = max(prompts, key=lambda messages: sum(len(turn["content"]) for turn in messages))
    written = 2 * args.max_completion_length + args.max_critique_length
    for each in (writer, judge):
        if not isinstance(each, (ModelWriter, ModelJudge)) or each.max_length is None:
            continue
        asked = max(
            (principle.critique + principle.revision + principle.comparison for principle in principles), key=len
        )
        tokens = len(row_ids(asked, each.tokenizer, continued=True))
        for turn in prompt:
            tokens += len(row_ids(turn["content"], each.tokenizer, continued=True)) + 8
        if tokens + written > each.max_length:
            raise InputError(
                f"dataset_name={args.dataset_name} is invalid: its longest prompt makes a dialogue of about"
                f" {tokens + written} tokens with its reply, critique and revision, and {each.name} takes"
                f" {each.max_length}. Give shorter prompts, or make max_completion_length or max_critique_length"
                " smaller."
            )


def _made_by(
    args: AIFeedbackArguments,
    prompts: Sequence[list[Message]],
    principles: Sequence[Principle],
    writer: Writer,
    judge: Judge,
) -> dict[str, Any]:
    """Return what all answers depend on; the texts as digests."""
    settings = {name: value for name, value in asdict(args).items() if name not in _NO_MATTER}
    texts = {"prompts": prompts, "principles of the file": [asdict(principle) for principle in principles]}
    digests = {name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16] for name, value in texts.items()}  # fmt: skip
    return settings | digests | {"writer": writer.name, "judge": judge.name}
