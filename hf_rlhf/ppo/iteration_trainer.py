"""`transformers.Trainer` in iterations: how experience reaches its loop.

Nothing here knows how experience is made or what the loss is; `hf_rlhf.ppo.trainer` does.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError
from hf_rlhf.ppo.callbacks import IterationCallback
from hf_rlhf.ppo.experience import ExperienceLoader, MicroBatch
from hf_rlhf.ppo.guard import drop_gradients
from hf_rlhf.ppo.run_files import RunFiles
from hf_rlhf.progress import say


class IterationTrainer(RunFiles):
    """A Trainer whose batches are made one iteration at a time, by the policy as the last update left it."""

    loss_is_scaled_for_ga = True  # losses are divided once by the tokens of the whole minibatch

    # What a subclass brings

    def make_micro_batches(self, iteration: int) -> Iterator[MicroBatch | None]:
        """Yield this rank's micro-batches of an iteration; None for one that is not learned from."""
        raise NotImplementedError

    # Iterations as steps of Trainer

    @property
    def can_stop_here(self) -> bool:
        """True if an iteration has just ended."""
        return self.state.global_step % self.args.updates_per_iteration == 0

    @property
    def iteration(self) -> int:
        """PPO iterations finished."""
        return self.state.global_step // self.args.updates_per_iteration

    @property
    def warming_up(self) -> bool:
        """True if the critic alone learns in this iteration."""
        return self.iteration < self.args.critic_warmup_iterations

    def get_train_dataloader(self):
        """Return micro-batches of experience; not a DataLoader, which would read ahead of the policy's last update."""
        return ExperienceLoader(
            self.args,
            self.updates_per_pass,
            next_iteration=lambda: self.iteration,
            make_micro_batches=self.make_micro_batches,
        )

    def set_initial_training_values(self, args, dataloader):
        """Turn `total_episodes`, epochs or `max_steps` into the steps of whole iterations; otherwise as in Trainer."""
        if self.args.total_episodes is not None:
            iterations = -(-self.args.total_episodes // self.args.rollout_batch_size)
        elif self._num_prompts is None and args.max_steps <= 0:
            raise InputError("without a train_dataset of known length, give max_steps (updates) or total_episodes")
        else:
            *_, max_steps = super().set_initial_training_values(args, dataloader)
            iterations = -(-max_steps // self.args.updates_per_iteration)
        whole = iterations * self.args.updates_per_iteration
        if 0 < args.max_steps < whole and rank() == 0:
            say(
                f"max_steps: {whole} updates instead of {args.max_steps}, since an iteration makes"
                f" {self.args.updates_per_iteration}"
            )
        args = copy.copy(args)
        args.max_steps = whole
        return super().set_initial_training_values(args, dataloader)

    @property
    def updates_per_pass(self) -> int | None:
        """Optimizer updates of one pass over the prompts; None when their number is unknown."""
        if self._num_prompts is None:
            return None
        return -(-self._num_prompts // self.args.prompts_per_iteration) * self.args.updates_per_iteration

    def _run_epoch(self, *, num_update_steps_per_epoch, resume_from_checkpoint, **kwargs):
        """Like `Trainer._run_epoch`, but a resumed run does only the remaining updates of the pass it stopped in."""
        done = 0 if resume_from_checkpoint is None else self.state.global_step % num_update_steps_per_epoch
        return super()._run_epoch(
            num_update_steps_per_epoch=num_update_steps_per_epoch - done,
            resume_from_checkpoint=resume_from_checkpoint,
            **kwargs,
        )

    def add_callback(self, callback) -> None:
        """Like `Trainer.add_callback`, but the callback that delays saves and logs still decides last.

        It delays them to the end of an iteration.
        """
        super().add_callback(callback)
        callbacks = self.callback_handler.callbacks
        callbacks.sort(key=lambda each: isinstance(each, IterationCallback))

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Like `Trainer.training_step`, but a micro-batch that is not learned from gives no gradient.

        The optimizer skips parameters without a gradient. A gradient of zeros would not do: Adam's momentum moves
        weights all the same.
        """
        batch: MicroBatch | None = inputs["micro_batch"]
        if batch is None:
            return torch.zeros((), device=self.args.device)
        # Any count: without one, transformers before `loss_is_scaled_for_ga` divides the loss by the accumulated
        # micro-batches
        loss = super().training_step(model, inputs, num_items_in_batch=1)
        if self.accelerator.sync_gradients:  # before the policy's and the critic's are clipped together
            if self.warming_up:
                drop_gradients(self.policy.policy_parameters())
            if batch.minibatch_tokens == 0:  # there are texts alone, of which the critic learns nothing
                drop_gradients(self.policy.critic_parameters())
        return loss

    def _prepare_inputs(self, inputs):
        return inputs

    def create_optimizer(self, model=None):
        """Like `Trainer.create_optimizer`, but with a separate learning rate for the critic when one is set."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if given or self.args.critic_learning_rate is None:
            return optimizer
        critic = {id(parameter) for parameter in self.policy.critic_parameters()}
        for group in list(optimizer.param_groups):
            rest = [parameter for parameter in group["params"] if id(parameter) not in critic]
            own = [parameter for parameter in group["params"] if id(parameter) in critic]
            group["params"] = rest
            optimizer.add_param_group({**group, "params": own, "lr": self.args.critic_learning_rate})
        return optimizer
