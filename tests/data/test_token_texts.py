"""The text of each token, also where a character is made of several."""

import random
import time

import pytest
from environments.byte_tokenizers import byte_tokenizer
from tiny import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from hf_rlhf.data.token_texts import UNFINISHED, texts_of_tokens

BYTES = byte_tokenizer("chatml")


def ids_of_bytes(content):
    """The ids of single bytes, also of those that are no text."""
    from tokenizers.pre_tokenizers import ByteLevel

    named = _pretty_bytes()
    assert set(named) == set(ByteLevel.alphabet())
    return [BYTES.convert_tokens_to_ids(named[byte]) for byte in content]


def _pretty_bytes():
    """The characters by which byte-level tokenizers name bytes: printable ones themselves, the others from 256 on."""
    kept = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in kept else next(others)) for byte in range(256)]


def test_a_character_of_several_tokens_is_the_text_of_the_last():
    assert texts_of_tokens(ids_of_bytes("a€b".encode()), BYTES) == ["a", "", "", "€", "b"]
    assert texts_of_tokens(ids_of_bytes("🌿".encode()), BYTES) == ["", "", "", "🌿"]


def test_bytes_that_are_no_character_have_a_sign_each_and_hide_nothing_behind_them():
    assert texts_of_tokens(ids_of_bytes(b"\x80\x80a"), BYTES) == [UNFINISHED, UNFINISHED, "a"]
    assert texts_of_tokens(ids_of_bytes(b"a\xe2"), BYTES) == ["a", UNFINISHED]  # cut off in the middle
    assert texts_of_tokens(ids_of_bytes(b"\xe2" * 40 + "é!".encode()), BYTES)[-3:] == ["", "é", "!"]


def test_the_texts_together_are_the_text_of_all():
    draws = random.Random(0)
    letters = "aé€🌿שx \n"
    for _ in range(200):
        content = "".join(draws.choices(letters, k=draws.randrange(12))).encode()
        if draws.random() < 0.5:
            content += bytes(draws.randrange(128, 256) for _ in range(draws.randrange(30)))
        ids = ids_of_bytes(content)
        texts = texts_of_tokens(ids, BYTES)
        assert len(texts) == len(ids)
        assert "".join(texts) == BYTES.decode(ids), content


@pytest.mark.parametrize("text", ["happy cat <|im_end|>", "<|im_start|> user the <|im_end|>", "", "cat"])
def test_special_tokens_have_their_text(text):
    tokenizer = make_tokenizer()
    ids = tokenizer(text).input_ids
    texts = texts_of_tokens(ids, tokenizer)
    assert "".join(texts) == text
    assert [each.strip() for each in texts] == text.split()


def test_spaces_stay_where_a_tokenizer_drops_the_first_one():
    inner = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2}, unk_token="s"))
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert texts_of_tokens([0, 1, 2, 0], tokenizer) == ["the", " cat", "s", " the"]


def test_the_time_grows_with_the_length_and_not_with_its_square():
    ids = ids_of_bytes(b"abc d\xff" * 500)
    start = time.process_time()
    texts_of_tokens(ids, BYTES)
    short = time.process_time() - start
    start = time.process_time()
    texts_of_tokens(ids * 8, BYTES)
    assert time.process_time() - start < 8 * 4 * short
