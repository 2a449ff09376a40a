"""Symptoms of the policy: its KL, its ratio, its updates and its entropy."""

import math
from statistics import fmean, stdev

from hf_rlhf.evaluation.doctor.record import LEAST, Finding, RunRecord

KL_AT_START = 1e-3  # nats of a token: policy and reference are the same weights, so rounding is all there is
RATIO_AT_START = 1e-2  # float32 is below 1e-4
RATIO_OVER_GAP = 60.0  # with rounded weights: the largest error of thousands of tokens over the mean gap of one
SAMPLER_GAP = 0.15  # nats; bfloat16 against bfloat16 is about 0.05
KL_TOO_FAR = 0.7  # nats of a token; runs that stay readable end below 0.3
CLIPPED, RATIO, MOVED = 0.6, 2.0, 0.5  # of an iteration: share of clipped tokens, mean ratio, mean (log ratio)^2 / 2
ENTROPY_LEFT, ENTROPY_LOW = 0.15, 0.3  # share of the start, and nats of a token


def kl_at_start(run: RunRecord) -> Finding | None:
    """Find a policy that is not its reference before the first update."""
    first = run.rows[0]
    if first["iteration"] != 1 or first.get("objective/kl") is None:
        return None
    (per_token, *_) = run.kl_per_token()
    if abs(per_token) <= KL_AT_START:
        return None
    reference = run.flag("ref_model_path")
    return run.finding(
        "kl_at_start",
        "The KL is not 0 in the first iteration",
        f"The reference is {reference}, which is not where the policy started."
        if reference
        else "Policy and reference differ before the first update, so the penalty pulls the policy to another model.",
        f"objective/kl {first['objective/kl']:.3g} in iteration 1, {per_token:.3g} nats a token",
        "Omit ref_model_path, or start the policy from the reference.",
    )


def ratio_at_start(run: RunRecord) -> Finding | None:
    """Find a first update that sees other probabilities than those that sampled."""
    first = run.rows[0]
    error, gap = first.get("val/first_ratio_error"), first.get("sampling/logp_gap") or 0.0
    if error is None or error <= max(RATIO_AT_START, RATIO_OVER_GAP * gap):
        return None
    dropout = run.flag("disable_dropout", True) is False
    return run.finding(
        "ratio_at_start",
        "The ratio is not 1 in the first minibatch",
        "Dropout is on, so each pass computes other probabilities."
        if dropout
        else "The pass of the update computes other probabilities than the pass before it.",
        f"val/first_ratio_error {error:.3g} in iteration {first['iteration']:.0f}, where rounding is about"
        f" {max(gap, 1e-6):.1g} a token",
        "Set disable_dropout to true." if dropout else "Set dtype to float32 and look whether it stays.",
    )


def sampler_gap(run: RunRecord) -> Finding | None:
    """Find a sampler that draws from another distribution than the trainer computes."""
    gaps = run.numbers("sampling/logp_gap")[-LEAST:]
    if not gaps or fmean(gaps) <= SAMPLER_GAP:
        return None
    return run.finding(
        "sampler_gap",
        "The ratio is not 1 in the first minibatch",
        "The sampler draws from another distribution than the one whose log-probabilities are trained: other weights,"
        " temperature, top_k, top_p or template.",
        f"sampling/logp_gap {fmean(gaps):.3g} nats a token, where bfloat16 is about 0.05",
        "Sample with the temperature, top_k and top_p of the run and its current weights. With a sampler of other"
        " arithmetic, set importance_sampling_cap.",
    )


def kl_negative(run: RunRecord) -> Finding | None:
    """Find a KL below 0 by more than the noise of its estimate."""
    kls = run.kl_per_token()[-10:]
    if len(kls) < LEAST:
        return None
    mean, error = fmean(kls), stdev(kls) / math.sqrt(len(kls))
    if mean >= -0.005 or mean + 2 * error >= 0:
        return None
    return run.finding(
        "kl_negative",
        "The KL is negative",
        "A KL cannot stay below 0: the completions are not drawn from the policy whose log-probabilities are used.",
        f"objective/kl is {mean:.3g} nats a token over the last {len(kls)} iterations (standard error {error:.2g})",
        "Sample from the current policy, with the temperature, top_k and top_p that the run has.",
    )


