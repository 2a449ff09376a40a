"""`hf-rlhf plan`: memory and time of a PPO run before anything but a config is downloaded."""

import copy
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hf_rlhf.data.files import SUFFIXES, read_rows
from hf_rlhf.errors import InputError, refusals_of_libraries
from hf_rlhf.models.adapter_files import ADAPTER_FILE, adapter_base, adapter_folder
from hf_rlhf.models.critics import require_adapter_for_critic
from hf_rlhf.models.load import find_config, read_config
from hf_rlhf.models.precision import dtype_name, hardware_in_words, native_dtype
from hf_rlhf.models.same_base import same_model
from hf_rlhf.planning.layout import Layout, Strategy
from hf_rlhf.planning.memory import MemoryModel, MemoryPlan, kept_states, look_at, model_on_meta, plan_memory
from hf_rlhf.planning.proposals import Flags, Setup, proposals
from hf_rlhf.planning.work import IterationSize, Machine, roofline
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.progress import duration
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments, flag, peft_config
from hf_rlhf.rewards.ensemble import EnsembleFile, ensemble_folder
from hf_rlhf.rewards.named import is_named_reward, names_function, require_named
from hf_rlhf.rollout.vllm.adapter import require_servable_adapter

PLAN_FILE = "plan.json"
USUAL_FRACTION = 0.3
"""Usual share of the roofline, on CPU and GPU alike, where batches are small; benchmarks/README.md has measured ones.
"""

logger = logging.getLogger(__name__)


@dataclass
class PlanArguments:
    """Machine and workload that the plan is made for, besides the flags of `hf-rlhf ppo`."""

    memory_gb: float | None = flag(None, "Memory of one device, in GB (10^9 bytes); by default that of this machine.")
    prompt_length: int | None = flag(None, "Tokens of a usual prompt, for the time; by default half of the longest.")
    strategy: Strategy | None = flag(
        None, "What will shard the run: ddp (nothing), fsdp2 or zero2; by default as this process was launched."
    )
    num_processes: int | None = flag(
        None, "Devices of the run; fsdp2 and zero2 need 2 or more. By default as this process was launched."
    )

    def __post_init__(self):
        if self.num_processes is not None and self.num_processes < 1:
            raise InputError(
                f"num_processes={self.num_processes} is invalid: a run has at least one device. Set it to 1"
            )

    def layout(self, training: PPOConfig) -> Layout:
        """Return how the run will lie on its devices.

        Raises `InputError` for a strategy that has nothing to shard over.
        """
        launched = Layout.of_launch(training.world_size)
        layout = Layout(self.strategy or launched.strategy, self.num_processes or launched.ranks)
        if layout.strategy != "ddp" and layout.ranks < 2:
            given = "out num_processes" if self.num_processes is None else f" num_processes={self.num_processes}"
            raise InputError(
                f"strategy={layout.strategy} is invalid with{given}: it shards a run over several devices. Set"
                " num_processes to how many the run will have, 2 or more"
            )
        return layout


