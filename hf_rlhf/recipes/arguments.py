"""The flags of the recipes, besides those of `PPOConfig`."""

import copy
import difflib
import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import is_liger_kernel_available
from trl import ModelConfig, RewardConfig, SFTConfig

from hf_rlhf.checkpoint.computation import AUTOCAST, recorded_computation
from hf_rlhf.distributed import rank
from hf_rlhf.errors import InputError, refusals_of_libraries
from hf_rlhf.models.load import EMBEDDED_MODEL
from hf_rlhf.models.lora_targets import in_last_blocks, share_of_blocks
from hf_rlhf.models.precision import NATIVE, dtype_name, native_dtype, warn_of_slow_bfloat16
from hf_rlhf.ops.preference import BINARY, BRADLEY_TERRY, COMBINATIONS, REWARD_LOSSES
from hf_rlhf.progress import say
from hf_rlhf.recipes.mixture import MixtureDataset, require_fractions
from hf_rlhf.training.best import Directions, require_best_metric, settle_best_metric
from hf_rlhf.training.early_stopping import settle_early_stopping
from hf_rlhf.types import Model

# The metrics of trl's evaluations, without `eval_`: whether more is better, None where that depends.
SFT_EVALUATED: Directions = {"loss": False, "mean_token_accuracy": True, "entropy": None}
REWARD_EVALUATED: Directions = {
    "loss": False,
    "accuracy": True,
    "margin": True,
    "min_reward": None,
    "mean_reward": None,
    "max_reward": None,
}


