"""Fixtures of tiny models; `tiny.py` makes them. Nothing here needs a network."""

import pytest
from tiny import make_model, make_prompts, make_tokenizer


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def prompts():
    """Sixteen conversational prompts of different lengths, with one extra column."""
    return make_prompts()
