"""The state in which a rollout finds the trainer: weights held for its passes, seeds, attention, stop tokens."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.data.tokens import with_row_options
from hf_rlhf.distributed import failing_together, gather_in_order, take_share
from hf_rlhf.environments.base import EnvFactory
from hf_rlhf.errors import InputError
from hf_rlhf.models.fast.attention import FUSED, set_attention
from hf_rlhf.models.sharding import unsharded
from hf_rlhf.models.value_model import ValueModel
from hf_rlhf.ppo.guard import UpdateGuard
from hf_rlhf.ppo.iteration_trainer import IterationTrainer
from hf_rlhf.ppo.trunk import KeptStates
from hf_rlhf.rollout.engines import Engine
from hf_rlhf.rollout.sampling import Sampling, row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.types import Model, Prompt, Trajectory


class RolloutSetup(IterationTrainer):
    """An iteration trainer with an engine, and what holds while completions are sampled and passed forward."""

    engine: Engine
    environment: EnvFactory | None
    kept_states: KeptStates
    guard: UpdateGuard
    _attention: Mapping[Model, str]  # of the models that train with another attention than they were loaded with
    _started: int | None = None  # the iteration begun last
    _drawn = 0  # completions that the user's loop sampled in it, over all ranks

    @property
    def sampling(self) -> Sampling:
        """Sampling settings of this iteration: of the flags, and of those that change over the run as far as it is."""
        last = self.state.max_steps // self.args.updates_per_iteration - 1  # 0 before a run has begun
        return self.args.sampling_at(min(self.iteration / last, 1.0) if last > 0 else 0.0)

    def schedule_metrics(self) -> dict[str, float]:
        """Return the settings that change over the run, as they are in this iteration."""
        now = {"temperature": self.sampling.temperature, "first_greedy_tokens": self.sampling.first_greedy_tokens}
        return {
            f"sampling/{name}": float(value)
            for name, value in now.items()
            if getattr(self.args, f"{name}_end") is not None
        }

    def predict_value(self, prompts: Sequence[Prompt | Sequence[int]]) -> list[float]:
        """Return the critic's expectation of a completion to each prompt, in scores minus KL penalty.

        Under FSDP every rank calls it, with prompts of its own or the same.
        """
        kwargs: Any = self.args.chat_template_kwargs
        value_model = ValueModel(self.policy.model, self.policy.critic, self.processing_class)
        with self._weights():
            return value_model.predict_value(
                prompts,
                batch_size=self.args.rollout_forward_batch_size,
                chat_template_kwargs=kwargs,
                together=self._in_step,
            )

    def bootstrap(self, trajectories: Sequence[Trajectory]) -> Tensor | None:
        """Return the value beyond the end of each episode `(B,)`: the critic's where a limit truncated it, else 0.

        None without an environment: a completion that the length limit cut off counts as ended there.
        """
        if self.environment is None:
            return None
        values = torch.zeros(len(trajectories))
        rows = [row for row, trajectory in enumerate(trajectories) if trajectory.truncated]
        with self._weights(), self._failing():  # by every rank, whether it has a truncated episode or not
            if rows or self._in_step:
                states = [[*trajectories[row].prompt_ids, *trajectories[row].completion.ids] for row in rows]
                values[rows] = torch.tensor(self.predict_value(states), dtype=values.dtype)
        return values

    def require_few_failures(self, trajectories: Sequence[Trajectory]) -> None:
        """Raise `InputError` where more than `max_failed_episodes` of the episodes of all ranks failed."""
        if self.environment is None:
            return
        failures = [str(each.info["failure"]) for each in trajectories if "failure" in each.info]
        failed, episodes = (sum(gather_in_order([count])) for count in (len(failures), len(trajectories)))
        first = next(iter(gather_in_order(failures[:1])), "")
        if failed > self.args.max_failed_episodes * episodes:
            raise InputError(
                f"max_failed_episodes={self.args.max_failed_episodes} is exceeded: {failed} of {episodes} episodes"
                f" failed. The first: {first}"
            )

    def close(self) -> None:
        """End the vLLM server that the run started, if it did; it also ends with the process, however that ends."""
        if isinstance(self.engine, VLLMEngine):
            self.engine.close()

    # Updates

    def drop_update(self) -> None:
        """Like `DurableTrainer.drop_update`, but also tell the guard, so that the update does not count as made."""
        super().drop_update()
        self.guard.refused = True

    # Sharded weights

    @property
    def _sharded(self) -> bool:
        """True if the launcher shards weights or optimizer state."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled

    @property
    def _in_step(self) -> bool:
        """True if each block of the policy is gathered whenever it runs, so that all ranks run it together."""
        return self.is_fsdp_enabled and not self.args.gather_for_rollout

    def _weights(self) -> AbstractContextManager[None]:
        """Hold the weights for forward passes of a rank's own."""
        weights = next(self.policy.parameters())
        if (
            weights.device.type != self.args.device.type
        ):  # Trainer leaves the place to FSDP or DeepSpeed, at the first update
            self.policy.to(self.args.device)
        return unsharded(self.policy, blocks=self.args.gather_for_rollout)

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Let ranks fail together, and hold the weights for an engine that samples by the policy itself."""
        with nullcontext() if isinstance(self.engine, VLLMEngine) else self._weights(), self._failing():
            yield

    def _failing(self) -> AbstractContextManager[None]:
        """Let ranks fail together, but for work in step: there, a rank that fails ends the job by ending itself."""
        return nullcontext() if self._in_step else failing_together()

    # What an iteration starts from

    def _start_iteration(self, iteration: int) -> None:
        self._started = iteration
        self._drawn = 0
        self.kept_states.clear()
        self.iteration_log.start()
        self.guard.start_iteration()
        if isinstance(self.engine, VLLMEngine):
            self.engine.count_answering()  # of an evaluation before
        every = self.args.ref_model_sync_iterations
        over = self.control.should_training_stop  # then generate() is all that can follow
        if not over:
            set_attention(self._attention)  # of sampling and training alike, since two kinds round differently
        if every is not None and iteration > 0 and iteration % every == 0 and not over:
            self.policy.refresh_reference()

    def _reset_attention(self) -> None:
        set_attention(dict.fromkeys(self._attention, FUSED))  # with which what is saved will be loaded
        self.kept_states.clear()
        self._started = None  # an iteration that is begun again sets it again

    def _seeds(self, purpose: str, iteration: int, count: int | None = None, first: int = 0) -> list[int]:
        """Return a seed for each of this rank's draws: of the run, the iteration and the place in the whole batch."""
        whole = self.args.rollout_batch_size if count is None else sum(gather_in_order([count]))
        group = self.args.num_generations if purpose == "train" else 1
        places = take_share(list(range(first, first + whole)), group)
        return [row_seed(self.args.seed, purpose, iteration, place) for place in places]

    def _stop_at_end_of_turn(self, row: Mapping[str, Any]) -> None:
        kwargs: Any = self.args.chat_template_kwargs
        stop_at_end_of_turn(self.policy.model, self.processing_class, row, self.sampling, kwargs)

    @staticmethod
    def _turns(prompts: Any) -> Any:
        """Return the columns of prompts that `stop_at_end_of_turn` reads; images stay encoded.

        All of a stream that names none.
        """
        names = prompts.column_names
        return prompts if names is None else prompts.select_columns(with_row_options(["prompt", "prompt_ids"], names))
