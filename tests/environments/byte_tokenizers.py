"""Tokenizers of single bytes with the special tokens and the chat templates of real models."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parent / "templates"
# Of each template: what begins a sequence, what ends it, what closes an answer, and other tokens of its own
TOKENS = {
    "chatml": (None, "<|im_end|>", "<|im_end|>", ["<|im_start|>"]),
    "qwen3": (None, "<|im_end|>", "<|im_end|>", ["<|im_start|>"]),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"]),
    "gemma": ("<bos>", "<eos>", "<end_of_turn>", ["<start_of_turn>"]),
    "mistral": ("<s>", "</s>", "</s>", ["[INST]", "[/INST]"]),
}


def byte_tokenizer(name):
    """Make the tokenizer of a template of this folder; any text comes back as it was."""
    begin, end, closes, others = TOKENS[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    special = {"eos_token": end, "pad_token": "<pad>"} | ({"bos_token": begin} if begin else {})
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=sorted({*others, closes} - {end}), **special
    )
    if name == "qwen3":  # which are no special tokens there, and so part of the text
        tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    return tokenizer


def closing_id(tokenizer, name):
    """Return the id that closes an answer."""
    return tokenizer.convert_tokens_to_ids(TOKENS[name][2])
