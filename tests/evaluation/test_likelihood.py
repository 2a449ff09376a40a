"""Log-probabilities, KL and perplexity against the model's own forward pass."""

import math

import pytest
import torch
from peft import get_peft_model
from tiny import make_lora, make_model, make_tokenizer, perturb

from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.evaluation.before_after import measure_side
from hf_rlhf.evaluation.likelihood import completion_kl, completion_logprobs, text_likelihood
from hf_rlhf.models.adapters import use_adapter
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling

PROMPTS, COMPLETIONS = [[5, 9, 12], [8], [7, 7, 11, 13]], [[3, 4], [9, 10, 11, 12], []]


def by_hand(model, prompt, completion, temperature):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0].float() / temperature
    scored = logits.log_softmax(-1)[len(prompt) - 1 : -1] if completion else logits[:0]
    return [row[token].item() for row, token in zip(scored, completion, strict=True)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_a_plain_forward_pass(temperature, batch_size):
    model = make_model(make_tokenizer()).eval()
    found = completion_logprobs(model, PROMPTS, COMPLETIONS, temperature=temperature, batch_size=batch_size)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        assert found[row] == pytest.approx(by_hand(model, prompt, completion, temperature), abs=1e-5)


def test_the_kl_is_that_of_measure_side_which_the_quickstart_uses():
    tokenizer = make_tokenizer()
    model = perturb(get_peft_model(make_model(tokenizer), make_lora()), only="lora").eval()
    rows = prompt_rows([[{"role": "user", "content": text}] for text in ("hello", "the cat sat", "a")], tokenizer)
    sampling = Sampling(max_completion_length=6, temperature=0.8)
    side = measure_side(
        model, TransformersEngine(model, tokenizer), rows, sampling, [0, 1, 2], adapter=True,
        judge=lambda trajectory: 0.0, reward=lambda prompts, completions: [0.0] * len(completions),
    )  # fmt: skip
    ids = [each.completion.ids for each in side.trajectories]
    prompts = [row["prompt_ids"] for row in rows]
    own = completion_logprobs(model, prompts, ids, temperature=0.8)
    with use_adapter(model, None):
        start = completion_logprobs(model, prompts, ids, temperature=0.8)
    for row in range(3):
        mask = torch.ones(1, len(ids[row]), dtype=torch.bool)
        (kl,) = completion_kl(torch.tensor([own[row]]), torch.tensor([start[row]]), mask)
        assert kl == pytest.approx(side.kl[row], abs=1e-4)
        assert -sum(start[row]) / len(ids[row]) == pytest.approx(side.surprise[row], abs=1e-4)


def test_the_mean_of_the_kl_of_samples_is_the_exact_kl():
    """One token, whose exact KL is a sum over the vocabulary."""
    tokenizer = make_tokenizer()
    policy, start = make_model(tokenizer, seed=0).eval(), perturb(make_model(tokenizer, seed=0)).eval()
    prompt, count = [5, 9, 12], 4000
    with torch.no_grad():
        p, q = (model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for model in (policy, start))
    exact = (p.exp() * (p - q)).sum().item()
    rng = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(p.exp(), count, replacement=True, generator=rng).unsqueeze(1).tolist()
    scored = [
        torch.tensor(completion_logprobs(model, [prompt] * count, drawn, batch_size=500)) for model in (policy, start)
    ]
    kl = torch.tensor(completion_kl(scored[0], scored[1], torch.ones(count, 1, dtype=torch.bool)))
    assert kl.mean().item() == pytest.approx(exact, abs=4 * kl.std().item() / count**0.5)
    assert exact > 0.05


def test_perplexity_by_hand_and_over_windows():
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, max_position_embeddings=6).eval()
    text = "the cat sat on the mat . a dog ran"  # windows of 6 and 4 tokens
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 10
    scored = by_hand(model, ids[:1], ids[1:6], 1.0) + by_hand(model, ids[6:7], ids[7:], 1.0)
    found = text_likelihood(model, tokenizer, text)
    assert found.tokens == 8
    assert found.perplexity == pytest.approx(math.exp(-sum(scored) / 8), rel=1e-5)
    assert found.bits_per_character == pytest.approx(-sum(scored) / math.log(2) / len(text), rel=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        text_likelihood(model, tokenizer, "the")
