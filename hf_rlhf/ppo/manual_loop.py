"""A loop that the user writes: `generate` samples, the user rewards, `step` makes the updates of one iteration."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.checkpoint.lock import FolderLock
from hf_rlhf.checkpoint.resume import NEVER
from hf_rlhf.compat.names import STEP_ARGUMENTS, take_old_arguments
from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.distributed import failing_together, gather_in_order
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.ppo.experience import MicroBatch, Rollout
from hf_rlhf.ppo.prompts import repeated
from hf_rlhf.ppo.rollout_setup import RolloutSetup
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rollout.collect import trajectory_of
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.stops import stop_token_ids
from hf_rlhf.rollout.support import require_supported
from hf_rlhf.types import Completion, Prompt, Trajectory


class StartedLoop(NamedTuple):
    """Local variables of `Trainer.train`, kept for the user's loop."""

    model: Any  # as accelerate wrapped it
    start_time: float
    num_samples: float  # completions of the whole run


class ManualLoop(RolloutSetup):
    """The trainer's side of a loop that the user writes. `train()` makes the same updates."""

    _loop: StartedLoop | None = None
    _beginning = False  # the user's loop is
    _lock: FolderLock | None = None  # of the user's loop, until its last update or the end of the process

    # What `PPOTrainer` brings

    def sample(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Trajectory]:
        """Return one completion for each row, drawn by the row's seed."""
        raise NotImplementedError

    def make_micro_batches(self, iteration: int, rollout: Rollout | None = None) -> Iterator[MicroBatch | None]:
        """Yield this rank's micro-batches of an iteration on the completions of `rollout`."""
        raise NotImplementedError

    # What the user calls

    def generate(self, prompts: Sequence[Prompt | Sequence[int]]) -> list[Completion]:
        """Sample completions for each prompt (text, messages or token ids), by the policy as it is now.

        There are `num_generations` of a prompt, which follow each other.

        The draws are those that `train` makes for the same prompts in the same iteration; another call before `step`
        makes new ones. Under several ranks, each gives its own prompts: every world_size-th of the whole.
        """
        self._require_no_environment()
        if self._started != self.iteration:
            self._start_iteration(self.iteration)
        with failing_together():
            rows = repeated(self._given_prompts(prompts), self.args.num_generations)
        seeds = self._seeds("train", self.iteration, len(rows), first=self._drawn)
        with self._sampling():
            trajectories = self.sample(rows, seeds)
        self._drawn += sum(gather_in_order([len(rows)]))
        return [trajectory.completion for trajectory in trajectories]

    @take_old_arguments(STEP_ARGUMENTS)
    def step(
        self,
        prompts: Sequence[Prompt | Sequence[int]],
        completions: Sequence[Completion | Sequence[int]],
        rewards: Sequence[float | Sequence[float] | None] | Tensor,
        masks: Sequence[Sequence[bool]] | None = None,
    ) -> dict[str, float]:
        """Run one iteration of PPO on completions and rewards of the user; `train` makes the same updates.

        Args:
            prompts: as in `generate`, one for each completion.
            completions: of `generate`, or token ids from elsewhere; `rollout_batch_size` of them over all ranks. Ids
                have to be among those that `top_k`, `top_p` and `min_p` leave to the policy as it is now.
            rewards: a number for each completion, a list with one for each of its tokens, or None for a completion
                without a reward. Normalizing, clipping and penalties make scores of them, as in `train`.
            masks: for each completion, True where the policy sampled the token; by default everywhere but on the
                `first_greedy_tokens`, which never count.

        Returns the metrics of the iteration. Saves, logs and evaluates as the arguments say, and ends the run with the
        last of `max_steps`; a step beyond it raises `InputError`, as do rewards and lengths that cannot be right.
        """
        self._require_no_environment()
        if self._started != self.iteration:
            self._start_iteration(self.iteration)
        with failing_together():
            rows = self._given_prompts(prompts)
            causal_lm = base_of(self.policy.model)
            rules = TokenRules(
                vocab_size=causal_lm.config.get_text_config().vocab_size,
                stop_ids=stop_token_ids(causal_lm, self.processing_class, self.sampling),
                sampling=self.sampling,
                chat_template_kwargs=self.args.chat_template_kwargs,  # pyright: ignore
            )
            rollout = given_rollout(rows, completions, rewards, masks, self.processing_class, rules)
            require_groups(rows, self.args.num_generations)
        total = sum(gather_in_order([len(rollout.trajectories)]))
        if total != self.args.rollout_batch_size:
            raise InputError(f"step() got {total} completions over all ranks; {self.args.batch_algebra()}")
        try:
            self.run_updates(self.make_micro_batches(self.iteration, rollout))
        finally:
            self._reset_attention()
        return self.iteration_log.last or self.iteration_log.finished()  # unless logging_steps passed it over

    def _require_no_environment(self) -> None:
        if self.environment is not None:
            raise InputError(
                "environment is invalid for generate() and step(), which know completions and no episodes. Use train(),"
                " or play the episodes in your loop and give their tokens with masks."
            )

    def _given_prompts(self, prompts: Sequence[Prompt | Sequence[int]]) -> list[dict[str, Any]]:
        kwargs: Any = self.args.chat_template_kwargs
        rows = prompt_rows(prompts, self.processing_class, self.args.max_prompt_length, kwargs)
        self._stop_at_end_of_turn(rows[0])
        return rows

    # How it runs inside Trainer

    def run_updates(self, micro_batches: Iterator[MicroBatch | None]) -> None:
        """Run one iteration of Trainer's own loop (updates, schedule, callbacks, logs, saves) over `micro_batches`.

        `train()` and this share every line of that loop, so that both give the same weights. For callbacks, an epoch is
        one iteration here. The last of `max_steps` ends the run as it ends `train()`.
        """
        if self._loop is None:
            if self.state.global_step:
                raise InputError("step() after train(): this run is over. Make another trainer for a loop with step()")
            self._loop = self._begin_loop()
        elif self.control.should_training_stop:
            raise InputError(
                f"the run ended at update {self.state.global_step} (max_steps={self.state.max_steps}, or a callback's"
                " wish); for a longer one raise max_steps or total_episodes"
            )
        args, loop = self.args, self._loop
        self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
        self._run_epoch(
            model=loop.model,
            epoch=self.iteration,
            train_dataloader=({"micro_batch": batch} for batch in micro_batches),
            steps_in_epoch=args.updates_per_iteration * args.gradient_accumulation_steps,
            num_update_steps_per_epoch=args.updates_per_iteration,
            trial=None,
            ignore_keys_for_eval=None,
            start_time=loop.start_time,
            resume_from_checkpoint=None,
            epochs_trained=0,
            steps_trained_in_current_epoch=0,
        )
        if self.control.should_training_stop:
            self._finalize_training(None, loop.num_samples, loop.start_time)
            if self._lock is not None:
                self._lock.release()

    def _begin_loop(self) -> StartedLoop:
        """Do all that `Trainer.train` does before its first iteration."""
        if self.args.resume_from_checkpoint:
            raise InputError(
                "a loop with step() starts anew: resume_from_checkpoint is for train(), which resumes from its"
                " checkpoints when it has a train_dataset and rewards"
            )
        self._require_fresh_folder()
        with failing_together():
            if self.is_world_process_zero():
                self._lock = FolderLock(self.folder)
        self._beginning = True
        try:
            return super().train()  # pyright: ignore[reportReturnType]
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        finally:
            self._beginning = False

    def _inner_training_loop(self, *args, **kwargs):
        """Like `Trainer._inner_training_loop`, but for the user's loop do only the steps before its first iteration."""
        if not self._beginning:
            return super()._inner_training_loop(*args, **kwargs)
        loader: Any = self.get_train_dataloader()
        epochs, updates_per_epoch, _, num_samples, *_, max_steps = self.set_initial_training_values(self.args, loader)
        self._init_training_state(max_steps, updates_per_epoch, epochs, None, None)
        model, _ = self._prepare_for_training(max_steps, loader, None)
        self._initial_num_input_tokens_seen = 0
        self._initial_global_step = 0
        self._tr_loss = torch.tensor(0.0, device=self.args.device)
        self._total_loss_scalar = 0.0
        self._globalstep_last_logged = 0
        model.zero_grad()
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        if self.args.eval_on_start:
            self._evaluate(None, None, skip_scheduler=True)
        return StartedLoop(model, time.time(), num_samples)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """Like `DurableTrainer.train`, but refuse a run without prompts, and one whose loop the user writes.

        Resets the attention and the kept states at the end.
        """
        if self.prompt_set is None:
            raise InputError("train() needs a train_dataset; without one, write a loop with generate() and step()")
        anew = resume_from_checkpoint in (None, False, NEVER)
        if self._loop is not None:
            raise InputError("this trainer's loop is the user's since the first step(); make another one for train()")
        if anew:
            self._require_fresh_folder()
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._reset_attention()