def plan_run(plan: PlanArguments, script: PPOArguments, training: PPOConfig, model: ModelArguments) -> MemoryPlan:
    """Print what each phase takes and, if the run does not fit, what to change; returns the plan.

    Raises `InputError` for flags that the trainer refuses, when the model's config cannot be found, or when nothing
    that is known here makes the run fit.
    """
    from rich.console import Console

    console = Console(highlight=False)
    _require_data(script)
    layout = plan.layout(training)
    training = training.on_ranks(layout.ranks)
    require_flags(training, model, layout)
    asked, model = model, model.on(training.device)
    try:
        known = memory_model(script, training, model)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"{model.model_name_or_path}: this architecture does not run without data ({type(error).__name__}:"
            f" {str(error)[:200]}), so it cannot be planned. Start the run with one update (max_steps 1) and look at"
            " plan.json"
        ) from error
    setup = Setup(known, training, layout)
    available = available_bytes(training, layout.ranks) if plan.memory_gb is None else plan.memory_gb * 1e9
    algebra = training.batch_algebra(layout.ranks)
    console.print(f"\n[bold]{model.model_name_or_path}[/bold]  {known.shape.parameters / 1e6:,.0f}M parameters,"
                  f" {known.trained / 1e6:,.1f}M of them trained; {algebra}{_devices(layout)}\n")  # fmt: skip
    console.print(f"{_dtype(model, training)}\n")
    if kept := kept_states(known, training, layout):
        rewards = " A reward adapter on the same blocks begins above them too, where its text has the same tokens."
        console.print(f"The lowest {known.trunk} of {known.shape.layers} blocks are not trained. They are"
                      f" computed once per completion and iteration, and what leaves them takes {kept / 1e9:.3g} GB."
                      f"{rewards if known.reward_bases else ''}\n")  # fmt: skip
    memory = setup.plan
    console.print(_table(memory, available, console.width))
    console.print(_time(plan, training, model, known, layout))
    if memory.peak <= available:
        console.print(f"[green]fits[/green]: {memory.peak / 1e9:.1f} of {available / 1e9:.1f} GB\n")
        return memory
    if not known.lora:
        with_lora, on_all_blocks = copy.copy(asked), copy.copy(training)
        with_lora.use_peft, on_all_blocks.num_layers_unfrozen = True, None
        setup = replace(setup, with_lora=memory_model(script, on_all_blocks, with_lora.on(training.device)))
    steps = proposals(setup, available)
    helps = bool(steps) and steps[-1][1].plan.peak <= available
    then = "In this order:" if helps else "No flag here makes it fit; all that make it smaller, in this order:"
    console.print(f"[red]does not fit[/red]: {memory.peak / 1e9:.1f} of {available / 1e9:.1f} GB. {then}")
    for flags, changed in steps:
        console.print(f"  {changed.plan.peak / 1e9:6.1f} GB  {_as_typed(flags)}", soft_wrap=True)
    if any("strategy" in flags for flags, _ in steps):
        console.print("A run gets its strategy from its launcher: recipes/accelerate_configs/fsdp2.yaml")
    if training.num_layers_unfrozen is not None and any("use_peft" in flags for flags, _ in steps):
        console.print("With use_peft, omit num_layers_unfrozen")
    if not helps:
        raise InputError(
            f"{model.model_name_or_path} does not fit into {available / 1e9:.1f} GB by any of these changes. Take"
            f"{_more_devices(steps[-1][1] if steps else setup, available)} a smaller model, or a lower"
            f" max_prompt_length or {'max_episode_length' if script.environment else 'max_completion_length'}"
        )
    return memory


def require_flags(training: PPOConfig, model: ModelArguments, layout: Layout) -> None:
    """Raise `InputError` for flags that the trainer refuses, by its own rules."""
    layout.require_flags(training, quantized=model.load_in_4bit or model.load_in_8bit)
    require_adapter_for_critic(training.critic, has_adapter=model.use_peft)  # pyright: ignore
    if training.use_vllm:
        require_servable_adapter(model.use_peft)


def _as_typed(flags: Flags) -> str:
    return " ".join(f"--{name} {str(value).lower()}" for name, value in flags.items())


def _more_devices(setup: Setup, available: float) -> str:
    """Return how many devices FSDP2 needs to make a run fit that has been made as small as it gets, as text."""
    setup = replace(setup, model=replace(setup.model, quantized=False)).changed({"gather_for_rollout": False})
    for ranks in (2**power for power in range(1, 11) if 2**power > setup.layout.ranks):
        try:
            wider = replace(setup, layout=Layout("fsdp2", ranks), args=setup.args.on_ranks(ranks))
        except InputError:  # a given rollout_batch_size is no multiple of the minibatch there
            continue
        if wider.is_accepted() and wider.plan.peak <= available:
            return f" {ranks} devices (--strategy fsdp2 --num_processes {ranks} --gather_for_rollout false),"
    return ""


def _dtype(model: ModelArguments, training: PPOConfig) -> str:
    """Return in words how the base computes, and what is native here; `native` is resolved (`ModelArguments.on`)."""
    native = dtype_name(native_dtype(training.device))
    bits = ", in 4 bits" if model.load_in_4bit else ", in 8 bits" if model.load_in_8bit else ""
    return (
        f"The base is loaded in dtype {model.dtype}{bits}; native is {native}, since"
        f" {hardware_in_words(training.device)}."
    )


