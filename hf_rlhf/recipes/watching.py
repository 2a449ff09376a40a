"""Watch over a PPO run: the doctor, and a held-out reward that is measured and not paid."""

import copy
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.doctor.callback import Doctor
from hf_rlhf.evaluation.held_out import FRONTIER_FILE, Frontier, best_of_n_points, read_evaluations
from hf_rlhf.evaluation.plots import plot_frontier
from hf_rlhf.ppo.config import EVALUATED, PPOConfig
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.progress import say
from hf_rlhf.recipes.arguments import PPOArguments
from hf_rlhf.training.best import settle_best_metric
from hf_rlhf.training.early_stopping import EarlyStopping

logger = logging.getLogger(__name__)


def with_held_out(script: PPOArguments, training: PPOConfig, rewards: int) -> PPOConfig:
    """Return the settings of a run with a held-out reward behind `rewards` others: its weight is 0.

    Raises `InputError` for a run that has nothing to evaluate, or flags without a held-out reward.
    """
    if script.held_out_reward is None:
        for name in ("held_out_patience", "frontier_best_of_n"):
            if getattr(script, name) is not None:
                raise InputError(f"{name} is invalid without held_out_reward. Set that too, or omit it.")
        return training
    if training.metric_for_best_model is not None:
        raise InputError(
            "metric_for_best_model and load_best_model_at_end are invalid with held_out_reward, which sets both. Omit"
            " them."
        )
    paid = [os.path.realpath(name) for name in (script.reward_model_path, *(script.reward_funcs or ())) if name]
    if os.path.realpath(script.held_out_reward) in paid:
        raise InputError(
            f"held_out_reward={script.held_out_reward!r} is trained on. Give a reward model of another seed"
            " and other preferences."
        )
    if script.eval_dataset_name is None and script.eval_fraction is None:
        raise InputError("held_out_reward is invalid: nothing is evaluated. Give eval_dataset_name as well.")
    if script.held_out_patience is not None and script.held_out_patience < 1:
        raise InputError(f"held_out_patience={script.held_out_patience} is invalid: it must be at least 1 evaluation.")
    evaluates, saves = (str(getattr(each, "value", each)) for each in (training.eval_strategy, training.save_strategy))
    if evaluates == "no" or saves != evaluates:
        raise InputError(
            f"held_out_reward is invalid with eval_strategy={evaluates} and save_strategy={saves}: the best"
            " checkpoint is kept, so evaluations are needed, and a checkpoint for each. Set both to steps, and"
            " eval_steps and save_steps to the same number."
        )
    if script.frontier_best_of_n is not None and script.frontier_best_of_n < 2:
        raise InputError(f"frontier_best_of_n={script.frontier_best_of_n} is invalid: it must be at least 2.")
    training = copy.copy(training)
    training.load_best_model_at_end, training.greater_is_better, training.eval_on_start = True, True, True
    settle_best_metric(training, EVALUATED)
    for name, neutral in (("reward_weights", 0.0), ("reward_clips", math.inf), ("reward_normalize", "false")):
        given = getattr(training, name)
        if given is not None and len(given) == rewards:
            setattr(training, name, [*given, neutral])
    return training


@contextmanager
def watching(trainer: PPOTrainer, script: PPOArguments) -> Iterator[None]:
    """Let the doctor and a held-out reward see the training that the block does, as the flags ask.

    A held-out reward is the last of the trainer's. The best checkpoint by it is what the trainer holds in the end, and
    over_optimization.json and frontier.png are written.
    """
    if script.doctor:
        trainer.add_callback(Doctor(trainer, script.doctor_stop or ()))
    if script.held_out_reward is None:
        yield
        return
    assert trainer.rewards is not None
    name, prompts = trainer.rewards.names[-1], trainer.eval_dataset
    trainer.rewards.measure_only(name)
    trainer.shaper.parts[name] = trainer.rewards.shapings[name]
    measured = f"rewards/{name}/mean"
    trainer.args.metric_for_best_model = f"eval_{measured}"
    if script.held_out_patience is not None:  # of the training alone: what is evaluated behind it stops nothing
        trainer.add_callback(EarlyStopping(script.held_out_patience))
    best_of_n = []
    if script.frontier_best_of_n is not None:
        say(f"measuring the best of {script.frontier_best_of_n} completions of the start, by the reward")
        best_of_n = best_of_n_points(trainer, list(prompts), name, script.frontier_best_of_n)
    yield
    trainer.remove_callback(EarlyStopping)
    if not trainer.is_world_process_zero():
        return
    evaluations = read_evaluations(trainer.folder, name, len(prompts))
    saved = [point for point in evaluations if point.step == trainer.state.best_global_step]
    if not saved:
        logger.warning(
            "the held-out reward %s gave no evaluation a number: nothing is known of over-optimization", name
        )
    else:
        frontier = Frontier(name, evaluations, saved[-1], best_of_n)
        say(frontier.in_words())
        frontier.write(trainer.folder)
        plot_frontier(frontier, trainer.folder / FRONTIER_FILE)
