"""Measurements on a machine with GPUs: speed and memory beside TRL's last PPO, each launcher's strategy, a 4-bit base.

    python benchmarks/gpu.py --peer_python .venv-trl/bin/python     # a model of 1.2B random weights, no download
    python benchmarks/gpu.py --cpu --tiny                           # every part that runs without a GPU, in minutes

Each part is a process of its own: one that fails is a row that says so, and the others continue. Prints one table and
writes it with all numbers to `output_dir`.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ppo_against_trl import PROMPT_LENGTH, make_reward_models

from hf_rlhf.models.load import EMBEDDED_MODEL, load_tokenizer
from hf_rlhf.planning.work import IterationSize, Machine, ModelShape, roofline

REPOSITORY = Path(__file__).resolve().parents[1]
WORKLOADS = REPOSITORY / "benchmarks" / "workloads"
STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
RECIPES = ("reward", "sft", "ppo")
SECONDS_ALLOWED = 1800
ON_CPU = {"zero": {"DS_ACCELERATOR": "cpu"}, "else": {"ACCELERATE_USE_CPU": "true"}}  # what a launch takes besides
MEASURE_MACHINE = """
import json, sys, torch
from hf_rlhf.planning.work import Machine
print(json.dumps({"flops": Machine.measured(getattr(torch, sys.argv[2]), sys.argv[1]).flops}))
"""


@dataclass
class Part:
    """One row of the table."""

    name: str
    result: str  # done, skipped, refused or failed
    seconds: float | None = None
    peak_gb: float | None = None  # of the rank that held most
    note: str = ""
    reports: list[dict[str, Any]] | None = None  # what its processes printed as JSON


@dataclass(frozen=True)
class Setting:
    """Place and size of the parts."""

    folder: Path
    cpu: bool
    tiny: bool
    peer_python: str | None

    @property
    def dtype(self) -> str:
        """Dtype of the base."""
        return "float32" if self.cpu else "bfloat16"

    @property
    def model(self) -> Path:
        """Folder of the policy's start."""
        return self.folder / "model"

    @property
    def ranks(self) -> int:
        """Processes of a launched part."""
        return 2 if self.cpu else torch.cuda.device_count()

    @property
    def size(self) -> IterationSize:
        """Sizes of the PPO iteration that is timed."""
        return IterationSize(4, PROMPT_LENGTH, 8, 1) if self.tiny else IterationSize(64, PROMPT_LENGTH, 128, 4)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of every process."""
        paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths} if self.cpu else {}
        return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | hidden


# What the parts are given


def make_model(setting: Setting) -> ModelShape:
    """Write a Llama of 1.2B random weights, or a tiny one, with the embedded model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer(EMBEDDED_MODEL)
    wide = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    narrow = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=2 if setting.tiny else 8,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=setting.dtype,
        **(narrow if setting.tiny else wide),
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(getattr(torch, setting.dtype))
    model.save_pretrained(setting.model)
    tokenizer.save_pretrained(setting.model)
    return ModelShape.from_model(model)


def write_rows(setting: Setting) -> dict[str, Path]:
    """Write a file of rows for each recipe."""
    kinds: dict[str, Any] = {
        "reward": lambda n: {"prompt": f"Number {n} is", "chosen": f" {n}, and fine.", "rejected": f" {n + 1}."},
        "sft": lambda n: {"text": f"Number {n} is followed by number {n + 1}."},
        "ppo": lambda n: {"prompt": f"Number {n} is"},
    }
    files = {recipe: setting.folder / f"{recipe}.jsonl" for recipe in kinds}
    for recipe, row in kinds.items():
        lines = [json.dumps(row(n)) + "\n" for n in range(256)]
        files[recipe].write_text("".join(lines), encoding="utf-8")
    return files


# Running a part


