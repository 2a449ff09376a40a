"""Reward models trained on groups: one prompt, several completions, a rating of each."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_rlhf.data.training_rows import tokenized_groups
from hf_rlhf.distributed import global_sum
from hf_rlhf.errors import InputError
from hf_rlhf.ops.padding import lengths_to_mask, pad_sequences
from hf_rlhf.ops.preference import BINARY, RATING_LOSSES, agreement, center_penalty, label_agreement, loss_items
from hf_rlhf.training.trl_trainers import RewardTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupCollator:
    """A collator of `G` groups of up to `K` completions, `N` in all, which pads on the right.

    Gives ratings and mask `(G, K)`, and input_ids and attention_mask `(N, L)`, in the order of the mask.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return one batch."""
        ids = [each for group in groups for each in group["completions_ids"]]
        length = max(map(len, ids))
        length += -length % (self.pad_to_multiple_of or 1)
        sizes = torch.tensor([len(group["ratings"]) for group in groups])
        mask = lengths_to_mask(sizes, int(sizes.max()))
        ratings = torch.tensor([rating for group in groups for rating in group["ratings"]], dtype=torch.float32)
        return {
            "ratings": torch.zeros(mask.shape).masked_scatter(mask, ratings),  # first: its rows are Trainer's batch
            "mask": mask,
            "input_ids": pad_sequences(ids, self.pad_token_id, min_length=length),
            "attention_mask": lengths_to_mask(torch.tensor(list(map(len, ids))), length).long(),
        }


class RatingTrainer(RewardTrainer):
    """A `RewardTrainer` on rated groups; each prompt is one element of a batch, and each completion is encoded once.

    A loss is a sum over the groups of an update, divided once by `loss_items` of all of them. Batch size, accumulation
    and ranks change neither it nor what is logged.

    Args:
        loss: a name in `RATING_LOSSES`.
    """

    loss_is_scaled_for_ga = True  # divided once, by what the whole update holds

    def __init__(self, *args, loss: str, **kwargs):
        self.loss_name, self.rating_loss = loss, RATING_LOSSES[loss]
        super().__init__(*args, **kwargs)
        config: Any = self.args
        self.center_coefficient: float | None = config.center_rewards_coefficient
        if self.center_coefficient is not None and not self.rating_loss.compares:
            raise InputError(
                f"center_rewards_coefficient={self.center_coefficient} is invalid with reward_loss={loss}:"
                " the ratings themselves fix where rewards lie. Omit it."
            )
        self.model_accepts_loss_kwargs = True  # what `loss_is_scaled_for_ga` was called before transformers had it
        tokenizer: Any = self.processing_class
        self._signature_columns = ["completions_ids", "ratings"]  # that Trainer keeps
        self.data_collator = GroupCollator(tokenizer.pad_token_id, config.pad_to_multiple_of)
        self._sums: dict[str, dict[str, float]] = {"train": {}, "eval": {}}

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """Like `RewardTrainer._prepare_dataset`, but of groups, without the completions that are too long."""
        if not isinstance(dataset, Dataset) or "completions_ids" in dataset.column_names:
            return dataset
        num_proc = args.dataset_num_proc
        tokenized = tokenized_groups(dataset, processing_class, source=dataset_name, num_proc=num_proc)
        fitting = tokenized if args.max_length is None else tokenized.map(
            _without_longer, fn_kwargs={"limit": args.max_length}, keep_in_memory=True, load_from_cache_file=False
        )  # fmt: skip
        useful = [row for row, ratings in enumerate(fitting["ratings"]) if self._teaches(ratings)]
        longer = sum(map(len, tokenized["ratings"])) - sum(map(len, fitting["ratings"]))
        if longer and args.should_log:
            logger.warning("%d completions are skipped: longer than max_length=%s", longer, args.max_length)
        return fitting.select(useful)

    def _teaches(self, ratings: list[float]) -> bool:
        return len(set(ratings)) > 1 if self.rating_loss.compares else bool(ratings)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Like `Trainer.get_batch_samples`, but count what the loss of the whole update is divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = [loss_items(self.rating_loss, batch["ratings"], batch["mask"]).sum().to(device) for batch in batches]
        return batches, global_sum(torch.stack(items).sum() if items else torch.tensor(0, device=device))

    def _prepare_inputs(self, inputs):
        """Like `Trainer._prepare_inputs`, but ratings stay in fp32 where DeepSpeed computes in fewer digits."""
        ratings = inputs["ratings"].to(self.args.device)
        return {**super()._prepare_inputs(inputs), "ratings": ratings}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the share of this batch in the loss of its update; in an evaluation, the loss of the batch."""
        mode = "train" if self.model.training else "eval"  # pyright: ignore[reportOptionalMemberAccess]
        ratings, mask = inputs["ratings"], inputs["mask"]
        ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        outputs = model(input_ids=ids, attention_mask=attention_mask, use_cache=False)
        rewards = torch.zeros_like(ratings).masked_scatter(mask, outputs.logits[:, 0].float())
        losses = self.rating_loss.of_groups(rewards, ratings, mask)
        if self.center_coefficient is not None:
            losses = losses + self.center_coefficient * center_penalty(rewards, ratings, mask)
        items = loss_items(self.rating_loss, ratings, mask)
        tokens = torch.zeros_like(mask, dtype=torch.long).masked_scatter(mask, attention_mask.sum(dim=1))
        self._count(mode, losses.detach(), items, rewards.detach(), ratings, mask, tokens)
        if mode == "eval" or num_items_in_batch is None:
            loss = losses.sum() / items.sum().clamp(min=1)
        else:  # gradients are averaged over ranks afterwards
            loss = losses.sum() * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def _count(
        self, mode: str, losses: Tensor, items: Tensor, rewards: Tensor, ratings: Tensor, mask: Tensor, tokens: Tensor
    ) -> None:
        """Add the groups of all ranks to what is logged next; those that even out the last batch are not counted."""
        agreed = (label_agreement if self.loss_name == BINARY else agreement)(rewards, ratings, mask)
        sums = (losses, items, *agreed, mask.sum(1), torch.where(mask, rewards, 0).sum(1), tokens.sum(1))
        lowest = torch.where(mask, rewards, torch.inf).amin(1)
        highest = torch.where(mask, rewards, -torch.inf).amax(1)
        columns = torch.stack([column.double() for column in (*sums, lowest, highest)], dim=1)
        # accelerate takes each batch for the last one as soon as that is fetched: with accumulation, before its turn
        is_earlier = mode == "train" and not self.accelerator.sync_gradients
        gather = self.accelerator.gather if is_earlier else self.accelerator.gather_for_metrics
        whole: Any = gather(columns)
        names = ("loss", "items", "compared", "agreed", "margin", "completions", "reward", "tokens")
        counted = self._sums[mode]
        for name, value in zip(names, whole.sum(dim=0).tolist(), strict=False):
            counted[name] = counted.get(name, 0.0) + value
        counted["lowest"] = min(counted.get("lowest", float("inf")), whole[:, -2].min().item())
        counted["highest"] = max(counted.get("highest", float("-inf")), whole[:, -1].max().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Like `trl.RewardTrainer.log`, but a mean is a sum divided once, whatever the sizes of the batches."""
        mode = "train" if self.model.training else "eval"  # pyright: ignore[reportOptionalMemberAccess]
        counted, self._sums[mode] = self._sums[mode], {}
        if counted:
            if mode == "train":
                self._total_train_tokens += int(counted["tokens"])
            elif "eval_loss" in logs:
                logs["eval_loss"] = counted["loss"] / max(counted["items"], 1)
            means = {
                "num_tokens": self._total_train_tokens,
                "min_reward": counted["lowest"],
                "mean_reward": counted["reward"] / counted["completions"],
                "max_reward": counted["highest"],
            }
            if counted["compared"]:
                means["accuracy"] = counted["agreed"] / counted["compared"]
                if self.loss_name != BINARY:
                    means["margin"] = counted["margin"] / counted["compared"]
            for name, value in means.items():
                self._metrics[mode][name] = [value]
        super().log(logs, start_time)

    def running_sums(self) -> dict[str, Any]:
        """Return also what is counted since the last log."""
        return super().running_sums() | {"counted": self._sums["train"]}

    def load_running_sums(self, sums: dict[str, Any]) -> None:
        """Restore what `running_sums` returned."""
        super().load_running_sums(sums)
        self._sums["train"] = dict(sums["counted"])


def _without_longer(group: dict[str, Any], limit: int) -> dict[str, Any]:
    kept = [number for number, ids in enumerate(group["completions_ids"]) if len(ids) <= limit]
    part = {name: [group[name][number] for number in kept] for name in ("completions_ids", "ratings")}
    return part | {"kept": kept}
