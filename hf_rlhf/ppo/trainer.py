"""`PPOTrainer`: PPO with a critic, in the loop of `transformers.Trainer`.

Trainer owns the optimizer, its schedule, clipping, accumulation, DDP, callbacks, trackers, checkpoints and the Hub.
`make_experience` is one iteration of the paper up to the updates, `loss` is the updates. To change a stage, override
`sample`, `score`, `advantages` or `loss`.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import Tensor
from transformers import TrainerCallback, set_seed

from hf_rlhf.checkpoint.computation import BASE
from hf_rlhf.compat.names import TRAINER_ARGUMENTS, explain_names
from hf_rlhf.data.prepared import rows_of
from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.data.rows import require_rows
from hf_rlhf.data.tokens import with_row_options
from hf_rlhf.distributed import (
    failing_together,
    gather_in_order,
    global_moments,
    global_sum,
    in_step,
    take_share,
)
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import adapter_folder, base_of, keep_modes
from hf_rlhf.models.backbone import require_known_head
from hf_rlhf.models.fast.attention import FUSED, set_attention, training_attention
from hf_rlhf.models.fast.compile import compile_blocks, uncompiled, use_liger_kernels
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.models.policy import PolicyOutput, PolicyWithValue
from hf_rlhf.models.sharding import unsharded
from hf_rlhf.models.value_model import ValueModel
from hf_rlhf.ops import FULL_KL, gae, kl_estimate, token_rewards, whiten
from hf_rlhf.ppo.build import (
    build_engine,
    build_policy,
    longest_sequence,
    prepared_evaluation,
    prepared_prompts,
    prepared_texts,
    require_measured_best,
    require_positions,
    require_roles_of_their_own,
    require_scorable,
)
from hf_rlhf.ppo.callbacks import PPO_WATCHED, IterationCallback, SettingsCallback
from hf_rlhf.ppo.choices import choices, in_lines
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.experience import Experience, micro_batches, require_finite
from hf_rlhf.ppo.guard import UpdateGuard
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.iteration_trainer import IterationTrainer
from hf_rlhf.ppo.launch import (
    asked_for,
    require_known_launch,
    require_launcher,
    rewards_share_base,
    warn_of_silent_ddp,
)
from hf_rlhf.ppo.loss import PPOLoss, ppo_loss, text_loss
from hf_rlhf.ppo.manual_loop import TokenRules, given_trajectories
from hf_rlhf.ppo.metrics import evaluation_metrics, iteration_metrics, mean_sequence_kl
from hf_rlhf.ppo.prompts import TextStream, prompt_stream
from hf_rlhf.ppo.scores import ScoreShaper
from hf_rlhf.ppo.trunk import KeptStates, choose_trunk
from hf_rlhf.progress import use_compact_progress
from hf_rlhf.rewards.sources import RewardSource, require_functions, resolve_rewards, separate_dtypes
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.rollout.stops import stop_at_end_of_turn, stop_token_ids
from hf_rlhf.rollout.support import fill_in_support
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.types import Completion, Model, Prompt, Sequences, Trajectory


@explain_names(TRAINER_ARGUMENTS)
class PPOTrainer(IterationTrainer):
    """Train a causal language model with PPO against one or more rewards.

    Args:
        model: path or name, model, or `PeftModel`, whose active adapter is both the start and the frozen reference: it
            becomes the adapters `policy`, which is trained and active, and `reference`.
        reward_funcs: one or more of: a callable by TRL's reward-function contract, the path of a reward model, a
            sequence-classification model. May be omitted by those who give scores to `step`.
        args: see `PPOConfig`.
        train_dataset: rows with `prompt` (text or messages) and any columns the rewards want; a stream of them; or a
            `PreparedSet` of the same settings. May be omitted by those who give prompts to `generate` and `step`.
        eval_dataset: the same, or a dict of such sets.
        processing_class: the policy's tokenizer; by default that of `model`.
        reward_processing_classes: a tokenizer for each reward that is a model object; None elsewhere.
        peft_config: a LoRA config to wrap the policy with.
        ref_model: a reference of its own; by default see `PolicyWithValue`.
        value_model: a sequence classifier to be the critic, with `critic="model"`; by default see `build_critic`.
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
        ref_model: Model | None = None,
        value_model: Model | None = None,
        ptx_dataset=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        if not isinstance(args, PPOConfig):
            raise InputError(
                f"args is {type(args).__name__}, not PPOConfig; the order is PPOTrainer(model, reward_funcs, args)"
            )
        if optimizers[0] is not None and args.critic_learning_rate is not None:
            raise InputError(
                "critic_learning_rate is for the optimizer that the trainer makes; give yours a parameter group for the"
                " critic, or leave one of the two out"
            )
        require_launcher(args)
        set_seed(args.seed)  # before the adapter's random start
        if processing_class is None:
            source = model if isinstance(model, str) else model.config._name_or_path
            processing_class = load_tokenizer(adapter_folder(source))
        prompts = prepared_prompts(train_dataset, processing_class, args, "train_dataset")
        self.prompt_set = rows_of(prompts)
        if self._num_prompts is not None:
            require_rows(self.prompt_set, args.rollout_batch_size, source="train_dataset", why=args.batch_algebra())
        eval_prompts = prepared_evaluation(eval_dataset, processing_class, args)
        eval_sets = rows_of(eval_prompts)
        texts = prepared_texts(ptx_dataset, processing_class, args)

        require_roles_of_their_own(model, ref_model, value_model, reward_funcs)
        policy = build_policy(model, args, peft_config=peft_config, ref_model=ref_model, value_model=value_model)
        if texts is not None:
            require_positions(policy, texts)
        self.rewards = None
        if reward_funcs is not None:
            self.rewards = resolve_rewards(
                reward_funcs,
                reward_processing_classes,
                policy=policy.model,
                share_base=rewards_share_base(args, sharded=asked_for("ACCELERATE_USE_FSDP")),
                device=args.device,
                weights=args.reward_weights,
            )
            if self._num_prompts is not None:
                self.rewards.require_columns(self.prompt_set.column_names)
            if args.score_while_sampling:
                require_functions(self.rewards)
            require_measured_best(args, self.rewards, eval_sets)
            for name, prepared in (("train_dataset", prompts), ("eval_dataset", eval_prompts)):
                require_scorable(self.rewards, prepared, processing_class, args, name)
        use_liger_kernel = args.use_liger_kernel
        args.use_liger_kernel = False  # or Trainer would look for kernels of the policy with its head, and warn
        try:
            super().__init__(
                model=policy,
                args=args,
                train_dataset=self.prompt_set if self._num_prompts is not None else None,
                eval_dataset=eval_sets,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
            )
        finally:
            args.use_liger_kernel = use_liger_kernel
        require_known_launch(self.accelerator, args, policy._no_split_modules)
        warn_of_silent_ddp(self.accelerator, args)
        require_known_head(policy.model)
        self._attention = training_attention(
            policy.transformers_models(),
            args.device,
            longest_sequence(args, self.prompt_set if self._num_prompts is not None else None, texts),
            packing=args.leaves_padding_out,
            recomputes=bool(args.gradient_checkpointing),
        )
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        trunk = choose_trunk(policy, args, self._attention, sharded=sharded, rewards=self.rewards)
        policy.trunk = trunk.trunk
        if args.use_liger_kernel:
            for model in policy.transformers_models():
                use_liger_kernels(model, args.device, args.liger_kernel_config)
        if args.torch_compile:
            self._compile(policy)
        self.model_accepts_loss_kwargs = True  # what `loss_is_scaled_for_ga` was called before transformers had it
        self.policy = self.model  # pyright: ignore[reportAttributeAccessIssue]
        self.engine = build_engine(self.policy.model, processing_class, args)
        if isinstance(self.engine, TransformersEngine):
            self.engine.in_step = self._in_step
            if sharded:
                self.engine.graphs = None  # weights come and go between the steps
        self.prompts = None
        if self.prompt_set is not None:
            self.prompts = prompt_stream(self.prompt_set, args.rollout_batch_size, args.seed)
            self._stop_at_end_of_turn(next(iter(self._turns(self.prompt_set))))
        self.texts = None if texts is None else TextStream(texts, args.minibatch_size, args.seed)
        self.kept_states = KeptStates(self.policy, trunk.rewards)
        self.kl_control = args.kl_control()
        self.shaper = ScoreShaper(args.score_shaping())
        self.iteration_log = IterationLog(args.rollout_batch_size)
        self.guard = UpdateGuard(args, self.iteration_log, self.policy.parameters)
        self._started: int | None = None  # the iteration begun last
        self._eval_sets = list(eval_sets.values()) if isinstance(eval_sets, Mapping) else [eval_sets]  # prepared
        self._evaluating = False
        self._drawn = 0  # completions that `generate` sampled in it, over all ranks
        self.choices = choices(policy, args, self._attention, trunk, sharded=sharded)
        begin = f"{args.batch_algebra()}\n{in_lines(self.choices)}"
        self.add_callback(SettingsCallback(begin, self.folder, lambda: self.settings or (args,)))
        self.add_callback(IterationCallback(args.updates_per_iteration, self.updates_per_pass))
        self.add_callback(self.guard)
        use_compact_progress(self, PPO_WATCHED, cycle=args.updates_per_iteration)

    def dtypes(self) -> dict[str, torch.dtype]:
        """Like `DurableTrainer.dtypes`, with the reward models that have a base of their own."""
        policy: Any = self.model
        found = {BASE: base_of(policy.model).dtype}
        if self.rewards is not None:
            found |= {f"reward model {name}": dtype for name, dtype in separate_dtypes(self.rewards).items()}
        return found

    # One iteration, as in the paper

    def make_experience(self, iteration: int, trajectories: list[Trajectory] | None = None) -> Experience:
        """Everything before the updates: sample, score, evaluate, shape the scores, estimate advantages.

        With `trajectories`, the scored completions of this rank, the first two are done already. Returns this rank's
        completions alone. What depends on all of them (moments, means, metrics) is of all ranks, and every rank takes
        part.
        """
        args = self.args
        if trajectories is None:
            self._start_iteration(iteration)
            assert self.prompts is not None
            seeds = self._seeds("train", iteration)
            with self._weights_to_sample(), self._failing():
                trajectories = self.sample_and_score(self.prompts.rows(iteration), seeds)
        with self._weights(), self._failing():
            self.evaluate_policy(trajectories)
        self.shaper.shape(trajectories)

        experience = Experience.from_trajectories(trajectories, self.kl_control.coef)
        mask = experience.mask
        if not global_sum(mask.sum()):
            raise InputError(f"no completion of iteration {iteration + 1} has a score; there is nothing to learn")
        penalty = 0.0 if args.kl_in_loss else experience.kl_coef
        experience.rewards = token_rewards(experience.scores, experience.kl, mask, penalty) + experience.token_scores
        if args.whiten_rewards:
            moments = global_moments(experience.rewards, mask)
            experience.rewards = whiten(experience.rewards, mask, center=False, moments=moments)
        experience.advantages, experience.returns = self.advantages(experience)

        if not self.warming_up:
            self.kl_control.update(mean_sequence_kl(experience), args.rollout_batch_size)
        metrics = iteration_metrics(trajectories, experience)
        if isinstance(self.engine, VLLMEngine):
            metrics["sampling/servers"] = float(self.engine.count_answering())
        self.iteration_log.add_rollout(iteration, trajectories, metrics)
        self.write_samples(trajectories, "train")
        return experience

    def make_micro_batches(self, iteration: int, trajectories: list[Trajectory] | None = None):
        """This rank's micro-batches of an iteration; None for those that are not learned from.

        Those are what is left after the guard stopped the iteration, and minibatches in which nothing counts: no token
        of a completion and, unless only the critic learns, no text. Every rank knows that of the whole minibatch.
        """
        experience = self.make_experience(iteration, trajectories)
        for batch in micro_batches(experience, self.args, iteration, self.texts):
            empty = batch.minibatch_tokens == 0 and (batch.minibatch_text_tokens == 0 or self.warming_up)
            yield None if self.guard.stopped or empty else batch

    def sample_and_score(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Trajectory]:
        """`sample`, then `score`; with `score_while_sampling`, part by part, each scored while the next is sampled."""
        size = self.args.generation_batch_size
        if not self.args.score_while_sampling or size is None:
            trajectories = self.sample(rows, seeds)
            self.score(trajectories)
            return trajectories
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]["prompt_ids"]))
        done: dict[int, Trajectory] = {}
        scored: list[Future[None]] = []
        scorer = ThreadPoolExecutor(1)
        try:
            for start in range(0, len(rows), size):
                part = by_length[start : start + size]
                trajectories = self.sample([rows[row] for row in part], [seeds[row] for row in part])
                scored.append(scorer.submit(self.score, trajectories))
                done.update(zip(part, trajectories, strict=True))
                for each in scored:
                    if each.done():
                        each.result()  # raises what the reward raised
            with self.iteration_log.timed("score"):
                for each in scored:
                    each.result()
        finally:
            scorer.shutdown(cancel_futures=True)
        return [done[row] for row in range(len(rows))]

    def sample(self, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> list[Trajectory]:
        """One completion for each row (with `prompt`, `prompt_ids` and any other column), drawn by the row's seed."""
        as_written = uncompiled() if self.args.torch_compile else nullcontext()
        with self.iteration_log.timed("sample"), as_written:
            kwargs: Any = self.args.chat_template_kwargs
            return collect(self.engine, rows, self.processing_class, self.args.sampling, seeds, kwargs)

    def score(self, trajectories: list[Trajectory]) -> None:
        """Fill in the rewards of completions; None stays where nothing scored."""
        if self.rewards is None:
            raise InputError("no reward: give reward_funcs, or own the loop with generate() and step()")
        with self.iteration_log.timed("score"), self.kept_states.share(trajectories):
            self.iteration_log.add_reward_metrics(self.rewards.score(trajectories, self.state))

    @torch.no_grad()
    def evaluate_policy(self, trajectories: list[Trajectory]) -> None:
        """Fill in log-probabilities, reference log-probabilities, KL, values and entropy by forward passes.

        All are of the distribution that the run's settings sample from, also for completions from elsewhere. An
        evaluation reads the KL alone, so that in one nothing else is filled in, and no pass of a critic is made.
        """
        for_updates = not self._evaluating
        estimator, sampling, size = self.args.kl_estimator, self.args.sampling, self.args.rollout_forward_batch_size
        with self.iteration_log.timed("evaluate"), keep_modes(self.policy):
            self.policy.eval()
            if sampling.truncated:
                fill_in_support(
                    self.policy.model, self.processing_class, trajectories, sampling, size, together=self._in_step
                )
            by_length = sorted(
                trajectories, key=lambda trajectory: len(trajectory.prompt_ids) + len(trajectory.completion.ids)
            )
            batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
            for batch in in_step(batches, []) if self._in_step else batches:
                sequences = Sequences.from_trajectories(batch) if batch else Sequences.of_one_token()
                sequences = sequences.to(self.args.device)
                output: Any = self.policy.forward(  # not by its hooks: FSDP's would shard the root again
                    sequences,
                    temperature=self.args.temperature,
                    values=for_updates,
                    entropy=for_updates,
                    reference=for_updates or estimator != FULL_KL,
                    full_kl=estimator == FULL_KL,
                    trunk_states=self.kept_states.of(sequences),
                )
                kl = output.kl
                if kl is None:
                    kl = kl_estimate(estimator, output.logprobs, output.reference_logprobs)
                for b, trajectory in enumerate(batch):
                    length = len(trajectory.completion.ids)
                    trajectory.kl = kl[b, :length].cpu()
                    for name in ("logprobs", "reference_logprobs", "values", "entropy"):
                        column = getattr(output, name)
                        setattr(trajectory, name, None if column is None else column[b, :length].cpu())
        require_finite(trajectories)

    def advantages(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """Advantages and returns `(B, T)` of the `B` completions that this rank sampled in the iteration.

        For what depends on the completions of all ranks see `global_sum`, `global_mean` and `global_moments` of
        `hf_rlhf.distributed`; every rank takes part in them.
        """
        args = self.args
        assert experience.rewards is not None
        of_lam = {
            lam: gae(experience.rewards, experience.values, experience.mask, args.gamma, lam)
            for lam in {args.lam, args.critic_lam}
        }
        advantages = of_lam[args.lam].advantages
        if args.whiten_advantages:
            moments = global_moments(advantages, experience.mask)
            advantages = whiten(advantages, experience.mask, moments=moments)
        return advantages, of_lam[args.critic_lam].returns

    def loss(self, output: PolicyOutput, experience: Experience) -> PPOLoss:
        """PPO's loss of one micro-batch, as a sum over its counted tokens."""
        return ppo_loss(output, experience, self.args, warming_up=self.warming_up)

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None):
        """`loss` of one micro-batch, as its share of the minibatch's mean over tokens."""
        args, batch = self.args, inputs["micro_batch"]
        self.policy.separate_reference()  # where a callback thawed weights since the last update
        experience: Experience = batch.experience.to(args.device)
        texts = None if batch.texts is None else batch.texts.to(args.device)
        output = model(
            experience.sequences,
            temperature=args.temperature,
            entropy=args.entropy_coef > 0,
            full_kl=args.full_kl_in_loss,
            texts=texts,
            trunk_states=self.kept_states.of(experience.sequences),
        )
        loss = self.loss(output, experience)
        tokens = experience.mask.sum()
        stats = {**loss.stats, "tokens": tokens}
        mean = loss.total / max(batch.minibatch_tokens, 1)
        if texts is not None:
            of_texts = text_loss(output, texts.mask)
            stats |= {"text_loss": of_texts.detach(), "text_tokens": texts.mask.sum()}
            mean = mean + args.ptx_coef * of_texts / batch.minibatch_text_tokens
        self.guard.add(stats)
        self.iteration_log.add_update(stats, output.logprobs.detach() - experience.logprobs)
        # DDP averages gradients over ranks, and the loss is a sum over all of them.
        mean = mean * args.world_size
        return (mean, output) if return_outputs else mean

    def drop_update(self) -> None:
        """Like `DurableTrainer.drop_update`, but also tell the guard, so that the update does not count as made."""
        super().drop_update()
        self.guard.refused = True

    def train(self, *args, **kwargs):
        """Like `DurableTrainer.train`, but reset the attention and the kept states at the end."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._reset_attention()

    # A loop that the user owns

    def generate(self, prompts: Sequence[Prompt | Sequence[int]]) -> list[Completion]:
        """Sample a completion for each prompt (text, messages or token ids), by the policy as it is now.

        The draws are those that `train` makes for the same prompts in the same iteration; another call before `step`
        makes new ones. Under several ranks, each gives its own prompts: every world_size-th of the whole.
        """
        if self._started != self.iteration:
            self._start_iteration(self.iteration)
        with failing_together():
            rows = self._given_prompts(prompts)
        seeds = self._seeds("train", self.iteration, len(rows), first=self._drawn)
        with self._weights_to_sample(), self._failing():
            trajectories = self.sample(rows, seeds)
        self._drawn += sum(gather_in_order([len(rows)]))
        return [trajectory.completion for trajectory in trajectories]

    def step(
        self,
        prompts: Sequence[Prompt | Sequence[int]],
        completions: Sequence[Completion | Sequence[int]],
        scores: Sequence[float | Sequence[float] | None] | Tensor,
        masks: Sequence[Sequence[bool]] | None = None,
    ) -> dict[str, float]:
        """One iteration of PPO on completions that the user sampled and scored; `train` makes the same updates.

        Args:
            prompts: as in `generate`.
            completions: of `generate`, or token ids from elsewhere; `rollout_batch_size` of them over all ranks. Ids
                have to be among those that `top_k`, `top_p` and `min_p` leave to the policy as it is now.
            scores: a number for each completion, a list with one for each of its tokens, or None for unscored.
            masks: for each completion, True where the policy sampled the token; by default everywhere.

        Returns the metrics of the iteration. Saves, logs and evaluates as the arguments say, and ends the run with the
        last of `max_steps`; a step beyond it raises `InputError`, as do scores and lengths that cannot be right.
        """
        if self._started != self.iteration:
            self._start_iteration(self.iteration)
        with failing_together():
            rows = self._given_prompts(prompts)
            causal_lm = base_of(self.policy.model)
            rules = TokenRules(
                vocab_size=causal_lm.config.get_text_config().vocab_size,
                stop_ids=stop_token_ids(causal_lm, self.processing_class, self.args.sampling),
                sampling=self.args.sampling,
                chat_template_kwargs=self.args.chat_template_kwargs,  # pyright: ignore
            )
            trajectories = given_trajectories(rows, completions, scores, masks, self.processing_class, rules)
        total = sum(gather_in_order([len(trajectories)]))
        if total != self.args.rollout_batch_size:
            raise InputError(f"step() got {total} completions over all ranks; {self.args.batch_algebra()}")
        try:
            self.run_updates(self.make_micro_batches(self.iteration, trajectories))
        finally:
            self._reset_attention()
        return self.iteration_log.last or self.iteration_log.finished()  # unless logging_steps passed it over

    def _given_prompts(self, prompts: Sequence[Prompt | Sequence[int]]) -> list[dict[str, Any]]:
        kwargs: Any = self.args.chat_template_kwargs
        rows = prompt_rows(prompts, self.processing_class, self.args.max_prompt_length, kwargs)
        self._stop_at_end_of_turn(rows[0])
        return rows

    def _stop_at_end_of_turn(self, row: Mapping[str, Any]) -> None:
        kwargs: Any = self.args.chat_template_kwargs
        stop_at_end_of_turn(self.policy.model, self.processing_class, row, self.args.sampling, kwargs)

    @staticmethod
    def _turns(prompts: Any) -> Any:
        """The columns of prompts that `stop_at_end_of_turn` reads; images stay encoded.

        All of a stream that names none.
        """
        names = prompts.column_names
        return prompts if names is None else prompts.select_columns(with_row_options(["prompt", "prompt_ids"], names))

    def close(self) -> None:
        """End the vLLM server that the run started, if it did; it also ends with the process, however that ends."""
        if isinstance(self.engine, VLLMEngine):
            self.engine.close()

    def predict_value(self, prompts: Sequence[Prompt | Sequence[int]]) -> list[float]:
        """Return the critic's expectation of a completion to each prompt, in scores minus KL penalty.

        Under FSDP every rank calls it, with prompts of its own or the same.
        """
        kwargs: Any = self.args.chat_template_kwargs
        value_model = ValueModel(self.policy.model, self.policy.critic, self.processing_class)
        with self._weights():
            return value_model.predict_value(prompts, chat_template_kwargs=kwargs, together=self._in_step)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample completions for evaluation prompts; log `eval_reward`, `eval_kl` and more.

        The draws are the same each time.
        """
        prepared: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(prepared, str):
            prepared = self.eval_dataset[prepared]
        if isinstance(prepared, Mapping):
            metrics: dict[str, float] = {}
            for key, part in prepared.items():
                metrics.update(self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{key}"))
            return metrics
        if prepared is None:
            raise InputError("evaluation needs an eval_dataset; give one to PPOTrainer or to evaluate()")
        if not any(prepared is each for each in self._eval_sets):
            prompts = prepared_evaluation(prepared, self.processing_class, self.args)
            if self.rewards is not None:
                require_scorable(self.rewards, prompts, self.processing_class, self.args, "eval_dataset")
            prepared = rows_of(prompts)
        self._stop_at_end_of_turn(self._turns(prepared)[0])

        start = time.perf_counter()
        rows = take_share(list(range(len(prepared))))
        seeds = self._seeds("eval", 0, len(rows))
        with self.iteration_log.set_aside(), self.kept_states.set_aside():
            with self._weights_to_sample(), self._failing():
                trajectories = self.sample_and_score([prepared[row] for row in rows], seeds)
            with self._weights(), self._failing():
                self._evaluating = True
                try:
                    self.evaluate_policy(trajectories)
                finally:
                    self._evaluating = False
            logged = self.iteration_log.reward_metrics()
        metrics = {**evaluation_metrics(trajectories), **logged, "runtime": time.perf_counter() - start}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.write_samples(trajectories, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Sharded weights

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

    def _weights_to_sample(self) -> AbstractContextManager[None]:
        """Hold the weights for an engine that samples by the policy itself; a server never meets sharded ones."""
        return nullcontext() if isinstance(self.engine, VLLMEngine) else self._weights()

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

    def _compile(self, policy: PolicyWithValue) -> None:
        for model in policy.transformers_models():
            compile_blocks(model, self.args.torch_compile_backend, self.args.torch_compile_mode)
        # accelerate would compile the whole module, adapters switched inside it and all
        self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=DynamoBackend.NO)

    def _reset_attention(self) -> None:
        set_attention(dict.fromkeys(self._attention, FUSED))  # with which what is saved will be loaded
        self.kept_states.clear()
        self._started = None  # an iteration that is begun again sets it again

    def _seeds(self, purpose: str, iteration: int, count: int | None = None, first: int = 0) -> list[int]:
        """A seed for each of this rank's draws: of the run, the iteration and the place in the whole batch."""
        whole = self.args.rollout_batch_size if count is None else sum(gather_in_order([count]))
        places = take_share(list(range(first, first + whole)))
        return [row_seed(self.args.seed, purpose, iteration, place) for place in places]

    def algorithm_state(self) -> dict[str, Any]:
        """KL coefficient, running moments of the rewards, and counters."""
        return {
            "kl_coef": self.kl_control.coef,
            "tokens_sampled": self.iteration_log.tokens_sampled,
            "score_moments": self.shaper.state_dict(),
        }

    def load_algorithm_state(self, state: dict[str, Any]) -> None:
        """Restore what `algorithm_state` returned."""
        if self.args.kl_target is not None:  # without one it is the flag, which may be changed in the middle of a run
            self.kl_control.coef = state["kl_coef"]
        self.iteration_log.tokens_sampled = state["tokens_sampled"]
        self.shaper.load_state_dict(state["score_moments"])
