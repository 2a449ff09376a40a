"""PPO from flags or from Python: prompts and rewards in, a policy with its value head, metrics and a card out."""

import contextlib
import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_rlhf.distributed import by_first_rank, failing_together
from hf_rlhf.environments.named import load_environment, require_columns
from hf_rlhf.errors import InputError, refusals_of_libraries
from hf_rlhf.hub.push import push_folder
from hf_rlhf.models.adapters import base_of, is_peft_model
from hf_rlhf.models.critics import run_folder, saved_critics
from hf_rlhf.models.load import public_name, require_fitting_tokenizer
from hf_rlhf.planning.memory import peak_bytes
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments, peft_config
from hf_rlhf.recipes.common import (
    RunResult,
    announce,
    base_and_adapter,
    load_start,
    open_hub,
    output_folder,
    own_vocabulary,
    release,
    require_no_added_tokens,
    run_begun,
    start_settings,
    tokenizer_of,
)
from hf_rlhf.recipes.data import ppo_sets
from hf_rlhf.recipes.doctor import require_findings
from hf_rlhf.recipes.plan import planned_peak, write_plan
from hf_rlhf.recipes.report_card import check_report_cards
from hf_rlhf.recipes.watching import watching, with_held_out
from hf_rlhf.records import iteration_rows
from hf_rlhf.rewards.cache import RewardCache
from hf_rlhf.rewards.contract import RewardFunction
from hf_rlhf.rewards.named import loaded_rewards, shown_reward
from hf_rlhf.rewards.sources import require_reachable
from hf_rlhf.rollout.stops import configured_end_ids, stop_token_ids

logger = logging.getLogger(__name__)


def train_ppo(script: PPOArguments, training: PPOConfig, model: ModelArguments, reward_funcs=()) -> RunResult:
    """Train a policy with PPO and save it, its value head, its curves and its model card to `training.output_dir`.

    Args:
        script: the prompts, and rewards by name.
        training: see `PPOConfig`.
        model: the policy; when it names an adapter folder, training continues from that adapter.
        reward_funcs: rewards as Python objects (functions or models), besides those that `script` names.

    Raises `InputError` for anything wrong in the flags, the data or the models, before training starts.
    """
    with run_begun(script, training) as checkpoint:
        return _train(script, training, model.on(training.device, checkpoint), reward_funcs, checkpoint)


def _train(
    script: PPOArguments, training: PPOConfig, model: ModelArguments, reward_funcs, checkpoint: str | None
) -> RunResult:
    require_findings(script)
    rewards = [*named_rewards(script), *reward_funcs]
    training = with_held_out(script, training, len(rewards))
    paid, rewards = rewards, [*rewards, *held_out_rewards(script)]
    with failing_together():
        environment = None if script.environment is None else load_environment(script.environment)
    if not paid and environment is None:
        raise InputError("no reward: give reward_model_path, reward_funcs, or an environment that pays")
    if training.reward_cache is not None:
        with failing_together():
            RewardCache(training.reward_cache).close()  # a folder that cannot be used, before models are loaded
    by_first_rank(lambda: require_reachable(rewards))
    check_report_cards(
        rewards,
        required=script.require_report_card,
        ensemble_reward=training.ensemble_reward,
        ensemble_std_coef=training.ensemble_std_coef,
    )
    tokenizer = tokenizer_of(model, script.chat_template_path)
    sets = ppo_sets(script, training, tokenizer, rewards)
    if environment is not None:
        for rows in filter(None, (sets.train, sets.evaluation)):
            require_columns(environment, rows.dataset.column_names, str(script.environment))
    planned = planned_peak(script, training, model)
    if script.chat_template_path is not None:
        require_no_added_tokens(tokenizer, model)
    policy = load_start(model)
    require_fitting_tokenizer(policy, tokenizer)
    configured = configured_end_ids(base_of(policy))
    training = _with_critic(training, model.model_name_or_path)
    open_hub(training)
    with refusals_of_libraries(training, model):
        trainer = PPOTrainer(
            policy,
            rewards or None,
            training,
            sets.train,
            eval_dataset=sets.evaluation,
            processing_class=tokenizer,
            reward_processing_classes=[sets.reward_tokenizers.get(_name(reward)) for reward in rewards],
            peft_config=None if is_peft_model(policy) else peft_config(model, policy),
            ref_model=script.ref_model_path,
            ptx_dataset=sets.ptx,
            environment=environment,
        )
    folder = output_folder(training)
    trainer.settings = (training, model, script)
    announce(sets.report, training)
    with contextlib.closing(trainer):
        with watching(trainer, script):
            trainer.train(resume_from_checkpoint=checkpoint)
        metrics = trainer.evaluate() if sets.evaluation is not None else {}
    trainer.save_model(_internal_call=True)  # which does not push: the card is not there yet
    if trainer.is_world_process_zero():
        peak = peak_bytes(training.device)
        ends = stop_token_ids(base_of(policy), tokenizer, training.sampling)
        needs = {"end_ids": ends if set(ends) - set(configured) else None, "vocabulary": own_vocabulary(policy)}
        _write_card(folder, script, training, model, needs, start_settings(model, trainer.computation))
        if trainer.state.global_step > trainer.resumed_at:  # or nothing was measured, and plan.json stays
            write_plan(folder, planned, peak, trainer.choices)
        if training.push_to_hub:
            push_folder(folder, training.hub_model_id, private=training.hub_private_repo)
    release(trainer)
    return RunResult(folder, metrics)


