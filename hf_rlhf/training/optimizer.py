"""A trial of the optimizer and the schedule that the flags name, before a run begins."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer, get_scheduler

from hf_rlhf.errors import refusals_of_libraries


def require_optimizer(args: Any, model: nn.Module) -> None:
    """Raise `InputError` for an optimizer or a schedule whose package or argument is missing."""
    with refusals_of_libraries(args, blamed=("optim", "optim_args", "optim_target_modules")):
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)  # pyright: ignore[reportArgumentType]
    if not {"params", "model", "optimizer_dict"}.isdisjoint(kwargs):  # made for this model alone
        return
    blamed = ("optim", "optim_args", "learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay")
    with refusals_of_libraries(args, blamed=blamed):
        optimizer = kind([{"params": [nn.Parameter(torch.zeros(2, 2))], "weight_decay": args.weight_decay}], **kwargs)
    with refusals_of_libraries(args, blamed=("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")):
        get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
