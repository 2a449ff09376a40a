"""The distribution that every engine has to draw from."""

import torch

from hf_rlhf.rollout.sampling import Sampling, row_seed


def chi_squared_of_draws(engine, model, prompt, draws):
    """Return chi-squared of one-token draws against the softmax of the model's logits.

    It has 28 degrees of freedom for a vocabulary of 29.
    """
    temperature = 1.3
    seeds = [row_seed("frequencies", number) for number in range(draws)]
    sampling = Sampling(max_completion_length=1, temperature=temperature)
    tokens = [completion.ids[0] for completion in engine.generate([prompt] * draws, sampling, seeds)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    expected = (logits / temperature).softmax(-1) * draws
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected))
    return ((counts - expected) ** 2 / expected).sum()
