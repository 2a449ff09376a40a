"""Reward and KL after equal seconds of PPO with LoRA on all, half and a quarter of the blocks, by hf_rlhf alone.

    python benchmarks/blocks_to_reward.py                                        # two hours on two cores
    OMP_NUM_THREADS=1 python benchmarks/blocks_to_reward.py --at_once 12         # a core for each run
    python benchmarks/blocks_to_reward.py --stage judge plot                     # from runs that are there

Task, reward model and judge are those of `time_to_reward.py`, and so is the folder: what it has prepared is taken from
there. What is there for the same flags is not done again.
"""

import argparse
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ppo_against_trl import trained_blocks
from time_to_reward import (
    RESULT,
    RESULT_FILE,
    SECONDS_TO_BEGIN,
    Experiment,
    Setting,
    add_arguments,
    experiment_of,
    judge_run,
    judge_start,
    median_curve,
    prepare,
    read,
    row,
    say_expected_time,
    train,
)

from hf_rlhf.progress import duration, quiet_libraries

STAGES = ("prepare", "run", "judge", "plot")
COLORS = ("#2a6fb0", "#3f9b6c", "#d07a1f", "#8d5fb0", "#a83a3a", "#777777")


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """Return one setting for each number of blocks and each learning rate."""
    choices = itertools.product(args.lora_layers, args.learning_rates)
    return [Setting(learning_rate=rate, lora_layers=layers) for layers, rate in choices]


def words(setting: Setting) -> str:
    """Return a setting as a person reads it."""
    return f"{trained_blocks(setting.lora_layers)}, learning rate {setting.learning_rate:g}"


def folder_of(experiment: Experiment, setting: Setting, seed: int) -> Path:
    """Return where a run is kept."""
    return experiment.folder / "blocks" / f"{setting.lora_layers}_{setting.learning_rate:g}_{seed}"


def run(experiment: Experiment, settings: list[Setting], at_once: int) -> None:
    """Train every seed with every setting.

    A setting's seeds do not follow each other, so that all meet the same machine.
    """

    def one(seed: int, setting: Setting) -> str | None:
        return train(experiment, "own", setting, seed, experiment.seconds("own"), folder_of(experiment, setting, seed))

    work = list(itertools.product(experiment.seeds, settings))
    with ThreadPoolExecutor(at_once) as pool:
        failures = [failure for failure in pool.map(lambda task: one(*task), work) if failure]
    if failures:
        raise SystemExit(f"{len(failures)} of {len(work)} runs failed, the first one:\n{failures[0]}")


def curves_of(experiment: Experiment, setting: Setting) -> list[list[dict[str, Any]]]:
    """Return the judged curve of each seed."""
    start = judge_start(experiment)
    return [[start, *judge_run(experiment, folder_of(experiment, setting, seed), RESULT)] for seed in experiment.seeds]


def summarize(experiment: Experiment, settings: list[Setting]) -> list[dict[str, Any]]:
    """Return for each setting where its seeds end (the mean of the last two snapshots), and what an iteration costs."""
    rows = []
    for setting in settings:
        curves = curves_of(experiment, setting)
        results = [read(folder_of(experiment, setting, seed) / RESULT_FILE) for seed in experiment.seeds]
        ends = {name: [fmean(point[name] for point in curve[1:][-2:]) for curve in curves] for name in ("reward", "kl")}
        rows.append(
            {
                "name": words(setting),
                "iterations": median(result["iterations"] for result in results),
                "seconds_of_iteration": median(
                    result["snapshots"][-1]["seconds"] / result["iterations"] for result in results
                ),
                "peak_gb": median(result["peak_bytes"] for result in results) / 1e9,
                **ends,
                "curves": curves,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the comparison as Markdown."""

    def cells(of: dict[str, Any], name: str, digits: int) -> str:
        return f"{median(of[name]):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in of[name])})"

    named = {of["name"]: of for of in rows}
    start = rows[0]["curves"][0][0]
    lines = [
        "| | " + " | ".join(named) + " |",
        "|---|" + "---|" * len(named),
        row("iterations", named, lambda of: f"{of['iterations']:.0f}"),
        row("seconds an iteration", named, lambda of: f"{of['seconds_of_iteration']:.2f}"),
        row("peak memory, GB", named, lambda of: f"{of['peak_gb']:.2f}"),
        row(
            f"reward at the end (start {start['reward']:.2f}): median, each seed",
            named,
            lambda of: cells(of, "reward", 2),
        ),
        row("KL at the end, nats a reply", named, lambda of: cells(of, "kl", 1)),
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw held-out reward over seconds and over KL: each seed, and the median of the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (over_time, over_kl) = pyplot.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for color, of in zip(itertools.cycle(COLORS), rows):
        for points in of["curves"]:
            rewards = [point["reward"] for point in points]
            over_time.plot([point["seconds"] for point in points], rewards, color=color, alpha=0.3, linewidth=1)
            over_kl.plot([point["kl"] for point in points], rewards, color=color, alpha=0.45, linewidth=1, marker=".")
        over_time.plot(*median_curve(of["curves"]), color=color, linewidth=2.2, label=of["name"])
    for axes in (over_time, over_kl):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    over_time.set_xlabel("seconds of training")
    over_time.set_ylabel("reward of held-out replies")
    over_kl.set_xlabel("KL to the start (nats a reply)")
    over_time.legend(frameon=False, loc="lower right", title="thin: seeds; thick: their median", title_fontsize=9)
    figure.savefig(file, dpi=120)


def plot(experiment: Experiment, settings: list[Setting]) -> None:
    """Write the numbers, the table and the picture, and print the table."""
    rows = summarize(experiment, settings)
    experiment.write("blocks_to_reward.json", rows)
    (experiment.folder / "blocks_to_reward.md").write_text(table(rows) + "\n", encoding="utf-8")
    draw(rows, experiment.folder / "blocks_to_reward.png")
    print("\n" + table(rows))


def main() -> None:
    """Run the stages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    add_arguments(parser)
    parser.add_argument("--lora_layers", nargs="+", default=["all", "0.5", "0.25"])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[5e-4])
    parser.add_argument("--at_once", type=int, default=1, help="runs that train beside each other")
    args = parser.parse_args()
    quiet_libraries()
    experiment, settings = experiment_of(args), settings_of(args)
    runs = len(settings) * len(experiment.seeds)
    seconds = -(-runs // args.at_once) * (experiment.seconds("own") + SECONDS_TO_BEGIN)
    print(f"{runs} runs, {duration(seconds)} of training", flush=True)
    if "prepare" in args.stage:
        say_expected_time(experiment, ["prepare"])
        prepare(experiment)
    if "run" in args.stage:
        run(experiment, settings, args.at_once)
    if "judge" in args.stage:
        for setting in settings:
            curves = [
                ", ".join(f"{point['reward']:.2f}" for point in curve) for curve in curves_of(experiment, setting)
            ]
            print(f"judge, {words(setting)}: {'; '.join(curves)}", flush=True)
    if "plot" in args.stage:
        plot(experiment, settings)


if __name__ == "__main__":
    main()
