"""`hf-rlhf plan`: memory and time of a PPO run before anything but a config is downloaded."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hf_rlhf.data.files import SUFFIXES, read_rows
from hf_rlhf.errors import InputError, refusals_of_libraries
from hf_rlhf.models.adapters import ADAPTER_FILE, adapter_base, adapter_folder
from hf_rlhf.models.load import read_config
from hf_rlhf.models.precision import native_dtype
from hf_rlhf.models.same_base import same_model
from hf_rlhf.planning.layout import Layout, Strategy
from hf_rlhf.planning.memory import MemoryModel, MemoryPlan, kept_states, look_at, model_on_meta, plan_memory, proposals
from hf_rlhf.planning.work import IterationSize, Machine, roofline
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.launch import rewards_share_base
from hf_rlhf.progress import duration
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments, flag, peft_config
from hf_rlhf.rewards.functions import is_function_name

PLAN_FILE = "plan.json"
USUAL_FRACTION = 0.3
"""Of the roofline, on CPU and GPU alike, where batches are small; benchmarks/README.md has measured ones."""

logger = logging.getLogger(__name__)


@dataclass
class PlanArguments:
    """What the plan is made for, besides the flags of `hf-rlhf ppo`."""

    memory_gb: float | None = flag(None, "Memory of one device, in GB (10^9 bytes); by default that of this machine.")
    prompt_length: int | None = flag(None, "Tokens of a usual prompt, for the time; by default half of the longest.")
    strategy: Strategy | None = flag(
        None, "What will shard the run: ddp (nothing), fsdp2 or zero2; by default as this process was launched."
    )
    num_processes: int | None = flag(
        None, "Devices of the run, with strategy; by default as this process was launched."
    )

    def __post_init__(self):
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(
                f"num_processes={self.num_processes} is invalid: a run has at least one device. Set it to 1"
            )

    def layout(self, training: PPOConfig) -> Layout:
        """Return how the run will lie on its devices."""
        launched = Layout.of_launch(training.world_size)
        return Layout(self.strategy or launched.strategy, self.num_processes or launched.ranks)


def plan_run(plan: PlanArguments, script: PPOArguments, training: PPOConfig, model: ModelArguments) -> MemoryPlan:
    """Print what each phase takes and, if the run does not fit, what to change; returns the plan.

    Raises `InputError` when the model's config cannot be found, or when nothing that is known here makes the run fit.
    """
    from rich.console import Console

    console = Console(highlight=False)
    _require_data(script)
    model = model.on(training.device)
    try:
        known = memory_model(script, training, model, plan.layout(training))
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"{model.model_name_or_path}: this architecture does not run without data ({type(error).__name__}:"
            f" {str(error)[:200]}), so it cannot be planned; start the run with one update (max_steps 1) and look at plan.json"
        ) from error
    layout = plan.layout(training)
    memory = plan_memory(known, training, layout)
    available = available_bytes(training) if plan.memory_gb is None else plan.memory_gb * 1e9
    console.print(f"\n[bold]{model.model_name_or_path}[/bold]  {known.shape.parameters / 1e6:,.0f}M parameters,"
                  f" {known.trained / 1e6:,.1f}M of them trained; {training.batch_algebra()}{_devices(layout)}\n")  # fmt: skip
    if kept := kept_states(known, training, layout):
        console.print(f"The lowest {known.trunk} of {known.shape.layers} blocks are trained by nobody. They are computed once per"
                      f" completion and iteration, and what leaves them takes {kept / 1e9:.3g} GB.\n")  # fmt: skip
    console.print(_table(memory, available, console.width))
    console.print(_time(plan, training, model, known))
    if memory.peak <= available:
        console.print(f"[green]fits[/green]: {memory.peak / 1e9:.1f} of {available / 1e9:.1f} GB\n")
        return memory
    steps = proposals(known, training, available, layout)
    changed = [(flags, plan_memory(later, arguments, layout).peak) for flags, arguments, later in steps]
    helps = bool(changed) and changed[-1][1] <= available
    then = "In this order:" if helps else "No flag here makes it fit; all that make it smaller, in this order:"
    console.print(f"[red]does not fit[/red]: {memory.peak / 1e9:.1f} of {available / 1e9:.1f} GB. {then}")
    for flags, peak in changed:
        console.print(f"  {peak / 1e9:6.1f} GB  {flags}", soft_wrap=True)
    if not helps:
        raise InputError(
            f"{model.model_name_or_path} does not fit into {available / 1e9:.1f} GB by any of these; take a smaller model,"
            " or a lower max_prompt_length or max_completion_length"
        )
    return memory


def _devices(layout: Layout) -> str:
    return "" if layout.ranks == 1 else f"; that on each of {layout.ranks} devices under {layout.strategy}"


def _require_data(script: PPOArguments) -> None:
    """Raise `InputError` for files of rows that do not exist; sets on the Hub are not looked for."""
    for name in (script.dataset_name, script.eval_dataset_name, script.ptx_dataset_name):
        is_a_path = (name is not None and name.endswith((*SUFFIXES, "/"))) or str(name).startswith((".", "/", "~"))
        if is_a_path and not Path(str(name)).expanduser().exists():
            read_rows(str(name))  # which says where it looked, and what is there of a similar name


def memory_model(
    script: PPOArguments, training: PPOConfig, model: ModelArguments, layout: Layout | None = None
) -> MemoryModel:
    """Collect what the plan has to know of the models that the flags name; `native` is resolved (`ModelArguments.on`)."""
    sharded = (layout or Layout.of_launch(training.world_size)).shards_weights
    share_base = rewards_share_base(training, sharded=sharded)
    from peft import PeftConfig

    folder = adapter_folder(model.model_name_or_path)
    base = adapter_base(folder)
    config = read_config(base or folder)
    with refusals_of_libraries(training, model):
        known = look_at(
            config,
            training,
            dtype=str(config.dtype or torch.float32).removeprefix("torch.") if model.dtype == "auto" else model.dtype,
            peft_config=peft_config(model, model_on_meta(config))
            if base is None or not model.use_peft
            else PeftConfig.from_pretrained(folder),
            quantized=model.load_in_4bit,
        )
    named = [name for name in (script.reward_model_path, *(script.reward_funcs or ())) if name]
    names = [name for name in named if not is_function_name(name)]
    itemsize = native_dtype(training.device).itemsize  # in which reward models are loaded
    sizes = [_reward_bytes(name, base or folder, known, itemsize, share_base=share_base) for name in names]
    return replace(known, reward=sum(sizes))


def planned_peak(script: PPOArguments, training: PPOConfig, model: ModelArguments) -> float | None:
    """Bytes at the peak of a run that is about to begin; None, and a warning, where the plan cannot be made.

    Raises `InputError` for what the run itself would refuse.
    """
    try:
        return plan_memory(memory_model(script, training, model), training).peak
    except InputError:
        raise
    except Exception as error:  # a module that does not run without data; the run itself may well be fine
        logger.warning("no plan of the memory that this run takes (%s: %.200s)", type(error).__name__, error)
        return None


def write_plan(folder: Path, planned: float | None, measured: float | None, chosen: Mapping[str, str]) -> None:
    """plan.json: the peak that was planned, the one that was measured, and what the run chose by itself."""
    peaks = {"planned_peak_gb": planned, "measured_peak_gb": measured}
    content = {name: None if peak is None else peak / 1e9 for name, peak in peaks.items()} | {"chosen": chosen}
    (folder / PLAN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _reward_bytes(name: str, base: str, known: MemoryModel, itemsize: int, *, share_base: bool) -> float:
    """Bytes of a reward model's weights: of an adapter on the policy's base, or of a model as large as the policy."""
    folder = Path(adapter_folder(name))
    adapter = (folder / ADAPTER_FILE).stat().st_size if (folder / ADAPTER_FILE).is_file() else 0
    shares = share_base and adapter and known.lora and same_model(str(adapter_base(folder)), base)
    return adapter if shares else adapter + known.shape.parameters * float(itemsize)


def available_bytes(training: PPOConfig) -> float:
    """Memory of the device that a run would use; of a CPU, a share for each process."""
    if training.device.type == "cuda":
        return torch.cuda.get_device_properties(training.device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / training.world_size


def _table(memory: MemoryPlan, available: float, width: int):
    from rich.table import Table

    table = Table("memory of one device", "GB", "", box=None, header_style="dim", pad_edge=False)
    table.columns[1].justify = "right"
    fixed = sum(memory.fixed.values())
    scale = max(10, min(40, width - 54)) / max(memory.peak, available)
    for name, size in memory.fixed.items():
        table.add_row(name, f"{size / 1e9:.2f}", f"[blue]{'█' * round(size * scale)}[/blue]")
    for name, size in memory.phases.items():
        bar = f"[blue]{'█' * round(fixed * scale)}[/blue][yellow]{'█' * round(size * scale)}[/yellow]"
        table.add_row(f"all of these + {name}", f"{(fixed + size) / 1e9:.2f}", bar)
    return table


def _time(plan: PlanArguments, training: PPOConfig, model: ModelArguments, known: MemoryModel) -> str:
    prompt = plan.prompt_length or training.max_prompt_length / 2
    size = IterationSize(
        training.rollout_batch_size // training.world_size,
        prompt,
        training.max_completion_length,
        training.num_ppo_epochs,
        lora_rank=model.lora_r,
        reward_model=known.reward > 0,
        trained_share=known.trained_blocks / known.shape.layers,
        reuse_trunk=training.reuse_trunk,
    )
    dtype = {2: torch.bfloat16, 4: torch.float32}[known.itemsize]
    ideal = roofline(known.shape, size, Machine.measured(dtype, training.device), known.itemsize)
    total = sum(ideal.values()) / USUAL_FRACTION
    parts = ", ".join(f"{name} {seconds / USUAL_FRACTION:.3g} s" for name, seconds in ideal.items())
    return (
        f"\nAn iteration with LoRA and a value head takes about {total:.3g} s here ({parts}), {size.completion_tokens / total:.0f} completion tokens a"
        f" second. {_whole_run(training, total)}\nThe times are a rough guess: the least that arithmetic and memory traffic"
        f" of this device allow (a roofline), divided by {USUAL_FRACTION:.0%}.\n"
    )


def _whole_run(training: PPOConfig, seconds: float) -> str:
    if training.total_episodes is not None:
        iterations = -(-training.total_episodes // training.rollout_batch_size)
    elif training.max_steps > 0:
        iterations = -(-training.max_steps // training.updates_per_iteration)
    else:
        return (
            f"A run of {training.num_train_epochs:g} epochs has that for each {training.rollout_batch_size} prompts,"
            " times the epochs."
        )
    return f"The whole run has {iterations} iterations: about {duration(iterations * seconds)}."
