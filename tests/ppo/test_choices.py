"""The start of a run says what it chose by itself, and why where a fast way is not taken."""

import json

import pytest
import torch
from tiny import make_config, make_lora, make_model, make_tokenizer, make_trainer

from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.ppo.choices import choices
from hf_rlhf.ppo.trunk import TrunkChoice


def chosen(tmp_path, *, lora=None, kinds=("hf_rlhf_packed",), dtype=torch.float32, **flags):
    model = make_model(make_tokenizer()).to(dtype)
    wrapped = wrap_policy(model, make_lora() if lora is None else lora)
    PolicyWithValue(wrapped)  # fuses
    return choices(wrapped, make_config(tmp_path, **flags), dict.fromkeys([model], *kinds), TrunkChoice(None, ""))


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("device", {}, f"cpu, {torch.get_num_threads()} threads"),
        ("dtype", {}, "float32"),
        ("dtype", {"dtype": torch.bfloat16}, "bfloat16 base"),
        ("sampling", {}, "transformers, 8 completions at a time"),
        ("sampling", {"generation_batch_size": 3}, "transformers, 3 completions at a time"),
        ("sampling", {"use_transformers_continuous_batching": True}, "transformers, continuous batching"),
        ("attention", {}, "sequences end to end, without padding"),
        ("attention", {"kinds": ("eager",)}, "eager, padded: this architecture mixes sequences that lie end to end"),
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


def test_a_dtype_that_the_device_multiplies_slowly_is_said_so(tmp_path, monkeypatch):
    for native, slow in ((torch.float32, True), (torch.bfloat16, False)):
        monkeypatch.setattr("hf_rlhf.ppo.choices.native_dtype", lambda device, native=native: native)
        words = chosen(tmp_path, dtype=torch.bfloat16)["dtype"]
        assert ("which this device multiplies slowly" in words) == slow


def test_a_run_begins_with_them(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=2)
    trainer.train()
    printed = capsys.readouterr().out
    assert len(trainer.choices) == 8
    assert all(f"{name}: {words}\n" in printed for name, words in trainer.choices.items())
    assert json.loads(json.dumps(trainer.choices)) == trainer.choices
