"""`hf-rlhf show`: the trajectories of a run in the terminal, as a page, or as a dataset on the Hub."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.evaluation.trajectories.page import trajectory_page
from hf_rlhf.evaluation.trajectories.quantities import QUANTITIES
from hf_rlhf.evaluation.trajectories.reading import read_trajectories, require_trajectories
from hf_rlhf.evaluation.trajectories.terminal import print_trajectories
from hf_rlhf.hub.dataset_card import trajectory_card
from hf_rlhf.hub.model_card import shown_name
from hf_rlhf.hub.push import push_dataset
from hf_rlhf.models.load import public_name
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import flag
from hf_rlhf.records import TRAJECTORIES, VERSIONS_FILE, read_settings, write_whole
from hf_rlhf.rewards.named import shown_reward

_FIRST_ROWS = 4  # that a terminal shows
_ON_THE_CARD = (
    "seed", "learning_rate", "rollout_batch_size", "num_ppo_epochs", "num_mini_batches", "kl_coef", "kl_estimator",
    "advantage_estimator", "gamma", "lam", "temperature", "max_completion_length", "log_trajectories",
)  # fmt: skip


@dataclass
class ShowArguments:
    """The run, what of it is shown, and where."""

    run_dir: str | None = flag(None, "The output_dir of a run of `hf-rlhf ppo` with log_trajectories.")
    iteration: int | None = flag(None, "Iteration to show, counted from 1; by default the last one written.")
    rows: list[int] | None = flag(
        None, f"Completions to show, counted from 0; by default the first {_FIRST_ROWS}, and on a page all."
    )
    color_by: str = flag("advantage", f"Number that is the color of a token: {', '.join(QUANTITIES)}.")
    numbers: bool = flag(False, "In the terminal, also print a line of numbers for each token.")
    html: str | None = flag(None, "File of a page to write, instead of the terminal; it needs no network.")
    # To the Hub
    hub_dataset_id: str | None = flag(None, "Push all trajectories of the run as this dataset, owner/name.")
    private: bool | None = flag(None, "Make a new dataset private.")
    license: str | None = flag(None, "Licence of the dataset, for its card.")

    def __post_init__(self):
        if not self.run_dir:
            raise InputError("run_dir is missing. Name the folder of a run, as in `hf-rlhf show runs/ppo`.")
        if self.color_by not in QUANTITIES:
            raise InputError(
                f"color_by={self.color_by} is invalid: it must be one of {', '.join(QUANTITIES)}. Change it."
            )
        if self.html is not None and self.hub_dataset_id is not None:
            raise InputError("html is invalid with hub_dataset_id: a push writes no page. Omit one of them.")
        if self.html is not None and (not self.html or Path(self.html).is_dir()):
            raise InputError(f"html={self.html!r} is invalid: it must be a file. Give one, such as trajectories.html.")


def show_run(args: ShowArguments) -> None:
    """Show the trajectories of a run, or push them.

    Raises `InputError` for a run or an iteration without them, before anything is written, and `PushError` when the
    push fails.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    run, quantity = Path(str(args.run_dir)), QUANTITIES[args.color_by]
    if args.hub_dataset_id is not None:
        _push(run, args.hub_dataset_id, args)
        return
    if args.html is not None:
        found = read_trajectories(run, args.iteration, args.rows)
        try:
            Path(args.html).parent.mkdir(parents=True, exist_ok=True)
            file = write_whole(Path(args.html), trajectory_page(found, quantity))
        except OSError as error:
            raise RunFailed(f"{args.html} cannot be written: {error}. Give another file.") from error
        say(f"wrote {file}: iteration {found.iteration}, {len(found.rows)} rows")
        return
    from rich.console import Console

    found = read_trajectories(run, args.iteration, args.rows, most=_FIRST_ROWS)
    print_trajectories(Console(highlight=False), found, quantity, numbers=args.numbers)


def _push(run: Path, name: str, args: ShowArguments) -> None:
    """Write a card beside the trajectories, and push both in one commit."""
    files = require_trajectories(run)
    read = [read_trajectories(run, iteration) for iteration in files]
    card = trajectory_card(
        dataset_id=name,
        rows={each.iteration: len(each.rows) for each in read},
        rewards=sorted({part for each in read for row in each.rows for part in row["rewards"] or ()}),
        license=args.license,
        **_provenance(run),
    )
    folder = run / TRAJECTORIES
    write_whole(folder / "README.md", card)
    pushed = push_dataset(
        folder,
        name,
        ["README.md", *(file.name for file in files.values())],
        private=args.private,
        message="Push trajectories of a PPO run with hf_rlhf",
    )
    say(f"pushed to {pushed}: {sum(len(each.rows) for each in read)} rows of {len(read)} iterations")


def _provenance(run: Path) -> dict[str, Any]:
    """Return what the run's own files say of its start, without paths of this machine."""
    settings, versions = read_settings(run), {}
    try:
        if (run / VERSIONS_FILE).is_file():
            versions = json.loads((run / VERSIONS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{run / VERSIONS_FILE} cannot be read ({error}). Mend it, or move it away.") from error
    model, dataset = settings.get("model_name_or_path"), settings.get("dataset_name")
    rewards = [settings.get("reward_model_path"), *(settings.get("reward_funcs") or ())]
    return {
        "base_model": None if model is None else public_name(str(model)),
        "dataset": None if dataset is None else str(dataset),
        "reward_sources": [shown_reward(str(each)) or shown_name(str(each)) for each in rewards if each],
        "settings": {name: settings[name] for name in _ON_THE_CARD if settings.get(name) is not None},
        "versions": versions,
    }
