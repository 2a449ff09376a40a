"""`PPOTrainer`: PPO with a critic, in the loop of `transformers.Trainer`.

One iteration, from its prompts to its updates:

    make_micro_batches(iteration)            when Trainer asks for the first update of the iteration
        make_experience(iteration)
            rollout(rows, seeds)
                sample                       B completions (or episodes of the environment), by the policy as it is
                compute_rewards              of each, by the reward functions
            forward_pass                     log-probabilities, reference log-probabilities, KL, values: (B, T) each
            shaper.shape                     scores (B,): rewards after scaling, clipping and penalties
            bootstrap                        (B,): the value beyond an episode that a limit ended
            per_token_rewards                (B, T): KL penalty on each token, score on the last
            advantages                       advantages and returns (B, T), by the estimator of the run
            kl_control.update
        micro_batches                        num_ppo_epochs passes, num_mini_batches updates each
    training_step, for each micro-batch      Trainer's own
        compute_loss
            loss                             policy loss + vf_coef * value loss (+ entropy, KL, texts)
        backward; after the minibatch: clipping, NaN check, UpdateGuard, one optimizer step
    log, evaluate, save                      when IterationCallback lets them, at the end of the iteration

To change a stage, override `sample`, `compute_rewards`, `advantages` or `loss`; each returns what it makes. The classes
below `PPOTrainer` hold the rest: `Evaluation`, `ManualLoop` (generate and step, for a loop that the user writes),
`RolloutSetup` (held weights, seeds, stop tokens), `IterationTrainer` (iterations inside Trainer's steps), `RunFiles`
(logs, saved models, resuming), `DurableTrainer` (checkpoints).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, set_seed

from hf_rlhf.compat.names import RENAMED_STAGES, TRAINER_ARGUMENTS, explain_names
from hf_rlhf.distributed import global_moments, in_step
from hf_rlhf.environments.base import EnvFactory
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import keep_modes
from hf_rlhf.models.fast.compile import uncompiled
from hf_rlhf.models.policy import PolicyOutput
from hf_rlhf.ops import FULL_KL, gae, kl_estimate, per_token_rewards, whiten
from hf_rlhf.ppo.build import (
    PPOData,
    build_engine,
    build_policy,
    build_rewards,
    load_policy_tokenizer,
    prepare_data,
    require_arguments,
    require_roles_of_their_own,
)
from hf_rlhf.ppo.callbacks import PPO_WATCHED, IterationCallback, SettingsCallback
from hf_rlhf.ppo.choices import in_lines
from hf_rlhf.ppo.compute import choose_compute, hidden_from_trainer
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.estimators import estimate_advantages, known_estimators, whole_returns
from hf_rlhf.ppo.evaluation import Evaluation
from hf_rlhf.ppo.experience import (
    Experience,
    MicroBatch,
    Rollout,
    micro_batches,
    require_counted,
    require_finite,
    split_by_completion,
)
from hf_rlhf.ppo.gradient_variance import gradient_variance
from hf_rlhf.ppo.guard import UpdateGuard
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.loss import PPOLoss, ppo_loss, text_loss
from hf_rlhf.ppo.metrics import iteration_metrics, mean_sequence_kl
from hf_rlhf.ppo.overlap import sample_and_reward_in_parts
from hf_rlhf.ppo.prompts import TextStream, prompt_stream, repeated
from hf_rlhf.ppo.scores import ScoreShaper
from hf_rlhf.ppo.trunk import KeptStates
from hf_rlhf.progress import use_compact_progress
from hf_rlhf.rewards.environment import with_environment
from hf_rlhf.rewards.sources import RewardSource
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.support import fill_in_support
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.types import ForwardPass, Model, Reward, Sequences, Trajectory


@explain_names(TRAINER_ARGUMENTS)
class PPOTrainer(Evaluation):
    """Train a causal language model with PPO against one or more rewards.

    Args:
        model: path or name, model, or `PeftModel`, whose active adapter is both the start and the frozen reference: it
            becomes the adapters `policy`, which is trained and active, and `reference`.
        reward_funcs: one or more of: a callable by TRL's reward-function contract, the path of a reward model, a
            sequence-classification model. May be None for those who give rewards to `step`.
        args: see `PPOConfig`.
        train_dataset: rows with `prompt` (text or messages) and any columns the rewards want; a stream of them; or a
            `PreparedSet` of the same settings. May be omitted by those who give prompts to `generate` and `step`.
        eval_dataset: the same, or a dict of such sets.
        processing_class: the policy's tokenizer; by default that of `model`.
        reward_processing_classes: a tokenizer for each reward that is a model object; None elsewhere.
        peft_config: a LoRA config to wrap the policy with.
        ref_model: a reference of its own: a model, or a path or name. An adapter on the policy's base, and that base,
            take no second base when they are named. By default see `PolicyWithValue`.
        value_model: a sequence classifier to be the critic, with `critic="model"`; by default see `build_critic`.
        environment: makes the environment of each episode, such as a class: a dialogue, a game, tools. By default a
            prompt gets one completion. What it pays is added to the rewards, and `reward_funcs` may be None.
        ptx_dataset: texts for the language-model loss of PPO-ptx, with `ptx_coef`; see `prepare_texts`.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        InputError: wrong settings, data or models, before anything is trained.
        FloatingPointError: a NaN or infinite value or logit, or three updates in a row of such a loss or gradient.
    """

    eval_dataset: Any

    def __init__(
        self,
        model: str | Model,
        reward_funcs: RewardSource | Sequence[RewardSource] | None,
        args: PPOConfig,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        reward_processing_classes=None,
        peft_config=None,
        ref_model: str | Model | None = None,
        value_model: Model | None = None,
        ptx_dataset=None,
        environment: EnvFactory | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        require_arguments(args, optimizers, environment)
        self.environment = environment
        set_seed(args.seed)  # before the adapter's random start
        tokenizer = load_policy_tokenizer(model) if processing_class is None else processing_class
        data = prepare_data(train_dataset, eval_dataset, ptx_dataset, tokenizer, args, episodes=environment is not None)
        require_roles_of_their_own(model, ref_model, value_model, reward_funcs)
        policy = build_policy(model, args, data, peft_config=peft_config, ref_model=ref_model, value_model=value_model)
        self.rewards = build_rewards(reward_funcs, reward_processing_classes, policy, data, tokenizer, args)
        self.prompt_set = data.prompts
        with hidden_from_trainer(args):
            super().__init__(
                model=policy,
                args=args,
                train_dataset=data.prompts if self._num_prompts is not None else None,
                eval_dataset=data.evaluation,
                processing_class=tokenizer,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        self.model_accepts_loss_kwargs = True  # what `loss_is_scaled_for_ga` was called before transformers had it
        self.policy = self.model  # pyright: ignore[reportAttributeAccessIssue]
        compute = choose_compute(policy, args, self.accelerator, data, self.rewards, sharded=self._sharded)
        self._attention = compute.attention
        self.choices = compute.choices
        self.kept_states = KeptStates(policy, compute.trunk.rewards)
        self.engine = build_engine(
            policy.model,
            tokenizer,
            args,
            longest_completion=data.longest_completion,
            in_step=self._in_step,
            sharded=self._sharded,
        )
        self._set_up_iterations(data)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a stage by its old name, which no run would call."""
        super().__init_subclass__(**kwargs)
        for old, new in RENAMED_STAGES.items():
            if hasattr(cls, old):
                raise TypeError(f"{cls.__name__}.{old} is never called: the stage is {new} now (docs/how-to/stages.md)")

    def _start_iteration(self, iteration: int) -> None:
        for old, new in RENAMED_STAGES.items():
            if hasattr(self, old):
                raise InputError(f"PPOTrainer.{old} was set and is never called: the stage is {new} now")
        super()._start_iteration(iteration)

    # One iteration, as in the paper

    def make_micro_batches(self, iteration: int, rollout: Rollout | None = None) -> Iterator[MicroBatch | None]:
        """Yield this rank's micro-batches of an iteration, and None for those that are not learned from.

        Those are what is left after the guard stopped the iteration, and minibatches in which nothing counts: no token
        of a completion and, unless only the critic learns, no text. Every rank knows that of the whole minibatch.
        """
        experience = self.make_experience(iteration, rollout)
        for batch in micro_batches(experience, self.args, iteration, self.texts):
            empty = batch.minibatch_tokens == 0 and (batch.minibatch_text_tokens == 0 or self.warming_up)
            yield None if self.guard.stopped or empty else batch

    def rollout(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Rollout:
        """Return a completion for each row and its reward: `sample`, then `compute_rewards`.

        With `reward_while_sampling`, part by part: each is rewarded while the next is sampled.
        """
        size = self.args.generation_batch_size
        if self.args.reward_while_sampling and size is not None:
            waiting = self.iteration_log.timed("reward")
            return sample_and_reward_in_parts(self.sample, self.compute_rewards, rows, seeds, size, waiting=waiting)
        trajectories = self.sample(rows, seeds)
        return Rollout(trajectories, self.compute_rewards(trajectories))

    def make_experience(self, iteration: int, rollout: Rollout | None = None) -> Experience:
        """Return everything that the updates of an iteration need, of this rank's completions.

        What depends on the completions of all ranks (moments, means, metrics) is computed over all, and every rank
        takes part.

        Args:
            iteration: counted from 0.
            rollout: completions and rewards of this rank, where the user's loop brings them.
        """
        args = self.args
        if rollout is None:
            self._start_iteration(iteration)
            assert self.prompts is not None
            with self._sampling():  # rows too: a rank whose stream breaks must not leave the others waiting
                rows = repeated(self.prompts.rows(iteration), args.num_generations)
                rollout = self.rollout(rows, self._seeds("train", iteration))
            self.require_few_failures(rollout.trajectories)
        with self._weights(), self._failing():
            passes = self.forward_pass(rollout.trajectories)
        scores = self.shaper.shape(rollout.rewards, rollout.trajectories)

        experience = Experience.from_rollout(rollout.trajectories, scores, passes, self.kl_control.coef)
        experience.bootstrap = self.bootstrap(rollout.trajectories)
        mask = experience.mask
        require_counted(mask, iteration)
        kl_coef = 0.0 if args.kl_in_loss else experience.kl_coef
        paid = per_token_rewards(experience.scores, experience.kl, mask, kl_coef) + experience.scores_per_token
        if args.whiten_rewards:
            paid = whiten(paid, mask, center=False, moments=global_moments(paid, mask))
        experience.per_token_rewards = paid
        experience.advantages, experience.returns = self.advantages(experience)
        variances = self.gradient_variances(experience, iteration)
        self.earlier_returns = self.earlier_returns.with_iteration(
            *whole_returns(experience, args), args.baseline_decay
        )

        if not self.warming_up:
            self.kl_control.update(mean_sequence_kl(experience), args.rollout_batch_size)
        metrics = (
            iteration_metrics(rollout.trajectories, rollout.rewards, experience) | variances | self.schedule_metrics()
        )
        if isinstance(self.engine, VLLMEngine):
            metrics["sampling/servers"] = float(self.engine.count_answering())
        self.iteration_log.add_rollout(iteration, rollout.trajectories, metrics)
        self.write_rollout(rollout, scores, experience)
        return experience

    # Its stages

    def sample(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Trajectory]:
        """Return one completion, or episode, for each row (`prompt`, `prompt_ids` and any other column) by its seed."""
        as_written = uncompiled() if self.args.torch_compile else nullcontext()
        with self.iteration_log.timed("sample"), as_written:
            kwargs: Any = self.args.chat_template_kwargs
            settings = (self.engine, rows, self.processing_class, self.sampling, seeds)
            if self.environment is None:
                return collect(*settings, kwargs)
            limits = self.args.episode_limits
            return collect_episodes(*settings, self.environment, limits, kwargs, together=self._in_step)

    def compute_rewards(self, trajectories: Sequence[Trajectory]) -> list[Reward]:
        """Return the reward of each completion; its `total` is None where no reward function gave a number."""
        if self.rewards is None:
            if self.environment is not None:
                return with_environment(None, trajectories)
            raise InputError("no reward: give reward_funcs, or write a loop with generate() and step()")
        with self.iteration_log.timed("reward"), self.kept_states.share(trajectories):
            made, metrics, cached = self.rewards.compute(trajectories, self.state)
            self.iteration_log.add_reward_metrics(metrics, cached)
            return made if self.environment is None else with_environment(made, trajectories, self.rewards.weights)

    @torch.no_grad()
    def forward_pass(self, trajectories: Sequence[Trajectory], *, kl_only: bool = False) -> list[ForwardPass]:
        """Return log-probabilities, reference log-probabilities, KL, values and entropy of each completion's tokens.

        All are of the distribution that the run's settings sample from, also for completions from elsewhere. With
        `kl_only`, as for an evaluation, the critic makes no pass, and values and entropy are None.
        """
        args, sampling, size = self.args, self.sampling, self.args.rollout_forward_batch_size
        passes: dict[int, ForwardPass] = {}
        with self.iteration_log.timed("forward_pass"), keep_modes(self.policy):
            self.policy.eval()
            if sampling.truncated:
                fill_in_support(
                    self.policy.model, self.processing_class, trajectories, sampling, size, together=self._in_step
                )
            lengths = [len(each.prompt_ids) + len(each.completion.ids) for each in trajectories]
            by_length = sorted(range(len(trajectories)), key=lengths.__getitem__)
            batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
            for batch in in_step(batches, []) if self._in_step else batches:
                rows = [trajectories[row] for row in batch]
                sequences = Sequences.from_trajectories(rows) if rows else Sequences.of_one_token()
                sequences = sequences.to(args.device)
                output: Any = self.policy.forward(  # not by its hooks: FSDP's would shard the root again
                    sequences,
                    temperature=sampling.temperature,
                    values=not kl_only,
                    entropy=not kl_only,
                    reference=not kl_only or args.kl_estimator != FULL_KL,
                    full_kl=args.kl_estimator == FULL_KL,
                    trunk_states=self.kept_states.find_or_compute(sequences),
                )
                kl = output.kl
                if kl is None:
                    kl = kl_estimate(args.kl_estimator, output.logprobs, output.reference_logprobs)
                lengths_here = [len(each.completion.ids) for each in rows]
                passes.update(zip(batch, split_by_completion(output, kl, lengths_here), strict=True))
        made = [passes[row] for row in range(len(trajectories))]
        require_finite(made, trajectories)
        return made

    def advantages(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """Return advantages and returns `(B, T)` of the `B` completions that this rank sampled in the iteration.

        For what depends on the completions of all ranks see `global_sum`, `global_mean` and `global_moments` of
        `hf_rlhf.distributed`; every rank takes part in them.
        """
        args = self.args
        assert experience.per_token_rewards is not None
        rewards, values, mask = experience.per_token_rewards, experience.values, experience.mask
        advantages = estimate_advantages(args.advantage_estimator, experience, args, self.earlier_returns)
        returns = gae(rewards, values, mask, args.gamma, args.lam_of_critic, experience.bootstrap).returns
        if args.whiten_advantages:
            advantages = whiten(advantages, mask, moments=global_moments(advantages, mask))
        return advantages, returns

    def gradient_variances(self, experience: Experience, iteration: int) -> dict[str, float]:
        """Return the variance of the policy gradient under each estimator, in iterations whose turn it is."""
        args, every = self.args, self.args.log_gradient_variance
        if every is None or iteration % every:
            return {}
        names = known_estimators(experience, args, learned=args.vf_coef > 0)
        with self.iteration_log.timed("gradient_variance"):
            found = {name: estimate_advantages(name, experience, args, self.earlier_returns) for name in names}
            variances = gradient_variance(self.policy, experience, found, self.sampling.temperature)
        return {f"gradient_variance/{name}": variance for name, variance in variances.items()}

    def loss(self, output: PolicyOutput, experience: Experience) -> PPOLoss:
        """Return PPO's loss of one micro-batch, as a sum over its counted tokens."""
        return ppo_loss(output, experience, self.args, warming_up=self.warming_up)

    # Its updates

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None):
        """Return `loss` of one micro-batch, as its share of the minibatch's mean over tokens."""
        args, batch = self.args, inputs["micro_batch"]
        self.policy.separate_reference()  # where a callback thawed weights since the last update
        experience: Experience = batch.experience.to(args.device)
        texts = None if batch.texts is None else batch.texts.to(args.device)
        output = model(
            experience.sequences,
            temperature=self.sampling.temperature,  # the iteration's own
            entropy=args.entropy_coef > 0,
            full_kl=args.full_kl_in_loss,
            texts=texts,
            trunk_states=self.kept_states.find_or_compute(experience.sequences),
        )
        loss = self.loss(output, experience)
        stats = {**loss.stats, "tokens": experience.mask.sum()}
        mean = loss.total / max(batch.minibatch_tokens, 1)
        if texts is not None:
            language_model_loss = text_loss(output, texts.mask)
            stats |= {"text_loss": language_model_loss.detach(), "text_tokens": texts.mask.sum()}
            mean = mean + args.ptx_coef * language_model_loss / batch.minibatch_text_tokens
        self.guard.add(stats)
        self.iteration_log.add_update(stats, output.logprobs.detach() - experience.logprobs)
        # DDP averages gradients over ranks, and the loss is a sum over all of them.
        mean = mean * args.world_size
        return (mean, output) if return_outputs else mean

    # Its parts

    def _set_up_iterations(self, data: PPOData) -> None:
        args = self.args
        self.prompts = None
        if data.prompts is not None:
            self.prompts = prompt_stream(data.prompts, args.prompts_per_iteration, args.seed)
            self._stop_at_end_of_turn(next(iter(self._turns(data.prompts))))
        evaluation = data.evaluation
        self._eval_sets = list(evaluation.values()) if isinstance(evaluation, Mapping) else [evaluation]  # prepared
        self.texts = None if data.texts is None else TextStream(data.texts, args.minibatch_size, args.seed)
        self.kl_control = args.kl_control()
        self.shaper = ScoreShaper(args.score_shaping(), self.rewards.shapings if self.rewards is not None else None)
        self.iteration_log = IterationLog(args.rollout_batch_size)
        self.guard = UpdateGuard(args, self.iteration_log, self.policy.parameters)
        begin = f"{args.batch_algebra()}\n{in_lines(self.choices)}"
        self.add_callback(SettingsCallback(begin, self.folder, lambda: self.settings or (self.args,)))
        self.add_callback(IterationCallback(args.updates_per_iteration, self.updates_per_pass))
        self.add_callback(self.guard)
        use_compact_progress(self, PPO_WATCHED, cycle=args.updates_per_iteration)
