"""Draw docs/images/quickstart.png from the folder of a finished quickstart.

python docs/make_picture.py runs/quickstart        # needs the extra `report`
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import yaml

from hf_rlhf.evaluation import plots
from hf_rlhf.records import read_json_lines

PICTURE = Path(__file__).parent / "images" / "quickstart.png"


def draw(run: Path) -> Path:
    """Draw reward and KL over iterations, and the annotator's scores before and after. Return the path."""
    rows = [row for row in read_json_lines(run / "policy" / "metrics.jsonl") if "iteration" in row]
    samples = read_json_lines(run / "samples.jsonl")
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    flags = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    device = json.loads((run / "policy" / "versions.json").read_text(encoding="utf-8"))["device"]

    figure = plots._new_figure(13.0, 4.5)
    reward, kl, ratings = figure.subplots(1, 3)
    plots._style(reward, "Reward of the sampled replies", "by the reward model")
    plots._line(reward, rows, "reward", plots.BLUE, "mean of 32 replies")
    plots._style(kl, "KL divergence from the start", "nats per reply")
    plots._line(kl, rows, "objective/kl", plots.GREEN, "mean of 32 replies")
    for ax in (reward, kl):
        ax.set_xlabel("iteration", color=plots.MUTED, fontsize=9.5)
        plots._whole_numbers(ax.xaxis)
        plots._legend(ax)

    plots._style(ratings, "Annotator's rating on held-out messages", "messages")
    before, after = ([sample[key] for sample in samples] for key in ("rating_before", "rating_after"))
    labels = [f"before, mean {fmean(before):.2f}", f"after, mean {fmean(after):.2f}"]
    bins = [i / 10 for i in range(11)]
    ratings.hist([before, after], bins=bins, color=[plots.MUTED, plots.ORANGE], label=labels, rwidth=0.85, zorder=2)
    ratings.set_xlabel("rating of a reply", color=plots.MUTED, fontsize=9.5)
    ratings.set_xlim(0, 1)
    plots._whole_numbers(ratings.yaxis)
    plots._legend(ratings)

    wins = results["win_rate"]
    command = f"hf-rlhf quickstart --minutes {flags['minutes']:g} --seed {flags['seed']}"
    figure.suptitle(
        f"{command}, SmolLM2-135M-Instruct, {device}. On {len(samples)} held-out messages the annotator prefers the"
        f" trained reply in {wins['rate']:.0%} (95% interval {wins['low']:.0%} to {wins['high']:.0%}).",
        x=0.012, ha="left", fontsize=10, color=plots.INK,
    )  # fmt: skip
    return plots._save(figure, PICTURE)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
