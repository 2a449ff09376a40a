"""trl's trainers as runs that can be killed and resumed."""

from typing import Any

import trl
from datasets import Dataset

from hf_rlhf.data.training_rows import tokenized_pairs, tokenized_texts
from hf_rlhf.models.adapters import is_peft_model, train_in_fp32
from hf_rlhf.models.load import require_full_training
from hf_rlhf.models.trained_tokens import mend_trained_tokens
from hf_rlhf.training.durable import DurableTrainer
from hf_rlhf.training.length_sampler import LengthSampler, row_lengths


class _OfTrl(DurableTrainer):
    """A mixin that saves what trl's trainers count between logs (means of the batches, tokens seen). Trains in fp32.

    `train_sampling_strategy=group_by_length` is by `LengthSampler`.
    """

    _lengths: LengthSampler | None = None  # of the training rows, where they are grouped by length

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        model: Any = self.model
        if is_peft_model(model):
            mend_trained_tokens(model)
            train_in_fp32(model)
        else:
            require_full_training(model, "the model")

    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int

    def running_sums(self) -> dict[str, Any]:
        batches = {mode: dict(values) for mode, values in self._metrics.items()}
        return super().running_sums() | {"batches": batches, "tokens": self._total_train_tokens}

    def load_running_sums(self, sums: dict[str, Any]) -> None:
        super().load_running_sums(sums)
        for mode, values in sums["batches"].items():
            self._metrics[mode].update(values)
        self._total_train_tokens = sums["tokens"]

    def _get_train_sampler(self, train_dataset=None):
        """Like `Trainer._get_train_sampler`, but pairs and groups are grouped by length too, and by `LengthSampler`."""
        sampler = self._lengths = self._length_sampler(self.train_dataset if train_dataset is None else train_dataset)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _get_eval_sampler(self, eval_dataset):
        """Like `Trainer._get_eval_sampler`, but by `LengthSampler`, in the same order at each evaluation."""
        sampler = self._length_sampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset) if sampler is None else sampler

    def _length_sampler(self, dataset: Any) -> LengthSampler | None:
        args = self.args
        if args.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Dataset):
            return None
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return LengthSampler(row_lengths(dataset), rows, args.seed if args.data_seed is None else args.data_seed)

    def _run_epoch(self, **kwargs):
        """Like `DurableTrainer._run_epoch`, in the order of this epoch, which accelerate does not always pass on."""
        if self._lengths is not None:
            self._lengths.epoch = kwargs["epoch"]
        super()._run_epoch(**kwargs)


class RewardTrainer(_OfTrl, trl.RewardTrainer):
    """`trl.RewardTrainer` with whole checkpoints, on the ids that the data report counted and that rewards score."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """Like `trl.RewardTrainer._prepare_dataset`, but with the ids of `hf_rlhf.data.training_rows`."""
        if isinstance(dataset, Dataset) and "chosen_ids" not in dataset.column_names:
            dataset = tokenized_pairs(dataset, processing_class, source=dataset_name, num_proc=args.dataset_num_proc)
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)


class SFTTrainer(_OfTrl, trl.SFTTrainer):
    """`trl.SFTTrainer` with whole checkpoints, on the ids that the data report counted."""

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """Like `trl.SFTTrainer._prepare_dataset`, but with the ids of `hf_rlhf.data.training_rows`."""
        if isinstance(dataset, Dataset) and "input_ids" not in dataset.column_names and formatting_func is None:
            dataset = tokenized_texts(
                dataset,
                self._tokenizer,
                source=dataset_name,
                assistant_only=args.assistant_only_loss,
                chat_template=self.chat_template,
                num_proc=args.dataset_num_proc,
            )
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