def _devices(layout: Layout) -> str:
    return "" if layout.ranks == 1 else f"; on {layout.ranks} devices under {layout.strategy}"


def _require_data(script: PPOArguments) -> None:
    """Raise `InputError` for files of rows that do not exist; sets on the Hub are not looked for."""
    for name in (*script.dataset_names(), script.eval_dataset_name, script.ptx_dataset_name):
        is_a_path = (name is not None and name.endswith((*SUFFIXES, "/"))) or str(name).startswith((".", "/", "~"))
        if is_a_path and not Path(str(name)).expanduser().exists():
            read_rows(str(name))  # which says where it looked, and what is there of a similar name


def memory_model(script: PPOArguments, training: PPOConfig, model: ModelArguments) -> MemoryModel:
    """Collect what the plan needs to know about the models that the flags name.

    `native` is resolved (`ModelArguments.on`).
    """
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
            bits=4 if model.load_in_4bit else 8 if model.load_in_8bit else None,
            episodes=script.environment is not None,
        )
    named = [name for name in (script.reward_model_path, *(script.reward_funcs or ())) if name]
    native = native_dtype(training.device)  # in which reward models are loaded
    sizes = [_reward_bytes(name, base or folder, known, native) for name in named if not names_function(name)]
    brought = [_brought_bytes(name) for name in named if is_named_reward(name)]
    return replace(
        known, reward=sum(own for own, _ in sizes) + sum(brought), reward_bases=sum(shared for _, shared in sizes)
    )


