"""The step of a round in which annotators answer: people through the page, others here."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.annotators import Annotator, JudgeAnnotator, annotate_tasks, require_answered_by_judge, takers_of
from hf_rlhf.feedback.cheerful import CheerfulAnnotator
from hf_rlhf.feedback.forms import CORRECTION, Form
from hf_rlhf.feedback.rules import panel, rate_texts
from hf_rlhf.feedback.similarity import similarity_annotator
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.judges.endpoint import EndpointJudge
from hf_rlhf.judges.local import ModelJudge
from hf_rlhf.progress import progress_of, say
from hf_rlhf.recipes.label import label
from hf_rlhf.rounds.arguments import CHEERFUL, JUDGE, ME, SIMILARITY, STORE_FILE, RoundsArguments


def open_store(args: RoundsArguments, root: Path) -> FeedbackStore:
    """Open the store of all rounds. A new one gets its orders of completions from the seed.

    Raises `InputError` for a store with other tasks.
    """
    store = FeedbackStore(root / STORE_FILE)
    if store.setting("rounds_seed") is None:
        if next(store.tasks(), None) is not None:
            raise InputError(
                f"output_dir={str(root)!r} is invalid: {STORE_FILE} in it has tasks of something else. Choose another"
                " folder, or move the file away."
            )
        store.set("salt", f"rounds/{args.seed}")
        store.set("rounds_seed", str(args.seed))
    store.set("overlap", str(args.overlap))
    store.set("overlap_of", "all")  # an answer of a rule or a judge counts as one of a person does
    if (guidelines := args.read_guidelines()) is not None:
        store.set("guidelines", guidelines)
    return store


def annotators_of(args: RoundsArguments, form: Form) -> list[Annotator]:
    """Return the annotators who answer here; none where people do. Raises `InputError` for a form that they cannot."""
    if args.annotator == CHEERFUL:
        cheerful = CheerfulAnnotator()
        return list(
            panel(
                rate_texts(cheerful.rate),
                args.num_annotators,
                seed=args.seed,
                name=CHEERFUL,
                noise=args.annotator_noise,
                taste=args.annotator_taste,
                position_bias=args.annotator_position_bias,
                tie_margin=args.annotator_tie_margin,
                correct=cheerful.correct,
            )
        )
    if args.annotator == SIMILARITY:
        if form.kind == CORRECTION:
            raise InputError(
                f"form={form.kind} is invalid for annotator={SIMILARITY}, which writes nothing. Use rating."
            )
        return [similarity_annotator(tie_margin=args.annotator_tie_margin)]
    if args.annotator == JUDGE:
        require_answered_by_judge(form)
        assert args.judge_model is not None
        if args.judge_url is not None:
            return [JudgeAnnotator(EndpointJudge(args.judge_model, args.judge_url, api_key_env=args.judge_api_key_env))]
        return [JudgeAnnotator(ModelJudge.load(args.judge_model))]
    return []


def ask(store: FeedbackStore, tasks: Sequence[Task], annotators: Sequence[Annotator], args: RoundsArguments) -> bool:
    """Ask tasks until each has its answers; return False where people have yet to answer. Serve the page for `me`.

    A task that an annotator skipped or flagged is not waited for. One that annotators of another kind answered, before
    `annotator` was changed, is not asked again.

    Raises `RunStopped` after Ctrl+C while the page is served.
    """
    store.add_tasks(tasks)
    left = waiting(store, tasks, args.overlap)
    if left and args.annotator == ME:
        say(f"     {left} questions wait for your answers. Each is kept at once; Ctrl+C stops.")
        enough = lambda: not waiting(store, tasks, args.overlap)  # noqa: E731
        label(store, annotator=ME, until=enough, port=args.port, open_browser=args.open)
        left = waiting(store, tasks, args.overlap)
    elif left and not args.asks_people:
        with progress_of(left * args.overlap, "     answers") as advance:
            annotate_tasks(store, annotators, tasks, overlap=args.overlap, on_answer=advance)
        left = waiting(store, tasks, args.overlap)
        assert not left, f"{left} tasks have no answer"
    if left:
        _tell_people(store, left, len(tasks))
    return not left


def waiting(store: FeedbackStore, tasks: Sequence[Task], overlap: int) -> int:
    """Return how many tasks fewer than `overlap` annotators of any kind have answered, skipped or flagged."""
    given = takers_of(store)
    return sum(len(given.get(task.id, ())) < overlap for task in tasks)


def _tell_people(store: FeedbackStore, left: int, total: int) -> None:
    say(f"     {left} of {total} questions wait for answers. Answer them with")
    say(f"       hf-rlhf label --store {shlex.quote(str(store.file))}")
    say("     and then run the same command again: it goes on from here.")
