"""4-bit bases on a CPU: what learns, what is saved, what a resumed run gives."""

import shutil

import pytest
import torch
import transformers
from checkpoint.runs import RUNS, kill_and_resume, outcome, train_ppo
from peft import PeftModel
from tiny import make_lora, make_model, make_sequences, make_tokenizer, perturb
from tiny_data import conversational_pairs, saving_command
from torch import nn

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import POLICY, base_of
from hf_rlhf.models.fast.trunk import find_trunk
from hf_rlhf.models.load import load_causal_lm
from hf_rlhf.models.lora_targets import in_last_blocks
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.quantized import keep_4bit_layout
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling

bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes; make test-quant")


def in_4_bits():
    """Return the quantization config of the flag `load_in_4bit`, computing in fp32."""
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


@pytest.fixture
def model_folder(tmp_path):
    """The tiny model, of a size that fills blocks of 64 weights."""
    tokenizer = make_tokenizer()
    folder = tmp_path / "model"
    make_model(tokenizer, hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def flags_4bit(flags):
    return [*flags, "--load_in_4bit", "true"]


def load_4bit(folder, load=load_causal_lm):
    return load(folder, dtype="float32", quantization_config=in_4_bits(), device_map={"": "cpu"})


def with_weights_of_4_bits(folder):
    """A model in fp32 with the weights that the 4-bit one stands for."""
    model = load_causal_lm(folder, dtype="float32")
    layers = dict(load_4bit(folder).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and isinstance(layers[name], bitsandbytes.nn.Linear4bit):
            weight = layers[name].weight
            module.weight.data = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    return model


def gradients(model):
    """Return the gradients of the adapters, after the policy has sampled."""
    torch.manual_seed(0)
    policy = PolicyWithValue(perturb(wrap_policy(model, make_lora()), only="lora"))
    TransformersEngine(policy.model, make_tokenizer()).generate([[5, 6]], Sampling(max_completion_length=2), [0])
    policy.train()(make_sequences()).logprobs.sum().backward()
    return {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}


def test_every_adapter_learns_as_on_the_same_weights_in_fp32(model_folder):
    found, expected = gradients(load_4bit(model_folder)), gradients(with_weights_of_4_bits(model_folder))
    assert found.keys() == expected.keys()
    assert all(gradient.norm() > 0 for gradient in expected.values())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_weights_that_were_rewritten_for_inference_are_refused(model_folder):
    model = load_4bit(model_folder)
    keep_4bit_layout(model)
    model.model.layers[1].mlp.up_proj.weight.quant_state.original_qshape = (4096, 1)
    with pytest.raises(InputError, match=r"rewrote model\.layers\.1\.mlp\.up_proj for inference"):
        keep_4bit_layout(model)


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="bitsandbytes rewrites no weight on this CPU")
@pytest.mark.parametrize("given", ["loaded by transformers", "used in eval mode"])
def test_a_model_from_elsewhere_trains_or_is_refused(tmp_path, model_folder, given):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder, quantization_config=in_4_bits(), device_map={"": "cpu"}
    )
    if given == "used in eval mode":
        with torch.no_grad():
            model.eval()(torch.tensor([[5, 6]]))
        with pytest.raises(InputError, match="Load the model again"):
            train_ppo(tmp_path / "run", model=model)
        return
    trainer = train_ppo(tmp_path / "run", model=model, max_steps=2)
    layers = [module for module in trainer.policy.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert layers
    assert not any(hasattr(layer.weight.quant_state, "original_qshape") for layer in layers)


def command_of(command, flags, write_rows):
    """Like `saving_command`, but a reward model is evaluated in the middle too."""
    if command != "reward":
        return saving_command(command, flags, write_rows)
    evaluation = write_rows(conversational_pairs(21)[16:], "eval.jsonl")
    evaluated = ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_dataset_name", evaluation]
    return saving_command(command, [*flags, *evaluated], write_rows)


@pytest.mark.parametrize("command", ["ppo", "ppo with critic=adapter", "ppo with critic=model", "reward", "sft"])
def test_a_run_resumes_to_the_same_bits(tmp_path, flags_4bit, write_rows, command):
    command, _, critic = command.partition(" with critic=")
    argv = command_of(command, flags_4bit, write_rows) + (["--critic", critic] if critic else [])
    out = tmp_path / "out"
    assert main([*argv, "--resume", "auto"]) == 0
    weights, rows, samples = outcome(out)
    shutil.rmtree(out / "checkpoint-4")
    assert main([*argv, "--resume", "auto"]) == 0
    assert outcome(out) == (weights, rows, samples)
    assert len([row for row in rows if "loss" in row]) == (4 if command == "ppo" else 2)


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, model_folder, monkeypatch):
    monkeypatch.setitem(RUNS, "ppo", lambda folder: train_ppo(folder, model=load_4bit(model_folder)))
    same = kill_and_resume("ppo", tmp_path, kills=2)
    assert same == 2


def logits_of(model):
    """Return logits in train mode, so that bitsandbytes computes as in training; there is no dropout."""
    sequences = make_sequences()
    with torch.no_grad():
        return model.train()(input_ids=sequences.input_ids, attention_mask=sequences.attention_mask.long()).logits


def test_a_policy_loads_in_plain_peft_on_the_4_bit_base(tmp_path, model_folder):
    trainer = train_ppo(tmp_path / "run", model=load_4bit(model_folder), max_steps=2)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        model_folder, quantization_config=in_4_bits(), device_map={"": "cpu"}
    )
    start = logits_of(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "run")
    assert torch.equal(logits_of(loaded), logits_of(trainer.policy.model))
    assert not torch.allclose(logits_of(loaded), start, atol=1e-3)


def test_a_reward_model_scores_as_it_was_trained_and_so_does_its_merge(tmp_path, flags_4bit, write_rows):
    assert main(command_of("reward", flags_4bit, write_rows)) == 0
    out = str(tmp_path / "out")
    pairs = conversational_pairs(5)
    prompts, completions = [row["prompt"] for row in pairs], [row["chosen"] for row in pairs]

    def scores(folder, **kwargs):
        scorer, tokenizer = load_reward_model(folder, dtype="float32", **kwargs)
        return LearnedReward(scorer, tokenizer)(prompts, completions)

    adapted = scores(out, quantization_config=in_4_bits(), device_map={"": "cpu"})
    merged = scores(f"{out}/merged")
    assert merged == pytest.approx(adapted, abs=0.3)  # rounded to 4 bits once more


def test_a_pass_begins_above_the_trunk(model_folder):
    """And gives what the whole pass gives, to the bit."""
    model = load_4bit(model_folder)
    policy = perturb(PolicyWithValue(wrap_policy(model, in_last_blocks(make_lora(), model, 1))), only="lora")
    policy.trunk = find_trunk(base_of(policy.model), (POLICY,))
    sequences = make_sequences()
    whole = policy(sequences)
    above = policy(sequences, trunk_states=policy.trunk_states(sequences))
    assert policy.trunk.depth == 1
    assert torch.equal(above.logprobs, whole.logprobs)