def planned_peak(script: PPOArguments, training: PPOConfig, model: ModelArguments) -> float | None:
    """Return the bytes at the peak of a run that is about to begin; warn and return None if the plan cannot be made.

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
    """Write plan.json: the planned peak, the measured one, and what the run chose by itself."""
    peaks = {"planned_peak_gb": planned, "measured_peak_gb": measured}
    content = {name: None if peak is None else peak / 1e9 for name, peak in peaks.items()} | {"chosen": chosen}
    (folder / PLAN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _reward_bytes(name: str, base: str, known: MemoryModel, native: torch.dtype) -> tuple[float, float]:
    """Return bytes of a reward model's own weights, and of the policy's base as far as it can share that."""
    if (ensemble := ensemble_folder(name)) is not None:
        return _ensemble_bytes(ensemble, base, known, native)
    folder = Path(adapter_folder(name))
    adapter = _adapter_bytes(folder)
    own_base = adapter_base(folder)
    parameters = _classifier_parameters(own_base or str(folder))
    if parameters is None:
        parameters = known.shape.parameters
        logger.warning(
            "reward model %s: its config cannot be read, so it is assumed as large as the policy. Name a folder or Hub"
            " repository that has a config.json, or an adapter of one",
            name,
        )
    if own_base is not None and known.lora and same_model(own_base, base):
        return adapter, parameters * float(known.itemsize)
    return adapter + parameters * float(native.itemsize), 0.0


def _brought_bytes(text: str) -> float:
    """Return bytes of the model that a named reward brings with it, which is in fp32; 0 where it is the small default.

    Raises `InputError` for a named reward with a wrong argument.
    """
    factory, arguments = require_named(text)
    if not hasattr(factory, "to") or not arguments.get("model"):
        return 0.0
    return 4.0 * (_classifier_parameters(arguments["model"]) or 0)


def _ensemble_bytes(folder: Path, base: str, known: MemoryModel, native: torch.dtype) -> tuple[float, float]:
    """Like `_reward_bytes`, of an ensemble: all adapters, and their one base."""
    members = [folder / member for member in EnsembleFile.read(folder).members]
    sizes = [_reward_bytes(str(member), base, known, native) for member in members]
    adapters = [_adapter_bytes(member) for member in members]
    own_base = max((own - adapter for (own, _), adapter in zip(sizes, adapters, strict=True)), default=0.0)
    return sum(adapters) + own_base, max((shared for _, shared in sizes), default=0.0)


def _adapter_bytes(folder: Path) -> int:
    return (folder / ADAPTER_FILE).stat().st_size if (folder / ADAPTER_FILE).is_file() else 0


def _classifier_parameters(name_or_path: str) -> int | None:
    """Return how many weights a model has as a reward model, by its config; None where that cannot be read."""
    from transformers import AutoModelForSequenceClassification

    config = find_config(name_or_path)
    if config is None:
        return None
    config.num_labels = 1
    try:
        with torch.device("meta"):
            classifier = AutoModelForSequenceClassification.from_config(config)
    except ValueError:  # transformers has no classifier of this kind of model
        return None
    return sum(weight.numel() for weight in classifier.parameters())


def available_bytes(training: PPOConfig, ranks: int) -> float:
    """Return the memory of the device that a run would use; of a CPU, a share for each of `ranks` processes."""
    if training.device.type == "cuda":
        return torch.cuda.get_device_properties(training.device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks


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


def _time(plan: PlanArguments, training: PPOConfig, model: ModelArguments, known: MemoryModel, layout: Layout) -> str:
    """Return the time of an iteration and of the run in words, or why this machine cannot say it."""
    if reason := _another_machine(plan, training, layout):
        return (
            f"\n{_whole_run(training, layout.ranks)} Times are omitted: {reason}, and times are measured on"
            " this machine.\n"
        )
    size = IterationSize(
        training.rank_batch_size,
        plan.prompt_length or training.max_prompt_length / 2,
        known.sampled,
        training.num_ppo_epochs,
        lora_rank=model.lora_r if known.lora else 0,
        reward_model=known.reward > 0,
        trained_share=known.trained_blocks / known.shape.layers,
        reuse_trunk=training.reuse_trunk,
        own_critic=training.critic != "value_head",
    )
    dtype = {2: torch.bfloat16, 4: torch.float32}[known.itemsize]
    ideal = roofline(known.shape, size, Machine.measured(dtype, training.device), known.itemsize)
    total = sum(ideal.values()) / USUAL_FRACTION
    parts = ", ".join(f"{name} {_seconds(seconds / USUAL_FRACTION)}" for name, seconds in ideal.items())
    blocks = f"{known.trained_blocks} block{'' if known.trained_blocks == 1 else 's'}"
    every = known.trained == known.shape.parameters
    trained = "LoRA" if known.lora else f"{'all weights' if every else blocks} trained"
    critic = {"value_head": "a value head", "adapter": "a critic adapter", "model": "a critic model"}[training.critic]
    rate = layout.ranks * size.completion_tokens / total
    return (
        f"\nAn iteration with {trained} and {critic} takes about {_seconds(total)} here ({parts}), {rate:.3g}"
        f" completion tokens a second. {_whole_run(training, layout.ranks, total)}\nThe times are a rough guess: the"
        " least that arithmetic and memory traffic of this device allow (a roofline), divided by"
        f" {USUAL_FRACTION:.0%}.\n"
    )


def _another_machine(plan: PlanArguments, training: PPOConfig, layout: Layout) -> str:
    """Return in what the planned run differs from one on this machine; empty for one that could be started here."""
    devices = max(torch.cuda.device_count() if training.device.type == "cuda" else 1, training.world_size)
    if layout.ranks > devices:
        return f"the plan is for {layout.ranks} devices"
    memory = available_bytes(training, layout.ranks)
    if plan.memory_gb is not None and abs(plan.memory_gb * 1e9 - memory) > 0.1 * memory:
        return f"the plan is for a device of {plan.memory_gb:g} GB"
    return ""


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _whole_run(training: PPOConfig, ranks: int, seconds: float | None = None) -> str:
    """Return the length of a run on `ranks` ranks in words, with its time where an iteration takes `seconds`."""
    prompts = training.rank_batch_size * ranks
    if training.total_episodes is not None:
        iterations = -(-training.total_episodes // prompts)
    elif training.max_steps > 0:
        iterations = -(-training.max_steps // training.updates_per_iteration)
    else:
        epochs = f"{training.num_train_epochs:g} epoch{'' if training.num_train_epochs == 1 else 's'}"
        return f"The run has {epochs}, each of one iteration for every {prompts} prompts."
    time = "" if seconds is None else f": about {_seconds(iterations * seconds)}"
    return f"The whole run has {iterations} iteration{'' if iterations == 1 else 's'} of {prompts} prompts{time}."
