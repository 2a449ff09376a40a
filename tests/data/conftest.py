"""A word-level tokenizer made in memory: one token per word, and a chat template with visible markers."""

import pytest

WORDS = [
    "<pad>",
    "<eos>",
    "<unk>",
    "<user>",
    "<assistant>",
    "<system>",
    "the",
    "sky",
    "is",
    "blue",
    "green",
    "red",
    "sea",
    "what",
    "colour",
    "why",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        name_or_path="words",
    )