def flag(default: Any, text: str) -> Any:
    """Return a field of a dataclass of flags, with its help."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments(ModelConfig):
    """TRL's model flags with defaults for one small machine: a frozen base and LoRA on every linear layer."""

    model_name_or_path: str = flag(EMBEDDED_MODEL, "Hub name, folder, adapter folder, or an embedded model.")
    dtype: str = flag(
        NATIVE,
        "Dtype of the frozen base: native (bfloat16 where the device multiplies it in hardware, else float32),"
        " bfloat16, float16, float32, or auto (that of the checkpoint).",
    )
    use_peft: bool = flag(True, "Train LoRA adapters; false trains the model's own weights.")
    lora_dropout: float = flag(0.0, "LoRA dropout; PPO switches it off in any case.")
    lora_target_modules: list[str] | None = flag(None, "Layers that get LoRA; by default every linear one.")
    lora_layers: str = flag(
        "all", "Blocks that get LoRA: all, a number of last blocks (8), or a share of them (0.25), for faster updates."
    )

    def __post_init__(self):
        self.lora_target_modules = self.lora_target_modules or ["all-linear"]
        super().__post_init__()  # which makes one name a text, and PEFT reads a text as a regular expression
        if isinstance(self.lora_target_modules, str) and re.fullmatch(r"[\w.]+", self.lora_target_modules):
            self.lora_target_modules = [self.lora_target_modules]
        if self.use_peft:
            self._check_lora()
        elif self.lora_layers != "all":
            raise InputError(
                f"lora_layers={self.lora_layers} is invalid with use_peft=false, which trains no LoRA. Omit it."
                " To train the last blocks alone, hf-rlhf ppo has num_layers_unfrozen."
            )

    def _check_lora(self) -> None:
        targets = self.lora_target_modules
        rules = {
            "lora_r": (self.lora_r >= 1, "at least 1. To train every weight, set use_peft to false"),
            "lora_alpha": (self.lora_alpha >= 1, "at least 1: LoRA is scaled by it, and 0 trains nothing"),
            "lora_dropout": (0 <= self.lora_dropout < 1, "from 0 to below 1"),
            "lora_task_type": (
                self.lora_task_type in ("CAUSAL_LM", "SEQ_CLS"),
                "omitted: the command decides what is trained",
            ),
            "lora_target_modules": (
                isinstance(targets, str) or "all-linear" not in (targets or ()),
                "all-linear alone, or names of layers without it",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)} is invalid: it must be {rule}.")
        share_of_blocks(self.lora_layers)

    def on(self, device: torch.device, checkpoint: str | None = None) -> "ModelArguments":
        """Return these flags with the `dtype` that `native` stands for on `device`.

        A run that resumes from `checkpoint` keeps the dtype of its base, and says so where another one is native here.
        A bfloat16 base that is slow on this device is answered with a warning. A run that trains every weight has
        float32 on every device.
        """
        resolved = copy.copy(self)
        if self.dtype == NATIVE and not self.use_peft:
            resolved.dtype = "float32"
        elif self.dtype == NATIVE:
            native = dtype_name(native_dtype(device))
            resolved.dtype = native if checkpoint is None else recorded_computation(checkpoint).base or native
            if resolved.dtype != native and rank() == 0:
                say(
                    f"dtype: {resolved.dtype}, as in {Path(str(checkpoint)).name}; native on this {device.type} is"
                    f" {native}. To compute in that from here on, pass --dtype {native}"
                )
        if resolved.dtype == "bfloat16" and self.use_peft and rank() == 0:
            warn_of_slow_bfloat16(device)
        return resolved

    def load_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments for `from_pretrained`."""
        from trl import get_quantization_config

        kwargs: dict[str, Any] = {"dtype": self.dtype, "revision": self.model_revision}
        if self.attn_implementation:
            kwargs["attn_implementation"] = self.attn_implementation
        with refusals_of_libraries(self):
            if quantization := get_quantization_config(self):
                kwargs["quantization_config"] = quantization
        return kwargs


@dataclass
class DataArguments:
    """Rows to train and evaluate on, and the choice to resume a run."""

    dataset_name: str | None = flag(None, "Hub name, folder, or .jsonl, .json, .csv, .parquet file (also .gz).")
    datasets: list[MixtureDataset] | None = flag(
        None,
        "A mixture instead of dataset_name: in YAML a list of path, name, split, columns, fraction; or paths.",
    )
    dataset_config: str | None = flag(None, "Configuration of a Hub dataset.")
    dataset_train_split: str = flag("train", "Split to train on.")
    dataset_test_split: str = flag("test", "Split to evaluate on, when eval_strategy or do_eval asks for it.")
    eval_dataset_name: str | None = flag(None, "Separate dataset to evaluate on; by default a split of dataset_name.")
    eval_fraction: float | None = flag(None, "Hold out this share of the prompts to evaluate on, with all their rows.")
    max_train_samples: int | None = flag(None, "Use only the first rows, of a mixture those of each dataset.")
    max_eval_samples: int | None = flag(None, "Evaluate only on the first rows.")
    skip_bad_rows: int = flag(0, "Skip up to this many unusable rows of each dataset; one more is an error.")
    resume: str | None = flag(
        None,
        "auto (the newest whole checkpoint of output_dir, or a new run if there is none), last (the same, but an error"
        " if there is none), a checkpoint, or never.",
    )

    def __post_init__(self):
        self.datasets = [MixtureDataset.of(each) for each in self.datasets] if self.datasets else None
        if self.datasets and self.dataset_name is not None:
            raise InputError("dataset_name and datasets name what to train on. Give one of them")
        require_fractions(self.datasets or ())
        if self.eval_fraction is None:
            return
        if not 0 < self.eval_fraction < 1:
            raise InputError(f"eval_fraction={self.eval_fraction} is invalid: it must be above 0 and below 1")
        if self.eval_dataset_name is not None:
            raise InputError("eval_fraction and eval_dataset_name both name what to evaluate on. Give one of them")

    def dataset_names(self) -> list[str]:
        """Return the names of all that is trained on."""
        return [each.path for each in self.datasets or ()] + ([self.dataset_name] if self.dataset_name else [])


@dataclass
class PPOArguments(DataArguments):
    """Prompts, rewards and texts of a PPO run."""

    reward_model_path: str | None = flag(None, "Folder or Hub name of a trained reward model.")
    require_report_card: bool = flag(
        False, "Refuse a reward model without a report card of its weights, or whose card says: do not use."
    )
    ref_model_path: str | None = flag(
        None, "Model that the KL is measured to: a base, or an adapter on it; by default where the policy starts."
    )
    reward_funcs: list[str] | None = flag(None, "More rewards: models, file.py:name, or named ones (regex:pattern=a).")
    environment: str | None = flag(
        None, "Episodes of several turns: file.py:Class, or a named one (dialogue:column=user_turns)."
    )
    ptx_dataset_name: str | None = flag(None, "Texts for the language-model loss of PPO-ptx, with ptx_coef.")
    ptx_dataset_config: str | None = flag(None, "Configuration of ptx_dataset_name, for a Hub dataset.")
    ptx_dataset_split: str = flag("train", "Split of ptx_dataset_name.")
    chat_template_path: str | None = flag(None, "A Jinja file to use as the tokenizer's chat template.")
    held_out_reward: str | None = flag(
        None,
        "A reward that is measured and not paid, such as a reward model of other preferences: the checkpoint that is"
        " best by it is kept.",
    )
    held_out_patience: int | None = flag(
        None, "Stop after so many evaluations in a row that are not better by held_out_reward."
    )
    frontier_best_of_n: int | None = flag(
        None, "With held_out_reward: also measure the best of so many completions of the start, to compare with."
    )
    doctor: bool = flag(True, "Warn during the run of what its numbers show to be wrong, and write doctor.json.")
    doctor_stop: list[str] | None = flag(None, "Findings of the doctor that end the run, such as kl_grows.")


@dataclass
class RewardArguments(DataArguments):
    """Data of a reward model, its loss, and the form in which it is saved."""

    reward_loss: str = flag(
        BRADLEY_TERRY,
        "Loss: bradley_terry (trl's, on pairs); on rows of prompt, completions and ratings, k_wise (all pairs of a"
        " prompt together), plackett_luce (the ranking), regression (the ratings) or binary (ratings that are 0 or 1).",
    )
    save_merged: bool = flag(True, "Also write merged/, a plain classifier that pipeline() loads.")
    use_margin: bool | None = flag(
        None, "Take margins into the loss; by default those of a column margin, and none made of scores or ratings."
    )
    rating_weights: list[str] | None = flag(
        None, "Attributes whose weighted sum is the rating of a HelpSteer row, as helpfulness:0.7 correctness:0.3."
    )
    min_precision: float | None = flag(
        None, "With reward_loss=binary: choose the threshold of the highest recall that has this precision."
    )
    min_recall: float | None = flag(
        None, "With reward_loss=binary: choose the threshold of the highest precision that has this recall."
    )
    num_reward_models: int = flag(
        1, "Train so many adapters on one base, from different seeds: an ensemble, which is a reward as one model is."
    )
    ensemble_halves: bool = flag(False, "Train each member of an ensemble on a random half of the prompts.")
    ensemble_reward: str = flag(
        "mean", "The reward of an ensemble: mean, min, or mean_minus_std (of its members' rewards)."
    )
    ensemble_std_coef: float = flag(1.0, "Lambda of mean_minus_std: mean - lambda x standard deviation.")

    @property
    def rates(self) -> bool:
        """True if the loss takes rated groups, and not pairs."""
        return self.reward_loss != BRADLEY_TERRY

    def __post_init__(self):
        super().__post_init__()
        self.weights_of_ratings()
        if self.reward_loss not in REWARD_LOSSES:
            close = difflib.get_close_matches(self.reward_loss, REWARD_LOSSES, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise InputError(
                f"reward_loss={self.reward_loss} is invalid: it must be one of {', '.join(REWARD_LOSSES)}.{meant}"
            )
        self._check_threshold()
        if self.num_reward_models < 1:
            raise InputError(f"num_reward_models={self.num_reward_models} is invalid: it must be at least 1.")
        if self.ensemble_halves and self.num_reward_models == 1:
            raise InputError(
                "ensemble_halves=True is invalid with num_reward_models=1, which is no ensemble. Set that to 2 or more."
            )
        if self.ensemble_reward not in COMBINATIONS:
            raise InputError(
                f"ensemble_reward={self.ensemble_reward} is invalid: it must be one of {', '.join(COMBINATIONS)}."
            )
        if not 0 <= self.ensemble_std_coef < float("inf"):
            raise InputError(f"ensemble_std_coef={self.ensemble_std_coef} is invalid: it must be 0 or above.")

    def _check_threshold(self) -> None:
        limits = {name: getattr(self, name) for name in ("min_precision", "min_recall")}
        for name, limit in limits.items():
            if limit is None:
                continue
            if self.reward_loss != BINARY:
                raise InputError(
                    f"{name}={limit} is invalid with reward_loss={self.reward_loss}: only labels have a threshold. Omit"
                    f" it, or set reward_loss to {BINARY}."
                )
            if not 0 < limit <= 1:
                raise InputError(f"{name}={limit} is invalid: it must be above 0 and at most 1.")
        if None not in limits.values():
            raise InputError(
                f"min_precision={self.min_precision} is invalid with min_recall={self.min_recall}: one of them is the"
                " limit, and the other is made as high as can be. Give one."
            )

    def weights_of_ratings(self) -> dict[str, float]:
        """Return `rating_weights` by attribute. Raises `InputError` for what is no weight."""
        weights = {}
        for each in self.rating_weights or ():
            name, _, weight = each.rpartition(":")
            try:
                weights[name] = float(weight)
            except ValueError:
                weights[name] = math.nan
            if not name or not math.isfinite(weights[name]):
                raise InputError(
                    f"rating_weights={each} is invalid: it must be an attribute and its weight, as helpfulness:0.7"
                )
        return weights


def _check_training(args: Any, evaluated: Directions, stops_by: str) -> None:
    """Raise `InputError` for what trl's configs take and its trainers refuse late, or do not refuse.

    `stops_by` is the metric that early stopping follows by default.
    """
    settle_early_stopping(args, stops_by)
    if (args.neftune_noise_alpha or 0) < 0:
        raise InputError(f"neftune_noise_alpha={args.neftune_noise_alpha} is invalid: it must be 0 or above")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise InputError("use_liger_kernel=True is invalid: its package is missing. Run `pip install liger-kernel`")
    settle_best_metric(args, evaluated)
    require_best_metric(args, evaluated)


def _fit_to_machine(training: Any) -> None:
    """Set what depends on the device, before TRL sets its own; refuse a push before the end."""
    if str(training.hub_strategy) not in ("end", "HubStrategy.END"):
        raise InputError(
            f"hub_strategy={training.hub_strategy} is invalid: a push in the background may fail unnoticed. Set it to"
            " end"
        )
    training.use_cpu = training.use_cpu or not torch.accelerator.is_available()  # bf16 on a CPU has to be asked for
    if training.bf16 is None and not training.fp16:  # TRL's own default is True
        training.bf16 = native_dtype("cpu" if training.use_cpu else None) == torch.bfloat16
        training.has_native_autocast = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") == "no"


class _Autocast:
    """The autocast of a run of trl's trainers."""

    has_native_autocast = False
    """True if neither a flag nor the launcher chose the autocast. It is no flag itself."""

    def with_autocast_of(self: Any, checkpoint: str | None) -> Any:
        """Return these settings with the autocast of `checkpoint`; the same object where that is theirs already.

        A run whose flags or launcher chose the autocast keeps that one. fp16 is native nowhere: who resumes a run with
        it sets the flag again.
        """
        if checkpoint is None or not self.has_native_autocast:
            return self
        recorded = recorded_computation(checkpoint).dtypes.get(AUTOCAST, "")
        kept = {"bf16": True, "no": False}.get(recorded, self.bf16)
        # made anew, since DeepSpeed's plugin takes the autocast when the settings are made
        return self if kept == self.bf16 else replace(self, bf16=kept)


