"""Accuracy from equally many answers when pairs are chosen by disagreement or uncertainty, and at random.

    hf-rlhf quickstart --output_dir runs/quickstart                  # leaves the candidates
    python benchmarks/choosing_pairs.py --candidates runs/quickstart/candidates

A simulated annotator answers questions about a fixed pool of candidates, through a store of feedback. Every `--step`
questions the reward model is trained anew on all answers so far, and chooses the next ones. To make that cheap, it is
an ensemble of small heads on the hidden states of the frozen base, which are computed once. It is measured on held-out
prompts, where the better reply is that of the higher rating, without noise.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.data.tokens import row_ids
from hf_rlhf.evaluation import plots
from hf_rlhf.feedback.annotators import annotate
from hf_rlhf.feedback.cheerful import CheerfulAnnotator
from hf_rlhf.feedback.forms import Form
from hf_rlhf.feedback.rules import FINISHED, RuleAnnotator, rate_texts
from hf_rlhf.feedback.selection import CHOICES, RANDOM, Question, choose_questions, possible_questions
from hf_rlhf.feedback.store import FeedbackStore
from hf_rlhf.feedback.tasks import Task
from hf_rlhf.models.batch_layout import backbone_of
from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_tokenizer
from hf_rlhf.models.precision import current_device
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.progress import progress_of, quiet_libraries
from hf_rlhf.quickstart.replies import as_messages
from hf_rlhf.records import read_json_lines, write_whole
from hf_rlhf.types import Message

FORM = Form(strengths=1)
COLORS = {"random": plots.MUTED, "disagreement": plots.BLUE, "uncertainty": plots.ORANGE}


class Candidates(NamedTuple):
    """Replies of some prompts, numbered through; `groups` has how many each prompt has."""

    rows: list[dict[str, Any]]
    groups: list[int]
    features: Tensor  # (N, D), standardized over the pool

    @property
    def texts(self) -> list[list[str]]:
        """The text of each reply, by prompt."""
        rows = iter(self.rows)
        return [[next(rows)["completion"] for _ in range(size)] for size in self.groups]


class Heads(torch.nn.Module):
    """An ensemble of small heads: states `(B, D)` to rewards `(B, K)`."""

    def __init__(self, width: int, members: int, hidden: int, generator: torch.Generator):
        super().__init__()
        draws = torch.randn(members, width, hidden, generator=generator) / width**0.5
        self.first = torch.nn.Parameter(draws)
        self.last = torch.nn.Parameter(torch.randn(members, hidden, generator=generator) / hidden**0.5)

    def forward(self, states: Tensor) -> Tensor:
        """Return rewards `(B, K)`."""
        return torch.einsum("kbh,kh->bk", torch.tanh(torch.einsum("bd,kdh->kbh", states, self.first)), self.last)


def read_candidates(folders: Sequence[Path], split: str) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the replies of a split by prompt, and how many each has."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        for row in read_json_lines(folder / f"{split}.jsonl"):
            by_prompt.setdefault(row["prompt"], []).append(row)
    return [row for group in by_prompt.values() for row in group], [len(group) for group in by_prompt.values()]


@torch.no_grad()
def states_of(rows: Sequence[dict[str, Any]], model_name: str, batch_size: int = 16) -> Tensor:
    """Return the last state of each dialogue and the mean over its tokens, `(N, 2 H)`."""
    tokenizer, model = load_tokenizer(model_name), load_causal_lm(model_name).to(current_device()).eval()
    dialogues: list[list[Message]] = [
        [*as_messages(row["prompt"]), Message(role="assistant", content=row["completion"])] for row in rows
    ]
    ids = [row_ids(dialogue, tokenizer, continued=False) for dialogue in dialogues]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    found: list[Tensor] = [torch.empty(0)] * len(ids)
    with progress_of(len(ids), "hidden states of the candidates") as advance:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            lengths = torch.tensor([len(ids[number]) for number in batch])
            mask = lengths_to_mask(lengths, int(lengths.max())).to(current_device())
            padded = pad_sequences([ids[number] for number in batch], 0).to(current_device())
            states = backbone_of(model)(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()
            last = states[torch.arange(len(batch)), lengths - 1]
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for number, row in zip(batch, torch.cat([last, mean], dim=1).cpu(), strict=True):
                found[number] = row
            advance(len(batch))
    return torch.stack(found)


def load(args: argparse.Namespace) -> tuple[Candidates, Candidates]:
    """Return the pool and the held-out replies; their states are computed once and kept in `args.work`."""
    parts = {split: read_candidates(args.candidates, split) for split in ("train", "test")}
    file = args.work / "states.safetensors"
    if not file.is_file():
        from safetensors.torch import save_file

        rows = [*parts["train"][0], *parts["test"][0]]
        save_file({"states": states_of(rows, args.model_name_or_path)}, file)
    from safetensors.torch import load_file

    states = load_file(file)["states"]
    pool = len(parts["train"][0])
    assert len(states) == pool + len(parts["test"][0]), f"{file} is of other candidates. Remove it."
    scaled = (states - states[:pool].mean(0)) / states[:pool].std(0).clamp(min=1e-6)
    return Candidates(*parts["train"], scaled[:pool]), Candidates(*parts["test"], scaled[pool:])


def train_heads(args: argparse.Namespace, states: Tensor, pairs: Tensor, seed: int) -> Heads:
    """Train an ensemble on pairs `(P, 2)` of (chosen, rejected), each member on a bootstrap sample of its own."""
    generator = torch.Generator().manual_seed(seed)
    heads = Heads(states.shape[1], args.members, args.hidden, generator)
    drawn = torch.randint(len(pairs), (args.members, len(pairs)), generator=generator)
    weights = torch.stack([torch.bincount(row, minlength=len(pairs)) for row in drawn]).T.float()  # (P, K)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
    for _ in range(args.updates):
        margins = heads(states[pairs[:, 0]]) - heads(states[pairs[:, 1]])
        loss = (-torch.nn.functional.logsigmoid(margins) * weights).sum(0).div(len(pairs)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return heads


def learning_curve(args: argparse.Namespace, pool: Candidates, held_out: Candidates, how: str, seed: int) -> list[Any]:
    """Return the accuracy after every step of questions that are chosen by `how`; the first step is random for all."""
    annotator = RuleAnnotator(
        rate_texts(CheerfulAnnotator().rate), seed=seed, noise=args.noise, tie_margin=args.tie_margin
    )
    left, curve, pairs = possible_questions(pool.texts, FORM), [], []
    truth, rewards = true_pairs(held_out, annotator), None
    with tempfile.TemporaryDirectory() as folder, FeedbackStore(Path(folder) / "feedback.db") as store:
        store.set("salt", str(seed))
        for step in range(args.steps):
            chosen = choose_questions(left, args.step, RANDOM if rewards is None else how, seed=seed, rewards=rewards)
            asked = set(chosen)
            left = [question for question in left if question not in asked]
            tasks = {task_of(pool, question).id: question for question in chosen}
            store.add_tasks(task_of(pool, question) for question in chosen)
            annotate(store, annotator)
            for event in store.current():
                if event.task in tasks and (event.value or {}).get("preferred") in (0, 1):
                    first, second = tasks[event.task].candidates
                    pairs.append((first, second) if (event.value or {})["preferred"] == 0 else (second, first))
            heads = train_heads(args, pool.features, torch.tensor(pairs), seed)
            with torch.no_grad():
                rewards, found = heads(pool.features), heads(held_out.features).mean(dim=1)
            right = fmean(float(found[better] > found[worse]) for better, worse in truth)
            curve.append({"questions": args.step * (step + 1), "preferences": len(pairs), "accuracy": right})
    return curve


def true_pairs(held_out: Candidates, annotator: RuleAnnotator) -> list[tuple[int, int]]:
    """Return the held-out pairs as (better, worse) by the rating without noise, without ties."""
    found = []
    for question in possible_questions(held_out.texts, FORM):
        opinions = annotator.opinions(task_of(held_out, question))
        assert opinions is not None
        if abs(opinions[0] - opinions[1]) > annotator.tie_margin:
            first, second = question.candidates
            found.append((first, second) if opinions[0] > opinions[1] else (second, first))
    return found


def task_of(candidates: Candidates, question: Question) -> Task:
    """Return the task of a question."""
    rows = [candidates.rows[number] for number in question.candidates]
    columns = {FINISHED: [row["finished"] for row in rows]}
    return Task(FORM, rows[0]["prompt"], tuple(row["completion"] for row in rows), columns=columns)


def draw(curves: dict[str, dict[str, list[Any]]], file: Path) -> None:
    """Draw the mean over seeds of each choice, and every seed pale beside it."""
    figure = plots._new_figure(9.0, 5.0)
    ax = figure.subplots()
    plots._style(ax, "Choosing pairs", "held-out pairs ordered as the annotator rates them")
    for how, by_seed in curves.items():
        runs = list(by_seed.values())
        asked = [point["questions"] for point in runs[0]]
        for run in runs:
            ax.plot(asked, [point["accuracy"] for point in run], color=COLORS[how], linewidth=0.9, alpha=0.35)
        means = [fmean(points) for points in zip(*([p["accuracy"] for p in run] for run in runs), strict=True)]
        ax.plot(asked, means, color=COLORS[how], linewidth=2.2, marker="o", label=f"{how}, mean of {len(runs)} seeds")
    ax.set_xlabel("questions asked", color=plots.MUTED, fontsize=9.5)
    ax.yaxis.set_major_formatter("{x:.0%}")
    plots._legend(ax)
    plots._save(figure, file)


def main() -> None:
    """Run all choices and seeds; write choosing_pairs.json and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=Path, nargs="+", default=[Path("runs/quickstart/candidates")])
    parser.add_argument("--work", type=Path, default=Path("runs/choosing_pairs"))
    parser.add_argument("--model_name_or_path", default=EMBEDDED_MODEL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--choices", nargs="+", default=list(CHOICES))
    parser.add_argument("--step", type=int, default=25, help="questions between two trainings")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--weight_decay", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--tie_margin", type=float, default=0.05)
    args = parser.parse_args()
    quiet_libraries()
    args.work.mkdir(parents=True, exist_ok=True)
    pool, held_out = load(args)
    curves: dict[str, dict[str, list[Any]]] = {how: {} for how in args.choices}
    for how, seed in itertools.product(args.choices, args.seeds):
        curves[how][str(seed)] = learning_curve(args, pool, held_out, how, seed)
        shown = "  ".join(f"{point['accuracy']:.3f}" for point in curves[how][str(seed)])
        print(f"{how:<13} seed {seed}: {shown}", flush=True)
    settings = {name: str(value) if isinstance(value, (Path, list)) else value for name, value in vars(args).items()}
    result = {"settings": settings, "pool": len(pool.rows), "held_out": len(held_out.rows), "curves": curves}
    write_whole(args.work / "choosing_pairs.json", json.dumps(result, indent=2) + "\n")
    draw(curves, args.work / "choosing_pairs.png")
    print(f"written to {args.work}")


if __name__ == "__main__":
    main()
