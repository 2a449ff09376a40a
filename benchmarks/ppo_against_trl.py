"""hf_rlhf, TRL's last PPO and the RLOO of TRL today, in turn on the same work; prints a table and writes it down.

    make benchmark                              # sets up both environments, about half an hour on two cores
    python benchmarks/ppo_against_trl.py --peer_python .venv-trl/bin/python --rollout_batch_sizes 8 --dtypes bfloat16

Each run is a process of its own. The reward model is one LoRA adapter: hf_rlhf gets it as it is and shares the policy's
base, TRL gets it merged, as a model, and its PPO a second copy of it as the value model that it asks for.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_rlhf.models.load import EMBEDDED_MODEL, load_causal_lm, load_sequence_classifier, load_tokenizer, resolve_model
from hf_rlhf.models.lora_targets import in_last_blocks, last_blocks, share_of_blocks
from hf_rlhf.planning.work import IterationSize, Machine, ModelShape, roofline

WORKLOADS = Path(__file__).parent / "workloads"
PHASES = ("generate", "score", "update")
_ROOFLINE = {"generate": "sample", "score": "forward_pass", "update": "update"}  # the same phases in `roofline`
NAMES = {"trl": "TRL 1.12.0", "rloo": "RLOO of TRL 1.16", "own": "hf_rlhf"}
FILES = {"trl": "trl_ppo.py", "rloo": "trl_rloo.py", "own": "own_ppo.py"}
PROMPT_LENGTH, COMPLETION_LENGTH, PPO_EPOCHS = 24, 32, 4


def make_reward_models(folder: Path, model: str) -> dict[str, Path]:
    """Make a reward adapter with random weights on the policy's base, and the same merged into a full model."""
    from peft import LoraConfig, get_peft_model

    places = {"own": folder / "reward_adapter", "trl": folder / "reward_merged"}
    if not all((place / "tokenizer_config.json").is_file() for place in places.values()):
        tokenizer = load_tokenizer(model)
        torch.manual_seed(0)
        classifier = load_sequence_classifier(model)
        classifier.config.pad_token_id = tokenizer.pad_token_id
        lora = LoraConfig(task_type="SEQ_CLS", r=16, target_modules="all-linear", exclude_modules=["score"])
        wrapped: Any = get_peft_model(classifier, lora)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        wrapped.save_pretrained(places["own"])
        wrapped.merge_and_unload().save_pretrained(places["trl"])
        for place in places.values():
            tokenizer.save_pretrained(place)
    return places


def lora_arguments(model: str, layers: str) -> dict[str, Any]:
    """Return the arguments of a LoRA config on every linear layer, of the last blocks alone unless `layers` is `all`.

    The layers are named one by one, the same on every side, since PEFT restricts `all-linear` to no blocks.
    """
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM

    arguments = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
    if layers != "all":
        with torch.device("meta"):
            blocks = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve_model(model)))
        config = in_last_blocks(LoraConfig(task_type="CAUSAL_LM", **arguments), blocks, layers)
        arguments["target_modules"] = sorted(config.target_modules)
        arguments["layers_to_transform"] = config.layers_to_transform
        arguments["layers_pattern"] = config.layers_pattern
    return arguments


