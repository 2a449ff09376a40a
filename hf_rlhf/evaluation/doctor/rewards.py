"""Symptoms of the rewards and of the texts that they pay for, and of the critic that foretells them."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hf_rlhf.evaluation.doctor.record import LEAST, Finding, RunRecord
from hf_rlhf.evaluation.fluency import fluency

UNSCORED = 0.2  # share of completions
EQUAL = 1e-6  # a standard deviation that is rounding, relative to the mean
SATURATED = 0.1  # share of the spread at the start
LEAST_KL = 0.1  # nats that the best policy under the penalty may move
LARGE_REWARD = 10.0  # size at which values follow too slowly; cliprange_value is in the same units
LONGER, SHORTER = 1.8, 0.4  # times the length at the start
FEW_WORDS = 3.0  # tokens of a completion below which none is short
REPEATS = 0.6  # share of the fluency at the start
CUT = 0.5  # share of episodes
OVERFIT = 1.5  # standard deviations of the rewards
LONG_WINDOW = 50  # iterations behind what is said of the critic
CRITIC_LEARNS = 20  # iterations that a fresh critic is given
FEW_PAIRS = 24  # samples behind a correlation


def no_reward(run: RunRecord) -> Finding | None:
    """Find that many completions get no reward."""
    shares = run.numbers("rewards/unscored")[-LEAST:]
    if not shares or fmean(shares) <= UNSCORED:
        return None
    return run.finding(
        "no_reward",
        "No completion has a reward",
        "The reward returns None for many completions, and those are not learned from.",
        f"rewards/unscored {fmean(shares):.0%} over the last {len(shares)} iterations",
        "Call the reward by hand on such completions (samples.jsonl), and let it return a number.",
    )


def reward_constant(run: RunRecord) -> Finding | None:
    """Find that all completions get the same reward, and always did."""
    spreads, means = run.numbers("reward_std"), run.numbers("reward")
    if len(spreads) < 3 or any(std > EQUAL * (1 + abs(mean)) for std, mean in zip(spreads, means, strict=False)):
        return None
    return run.finding(
        "reward_constant",
        "The reward does not move",
        "The reward does not distinguish completions, so there is nothing to learn.",
        f"reward_std 0 in all {len(spreads)} iterations, with a reward of {means[-1]:.3g}",
        "Call the reward by hand on two completions that differ, and look at what it reads.",
    )


def reward_saturated(run: RunRecord) -> Finding | None:
    """Find a reward that is at its limit for nearly all completions."""
    spread, reward = run.both("reward_std"), run.both("reward")
    if spread is None or reward is None or spread[0] == 0 or reward[1] <= reward[0]:
        return None
    if spread[1] > SATURATED * spread[0] or reward[1] - reward[0] < spread[0]:
        return None
    return run.finding(
        "reward_saturated",
        "The reward does not move",
        "Nearly all completions get the same high reward, so nothing is left to learn, and what the policy still"
        " changes is noise.",
        f"reward rose from {reward[0]:.3g} to {reward[1]:.3g}, and reward_std fell from {spread[0]:.2g} to"
        f" {spread[1]:.2g}",
        "Stop here, or take an earlier checkpoint. For more, use a reward that still tells the completions apart.",
    )


def penalty_too_strong(run: RunRecord) -> Finding | None:
    """Find a penalty that allows next to nothing.

    For rewards of a normal distribution with standard deviation s, the policy that is best under `beta * KL` is
    s^2 / (2 beta^2) nats away.
    """
    coef, spread = run.numbers("objective/kl_coef"), run.early("reward_std")
    if not coef or not coef[-1] or spread is None or run.flag("whiten_rewards", False) or run.shapes_parts:
        return None
    if run.flag("use_score_scaling", False):
        spread = 1.0
    allowed = (spread / coef[-1]) ** 2 / 2
    if allowed >= LEAST_KL or spread == 0:
        return None
    return run.finding(
        "penalty_too_strong",
        "The reward does not move",
        "The KL penalty costs more than the reward can pay.",
        f"with reward_std {spread:.2g} and kl_coef {coef[-1]:.2g}, the best policy is about {allowed:.1g} nats from the"
        " reference",
        f"Lower kl_coef to {spread / 2:.1g} or less (2 nats), or scale the rewards: set use_score_scaling.",
    )


def reward_scale(run: RunRecord) -> Finding | None:
    """Find rewards so large that the critic cannot follow."""
    if run.flag("use_score_scaling", False) or run.shapes_parts:
        return None
    sizes = [max(abs(mean), std) for mean, std in zip(run.numbers("reward"), run.numbers("reward_std"), strict=False)]
    if len(sizes) < 2 or fmean(sizes) <= LARGE_REWARD:
        return None
    losses = run.numbers("loss/value_avg")
    return run.finding(
        "reward_scale",
        "The value loss is huge",
        "The rewards have a large scale, which the values must reach in steps of cliprange_value.",
        f"reward {run.numbers('reward')[-1]:.3g} with a standard deviation of {run.numbers('reward_std')[-1]:.3g}"
        + (f", loss/value_avg {losses[-1]:.3g}" if losses else ""),
        "Set use_score_scaling with use_score_norm, or smaller reward_weights.",
    )


def length_drift(run: RunRecord) -> Finding | None:
    """Find completions that become much longer."""
    ends = run.both("completions/mean_length")
    if ends is None or ends[1] < LONGER * ends[0] or run.flag("environment") is not None:
        return None
    follows = _correlation_with_length(run.samples)
    return run.finding(
        "length_drift",
        "The reward rises and the text gets worse",
        "Completions become longer and longer: the reward pays for length, by itself or by what comes with it.",
        f"completions/mean_length rose from {ends[0]:.1f} to {ends[1]:.1f} tokens"
        + ("" if follows is None else f"; reward and length of the samples correlate by {follows:.2f}"),
        "Set length_penalty, or overlong_penalty with overlong_buffer, or train the reward on pairs of equal length.",
    )


def length_collapse(run: RunRecord) -> Finding | None:
    """Find completions that become very short."""
    ends = run.both("completions/mean_length")
    if ends is None or ends[0] < FEW_WORDS or ends[1] > SHORTER * ends[0] or run.flag("environment") is not None:
        return None
    return run.finding(
        "length_collapse",
        "Completions become very short",
        "A short completion pays less penalty, or the reward is above 0 for saying nothing.",
        f"completions/mean_length fell from {ends[0]:.1f} to {ends[1]:.1f} tokens",
        "Lower kl_coef or length_penalty, or center the rewards: set use_score_scaling with use_score_norm.",
    )


def never_stops(run: RunRecord) -> Finding | None:
    """Find that no completion comes to its end."""
    if run.flag("environment") is not None or run.flag("max_completion_length") == 1:
        return None
    shares = run.numbers("completions/clipped_ratio")
    if len(shares) < 3 or min(shares) < 1:
        return None
    return run.finding(
        "never_stops",
        "Completions never stop",
        "The limit comes before the end, or the model ends its answers with a token that is not an end token.",
        f"completions/clipped_ratio is 1 in all {len(shares)} iterations, with a limit of"
        f" {run.flag('max_completion_length', '?')} tokens",
        "Raise max_completion_length, or name the token in stop_token_ids. Then set missing_eos_penalty.",
    )


def episodes_cut(run: RunRecord) -> Finding | None:
    """Find episodes that a limit ends before their turns are over."""
    turns, cut = run.numbers("episodes/turns")[-LEAST:], run.numbers("episodes/truncated")[-LEAST:]
    most = run.flag("max_turns")
    if not turns or not cut or most is None or fmean(cut) < CUT or fmean(turns) > most - 1:
        return None
    return run.finding(
        "episodes_cut",
        "Episodes end too early",
        "The limit of their tokens ends most episodes before the environment or max_turns does.",
        f"episodes/truncated {fmean(cut):.0%} and episodes/turns {fmean(turns):.1f} of {most} over the last {len(cut)}"
        " iterations",
        "Raise max_episode_length, which counts the environment's tokens too. By default it is twice max_turns times"
        " max_completion_length.",
    )


def text_repeats(run: RunRecord) -> Finding | None:
    """Find texts that repeat themselves while the reward rises."""
    texts = [row["completion"] for row in run.samples if row.get("completion")]
    reward = run.both("reward")
    if len(texts) < 2 * FEW_PAIRS or reward is None or reward[1] <= reward[0]:
        return None
    window = max(len(texts) // 4, FEW_PAIRS)
    early, late = (fmean(map(fluency, part)) for part in (texts[:window], texts[-window:]))
    if early == 0 or late > REPEATS * early:
        return None
    return run.finding(
        "text_repeats",
        "The reward rises and the text gets worse",
        "The policy found a phrase that the reward overrates, and says it again and again.",
        f"of the samples' word pairs {early:.0%} were no repetition at the beginning, and {late:.0%} are now, while the"
        f" reward rose from {reward[0]:.3g} to {reward[1]:.3g}",
        "Raise kl_coef, or set kl_target. Take the checkpoint that is best on held-out prompts"
        " (load_best_model_at_end).",
    )


def learned_by_heart(run: RunRecord) -> Finding | None:
    """Find rewards that rise on the prompts of training alone."""
    train, held_out, spread = run.late("reward"), run.numbers("eval_reward"), run.late("reward_std")
    if train is None or len(held_out) < 2 or not spread or train - held_out[-1] <= OVERFIT * spread:
        return None
    if held_out[-1] > held_out[0]:
        return None
    return run.finding(
        "learned_by_heart",
        "The evaluation reward differs from the training reward",
        "The policy learned the prompts of training, and nothing that holds for others.",
        f"reward {train:.3g} in training, and eval_reward {held_out[0]:.3g} at first, {held_out[-1]:.3g} now",
        "Use more prompts, or raise kl_coef.",
    )


def critic_under_fit(run: RunRecord) -> Finding | None:
    """Find a critic that foretells no better than a constant."""
    if run.flag("advantage_estimator", "gae") not in ("gae", "value"):
        return None
    fits = run.learning.numbers("val/explained_variance")
    if len(fits) < CRITIC_LEARNS:
        return None
    late = fits[-min(len(fits) // 2, LONG_WINDOW) :]
    if fmean(late) > 0.0 or sorted(late)[-len(late) // 10 - 1] > 0.1:  # nine of ten below
        return None
    return run.finding(
        "critic_under_fit",
        "The explained variance is negative or stays at 0",
        "The critic foretells the returns no better than a constant does, so advantages are mostly noise.",
        f"val/explained_variance is {fmean(late):.2g} over the last {len(late)} iterations, at best {max(late):.2g}",
        f"Raise vf_coef ({run.flag('vf_coef', '?')}) or critic_learning_rate, or set critic_warmup_iterations. If"
        " val/clipfrac_avg is high, set cliprange_value to 0.",
    )


def _correlation_with_length(samples: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the correlation of reward and words of the samples; None without enough of them."""
    pairs = [
        (float(len(row["completion"].split())), float(row["reward"]))
        for row in samples
        if row.get("reward") is not None and row.get("completion") is not None
    ]
    if len(pairs) < FEW_PAIRS:
        return None
    means = [fmean(column) for column in zip(*pairs, strict=True)]
    away = [[value - mean for value, mean in zip(pair, means, strict=True)] for pair in pairs]
    squares = [sum(each[column] ** 2 for each in away) for column in (0, 1)]
    if not all(squares):
        return None
    return sum(length * reward for length, reward in away) / (squares[0] * squares[1]) ** 0.5


REWARD_SYMPTOMS = (
    no_reward, reward_constant, reward_scale, penalty_too_strong, never_stops, length_drift, length_collapse,
    episodes_cut, text_repeats, learned_by_heart, reward_saturated, critic_under_fit,
)  # fmt: skip