@dataclass
class _EarlyStopping:
    """The end of a run of trl's trainers before its last epoch."""

    early_stopping_patience: int | None = flag(
        None,
        "Stop after so many evaluations in a row without a better metric_for_best_model (by default the accuracy of a"
        " reward model, the loss of sft), and keep the best checkpoint. Needs eval_strategy, and save_strategy alike.",
    )
    early_stopping_threshold: float = flag(0.0, "By how much an evaluation has to be better, to count as better.")


@dataclass
class RewardTrainingArguments(_Autocast, _EarlyStopping, RewardConfig):
    """TRL's `RewardConfig` with gradient checkpointing off by default: with LoRA it rarely pays."""

    gradient_checkpointing: bool | None = flag(None, "Trade compute for memory.")
    logging_nan_inf_filter: bool = flag(False, "Must stay off: it would log a NaN loss as 0.")
    hub_strategy: str = flag("end", "Must be end: what Trainer pushes before, in the background, may fail unseen.")

    def __post_init__(self):
        _fit_to_machine(self)
        _check_training(self, REWARD_EVALUATED, "accuracy")
        super().__post_init__()


@dataclass
class SFTTrainingArguments(_Autocast, _EarlyStopping, SFTConfig):
    """TRL's `SFTConfig` with gradient checkpointing off by default."""

    gradient_checkpointing: bool | None = flag(None, "Trade compute for memory.")
    logging_nan_inf_filter: bool = flag(False, "Must stay off: it would log a NaN loss as 0.")
    hub_strategy: str = flag("end", "Must be end: what Trainer pushes before, in the background, may fail unseen.")

    def __post_init__(self):
        _fit_to_machine(self)
        _check_training(self, SFT_EVALUATED, "loss")
        super().__post_init__()


def peft_config(model_args: ModelArguments, model: Model) -> Any:
    """Return the LoRA config that the flags describe for `model`, or None for full fine-tuning.

    Raises `InputError` where `lora_layers` names more blocks than the model has.
    """
    from trl import get_peft_config

    config: Any = get_peft_config(model_args)
    if config is None:
        return None
    config.task_type = "CAUSAL_LM"  # a reward model's trainer makes it its own
    return config if model_args.lora_layers == "all" else in_last_blocks(config, model, model_args.lora_layers)