def run(side: str, python: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Run one process; return what it reports."""
    command = [python, str(WORKLOADS / FILES[side])]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{NAMES[side]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Return the median seconds of each phase over all iterations of all runs, and the largest peak."""
    iterations = [iteration for report in reports for iteration in report["iterations"]]
    seconds = {phase: median(iteration[phase] for iteration in iterations) for phase in (*PHASES, "total")}
    return {**seconds, "peak_gb": max(report["peak_bytes"] for report in reports) / 1e9}


def table(results: list[dict[str, Any]]) -> str:
    """Return all workloads as Markdown, with each side that a result holds."""
    lines = [
        "| completions | dtype | LoRA on | | generate, s | score, s | update, s | iteration, s | peak, GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        own, ideal = result["own"], result["roofline"]
        place = f"| {result['rollout_batch_size']} | {result['dtype']} | {trained_blocks(result['lora_layers'])} "
        sides = [side for side in NAMES if side in result]
        for side in sides:
            cells = " | ".join(f"{result[side][phase]:.2f}" for phase in (*PHASES, "total"))
            lines.append(f"{place}| {NAMES[side]} | {cells} | {result[side]['peak_gb']:.2f} |")
        for side in sides[:-1]:
            peer = result[side]
            ratios = " | ".join(f"{peer[phase] / own[phase]:.1f}x" for phase in (*PHASES, "total"))
            memory = own["peak_gb"] / peer["peak_gb"]
            lines.append(f"{place}| times as fast as {NAMES[side]} | {ratios} | {memory:.2f} of it |")
        fractions = " | ".join(f"{ideal[_ROOFLINE[phase]] / own[phase]:.0%}" for phase in PHASES)
        lines.append(f"{place}| of the roofline | {fractions} | {sum(ideal.values()) / own['total']:.0%} | |")
    return "\n".join(lines)


def trained_blocks(layers: str) -> str:
    """Return the flag `lora_layers` in words."""
    share = share_of_blocks(layers)
    if isinstance(share, int):
        return "last block" if share == 1 else f"last {share} blocks"
    return "all blocks" if share == 1 else f"last {share:.0%} of blocks"


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Draw the seconds of an iteration by phase, a group of bars for each workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 1.2 * len(results)), layout="constrained")
    colors = {"generate": "#8fb8de", "score": "#f2b872", "update": "#2a6fb0"}
    labels, rows = [], []
    for number, result in enumerate(results):
        sides = [side for side in NAMES if side in result]
        for place, side in enumerate(sides):
            row, left = len(results) - number - 0.9 * (place + 0.5) / len(sides), 0.0
            rows.append(row)
            size = f"{result['rollout_batch_size']} x {result['dtype']}"
            labels.append(f"{NAMES[side]}, {size}, {trained_blocks(result['lora_layers'])}")
            for phase in PHASES:
                width, label = result[side][phase], phase if len(rows) == 1 else None
                axes.barh(row, width, 0.8 / len(sides), left=left, color=colors[phase], label=label)
                left += width
            axes.text(left, row, f" {result[side]['peak_gb']:.1f} GB", va="center", fontsize=9)
    axes.set_yticks(rows, labels)
    axes.set_xlabel("seconds an iteration, peak memory beside")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.legend(frameon=False, loc="outside upper right", ncols=len(PHASES))
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run every workload on every side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer_python", default=".venv-trl/bin/python", help="of an environment with trl 1.12.0")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--rollout_batch_sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument(
        "--lora_layers",
        nargs="+",
        default=["all", "0.25"],
        help="blocks with LoRA, on every side: the first for all work, others for the last size in the first dtype",
    )
    parser.add_argument("--runs", type=int, default=1, help="processes of each side, in turn")
    parser.add_argument("--iterations", type=int, default=4, help="of each process; the first does not count")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/benchmark"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model = resolve_model(args.model)
    rewards = make_reward_models(args.output_dir, model)
    shape = ModelShape.from_model(load_causal_lm(model))
    results = []
    work = [(batch, dtype, args.lora_layers[0]) for batch in args.rollout_batch_sizes for dtype in args.dtypes]
    work += [(args.rollout_batch_sizes[-1], args.dtypes[0], layers) for layers in args.lora_layers[1:]]
    for batch, dtype, layers in work:
        flags = {
            "model": model,
            "dtype": dtype,
            "rollout_batch_size": batch,
            "completion_length": COMPLETION_LENGTH,
            "num_ppo_epochs": PPO_EPOCHS,
            "iterations": args.iterations,
            "lora": json.dumps(lora_arguments(model, layers)),
        }
        reports: dict[str, list[dict[str, Any]]] = {side: [] for side in NAMES}
        for number in range(args.runs):
            for side in NAMES:
                flags["reward_model"] = rewards["own" if side == "own" else "trl"]
                flags["output_dir"] = args.output_dir / side
                reports[side].append(run(side, args.peer_python if side == "trl" else sys.executable, flags))
                last = summary(reports[side][-1:])
                size = f"{batch} x {dtype}, {trained_blocks(layers)}"
                print(f"{size}, run {number + 1}, {NAMES[side]}: {last['total']:.1f} s", flush=True)
        trained_share = last_blocks(layers, shape.layers) / shape.layers
        size = IterationSize(batch, PROMPT_LENGTH, COMPLETION_LENGTH, PPO_EPOCHS, trained_share=trained_share)
        machine = Machine.measured(getattr(torch, dtype))
        results.append(
            {
                "rollout_batch_size": batch,
                "dtype": dtype,
                "lora_layers": layers,
                **{side: summary(parts) for side, parts in reports.items()},
                "roofline": roofline(shape, size, machine, getattr(torch, dtype).itemsize),
                "machine": {"flops": machine.flops, "bandwidth": machine.bandwidth},
            }
        )
        (args.output_dir / "ppo_against_trl.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    plot(results, args.output_dir / "ppo_against_trl.png")
    print("\n" + table(results))


if __name__ == "__main__":
    main()
