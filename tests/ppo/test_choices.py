"""The start of a run says what it chose by itself, and why where a fast way is not taken."""

import json

import pytest
import torch
from tiny import make_config, make_lora, make_model, make_tokenizer, make_trainer
from tiny_critics import make_critic_trainer, make_places

from hf_rlhf.models.machine import device_name
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.precision import Slowdown
from hf_rlhf.ppo.choices import _engine, choices
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.trunk import choose_trunk


def chosen(tmp_path, *, lora=None, kinds=("hf_rlhf_packed",), dtype=torch.float32, loaded="sdpa", **flags):
    model = make_model(make_tokenizer()).to(dtype)
    model.set_attn_implementation(loaded)
    wrapped = wrap_policy(model, make_lora() if lora is None else lora)
    policy = PolicyWithValue(wrapped)  # fuses
    args, attention = make_config(tmp_path, **flags), dict.fromkeys([model], *kinds)
    return choices(policy, args, attention, choose_trunk(policy, args, {}, sharded=False))


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("device", {}, f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads"),
        ("dtype", {}, "float32"),
        ("dtype", {"dtype": torch.bfloat16}, "bfloat16 base"),
        ("sampling", {}, "transformers, 8 completions at a time"),
        ("sampling", {"generation_batch_size": 3}, "transformers, 3 completions at a time"),
        ("sampling", {"use_transformers_continuous_batching": True}, "transformers, continuous batching"),
        ("attention", {}, "sequences end to end, without padding"),
        ("attention", {"kinds": ("eager",)}, "eager, padded: this architecture mixes sequences that lie end to end"),
        (
            "attention",
            {"loaded": "eager", "kinds": ("eager",)},
            "eager, padded: the model was loaded with this attention",
        ),
        ("attention", {"kinds": ("sdpa",), "padding_free": False}, "sdpa, padded: padding_free"),
        ("attention", {"kinds": ("sdpa",), "torch_compile": True}, "sdpa, padded: torch_compile would compile anew"),
        ("adapters", {}, "14 of 14 layers in one product"),
        (
            "adapters",
            {"lora": make_lora(target_modules=["q_proj", "embed_tokens"])},
            "2 of 3 layers in one product, 1 by PEFT",
        ),
        ("logits", {}, " tokens at a time"),
        ("trunk", {}, "every block is trained"),
        ("trunk", {"reuse_trunk": False}, "reuse_trunk=false"),
        ("compiled blocks", {}, "no (torch_compile)"),
        ("compiled blocks", {"torch_compile": True}, "in updates"),
    ],
)
def test_each_choice_in_words(tmp_path, name, flags, words):
    assert words in chosen(tmp_path, **flags)[name]


@pytest.mark.parametrize(
    ("native", "dtype", "words"),
    [
        (torch.float32, torch.float32, "float32 (native: this cpu does not multiply bfloat16 in hardware)"),
        (torch.bfloat16, torch.float32, "float32 (native is bfloat16: this cpu multiplies bfloat16 in hardware)"),
        (
            torch.bfloat16,
            torch.bfloat16,
            "bfloat16 base (native: this cpu multiplies bfloat16 in hardware, 35 times as slow as float32 here);"
            " what is trained is float32",
        ),
        (
            torch.float32,
            torch.bfloat16,
            "bfloat16 base (native is float32: this cpu does not multiply bfloat16 in hardware, 35 times as slow as"
            " float32 here); what is trained is float32",
        ),
        (
            torch.float32,
            torch.float16,
            "float16 base (native is float32: this cpu does not multiply bfloat16 in hardware); what is trained is"
            " float32",
        ),
    ],
)
def test_the_dtype_stands_beside_the_native_one(tmp_path, monkeypatch, native, dtype, words):
    monkeypatch.setattr("hf_rlhf.models.precision.native_dtype", lambda device: native)
    monkeypatch.setattr(Slowdown, "measured", lambda device: Slowdown(35.0))
    assert chosen(tmp_path, dtype=dtype)["dtype"] == words


