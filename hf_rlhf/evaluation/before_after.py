"""A policy against the model it started from: the same prompts, the same random numbers, the same judge."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hf_rlhf.data.tokens import ROW_OPTIONS
from hf_rlhf.evaluation.likelihood import completion_kl
from hf_rlhf.evaluation.metrics import BeforeAfter, WinRate, win_rate
from hf_rlhf.evaluation.text_measures import TextMeasures, measure_texts
from hf_rlhf.models.adapters import REFERENCE, use_adapter
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.rewards.calls import accepted
from hf_rlhf.rewards.contract import as_completion
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Model, Sequences, Trajectory

Judge = Callable[[Trajectory], float]
Reward = Callable[..., list[float]]


@dataclass(frozen=True, slots=True)
class Side:
    """Completions of one of the two models, and their ratings: one entry for each prompt."""

    trajectories: list[Trajectory]
    judgements: list[float]  # by the judge
    rewards: list[float]  # by the reward model that PPO trained against
    surprise: list[float]  # -log p of a token under the starting model, mean over the completion, in nats
    kl: list[float]  # log p(completion) of the model that wrote it minus that of the starting model, in nats


@dataclass(frozen=True, slots=True)
class Comparison:
    """Before and after, prompt by prompt."""

    before: Side
    after: Side

    @property
    def wins(self) -> WinRate:
        """Rate at which the judge prefers the trained policy's completion."""
        return win_rate(self.before.judgements, self.after.judgements)

    def rows(self, judge_name: str = "judge") -> list[BeforeAfter]:
        """Return the table that a person reads."""
        sides = (self.before, self.after)
        measured = [(side, measure_texts(side.trajectories)) for side in sides]

        def row(name: str, of: Callable[[Side, TextMeasures], float], digits: int = 2, percent: bool = False):
            before, after = (of(*each) for each in measured)
            return BeforeAfter(name, before, after, digits, percent)

        return [
            row(f"{judge_name} rating (0 to 1)", lambda side, _: fmean(side.judgements)),
            row("reward by the reward model", lambda side, _: fmean(side.rewards)),
            row("replies finished", lambda _, texts: texts.finished, 0, True),
            row("length (tokens)", lambda _, texts: texts.tokens, 1),
            row("distinct word pairs", lambda _, texts: texts.fluency, 0, True),
            row("surprise to the starting model (nats a token)", lambda side, _: fmean(side.surprise)),
            row("KL to the starting model (nats a reply)", lambda side, _: fmean(side.kl), 1),
        ]


def measure_side(
    model: Model,
    engine: TransformersEngine,
    rows: Sequence[Mapping[str, Any]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    adapter: bool,
    judge: Judge,
    reward: Reward,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Side:
    """Sample from a PEFT model with its adapter on (the trained policy) or off (the start), and judge the completions.

    A policy that started from an adapter has that beside its own, as `reference`: it is the start then.

    Args:
        model: the trained policy, as a `PeftModel` on the base it started from.
        engine: samples from `model`.
        rows: `prompt` and `prompt_ids` each.
        sampling: the same for both sides.
        seeds: one a row, the same for both sides.
        adapter: whether the trained one is on.
        judge: rates one completion.
        reward: by TRL's reward-function contract.
        chat_template_kwargs: those that the prompts were rendered with.
    """
    policy = PolicyWithValue(model)  # before sampling: it fuses adapters, which rounds differently
    start = REFERENCE if REFERENCE in model.peft_config else None
    with nullcontext() if adapter else use_adapter(model, start):
        trajectories = collect(engine, rows, engine.tokenizer, sampling, seeds, chat_template_kwargs)
        return _side(policy, trajectories, sampling.temperature, judge, reward)


def _side(
    policy: PolicyWithValue, trajectories: list[Trajectory], temperature: float, judge: Judge, reward: Reward
) -> Side:
    sequences = Sequences.from_trajectories(trajectories).to(next(policy.parameters()).device)
    with torch.no_grad():
        output = policy(sequences, temperature=temperature, values=False, reference=True)

    def per_reply(values: Tensor) -> list[float]:
        return (values * sequences.mask).sum(dim=1).tolist()

    lengths = sequences.mask.sum(dim=1).tolist()
    arguments = {
        "prompts": [trajectory.prompt for trajectory in trajectories],
        "completions": [as_completion(trajectory) for trajectory in trajectories],
        **{name: [trajectory.row.get(name) for trajectory in trajectories] for name in ROW_OPTIONS},
    }
    return Side(
        trajectories,
        judgements=[judge(trajectory) for trajectory in trajectories],
        rewards=reward(**accepted(reward, arguments)),
        surprise=[total / length for total, length in zip(per_reply(-output.reference_logprobs), lengths, strict=True)],
        kl=completion_kl(output.logprobs, output.reference_logprobs, sequences.mask),
    )
