"""Train a reward model on preferences with trl's `RewardTrainer`, load it again, and say how good it is."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_rlhf.data.prepared import rows_of
from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.reward_model import Pairs, reward_accuracy
from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapted import load_reward_start
from hf_rlhf.models.adapters import base_of, compute_in_base_dtype, is_peft_model
from hf_rlhf.models.load import public_name, require_fitting_tokenizer, without_zero_3
from hf_rlhf.models.reward_model import SeparateRewardModel, load_reward_model
from hf_rlhf.recipes.arguments import (
    ModelArguments,
    RewardArguments,
    RewardTrainingArguments,
    peft_config,
)
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    announce_base,
    base_and_adapter,
    keep_autocast,
    load_start,
    make_room_for_template,
    open_hub,
    output_folder,
    own_vocabulary,
    release,
    run_begun,
    set_special_tokens,
    start_settings,
    tokenizer_of,
    without_template,
)
from hf_rlhf.recipes.data import margins_are_used, pairs_for_loss, reward_sets
from hf_rlhf.records import write_settings
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.training.trl_setup import (
    adapters_in_base_dtype,
    make_reward_trainer,
    require_positions,
    save_merged,
    save_trained,
)

RESULT_FILE = "evaluation.json"
_PROBE_ROWS = 8
_ROUNDING, _BF16_ROUNDING = 1e-3, 5e-2  # by how much rewards may differ, relatively, where all computes in fp32, or not
RESULTS = {
    "train_rows": "Pairs that were trained on.",
    "reload_gap": f"Largest difference between the rewards of {_PROBE_ROWS} training pairs in memory and after the"
    " saved model was loaded again: 0 but for rounding.",
    "eval_accuracy": "Share of the evaluation pairs in which the chosen completion has the higher reward; a tie counts"
    " half.",
    "eval_accuracy_low": "Lower bound of its 95 % interval (Wilson).",
    "eval_accuracy_high": "Upper bound of it.",
    "eval_margin": "Mean reward of the chosen completion minus that of the rejected one.",
    "eval_rows": "Pairs that were evaluated.",
}
"""Results of `train_reward_model`; without an evaluation set, the first two."""

logger = logging.getLogger(__name__)


def train_reward_model(script: RewardArguments, training: RewardTrainingArguments, model: ModelArguments) -> RunResult:
    """Train a reward model and save adapter, score head, tokenizer, evaluation and card to `training.output_dir`.

    With LoRA, `merged/` beside the adapter is a plain `AutoModelForSequenceClassification`. The saved model is loaded
    again and must give the rewards that it gave in memory.

    Raises `InputError` for anything wrong in the flags or the data, before training starts.
    """
    with run_begun(script, training) as checkpoint:
        training = keep_autocast(training, checkpoint)
        return _train(script, training, model.on(training.device, checkpoint), checkpoint)


def _train(
    script: RewardArguments, training: RewardTrainingArguments, model: ModelArguments, checkpoint: str | None
) -> RunResult:
    trust = training.trust_remote_code
    tokenizer = tokenizer_of(model, training.chat_template_path, trust_remote_code=trust)
    set_special_tokens(tokenizer, training)
    sets = reward_sets(script, training, tokenizer)
    train_set, eval_set = sets.train.dataset, rows_of(sets.evaluation)
    set_seed(training.seed)  # before the score head's random start
    classifier = load_start(model, load_reward_start, trust_remote_code=trust)
    config = None if is_peft_model(classifier) else peft_config(model, classifier)
    if training.chat_template_path is not None:
        make_room_for_template(classifier, tokenizer, model, config, trust_remote_code=trust)
    require_fitting_tokenizer(classifier, tokenizer)
    open_hub(training)
    margins = margins_are_used(sets.train, script)
    trainer: Any = make_reward_trainer(
        classifier,
        tokenizer,
        without_template(training),
        pairs_for_loss(train_set, margins=margins),
        pairs_for_loss(eval_set, margins=margins),
        config,
    )
    _require_fitting_pairs(trainer, len(train_set), training)
    require_positions(trainer)
    train_set = train_set.select(trainer.train_dataset["row"])  # those that are not too long
    eval_set = None if eval_set is None else eval_set.select(trainer.eval_dataset["row"])
    announce(sets.report, training)
    announce_base(trainer.model, training)
    with adapters_in_base_dtype(trainer.model):
        trainer.train(resume_from_checkpoint=checkpoint)
    folder = output_folder(training)
    save_trained(trainer, folder)
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without Trainer's autocast
    probe = Pairs.from_dataset(train_set.select(range(min(_PROBE_ROWS, len(train_set)))))
    in_memory = LearnedReward(_OwnForward(trained), tokenizer, device=training.device)
    expected = probe.rewards(in_memory, probe.chosen)  # by every rank, since each may hold a shard of the weights
    metrics = {"train_rows": float(len(train_set))}
    if trainer.is_world_process_zero():
        write_settings(folder, training, model, script)
        as_trained = model.load_kwargs() | {"dtype": base_of(trained).dtype}
        scorer, reward = _reload(folder, as_trained, training)
        rounding = _BF16_ROUNDING if _fsdp_casts_weights(trainer) else _ROUNDING
        metrics["reload_gap"] = _require_equal_rewards(folder, expected, probe.rewards(reward, probe.chosen), rounding)
        if eval_set is not None:
            metrics |= reward_accuracy(reward, Pairs.from_dataset(eval_set))
        if script.save_merged:
            save_merged(scorer.model, reward.tokenizer, folder)
        (folder / RESULT_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        start = start_settings(model, trainer.computation)
        _write_card(folder, script, training, model, metrics, own_vocabulary(trained), start)
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    release(trainer)
    return RunResult(folder, metrics)


def _require_fitting_pairs(trainer, rows: int, training: RewardTrainingArguments) -> None:
    kept = len(trainer.train_dataset)
    if kept == 0:
        raise InputError(f"all {rows} pairs are longer than max_length={training.max_length} tokens. Raise max_length")
    if kept < rows:
        logger.warning("%d of %d pairs are skipped: longer than max_length=%s", rows - kept, rows, training.max_length)


def _reload(folder: Path, load_kwargs: dict[str, Any], training) -> tuple[SeparateRewardModel, LearnedReward]:
    """Load what was saved, as a user would."""
    with without_zero_3():  # under which loading would take all ranks
        scorer, tokenizer = load_reward_model(str(folder), **load_kwargs, trust_remote_code=training.trust_remote_code)
    assert isinstance(scorer, SeparateRewardModel)
    scorer.model.to(training.device)  # pyright: ignore[reportCallIssue]
    return scorer, LearnedReward(scorer, tokenizer, device=training.device)


def _fsdp_casts_weights(trainer) -> bool:
    """Return whether FSDP computes in another dtype than that of the weights (`bf16`): then so do rewards in memory."""
    plugin: Any = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    return plugin is not None and plugin.mixed_precision_policy is not None


def _require_equal_rewards(folder: Path, expected: list[float], found: list[float], rounding: float) -> float:
    """Return the largest difference of the rewards in memory and after loading; raise above relative `rounding`."""
    gap = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    if gap > rounding * max(1.0, *map(abs, expected)):
        raise RuntimeError(
            f"the reward model saved in {folder} gives {_PROBE_ROWS} training pairs other rewards after loading"
            f" (largest difference {gap:.3g}). Do not use it"
        )
    return gap


class _OwnForward:
    """The trained model's rewards by its own forward pass, as `RewardTrainer` saw them."""

    def __init__(self, model):
        self.model = model.eval()

    @torch.no_grad()
    def __call__(self, input_ids, attention_mask):
        with compute_in_base_dtype(self.model):
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0].float()


def _write_card(
    folder: Path,
    script: RewardArguments,
    training,
    model: ModelArguments,
    metrics,
    vocabulary: int | None,
    start: dict[str, Any],
) -> None:
    from hf_rlhf.hub.model_card import hub_names, reward_model_card

    results = {
        "pairs trained on": f"{metrics['train_rows']:.0f}",
        **(
            {
                "held-out accuracy": f"{metrics['eval_accuracy']:.3f} (95% interval {metrics['eval_accuracy_low']:.3f}"
                f" to {metrics['eval_accuracy_high']:.3f}, {metrics['eval_rows']:.0f} pairs)"
            }
            if "eval_accuracy" in metrics
            else {}
        ),
    }
    names = "learning_rate num_train_epochs per_device_train_batch_size gradient_accumulation_steps max_length seed"
    card = reward_model_card(
        model_id=training.hub_model_id or folder.name,
        base_model=public_name(base_and_adapter(model)[0]),
        results=results,
        settings={name: getattr(training, name) for name in names.split()} | start,
        datasets=hub_names(*script.dataset_names()),
        adapter=model.use_peft,
        vocabulary=vocabulary,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