LAST_BLOCK = make_lora(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")

# Each line of the block: flags and words with its fast path on, and off
STATES = {
    "device": (({"on_gpu": True}, "cuda (NVIDIA H100)"), ({}, "cpu (")),
    "dtype": (({"dtype": torch.bfloat16}, "bfloat16 base (native: "), ({}, "float32 (native is bfloat16: ")),
    "sampling": (
        ({"on_gpu": True}, "transformers, 8 completions at a time, each step a CUDA graph"),
        ({"on_gpu": True, "use_cuda_graphs": False}, "at a time, each step launched anew: use_cuda_graphs"),
    ),
    "attention": (({}, "sequences end to end"), ({"padding_free": False, "kinds": ("sdpa",)}, "padded: padding_free")),
    "adapters": (
        ({}, "14 of 14 layers in one product"),
        ({"lora": make_lora(use_dora=True)}, "0 of 14 layers in one product, 14 by PEFT"),
    ),
    "logits": (({}, f"{-(-(2**23) // 29)} tokens at a time"), ({"on_gpu": True}, f"{2**24 // 29} tokens at a time")),
    "trunk": (
        ({"lora": LAST_BLOCK}, "the lowest 1 of 2 blocks, which are not trained, are computed once"),
        (
            {"lora": LAST_BLOCK, "disable_dropout": False},
            "are computed anew in every pass, since disable_dropout=false",
        ),
    ),
    "compiled blocks": (({"torch_compile": True}, "in updates"), ({}, "no (torch_compile)")),
}


def test_the_table_of_states_has_every_line_of_the_block(tmp_path):
    assert list(STATES) == list(chosen(tmp_path))


def pretend_gpu(monkeypatch):
    """Give every config a CUDA device, of one rank."""
    monkeypatch.setattr(PPOConfig, "device", torch.device("cuda", 0))
    monkeypatch.setattr(PPOConfig, "distributed_state", None, raising=False)


@pytest.mark.parametrize("state", [0, 1], ids=["on", "off"])
@pytest.mark.parametrize("line", STATES)
def test_every_line_of_the_block_with_its_fast_path_on_and_off(tmp_path, monkeypatch, line, state):
    monkeypatch.setattr("hf_rlhf.models.precision._multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(Slowdown, "measured", lambda device: Slowdown(0.5))
    flags, words = STATES[line][state]
    flags = dict(flags)
    if flags.pop("on_gpu", False):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
        pretend_gpu(monkeypatch)
    assert words in chosen(tmp_path, **flags)[line]


def test_a_step_that_cannot_be_a_graph_is_said_why(tmp_path, monkeypatch):
    pretend_gpu(monkeypatch)
    base = make_model(make_tokenizer())
    base.is_quantized = True
    assert _engine(base, make_config(tmp_path), sharded=False).endswith("each step launched anew: a quantized base")
    base.is_quantized = False
    assert _engine(base, make_config(tmp_path), sharded=False).endswith("each step a CUDA graph")
    base.config.sliding_window = 8
    assert _engine(base, make_config(tmp_path), sharded=False).endswith("than the keys and values of all tokens")
    assert _engine(base, make_config(tmp_path), sharded=True).endswith("each step launched anew: sharded weights")


def test_the_layers_of_other_adapters_are_not_counted(tmp_path):
    places = make_places(tmp_path / "places")  # whose reward adapter is on both blocks
    flags = {"lora": LAST_BLOCK, "reward": places["reward"], "critic": "adapter", "critic_path": places["reward"]}
    trainer = make_critic_trainer(tmp_path / "run", places, **flags)
    assert trainer.choices["adapters"] == "1 of 1 layers in one product"


def test_a_run_begins_with_them(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    printed = capsys.readouterr().out
    assert len(trainer.choices) == 8
    assert all(f"{name}: {words}\n" in printed for name, words in trainer.choices.items())
    assert json.loads(json.dumps(trainer.choices)) == trainer.choices