def require_groups(rows: Sequence[Mapping[str, Any]], size: int) -> None:
    """Raise `InputError` for rows that are not groups of `size` neighbors with one prompt."""
    for b, row in enumerate(rows):
        if row["prompt_ids"] != rows[b // size * size]["prompt_ids"] or len(rows) % size:
            raise InputError(
                f"step() got {len(rows)} prompts that are no groups of num_generations={size}, see prompt {b} (counted"
                f" from 0). Give each prompt {size} times in a row, in the order of the completions of generate()."
            )


class TokenRules(NamedTuple):
    """Limits that the model and the run put on a completion."""

    vocab_size: int
    stop_ids: Sequence[int]  # the last id of a completion that stopped by itself
    sampling: Sampling
    chat_template_kwargs: Mapping[str, Any] | None = None  # that the prompts were rendered with


def given_rollout(
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Completion | Sequence[int]],
    rewards: Sequence[float | Sequence[float] | None] | Tensor,
    masks: Sequence[Sequence[bool]] | None,
    tokenizer,
    rules: TokenRules,
) -> Rollout:
    """Return completions and rewards. Raises `InputError` when lengths do not fit or a reward is no finite number."""
    given: Sequence[Any] = rewards.tolist() if isinstance(rewards, Tensor) else rewards
    for name, values in (("completions", completions), ("rewards", given), ("masks", masks)):
        if values is not None and len(values) != len(rows):
            raise InputError(f"step() got {len(rows)} prompts and {len(values)} {name}; give one of each")
    trajectories = []
    for b, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        if not isinstance(completion, Completion):
            ids = [int(token) for token in completion]
            words = tokenizer.decode(ids, skip_special_tokens=True).rstrip()
            ended = any(words.endswith(stop) for stop in rules.sampling.stop_strings)
            completion = Completion(ids, [], stopped=ended or (bool(ids) and ids[-1] in rules.stop_ids))
        _require_possible(completion, rules, b)
        trajectory = trajectory_of(row, completion, tokenizer, rules.chat_template_kwargs, rules.sampling)
        if masks is not None:
            if len(masks[b]) != len(completion.ids):
                raise InputError(
                    f"mask {b} (counted from 0) has {len(masks[b])} entries for a completion of"
                    f" {len(completion.ids)} tokens"
                )
            pairs = zip(masks[b], trajectory.completion_mask, strict=True)
            trajectory.mask = [bool(given) and chosen for given, chosen in pairs]
        if completion.support is not None:
            require_supported(trajectory, b, tokenizer, rules.sampling)
        trajectories.append(trajectory)

    def score(prompts, completions):  # its name is in the metrics: rewards/score/mean
        return given

    checked = Rewards([score]).compute(trajectories).rewards
    for b, reward in enumerate(checked):
        per_token = reward.per_token
        if per_token is not None and masks is not None and per_token[~torch.tensor(masks[b]).bool()].any():
            raise InputError(
                f"rewards[{b}] is invalid: it pays a token that masks[{b}] does not count. Give that token a reward of"
                " 0."
            )
    return Rollout(trajectories, checked)


def _require_possible(completion: Completion, rules: TokenRules, b: int) -> None:
    """Raise `InputError` for ids that the model does not know, and for more of them than the run allows."""
    name = f"completion {b} (counted from 0)"
    if outside := [token for token in completion.ids if not 0 <= token < rules.vocab_size]:
        raise InputError(f"{name} has ids {outside[:5]} outside of the model's vocabulary of {rules.vocab_size}")
    if len(completion.ids) > (longest := rules.sampling.max_completion_length):
        raise InputError(
            f"{name} has {len(completion.ids)} tokens, above max_completion_length={longest}; raise that, or cut the"
            " completion"
        )
    if completion.logprobs and len(completion.logprobs) != len(completion.ids):
        raise InputError(f"{name} has {len(completion.logprobs)} logprobs for {len(completion.ids)} tokens")
    if not all(map(math.isfinite, completion.logprobs)):
        raise InputError(f"{name} has a logprob that is no finite number")
