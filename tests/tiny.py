"""Tiny models from configs and a word-level tokenizer built in memory: nothing here needs a network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: on a busy core, the threads of a tiny model wait for each other

import torch

WORDS = "the a cat dog sat ran on mat good bad happy sad yes no hello you are is it . ! ?".split()  # noqa: SIM905
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


def make_base_tokenizer():
    """That of a base model with a chat template: its end token, `<|endoftext|>`, is not what closes a turn."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]})
    return tokenizer


def make_judge_tokenizer(**settings):
    """One that also has the letters and numbers in which judges answer."""
    tokenizer = make_tokenizer(**settings)
    tokenizer.add_tokens([*"AB12345", "[Reply", "A]", "B]"])
    return tokenizer


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


def make_prompts(count: int = 16):
    """Conversational prompts of different lengths, with one extra column."""
    from datasets import Dataset

    texts = [" ".join((WORDS * 3)[i % len(WORDS) :][: 2 + i % 5]) for i in range(count)]
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}], "number": i} for i, text in enumerate(texts)]
    )


def make_sequences(*, extra_padding: int = 0, padding_id: int = 0):
    """Five prompts with completions of different lengths, made of ids below 20, with columns of padding if asked."""
    from hf_rlhf.types import Sequences

    generator = torch.Generator().manual_seed(3)

    def ids(count):
        return torch.randint(1, 20, (count,), generator=generator).tolist()

    sequences = Sequences.from_ids([ids(count) for count in (3, 7, 1, 5, 4)], [ids(count) for count in (4, 1, 6, 2, 6)])
    rows = len(sequences)
    return Sequences(
        torch.cat(
            [
                torch.where(sequences.attention_mask, sequences.input_ids, padding_id),
                torch.full((rows, extra_padding), padding_id),
            ],
            dim=1,
        ),
        torch.cat([sequences.attention_mask, torch.zeros(rows, extra_padding, dtype=torch.bool)], dim=1),
        sequences.prompt_lengths,
        torch.cat([sequences.mask, torch.zeros(rows, extra_padding, dtype=torch.bool)], dim=1),
    )


def perturb(model, *, seed: int = 7, scale: float = 0.1, only: str = ""):
    """Add noise to every parameter whose name contains `only`; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def snapshot(model):
    """A copy of every parameter by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(model):
    """A copy of every parameter that takes gradients, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def make_trainer(
    folder, *, model=None, tokenizer=None, reward=None, data=None, lora=True, trainer_kwargs=None, **config
):
    """Make a PPO trainer of the tiny model with fresh LoRA (`lora=None` for full fine-tuning).

    `config` goes to PPOConfig.
    """
    from hf_rlhf.ppo.trainer import PPOTrainer

    tokenizer = tokenizer or make_tokenizer()
    return PPOTrainer(
        model or make_model(tokenizer),
        reward or happy_reward,
        make_config(folder, **config),
        make_prompts() if data is None else data,
        processing_class=tokenizer,
        peft_config=make_lora() if lora is True else lora,
        **(trainer_kwargs or {}),
    )


def metrics_of(folder, *, times: bool = False):
    """The rows of metrics.jsonl, without those keys that measure time."""
    import json
    from pathlib import Path

    from hf_rlhf.records import WALL_CLOCK

    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if times or not any(part in key for part in WALL_CLOCK)}
        for row in rows
    ]


def happy_reward(prompts, completions, **columns):
    """Share of words that are "happy"."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [text.split().count("happy") / max(len(text.split()), 1) for text in texts]


def make_config(folder, **overrides):
    """Eight completions an iteration, two PPO epochs of two minibatches, on CPU."""
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
