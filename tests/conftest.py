"""Tiny models from configs and a word-level tokenizer built in memory: nothing here needs a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
import torch

WORDS = "the a cat dog sat ran on mat good bad happy sad yes no hello you are is it . ! ?".split()
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def make_tokenizer(*, pad_is_eos: bool = False, chat_template: bool = True):
    """A tokenizer of whole words, with chat tokens; `pad_is_eos` makes its padding token its end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant", *WORDS]
    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>" if pad_is_eos else "<pad>",
        additional_special_tokens=["<|im_start|>"],
    )
    if chat_template:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer, *, seed: int = 0, **overrides):
    """A two-layer Llama in fp32 with random weights large enough to make a lively distribution."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            **overrides,
        }
    )
    return LlamaForCausalLM(config)


def make_lora(**overrides):
    """LoRA on every linear layer."""
    from peft import LoraConfig

    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.0}
        | overrides
    )


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def prompts():
    """Sixteen conversational prompts of different lengths, with one extra column."""
    from datasets import Dataset

    texts = [" ".join((WORDS * 2)[i : i + 2 + i % 5]) for i in range(16)]
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}], "number": i} for i, text in enumerate(texts)]
    )


def happy_reward(prompts, completions, **columns):
    """Share of words that are "happy"."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [text.split().count("happy") / max(len(text.split()), 1) for text in texts]


def make_config(folder, **overrides):
    """Sixteen completions an iteration, two PPO epochs of two minibatches, on CPU."""
    from hf_rlhf.ppo.config import PPOConfig

    return PPOConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "num_mini_batches": 2,
            "num_ppo_epochs": 2,
            "max_completion_length": 8,
            "max_prompt_length": 32,
            "learning_rate": 1e-2,
            "max_steps": 8,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            "save_strategy": "no",
        }
        | overrides
    )