def run(name: str, command: list[Any], setting: Setting, on_cpu: dict[str, str] | None = None) -> Part:
    """Run one part in processes of its own; return what it printed as JSON, or why it failed.

    `on_cpu` is the environment in which the launcher's strategy runs without a GPU.
    """
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            env=setting.environment | ({} if on_cpu is None or not setting.cpu else on_cpu),
            cwd=REPOSITORY,
            timeout=SECONDS_ALLOWED,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Part(name, "failed", note=str(error))
    seconds = time.perf_counter() - start
    (setting.folder / f"{name.replace(' ', '_').replace(',', '')}.log").write_text(
        done.stdout + done.stderr, encoding="utf-8"
    )
    if done.returncode:
        result, note = why_not(done.stderr)
        return Part(name, result, seconds, note=note)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    reports = [report for report in reports if "peak_bytes" in report or "flops" in report]
    peak = max((report["peak_bytes"] for report in reports if "peak_bytes" in report), default=None)
    return Part(name, "done", seconds, None if peak is None else peak / 1e9, reports=reports)


def why_not(errors: str) -> tuple[str, str]:
    """Return why a process failed: `refused` and our own message, or `failed` and the line that names the exception."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for line in lines:
        if line.startswith("error: "):
            return "refused", line.removeprefix("error: ")
    raised = [line for line in lines if "Error" in line.split(":")[0]]
    return "failed", (raised or lines or ["no message"])[0][:300]


# The parts


def timed_ppo(setting: Setting, shape: ModelShape, rewards: dict[str, Path]) -> Iterator[Part]:
    """Time our PPO, and TRL's if its environment is given, and compute our share of the machine's speed."""
    sides = {"own": ("PPO", sys.executable, "own_ppo.py"), "trl": ("PPO of TRL", setting.peer_python, "trl_ppo.py")}
    parts = {}
    for side, (name, python, file) in sides.items():
        if python is None:
            yield Part(name, "skipped", note="needs --peer_python")
            continue
        size = setting.size
        flags = {
            "model": setting.model,
            "reward_model": rewards[side],
            "output_dir": setting.folder / side,
            "dtype": setting.dtype,
            "rollout_batch_size": size.completions,
            "completion_length": int(size.completion_length),
            "num_ppo_epochs": size.num_ppo_epochs,
            "iterations": 2 if setting.tiny else 4,
        }
        words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        parts[side] = run(name, [python, WORKLOADS / file, *words], setting)
        if parts[side].result == "done":
            parts[side].note = phases(parts[side])
        yield parts[side]
    own, trl = parts["own"], parts.get("trl")
    if own.peak_gb and trl and trl.peak_gb:
        yield Part("PPO beside TRL", "done", note=f"{own.peak_gb / trl.peak_gb:.2f} of its memory")
    if own.result == "done":
        yield utilisation(own, setting, shape)


def last_iteration(part: Part) -> dict[str, float]:
    """Return the seconds of each phase."""
    assert part.reports
    return part.reports[-1]["iterations"][-1]


def phases(part: Part) -> str:
    """Return the seconds of each phase as text."""
    return ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in last_iteration(part).items())


def utilisation(own: Part, setting: Setting, shape: ModelShape) -> Part:
    """Compare the update's operations with those of a large matrix product in the same time."""
    device = "cpu" if setting.cpu else "cuda"
    part = run(
        "FLOPs utilisation of the update", [sys.executable, "-c", MEASURE_MACHINE, device, setting.dtype], setting
    )
    if part.reports:
        speed, seconds = part.reports[-1]["flops"], last_iteration(own)["update"]
        needed = roofline(shape, setting.size, Machine(1.0, 1.0), getattr(torch, setting.dtype).itemsize)["update"]
        part.note = f"{needed / seconds / speed:.1%} of {speed / 1e9:.0f} GFLOP/s, a large matrix product's"
    return part


