# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers", "hf-rlhf"]
# ///
"""PPO for language models in one file, to be read from top to bottom.

A tiny Llama with random weights learns to count. It is shown a few numbers and continues; at the end it is told what
share of its numbers were the one before plus one, and nothing else: no right answer, not even which ones were right.
Run it: `python recipes/minimal_ppo.py` (about ten seconds on a CPU).

Everything of RLHF is here: sampling, a score for the whole completion, the KL to a frozen reference, token rewards,
a critic, advantages, clipped updates. The trainer of the library does the same with the same `hf_rlhf.ops`, for models
that need adapters, chunks and several machines.

Axes: B sequences, P prompt tokens, T completion tokens, V vocabulary. The mask is True where a sampled token counts.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_rlhf.ops import (
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    k1,
    masked_sum,
    per_token_rewards,
    whiten,
)

STOP = 0  # the token that ends a completion; every other token is a number


@dataclass(frozen=True)
class Config:
    """Every number of the run."""

    vocabulary: int = 16  # STOP and the numbers 1 to 15
    prompt_length: int = 3
    completion_length: int = 10
    batch_size: int = 128  # completions sampled in one iteration
    epochs: int = 2  # times each of them is used
    minibatches: int = 4  # updates in one epoch
    learning_rate: float = 3e-3
    kl_coef: float = 0.02
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_value: float = 0.2
    value_coef: float = 0.5


class Policy(nn.Module):
    """A language model with a second head: beside the next token's logits it says what reward is still to come."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.language_model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocabulary,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=config.prompt_length + config.completion_length,
                bos_token_id=None,
                eos_token_id=STOP,
            )
        )
        self.value_head = nn.Linear(64, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits (B, L, V) and values (B, L) of tokens (B, L).

        Padding is on the right, where causal attention never looks.

        Logits of a whole batch over a real vocabulary take gigabytes: the library never holds them, see
        `hf_rlhf/ops/logprobs.py`. With 16 tokens it does not matter.
        """
        hidden = self.language_model.model(tokens).last_hidden_state
        return self.language_model.lm_head(hidden), self.value_head(hidden).squeeze(-1)


@dataclass(frozen=True)
class Rollout:
    """Sampled completions, with the log-probabilities and values of the policy that sampled them."""

    prompts: Tensor  # (B, P)
    completions: Tensor  # (B, T)
    mask: Tensor  # (B, T), True up to and including the first STOP
    logprobs: Tensor  # (B, T)
    values: Tensor  # (B, T)


@dataclass(frozen=True)
class Batch:
    """One row for each completion, ready to be cut into minibatches."""

    rollout: Rollout
    advantages: Tensor  # (B, T)
    returns: Tensor  # (B, T)


# --- Sampling and scoring ---------------------------------------------------------------------------------------------


def sample_prompts(count: int, config: Config, rng: torch.Generator) -> Tensor:
    """Draw random numbers, (B, P)."""
    return torch.randint(STOP + 1, config.vocabulary, (count, config.prompt_length), generator=rng)


@torch.no_grad()
def collect(policy: Policy, prompts: Tensor, config: Config, rng: torch.Generator) -> Rollout:
    """Sample a completion for each prompt at temperature 1, token by token."""
    tokens = prompts
    for _ in range(config.completion_length):
        logits, _ = policy(tokens)
        next_tokens = torch.multinomial(logits[:, -1].softmax(-1), num_samples=1, generator=rng)  # (B, 1)
        tokens = torch.cat([tokens, next_tokens], dim=1)
    completions = tokens[:, config.prompt_length :]
    stops_before = (completions == STOP).long().cumsum(1) - (completions == STOP).long()
    logprobs, values = logprobs_and_values(policy, prompts, completions)
    return Rollout(prompts, completions, mask=stops_before == 0, logprobs=logprobs, values=values)


def logprobs_and_values(policy: Policy, prompts: Tensor, completions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log p of each completion token, and the value of the state it was chosen in; both (B, T)."""
    logits, values = policy(torch.cat([prompts, completions], dim=1))
    # The output at a position is about the next token: shift by one.
    before_each_token = slice(prompts.shape[1] - 1, -1)
    logprobs = logits[:, before_each_token].log_softmax(-1)
    return logprobs.gather(-1, completions.unsqueeze(-1)).squeeze(-1), values[:, before_each_token]


def gold_score(rollout: Rollout, config: Config) -> Tensor:
    """Return the share of T tokens that are the one before plus one (1 follows the largest), (B,).

    In real life, a reward model.
    """
    before = torch.cat([rollout.prompts[:, -1:], rollout.completions[:, :-1]], dim=1)
    counts_up = (rollout.completions == before % (config.vocabulary - 1) + 1) & rollout.mask
    return counts_up.float().mean(1)


# --- Learning ---------------------------------------------------------------------------------------------------------


def minibatches(batch: Batch, config: Config, rng: torch.Generator) -> Iterator[Batch]:
    """Yield the rows in a new order in each epoch, cut into equal parts."""
    rollout = batch.rollout
    for _ in range(config.epochs):
        for rows in torch.randperm(len(rollout.mask), generator=rng).chunk(config.minibatches):
            part = Rollout(**{name: tensor[rows] for name, tensor in vars(rollout).items()})
            yield Batch(part, batch.advantages[rows], batch.returns[rows])


def update(policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch, config: Config) -> dict[str, float]:
    """Take one step of the optimizer on one minibatch."""
    old = batch.rollout
    logprobs, values = logprobs_and_values(policy, old.prompts, old.completions)
    policy_loss = clipped_policy_loss(logprobs, old.logprobs, batch.advantages, old.mask, config.cliprange)
    value_loss = clipped_value_loss(values, old.values, batch.returns, old.mask, config.cliprange_value)

    tokens = old.mask.sum()  # the losses are sums: divide once, by the tokens of the minibatch
    loss = (policy_loss.loss + config.value_coef * value_loss.loss) / tokens
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return {name: (total / tokens).item() for name, total in policy_loss.stats.items()}


def step(
    policy: Policy, reference: Policy, optimizer: torch.optim.Optimizer, config: Config, rng: torch.Generator
) -> dict[str, float]:
    """Run one iteration of PPO."""
    rollout = collect(policy, sample_prompts(config.batch_size, config, rng), config, rng)
    scores = gold_score(rollout, config)  # (B,)
    with torch.no_grad():
        reference_logprobs, _ = logprobs_and_values(reference, rollout.prompts, rollout.completions)
    kl = k1(rollout.logprobs, reference_logprobs)  # (B, T)
    rewards = per_token_rewards(scores, kl, rollout.mask, config.kl_coef)  # (B, T)
    # The score judges the completion as it is, so nothing comes after its last token: no bootstrap.
    advantages, returns = gae(rewards, rollout.values, rollout.mask, config.gamma, config.lam)
    batch = Batch(rollout, whiten(advantages, rollout.mask), returns)
    stats = [update(policy, optimizer, part, config) for part in minibatches(batch, config, rng)]
    return {
        "score": scores.mean().item(),
        "kl": masked_sum(kl, rollout.mask, dim=1).mean().item(),  # of a whole completion
        "length": rollout.mask.sum(1).float().mean().item(),
        "explained_variance": explained_variance(rollout.values, returns, rollout.mask).item(),
        "clip_fraction": sum(each["clip_fraction"] for each in stats) / len(stats),
    }


# --- The run ----------------------------------------------------------------------------------------------------------


def evaluate(policy: Policy, config: Config) -> float:
    """Return the mean score on 512 prompts, always the same ones."""
    rng = torch.Generator().manual_seed(12345)
    rollout = collect(policy, sample_prompts(512, config, rng), config, rng)
    return gold_score(rollout, config).mean().item()


def main(iterations: int = 60, seed: int = 0, config: Config | None = None) -> dict[str, float]:
    """Train, print a line for each iteration, and return the score before and after."""
    config = config or Config()
    torch.manual_seed(seed)  # the random weights
    rng = torch.Generator().manual_seed(seed)  # everything sampled
    policy = Policy(config)
    reference = deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)

    before = evaluate(policy, config)
    for iteration in range(1, iterations + 1):
        stats = step(policy, reference, optimizer, config, rng)
        print(f"{iteration:3d}  " + "  ".join(f"{name} {value:6.3f}" for name, value in stats.items()))
    after = evaluate(policy, config)

    rollout = collect(policy, sample_prompts(1, config, rng), config, rng)
    print(f"score before {before:.3f}, after {after:.3f}")
    print(f"an example: {rollout.prompts[0].tolist()} -> {rollout.completions[rollout.mask].tolist()}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
