"""Changes of flags with which a run fits into a given memory, the mildest first."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.planning.layout import Layout
from hf_rlhf.planning.memory import MemoryModel, MemoryPlan, passed_at_once, plan_memory
from hf_rlhf.ppo.config import PPOConfig

_KINDS = _SIZES, _STRATEGY, _TRAINED = range(3)  # of changes to a run that does not fit, the mildest first

Flags = dict[str, Any]
"""Values of flags, by their names on the command line."""


@dataclass(frozen=True)
class Setup:
    """All that the memory of a run depends on."""

    model: MemoryModel
    args: PPOConfig
    layout: Layout
    with_lora: MemoryModel | None = None  # where all weights are trained: the same policy with LoRA

    @property
    def plan(self) -> MemoryPlan:
        """The memory of each phase."""
        return plan_memory(self.model, self.args, self.layout)

    def changed(self, flags: Flags) -> "Setup":
        """Return the setup with other values of these flags of `hf-rlhf plan`."""
        model, args, layout = self.model, copy.copy(self.args), self.layout
        for name, value in flags.items():
            if name == "use_peft":
                assert self.with_lora is not None
                model = self.with_lora
            elif name == "load_in_4bit":
                model = replace(model, quantized=True)
            elif name == "strategy":
                layout = replace(layout, strategy=value)
            else:
                setattr(args, name, value)
        return replace(self, model=model, args=args, layout=layout)

    def is_accepted(self) -> bool:
        """Return whether the trainer takes these flags under this strategy."""
        try:
            self.layout.require_flags(self.args, quantized=self.model.quantized)
        except InputError:
            return False
        return True


def proposals(setup: Setup, available: float) -> list[tuple[Flags, Setup]]:
    """Return what to change until the run fits into `available` bytes: flags, and the setup with them and those before.

    Sizes of batches come first and the strategy second. What is trained changes only where neither is enough. The
    completions of an iteration and of an update stay as they are. The last setup fits, if any does.
    """
    steps: list[tuple[Flags, Setup]] = []
    for most in _KINDS:
        steps = _replayed(setup, _descent(setup, available, most), available)
        if steps and steps[-1][1].plan.peak <= available:
            break
    return steps


def _descent(setup: Setup, available: float, most: int) -> list[Flags]:
    """Return changes up to kind `most`: at each step one flag that is enough, or else the change that saves most."""
    chosen: list[Flags] = []
    while (peak := setup.plan.peak) > available:
        changes = [flags for kind, flags in _changes(setup) if kind <= most and setup.changed(flags).is_accepted()]
        enough = next((found for flags in changes if (found := _enough(setup, flags, available))), None)
        if enough is not None:
            return [*chosen, enough]
        best = min(changes, key=lambda flags: _size(setup.changed(flags).plan), default=None)
        if best is None or setup.changed(best).plan.peak >= peak:
            break
        chosen.append(best)
        setup = setup.changed(best)
    return chosen


def _size(plan: MemoryPlan) -> tuple[float, float]:
    """Return the peak, and the sum of all phases to choose between changes after which another phase is the largest."""
    return plan.peak, sum(plan.phases.values())


def _enough(setup: Setup, flags: Flags, available: float) -> Flags | None:
    """Return the flags, or half or a quarter of a batch instead, if they alone make the run fit."""
    for _ in range(2):
        setup = setup.changed(flags)
        if setup.plan.peak <= available:
            return flags
        again = [each for _, each in _changes(setup) if each.keys() == flags.keys()]
        if not again:
            return None
        flags = again[0]
    return None


def _replayed(setup: Setup, chosen: list[Flags], available: float) -> list[tuple[Flags, Setup]]:
    """Return each flag once, with its last value: a batch that is halved three times is one change."""
    last = {tuple(flags): flags for flags in chosen}  # in the order in which each was chosen first
    steps: list[tuple[Flags, Setup]] = []
    for flags in last.values():
        setup = setup.changed(flags)
        steps.append((flags, setup))
        if setup.plan.peak <= available:
            break
    return steps


def _changes(setup: Setup) -> Iterator[tuple[int, Flags]]:
    """Yield the single changes that may save memory, those that cost least time first, with their kind."""
    args, layout, model = setup.args, setup.layout, setup.model
    micro = args.per_device_train_batch_size
    if (divisor := next((n for n in range(2, micro + 1) if micro % n == 0), None)) is not None:
        accumulated = args.gradient_accumulation_steps * divisor
        yield _SIZES, {"per_device_train_batch_size": micro // divisor, "gradient_accumulation_steps": accumulated}
    sampled = args.generation_batch_size or args.rank_batch_size
    if sampled > 1 and not args.use_transformers_continuous_batching:
        yield _SIZES, {"generation_batch_size": sampled // 2}
    scored = passed_at_once(args)
    if scored > 1:
        yield _SIZES, {"rollout_forward_batch_size": scored // 2}
    if not args.gradient_checkpointing:
        yield _SIZES, {"gradient_checkpointing": True}
    if layout.shards_weights and args.gather_for_rollout:
        yield _SIZES, {"gather_for_rollout": False}
    if layout.ranks > 1 and not layout.shards_weights:
        yield _STRATEGY, {"strategy": "fsdp2"}
        yield _STRATEGY, {"strategy": "fsdp2", "gather_for_rollout": False}
    if setup.with_lora is not None and not model.lora:
        yield _TRAINED, {"use_peft": True}
    if model.lora and not model.quantized:
        yield _TRAINED, {"load_in_4bit": True}
