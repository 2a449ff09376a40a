"""The trunk: the lowest blocks of a model, which are not trained. Every role and epoch gets the same states from it.

A pass from kept states is a pass of the whole backbone in which the trunk's blocks answer with those states instead of
computing. What an architecture does around its blocks (positions, masks, scaled embeddings, inputs of each block) stays
its own code.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import compute_in_base_dtype, keep_modes
from hf_rlhf.models.batch_layout import BatchLayout, backbone_of
from hf_rlhf.models.fast.attention import layout_of
from hf_rlhf.types import Model, Sequences


class CannotEnter(Exception):
    """The reason for which a model's pass cannot begin in the middle of its blocks."""


@dataclass(frozen=True)
class Trunk:
    """The lowest blocks of a model.

    Args:
        name: of the list of blocks in the transformers model.
        depth: blocks of the trunk, fewer than there are.
        blocks: all blocks of the model.
        besides: how many things a block returns in a tuple after its states; None where it returns states alone. A
            trunk that answers returns None for each.
    """

    name: str
    depth: int
    blocks: int
    besides: int | None

    def states(self, model: Model, sequences: Sequences) -> list[Tensor]:
        """Compute the states `(L_b, H)` that enter the first block above the trunk, of each sequence.

        `model` has no PEFT wrapper.
        """
        layout = layout_of(model, sequences.input_ids, sequences.attention_mask)
        reached: list[Tensor] = []

        def reach(states: Tensor) -> Tensor:
            reached.append(states)
            return states

        with self._answering(list(model.get_submodule(self.name))[self.depth :], reach):
            layout.run(backbone_of(model))
        return layout.split(reached[0])

    @contextmanager
    def _answering(self, blocks: Sequence[nn.Module], answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Replace each of `blocks` by `answer`, from the states `(R, W, H)` that enter it to those that leave it."""

        def call(*args: Any, **kwargs: Any) -> Any:
            states = answer(args[0] if args else kwargs["hidden_states"])
            return states if self.besides is None else (states, *[None] * self.besides)

        before = [block._compiled_call_impl for block in blocks]
        try:
            # torch calls this in place of a module, whatever hooks and compiled code that has
            for block in blocks:
                block._compiled_call_impl = call
            yield
        finally:
            for block, compiled in zip(blocks, before, strict=True):
                block._compiled_call_impl = compiled


@dataclass(frozen=True)
class TrunkStates:
    """The states `(L_b, H)` that enter the first block above a trunk, of each sequence of a batch."""

    trunk: Trunk
    sequences: Sequence[Tensor]

    @contextmanager
    def given_to(self, model: Model, layout: BatchLayout) -> Iterator[None]:
        """Start a pass of `model` over the same batch above the trunk."""
        states = layout.join(self.sequences)
        trunk = list(model.get_submodule(self.trunk.name))[: self.trunk.depth]
        with self.trunk._answering(trunk, lambda _: states):
            yield


def block_list(model: Model) -> tuple[str, nn.ModuleList] | None:
    """Return the blocks of a transformers model and their name in it; None where no list holds each of them once."""
    count = model.config.get_text_config().num_hidden_layers
    lists = {id(blocks) for blocks in backbone_of(model).modules() if isinstance(blocks, nn.ModuleList)}
    for name, blocks in model.named_modules():
        if id(blocks) in lists and isinstance(blocks, nn.ModuleList) and len(set(blocks)) == len(blocks) == count:
            return name, blocks
    return None


def trunk_depth(model: Model, adapters: Collection[str]) -> int:
    """Return the number of untrained blocks at the bottom of a transformers model; tensors without data will do.

    `adapters` are those that differ from role to role. 0 where the blocks are not one list.
    """
    found = block_list(model)
    if found is None:
        return 0
    return _walked(model, found[1]).lowest_use(adapters)


def train_last_blocks(model: Model, count: int, source: str = "the model") -> None:
    """Train the last `count` blocks of a transformers model and what runs after all blocks, and freeze the rest.

    That is the final norm, and the head unless it is tied: tied, it is the embeddings too, which run before. Tensors
    without data will do. Raises `InputError` for a model that has not as many blocks; `source` names it.
    """
    found = block_list(model)
    if found is None:
        raise InputError(
            f"num_layers_unfrozen={count} is invalid: {source} ({type(model).__name__}) has no list of blocks. Omit it"
        )
    name, blocks = found
    if count > len(blocks):
        raise InputError(
            f"num_layers_unfrozen={count} is invalid: {source} has {len(blocks)} blocks. Set it to 1 to {len(blocks)}"
        )
    walk = _walked(model, blocks)
    upper = tuple(f"{name}.{number}." for number in range(len(blocks) - count, len(blocks)))
    model.requires_grad_(True)
    for weight, parameter in model.named_parameters(remove_duplicate=False):  # a tied one under each of its names
        if not weight.startswith(upper) and walk.first_use(weight) < len(blocks):
            parameter.requires_grad_(False)


@torch.no_grad()
def find_trunk(model: Model, adapters: Collection[str]) -> Trunk | None:
    """Return the trunk of a transformers model in which `adapters` differ from role to role; None where all is trained.

    Tried on a few tokens: a pass from kept states must give what the whole pass gives. Raises `CannotEnter`.
    """
    found = block_list(model)
    if found is None:
        raise CannotEnter("its blocks are not one list that holds each of them once")
    (name, blocks), sequences = found, _few_tokens(model)
    ids, real = sequences.input_ids, sequences.attention_mask
    with keep_modes(model), compute_in_base_dtype(model):
        model.eval()
        layout, walk = layout_of(model, ids, real), _Walk(model, blocks)
        whole = torch.cat(layout.split(walk.run(layout)))
        depth = walk.lowest_use(adapters)
        if depth == 0:
            return None
        trunk = Trunk(name, depth, len(blocks), walk.besides())
        try:
            states = TrunkStates(trunk, trunk.states(model, sequences))
            layout_of(model, ids.flip(1), real).run(backbone_of(model))  # so that nothing is left of the whole pass
            with states.given_to(model, layout):
                entered = torch.cat(layout.split(layout.run(backbone_of(model))))
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise CannotEnter(f"its code cannot begin at block {depth} ({type(error).__name__})") from error
    rounding = 1e-5 if whole.dtype == torch.float32 else 1e-2
    if not (entered.float() - whole.float()).norm() <= rounding * whole.float().norm():
        raise CannotEnter(f"its states are others when it begins at block {depth}")
    return trunk


@torch.no_grad()
def _walked(model: Model, blocks: nn.ModuleList) -> "_Walk":
    sequences, walk = _few_tokens(model), _Walk(model, blocks)
    with keep_modes(model), compute_in_base_dtype(model):
        model.eval()
        walk.run(layout_of(model, sequences.input_ids, sequences.attention_mask))
    return walk


def _few_tokens(model: Model) -> Sequences:
    """Make two sequences, of which the first is shorter."""
    device = next(model.parameters()).device
    ids = torch.arange(1, 13, device=device).reshape(2, 6) % model.config.get_text_config().vocab_size
    real = torch.ones_like(ids, dtype=torch.bool)
    real[0, 4:] = False
    return Sequences(ids, real, torch.ones_like(ids[:, 0]), real[:, 1:])


class _Walk:
    """One pass of a backbone, and the number of blocks that had finished when each module first ran."""

    def __init__(self, model: Model, blocks: nn.ModuleList):
        self.model = model
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.blocks = blocks
        self.finished = 0
        self.ran_after: dict[nn.Module, int] = {}
        self.outputs: list[Any] = []

    def run(self, layout: BatchLayout) -> Tensor:
        """Run the pass; return its states `(R, W, H)`."""
        backbone = backbone_of(self.model)
        hooks = [module.register_forward_pre_hook(self._begin) for module in backbone.modules()]
        hooks += [block.register_forward_hook(self._end) for block in self.blocks]
        try:
            return layout.run(backbone)
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self.ran_after.setdefault(module, self.finished)

    def _end(self, block: nn.Module, inputs: Any, output: Any) -> None:
        self.finished += 1
        self.outputs.append(output)

    def lowest_use(self, adapters: Collection[str]) -> int:
        """Return how many blocks finish before the first weight is used that is trained or part of one of `adapters`.

        The last block is never among them: a pass begins at some block.
        """
        names = set(adapters)
        uses = [
            self.first_use(name)
            for name, parameter in self.model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad or names.intersection(name.split("."))
        ]
        return min([len(self.blocks) - 1, *uses])

    def first_use(self, weight: str) -> int:
        """Return the number of blocks that finish before the weight of this name is used.

        A weight that the pass omits, such as a head, counts as used after all of them.

        A module that a fused layer computes by itself never runs: it is used where the layer around it is.
        """
        parts = weight.split(".")
        owners = (self.modules[".".join(parts[:end])] for end in range(len(parts) - 1, 0, -1))
        return next((self.ran_after[owner] for owner in owners if owner in self.ran_after), len(self.blocks))

    def besides(self) -> int | None:
        """Return how many things blocks return after their states; see `Trunk`.

        Raises `CannotEnter` where they differ.
        """
        if self.finished != len(self.blocks):
            raise CannotEnter("it runs its blocks more or less than once")
        if all(isinstance(output, Tensor) for output in self.outputs):
            return None
        sizes = {len(output) if isinstance(output, tuple) else 0 for output in self.outputs}
        if len(sizes) > 1 or 0 in sizes:
            raise CannotEnter("its blocks return neither states nor a tuple that begins with them")
        return sizes.pop() - 1