def strategies(setting: Setting, files: dict[str, Path], reward_model: Path) -> Iterator[Part]:
    """Run each recipe under each launcher file; on a CPU, by two processes."""
    for strategy in STRATEGIES:
        for recipe in RECIPES:
            name = f"{recipe}, {strategy}"
            if strategy.startswith("zero") and not importlib.util.find_spec("deepspeed"):
                yield Part(name, "skipped", note="needs deepspeed")
            else:
                command = [*launcher(strategy, setting), WORKLOADS / "with_peak.py"]
                call = recipe_call(recipe, name, setting, files, reward_model)
                yield run(
                    name, command + call, setting, on_cpu=ON_CPU["zero" if strategy.startswith("zero") else "else"]
                )


def launcher(strategy: str, setting: Setting) -> list[Any]:
    """Return the words before the script."""
    file = REPOSITORY / "recipes" / "accelerate_configs" / f"{strategy}.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file]
    on_cpu = [REPOSITORY / "tests" / "recipes" / "on_cpu_ranks.py"] if setting.cpu else []
    return [*launch, "--num_processes", setting.ranks, *on_cpu]


def recipe_call(
    recipe: str, name: str, setting: Setting, files: dict[str, Path], reward_model: Path, **more: Any
) -> list[Any]:
    """Return a recipe's script and flags: two optimizer updates."""
    flags = {
        "model_name_or_path": setting.model,
        "dataset_name": files[recipe],
        "output_dir": setting.folder / "runs" / name.replace(", ", "_"),
        "dtype": setting.dtype,
        "per_device_train_batch_size": 2 if setting.tiny else 8,
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": str(setting.cpu).lower(),
        **(
            {"reward_model_path": reward_model, "max_completion_length": 8, "num_ppo_epochs": 1}
            if recipe == "ppo"
            else {}
        ),
        **({"save_merged": "false"} if recipe == "reward" else {}),
        **more,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
    return [REPOSITORY / "recipes" / f"{recipe}.py", *words]


def four_bit(setting: Setting, files: dict[str, Path], reward_model: Path) -> Part:
    """Train LoRA by PPO on a base loaded in 4 bits."""
    name = "ppo, 4-bit base"
    if not importlib.util.find_spec("bitsandbytes"):
        return Part(name, "skipped", note="needs bitsandbytes")
    call = recipe_call("ppo", name, setting, files, reward_model, load_in_4bit="true")
    return run(name, [sys.executable, WORKLOADS / "with_peak.py", *call], setting)


# The report


def table(parts: list[Part]) -> str:
    """Return all parts as Markdown."""
    lines = ["| part | result | seconds | peak, GB | |", "|---|---|---|---|---|"]
    for part in parts:
        numbers = ["" if number is None else f"{number:.2f}" for number in (part.seconds, part.peak_gb)]
        lines.append(f"| {part.name} | {part.result} | {' | '.join(numbers)} | {part.note.replace('|', '/')} |")
    return "\n".join(lines)


def main() -> None:
    """Run all parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="what runs without a GPU")
    parser.add_argument("--tiny", action="store_true", help="a model of two narrow layers")
    parser.add_argument("--peer_python", help="of an environment with trl 1.12.0; without it TRL is left out")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu"))
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        parser.error("no GPU here; --cpu --tiny runs what can do without")
    folder = args.output_dir.resolve()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty; give another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(folder, args.cpu, args.tiny, args.peer_python)
    shape = make_model(setting)
    rewards = make_reward_models(folder, str(setting.model))
    files = write_rows(setting)

    parts: list[Part] = []

    def keep(part: Part) -> None:
        parts.append(part)
        print(f"{part.name}: {part.result} {part.note}", flush=True)
        records = {"device": device_name(args.cpu), "parts": [asdict(part) for part in parts]}
        (folder / "gpu.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(table(parts) + "\n", encoding="utf-8")

    for part in timed_ppo(setting, shape, rewards):
        keep(part)
    for part in strategies(setting, files, rewards["own"]):
        keep(part)
    keep(four_bit(setting, files, rewards["own"]))
    print("\n" + table(parts))


def device_name(cpu: bool) -> str:
    """Return the name of the device that the parts ran on."""
    return "CPU" if cpu else f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"


if __name__ == "__main__":
    main()
