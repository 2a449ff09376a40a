"""`PPOTrainer`: PPO with a value head, in the loop of `transformers.Trainer`.

Trainer owns the optimizer, its schedule, clipping, accumulation, DDP, callbacks, trackers, checkpoints and the Hub. This
file feeds it: a training batch is a micro-batch of experience, and experience is made when the first update of an
iteration asks for it. `make_experience` is one iteration of the paper up to the updates, `compute_loss` is the updates.
"""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_rlhf.data.prompts import prepare_prompts, require_rows
from hf_rlhf.distributed import gather_in_order, take_share
from hf_rlhf.errors import InputError
from hf_rlhf.models.heads import ValueHead
from hf_rlhf.models.load import load_causal_lm, load_tokenizer
from hf_rlhf.models.policy import PolicyWithValue, disable_dropout, wrap_policy
from hf_rlhf.ops import (
    clipped_policy_loss,
    clipped_value_loss,
    gae,
    kl_estimate,
    masked_mean,
    masked_sum,
    token_rewards,
    whiten,
)
from hf_rlhf.ppo.callbacks import PPO_WATCHED, IterationCallback
from hf_rlhf.ppo.config import PPOConfig, check_context_length
from hf_rlhf.ppo.experience import Experience, ExperienceLoader, require_finite
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.metrics import (
    objective_metrics,
    reward_metrics,
    rollout_metrics,
)
from hf_rlhf.ppo.prompts import PromptStream
from hf_rlhf.progress import use_compact_progress
from hf_rlhf.records import (
    CONFIG_FILE,
    METRICS_FILE,
    SAMPLES_FILE,
    append_json_line,
    drop_rows_after,
    sample_rows,
    write_settings,
)
from hf_rlhf.rewards.sources import RewardSource, resolve_rewards
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import Engine, TransformersEngine
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.types import Model, Sequences, Trajectory

STATE_FILE = "ppo_state.json"