def kl_grows(run: RunRecord) -> Finding | None:
    """Find a policy that leaves its reference farther and farther behind."""
    kls = run.kl_per_token()
    if len(kls) < LEAST or run.of_a_game_alone:
        return None
    window = max(len(kls) // 4, 2)
    middle = fmean(kls[len(kls) // 2 - window // 2 :][:window])
    late = fmean(kls[-window:])
    if late <= KL_TOO_FAR or late <= 1.1 * middle:
        return None
    return run.finding(
        "kl_grows",
        "The KL grows without end",
        "The reward pays more than the penalty costs, or the updates are too large.",
        f"objective/kl rose from {middle:.2g} to {late:.2g} nats a token, and kl_coef is {run.flag('kl_coef', '?')}",
        "Raise kl_coef, or set kl_target. Lower learning_rate.",
    )


def updates_too_large(run: RunRecord) -> Finding | None:
    """Find updates that leave the region in which the completions say anything about the policy."""
    rows = run.learning.rows
    far = [
        row
        for row in rows
        if (row.get("policy/clipfrac_avg") or 0) > CLIPPED
        or (row.get("val/ratio") or 1) > RATIO
        or (row.get("policy/approxkl_avg") or 0) > MOVED
    ]
    if len(far) < max(2, len(rows) / 5):
        return None
    worst = {
        name: max(value for row in far if (value := row.get(name)) is not None)
        for name in ("policy/clipfrac_avg", "policy/approxkl_avg", "val/ratio")
        if any(row.get(name) is not None for row in far)
    }
    return run.finding(
        "updates_too_large",
        "The clip fraction is near 1, or the ratio explodes",
        "The updates on the same completions are too many or too large.",
        f"in {len(far)} of {len(rows)} iterations; at worst "
        + ", ".join(f"{name} {value:.3g}" for name, value in worst.items()),
        f"Lower learning_rate ({run.flag('learning_rate', '?')}) or num_ppo_epochs"
        f" ({run.flag('num_ppo_epochs', '?')}), or set early_stop_kl to 0.02.",
    )


def updates_refused(run: RunRecord) -> Finding | None:
    """Find that many updates were not made."""
    made, skipped, empty = (
        sum(run.numbers(f"policy/{name}")) for name in ("updates", "skipped_updates", "empty_updates")
    )
    planned = made + skipped + empty
    if not planned or (skipped + empty) / planned <= 0.2:
        return None
    return run.finding(
        "updates_refused",
        "Fewer updates than expected",
        "A guard refused them, or nothing in their minibatch had a reward.",
        f"{skipped:.0f} updates above ratio_threshold and {empty:.0f} empty ones, of {planned:.0f}",
        "Lower learning_rate, or raise ratio_threshold. If they are empty, let the reward return more numbers.",
    )


def nonfinite_updates(run: RunRecord) -> Finding | None:
    """Find losses or gradients that were NaN or infinite."""
    counts = run.numbers("nonfinite_updates")
    if not counts or counts[-1] == 0:
        return None
    return run.finding(
        "nonfinite_updates",
        "The run ended with NaN",
        "The loss or the gradients of an update were not finite, and it was not made.",
        f"nonfinite_updates {counts[-1]:.0f} by iteration {run.iteration}",
        "Set dtype to bfloat16 or float32, lower learning_rate, and set max_grad_norm to 1.",
    )


def policy_does_not_move(run: RunRecord) -> Finding | None:
    """Find a policy to which nothing happens, though rewards differ."""
    learning = run.learning
    moved, kls = learning.numbers("policy/approxkl_avg"), learning.kl_per_token()[1:]
    if len(kls) < LEAST - 1 or not any(learning.numbers("reward_std")):
        return None
    if max(moved, default=0.0) > 1e-7 or max(map(abs, kls)) > 1e-5:
        return None
    return run.finding(
        "policy_does_not_move",
        "The clip fraction is 0",
        "The updates do not change the policy.",
        f"policy/approxkl_avg stays below {max([*moved, 1e-12]):.1g} and objective/kl below {max(map(abs, kls)):.1g}"
        f" nats a token, with learning_rate {run.flag('learning_rate', '?')} and grad_norm"
        f" {fmean(learning.numbers('grad_norm') or [0.0]):.2g}",
        "Raise learning_rate; LoRA takes about ten times that of full fine-tuning. Lower warmup_steps.",
    )


def entropy_collapse(run: RunRecord) -> Finding | None:
    """Find a policy that has hardly a choice left."""
    ends = run.both("policy/entropy_avg")
    if ends is None or run.of_a_game_alone or ends[1] > ENTROPY_LOW or ends[1] > ENTROPY_LEFT * ends[0]:
        return None
    return run.finding(
        "entropy_collapse",
        "All completions become the same",
        "The entropy fell to almost nothing: every prompt gets the same few tokens, and nothing new is tried.",
        f"policy/entropy_avg fell from {ends[0]:.2g} to {ends[1]:.2g} nats a token",
        "Go back to an earlier checkpoint. Set entropy_coef to 0.001 to 0.01, raise kl_coef, or lower learning_rate.",
    )


POLICY_SYMPTOMS = (
    kl_at_start, ratio_at_start, sampler_gap, kl_negative, nonfinite_updates, updates_too_large, updates_refused,
    kl_grows, policy_does_not_move, entropy_collapse,
)  # fmt: skip
