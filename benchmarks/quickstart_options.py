"""Train the quickstart's policy with other options, against the same reward model, and compare the results.

    hf-rlhf quickstart                                        # candidates, preferences and reward model come from here
    python benchmarks/quickstart_options.py                   # four minutes an option on two CPU cores
    python benchmarks/quickstart_options.py --only 'kl_coef 0.1'

Prints a Markdown table and writes options.json and options.png. What is there already is not run again.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.quickstart.arguments import REWARD_MODEL, QuickstartArguments
from hf_rlhf.quickstart.comparison import compare
from hf_rlhf.quickstart.training import train_policy
from hf_rlhf.records import iteration_rows

ONE_EPOCH = {"num_ppo_epochs": 1, "max_steps": 48}  # 24 iterations in the time of 18 with two epochs
OPTIONS: dict[str, dict[str, Any]] = {
    "default (2 PPO epochs, 18 iterations)": {},
    "1 PPO epoch, 24 iterations": ONE_EPOCH,
    "1 PPO epoch, critic 10 times faster": {**ONE_EPOCH, "critic_learning_rate": 5e-3},
    "1 PPO epoch, critic an adapter from the reward model": {
        **ONE_EPOCH,
        "critic": "adapter",
        "critic_path": REWARD_MODEL,
    },
    "2 PPO epochs, 24 iterations": {"max_steps": 96},
    "kl_coef 0.1": {"kl_coef": 0.1},
    "KL in the loss (k2)": {"kl_in_loss": True, "kl_estimator": "k2"},
    "advantages not whitened": {"whiten_advantages": False},
}


def run(name: str, flags: dict[str, Any], source: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Train and judge one option, unless its result is there."""
    result = folder / "result.json"
    if not result.is_file():
        args = QuickstartArguments(output_dir=str(source), seed=seed)
        if flags.get("critic_path") == REWARD_MODEL:
            flags = {**flags, "critic_path": str(source / REWARD_MODEL)}
        begun = time.perf_counter()
        train_policy(args, source / REWARD_MODEL, folder, **flags)
        seconds = time.perf_counter() - begun
        comparison = compare(args, source / REWARD_MODEL, folder, folder)
        rows = {row.metric: row.after for row in comparison.rows("annotator")}
        last = iteration_rows(folder)[-1]
        content = {
            "name": name,
            "seconds": seconds,
            "win_rate": asdict(comparison.wins),
            "explained_variance": last["val/explained_variance"],
            **rows,
        }
        result.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return json.loads(result.read_text(encoding="utf-8"))


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| option | annotator rating | wins (95 %) | KL, nats a reply | surprise, nats a token | reward | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        wins = result["win_rate"]
        lines.append(
            f"| {result['name']} | {_value(result, 'annotator rating'):.2f} | {wins['rate']:.0%}"
            f" ({wins['low']:.0%}-{wins['high']:.0%}) | {_value(result, 'KL to'):.1f} |"
            f" {_value(result, 'surprise'):.2f} | {_value(result, 'reward by'):.2f} | {result['seconds']:.0f} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Draw the annotator's rating against the KL, a point for each option."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for result in results:
        x, y = _value(result, "KL to"), _value(result, "annotator rating")
        axes.scatter(x, y, color="#2a6fb0", zorder=3)
        axes.annotate(result["name"], (x, y), xytext=(6, 4), textcoords="offset points", fontsize=9)
    axes.set_xlabel("KL to the starting model (nats a reply)")
    axes.set_ylabel("annotator rating on held-out messages")
    axes.margins(x=0.25, y=0.15)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def _value(result: dict[str, Any], beginning: str) -> float:
    return next(value for key, value in result.items() if key.startswith(beginning))


def main() -> None:
    """Run the options named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("runs/quickstart"), help="a finished quickstart")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/options"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    args = parser.parse_args()
    results = []
    for number, name in enumerate(args.only):
        print(f"\n{number + 1}/{len(args.only)}  {name}", flush=True)
        folder = args.output_dir / f"seed{args.seed} {name}"
        results.append(run(name, OPTIONS[name], args.source, folder, args.seed))
    (args.output_dir / "options.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot(results, args.output_dir / "options.png")
    print("\n" + table(results))


if __name__ == "__main__":
    assert set().union(*OPTIONS.values()) <= set(PPOConfig.__dataclass_fields__)
    main()