class PPOTrainer(Trainer):
    """Train a causal language model with PPO against one or more rewards.

    Args:
        model: path or name, model, or `PeftModel` (whose adapter then is both the start and the frozen reference).
        reward_funcs: one or more of: a callable by TRL's reward-function contract, the path of a reward model, a
            sequence-classification model.
        args: see `PPOConfig`.
        train_dataset: rows with `prompt` (text or messages) and any columns the rewards want.
        eval_dataset: the same, or a dict of such sets.
        processing_class: the policy's tokenizer; by default that of `model`.
        reward_processing_classes: a tokenizer for each reward that is a model object; None elsewhere.
        peft_config: a LoRA config to wrap the policy with.
        ref_model: a reference of its own; by default see `PolicyWithValue`.
        value_head: the critic's start, such as that of an earlier run; by default one that says 0.
        callbacks, optimizers: as in `transformers.Trainer`.

    Raises:
        InputError: wrong settings, data or models, before anything is trained.
        FloatingPointError: a NaN or infinite loss, value or logit, named with its update.
    """

    args: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    eval_dataset: Any
    loss_is_scaled_for_ga = True  # losses are divided once by the tokens of the whole minibatch

    def __init__(
        self,
        model: str | Model,
        reward_funcs: RewardSource | Sequence[RewardSource],
        args: PPOConfig,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        reward_processing_classes=None,
        peft_config=None,
        ref_model: Model | None = None,
        value_head: ValueHead | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
    ):
        set_seed(args.seed)  # before the adapter's random start
        if processing_class is None:
            processing_class = load_tokenizer(model if isinstance(model, str) else model.config._name_or_path)
        self.prompt_set = self._prepared(train_dataset, processing_class, args, "train_dataset")
        require_rows(self.prompt_set, args.rollout_batch_size, source="train_dataset", why=f"{args.batch_algebra()}")
        eval_sets: Any
        if isinstance(eval_dataset, Mapping):
            eval_sets = {key: self._prepared(value, processing_class, args, key) for key, value in eval_dataset.items()}
        else:
            eval_sets = eval_dataset
            if eval_dataset is not None:
                eval_sets = self._prepared(eval_dataset, processing_class, args, "eval_dataset")

        if isinstance(model, str):
            causal_lm = load_causal_lm(model, dtype="float32" if peft_config is None else "bfloat16")
        else:
            causal_lm = model
        policy = PolicyWithValue(wrap_policy(causal_lm, peft_config), value_head, ref_model)
        check_context_length(policy.config, args)
        if args.disable_dropout:
            disable_dropout(policy)
        rewards = resolve_rewards(
            reward_funcs,
            reward_processing_classes,
            policy=policy.model,
            device=args.device,
            weights=args.reward_weights,
        )
        super().__init__(
            model=policy,
            args=args,
            train_dataset=self.prompt_set,
            eval_dataset=eval_sets,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.is_fsdp_enabled or (self.is_deepspeed_enabled and is_deepspeed_zero3_enabled()):
            raise InputError(
                "PPO does not run under FSDP or ZeRO-3 yet: sampling would meet sharded weights; use DDP or ZeRO-2, with a"
                " 4-bit base (load_in_4bit) where memory is short"
            )
        self.model_accepts_loss_kwargs = True  # what `loss_is_scaled_for_ga` was called before transformers had it
        self.policy: PolicyWithValue = self.model  # pyright: ignore[reportAttributeAccessIssue]
        self.rewards = rewards
        self.engine: Engine = TransformersEngine(
            self.policy.model,
            processing_class,
            args.generation_batch_size or args.rollout_batch_size // args.world_size,
        )
        self.kl_control = args.kl_control()
        self.stream = PromptStream(len(self.prompt_set), args.rollout_batch_size, args.seed)
        self.iteration_log = IterationLog(args.rollout_batch_size)
        self.add_callback(IterationCallback(args.updates_per_iteration))
        use_compact_progress(self, PPO_WATCHED)

    # One iteration, as in the paper

    def make_experience(self, iteration: int) -> Experience:
        """Collect, score, evaluate, shape the rewards and estimate advantages: everything before the updates."""
        args = self.args
        self.iteration_log.start()
        trajectories = self.sample(take_share(self.stream.prompts(iteration)), "train")
        self.score(trajectories)
        self.evaluate_policy(trajectories)
        trajectories = gather_in_order(trajectories)

        experience = Experience.from_trajectories(trajectories)
        mask = experience.mask
        if not mask.any():
            raise InputError(f"no reward scored any completion of iteration {iteration + 1}; there is nothing to learn")
        kl = kl_estimate(args.kl_estimator, experience.logprobs, experience.reference_logprobs)
        kl_coef = self.kl_control.coef
        experience.rewards = token_rewards(experience.scores, kl, mask, kl_coef)
        if args.whiten_rewards:
            experience.rewards = whiten(experience.rewards, mask, center=False)
        experience.advantages, experience.returns = self.advantages(experience)

        sequence_kl = masked_mean(masked_sum(kl, mask, dim=1), mask.any(dim=1)).item()
        self.kl_control.update(sequence_kl, len(experience))
        objective = objective_metrics(experience, kl, kl_coef)
        self.iteration_log.add_rollout(iteration, trajectories, [trajectory.reward for trajectory in trajectories], objective)
        self._write_samples(trajectories, "train")
        return experience

    def sample(self, prompts: list[tuple[int, int]], purpose: str, dataset=None) -> list[Trajectory]:
        """Sample a completion for each `(pass, row)` of the prompts."""
        dataset = self.prompt_set if dataset is None else dataset
        seeds = [row_seed(self.args.seed, purpose, number, row) for number, row in prompts]
        rows = [dataset[row] for _, row in prompts]
        with self.iteration_log.timed("sample"):
            return collect(self.engine, rows, self.processing_class, self.args.sampling, seeds)

    def score(self, trajectories: list[Trajectory]) -> None:
        """Fill in rewards and score; a completion that did not stop pays `missing_eos_penalty`."""
        with self.iteration_log.timed("score"):
            self.rewards.score(trajectories)
        for trajectory in trajectories:
            if trajectory.score is not None and not trajectory.completion.stopped:
                trajectory.score -= self.args.missing_eos_penalty or 0.0

    @torch.no_grad()
    def evaluate_policy(self, trajectories: list[Trajectory]) -> None:
        """Fill in log-probabilities, reference log-probabilities, values and entropy by forward passes."""
        training = self.policy.training
        self.policy.eval()
        with self.iteration_log.timed("evaluate"):
            by_length = sorted(
                trajectories, key=lambda trajectory: len(trajectory.prompt_ids) + len(trajectory.completion.ids)
            )
            for start in range(0, len(by_length), self.args.rollout_forward_batch_size):
                batch = by_length[start : start + self.args.rollout_forward_batch_size]
                sequences = Sequences.from_trajectories(batch).to(self.args.device)
                temperature = self.args.temperature
                policy = self.policy(sequences, temperature=temperature, entropy=True)
                reference = self.policy(sequences, temperature=temperature, reference=True)
                for b, trajectory in enumerate(batch):
                    length = len(trajectory.completion.ids)
                    trajectory.logprobs = policy.logprobs[b, :length].cpu()
                    trajectory.reference_logprobs = reference.logprobs[b, :length].cpu()
                    trajectory.values = policy.values[b, :length].cpu()
                    trajectory.entropy = policy.entropy[b, :length].cpu()
        self.policy.train(training)
        require_finite(trajectories)

    def advantages(self, experience: Experience) -> tuple[Tensor, Tensor]:
        """Advantages and returns `(B, T)` of the whole iteration."""
        assert experience.rewards is not None
        advantages, returns = gae(
            experience.rewards, experience.values, experience.mask, self.args.gamma, self.args.lam
        )
        if self.args.whiten_advantages:
            advantages = whiten(advantages, experience.mask)
        return advantages, returns

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs=False, num_items_in_batch=None):
        """The clipped policy and value losses of one micro-batch, as its share of the minibatch's mean over tokens."""
        args, batch = self.args, inputs["micro_batch"]
        experience: Experience = batch.experience.to(args.device)
        mask = experience.mask
        assert experience.advantages is not None
        assert experience.returns is not None
        output = model(experience.sequences, temperature=args.temperature)
        policy = clipped_policy_loss(output.logprobs, experience.logprobs, experience.advantages, mask, args.cliprange)
        value = clipped_value_loss(output.values, experience.values, experience.returns, mask, args.value_clip)
        loss_sum = policy.loss + args.vf_coef * value.loss
        if not torch.isfinite(loss_sum):
            raise FloatingPointError(
                f"the PPO loss is {loss_sum.item()} at update {self.state.global_step + 1} (policy loss"
                f" {policy.loss.item()}, value loss {value.loss.item()}, sums over {int(mask.sum())} tokens); the weights"
                " are those of the update before. Try a lower learning_rate, or dtype bfloat16 instead of float16"
            )
        self.iteration_log.add_update(policy, value, output.logprobs.detach() - experience.logprobs, mask)
        # DDP averages gradients over ranks, and the loss is a sum over all of them.
        loss = loss_sum / max(batch.minibatch_tokens, 1) * args.world_size
        return (loss, output) if return_outputs else loss

    # How experience reaches Trainer

    def get_train_dataloader(self):
        """Micro-batches of experience; not a DataLoader, which would read a batch ahead of the policy's last update."""
        return ExperienceLoader(
            self.args, len(self.prompt_set), next_iteration=lambda: self.iteration, make_experience=self.make_experience
        )

    def set_initial_training_values(self, args, dataloader):
        """Turn `total_episodes`, epochs or `max_steps` into the steps of whole iterations; otherwise as in Trainer."""
        if self.args.total_episodes is not None:
            iterations = -(-self.args.total_episodes // self.args.rollout_batch_size)
        else:
            *_, max_steps = super().set_initial_training_values(args, dataloader)
            iterations = -(-max_steps // self.args.updates_per_iteration)
        args = copy.copy(args)
        args.max_steps = iterations * self.args.updates_per_iteration
        return super().set_initial_training_values(args, dataloader)

    def _prepare_inputs(self, inputs):
        return inputs

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(str(self.args.output_dir))

    @property
    def iteration(self) -> int:
        """PPO iterations finished."""
        return self.state.global_step // self.args.updates_per_iteration

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Sample completions for evaluation prompts, the same draws each time; log `eval_reward`, `eval_kl` and more."""
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
        if "prompt_ids" not in prepared.column_names:
            prepared = self._prepared(prepared, self.processing_class, self.args, "eval_dataset")

        start = time.perf_counter()
        trajectories = self.sample(take_share([(0, row) for row in range(len(prepared))]), "eval", prepared)
        self.score(trajectories)
        self.evaluate_policy(trajectories)
        trajectories = gather_in_order(trajectories)
        kls = [
            kl_estimate(self.args.kl_estimator, trajectory.logprobs, trajectory.reference_logprobs).sum().item()  # pyright: ignore
            for trajectory in trajectories
        ]
        metrics = {
            **reward_metrics([trajectory.reward for trajectory in trajectories]),
            "kl": sum(kls) / len(kls),
            **rollout_metrics(trajectories),
            "runtime": time.perf_counter() - start,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self._write_samples(trajectories, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Records

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log to trackers and metrics.jsonl. At the end of an iteration, everything known about it is added."""
        if "grad_norm" in logs or "loss" in logs:
            logs = {**logs, **self.iteration_log.finished(), "lr": logs["learning_rate"]}
        logs.pop("total_flos", None)  # Trainer cannot count them here, and says 0
        super().log(logs, start_time)
        if self.is_world_process_zero():
            folder = self.folder
            folder.mkdir(parents=True, exist_ok=True)
            append_json_line(folder / METRICS_FILE, {"step": self.state.global_step, **logs})

    def _write_samples(self, trajectories: list[Trajectory], split: str) -> None:
        if self.is_world_process_zero():
            folder = self.folder
            folder.mkdir(parents=True, exist_ok=True)
            for row in sample_rows(trajectories, self.state.global_step, split, self.args.num_logged_samples):
                append_json_line(folder / SAMPLES_FILE, row)

    # Saving and resuming

    def train(self, *args, **kwargs):
        """As `Trainer.train`; prints the batch algebra and writes config.yaml and versions.json first."""
        if self.is_world_process_zero():
            print(self.args.batch_algebra())
            if not (self.folder / CONFIG_FILE).exists():  # a recipe has written more than Trainer knows
                write_settings(self.folder, self.args)
        return super().train(*args, **kwargs)

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: the recipes write the card, and Trainer's draft would take its place."""

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        if self.args.should_save:
            folder = output_dir or self.folder
            self.policy.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)  # pyright: ignore

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            state = {"kl_coef": self.kl_control.coef, "tokens_sampled": self.iteration_log.tokens_sampled}
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        self.policy.load_weights(resume_from_checkpoint)
        file = Path(resume_from_checkpoint) / STATE_FILE
        if not file.is_file():
            raise InputError(f"{resume_from_checkpoint}: no {STATE_FILE}; it is not a checkpoint of a PPO run")
        state = json.loads(file.read_text(encoding="utf-8"))
        step = json.loads((Path(resume_from_checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))[
            "global_step"
        ]
        if step % self.args.updates_per_iteration:
            raise InputError(
                f"{resume_from_checkpoint} was taken at update {step}, inside an iteration of"
                f" {self.args.updates_per_iteration} updates; resume with the num_ppo_epochs and num_mini_batches it had"
            )
        if self.is_world_process_zero():
            for name in (METRICS_FILE, SAMPLES_FILE):
                drop_rows_after(self.folder / name, step)
        self.kl_control.coef = state["kl_coef"]
        self.iteration_log.tokens_sampled = state["tokens_sampled"]

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self.policy.load_weights(self.state.best_model_checkpoint)

    # Preparing

    @staticmethod
    def _prepared(dataset, tokenizer, args: PPOConfig, source: str):
        return prepare_prompts(
            dataset,
            tokenizer,
            max_prompt_length=args.max_prompt_length,
            source=source,
            overlong_prompts=args.overlong_prompts,  # pyright: ignore
        )