def named_rewards(script: PPOArguments) -> list[str | RewardFunction]:
    """Return the rewards that the flags name: model paths as text, named rewards and functions as functions."""
    with failing_together():
        return loaded_rewards(script.reward_model_path, script.reward_funcs)


def held_out_rewards(script: PPOArguments) -> list[str | RewardFunction]:
    """Return the reward that is measured and not paid, if the flags name one."""
    with failing_together():
        return loaded_rewards(None, [script.held_out_reward] if script.held_out_reward else None)


def _name(reward: Any) -> str:
    """Return the name of a reward model; empty for a reward that is an object."""
    return os.fspath(reward) if isinstance(reward, (str, os.PathLike)) else ""


def _with_critic(training: PPOConfig, model_name_or_path: str) -> PPOConfig:
    """Return the settings, with the critic that an earlier run saved if this run continues from its policy."""
    if training.critic_path is not None or training.critic not in saved_critics(run_folder(model_name_or_path)):
        return training
    training = copy.copy(training)
    training.critic_path = model_name_or_path
    return training


def _write_card(
    folder: Path,
    script: PPOArguments,
    training: PPOConfig,
    model: ModelArguments,
    needs: Mapping[str, Any],
    start: dict[str, Any],
) -> None:
    from hf_rlhf.evaluation.metrics import BeforeAfter
    from hf_rlhf.evaluation.plots import plot_training
    from hf_rlhf.hub.model_card import hub_names, policy_card, shown_name

    rows = iteration_rows(folder)
    curves = None
    try:
        curves = plot_training(rows, folder / "curves.png")
    except InputError as error:
        logger.warning("%s", error)
    results = [
        BeforeAfter(label, first[key], last[key])
        for first, last in [(rows[0], rows[-1])]
        for label, key in (("reward", "reward"), ("KL to the reference (nats)", "objective/kl"))
        if first.get(key) is not None and last.get(key) is not None
    ] if rows else []  # fmt: skip
    rewards = ", ".join(
        shown_reward(name) or shown_name(name)
        for name in (script.reward_model_path, *(script.reward_funcs or ()))
        if name
    )
    card = policy_card(
        model_id=training.hub_model_id or folder.name,
        base_model=public_name(base_and_adapter(model)[0]),
        results=results,
        settings=_card_settings(training) | start,
        curve_image=curves.name if curves else None,
        reward_model=rewards or None,
        datasets=hub_names(*script.dataset_names()),
        adapter=model.use_peft,
        **needs,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _card_settings(training: PPOConfig) -> dict[str, object]:
    names = (
        "rollout_batch_size num_ppo_epochs num_mini_batches learning_rate kl_coef kl_estimator cliprange vf_coef"
        " gamma lam temperature max_completion_length seed"
    )
    return {name: getattr(training, name) for name in names.split()}
