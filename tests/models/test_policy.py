import copy

import pytest
import torch
from peft import get_peft_model
from tiny import make_lora, make_model, make_sequences, make_tokenizer, perturb, snapshot

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import POLICY, base_of
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.types import Sequences


def make_policy(kind="lora", model=None, ref_model=None):
    model = model or make_model(make_tokenizer())
    if kind == "adapter":
        model = perturb(get_peft_model(model, make_lora()), only="lora")
    policy = PolicyWithValue(wrap_policy(model, make_lora() if kind == "lora" else None), ref_model=ref_model)
    perturb(policy.value_head)
    return policy.eval()


def naive(causal_lm, sequences, temperature=1.0, value_head=None):
    """Row by row, without padding, from the logits of all positions."""
    logprobs, entropies, values = (torch.zeros(sequences.mask.shape) for _ in range(3))
    for b, prompt in enumerate(sequences.prompt_lengths.tolist()):
        ids = sequences.input_ids[b, : int(sequences.attention_mask[b].sum())]
        with torch.no_grad():
            output = causal_lm(input_ids=ids[None], output_hidden_states=True)
        steps = (output.logits[0, prompt - 1 : -1].float() / temperature).log_softmax(-1)
        count = len(ids) - prompt
        logprobs[b, :count] = steps.gather(1, ids[prompt:, None]).squeeze(1)
        entropies[b, :count] = -(steps.exp() * steps).sum(-1)
        if value_head is not None:
            values[b, :count] = value_head(output.hidden_states[-1][0, prompt - 1 : -1])
    return logprobs, values, entropies


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_values_and_entropy_are_those_of_full_logits_without_padding(kind, temperature):
    policy, sequences = perturb(make_policy(kind), only="lora"), make_sequences()
    with torch.no_grad():
        output = policy(sequences, temperature=temperature, entropy=True)
        expected = naive(policy.model, sequences, temperature, policy.value_head)
    for actual, wanted in zip(output[:3], expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_at_the_start_the_reference_says_exactly_what_the_policy_says(kind):
    policy, sequences = make_policy(kind), make_sequences()
    with torch.no_grad():
        logprobs, reference = policy(sequences).logprobs, policy(sequences, reference=True).reference_logprobs
    assert torch.equal(logprobs, reference)
    assert logprobs[sequences.mask].min() < -1


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_a_refreshed_reference_is_the_policy_and_the_policy_stays_what_it_is(kind):
    model = make_model(make_tokenizer())
    if kind == "adapter":
        model = perturb(get_peft_model(model, make_lora()), only="lora")
    config = make_lora() if kind == "lora" else None
    policy = PolicyWithValue(wrap_policy(model, config, keep_reference=True)).eval()
    perturb(policy.model, only="" if kind == "full" else f".{POLICY}.")
    before = snapshot(policy)
    policy.refresh_reference()
    source, target = ("model.", "reference_model.") if kind == "full" else (f".{POLICY}.", ".reference.")
    followed = 0
    for name, weight in snapshot(policy).items():
        expected = before[name.replace(target, source)]
        assert torch.equal(weight, expected), name
        followed += not torch.equal(before[name], expected)
    assert followed > 10


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_the_reference_stays_when_the_policy_moves(kind):
    policy, sequences = make_policy(kind), make_sequences()
    with torch.no_grad():
        start = policy(sequences, reference=True).reference_logprobs
    perturb(policy.model, only="model" if kind == "full" else f".{POLICY}.")
    with torch.no_grad():
        moved, reference = policy(sequences), policy(sequences, reference=True).reference_logprobs
    assert torch.equal(reference, start)
    assert (moved.logprobs - start).abs().max() > 1e-2


def test_the_reference_of_an_adapter_is_that_adapter_and_not_the_raw_base():
    policy, sequences = make_policy("adapter"), make_sequences()
    raw = naive(make_model(make_tokenizer()), sequences)[0]
    with torch.no_grad():
        reference = policy(sequences, reference=True).reference_logprobs
    assert (reference - raw).abs().max() > 1e-2


def test_a_reference_of_its_own_is_used():
    other = make_model(make_tokenizer(), seed=5)
    policy, sequences = make_policy("lora", ref_model=copy.deepcopy(other)), make_sequences()
    with torch.no_grad():
        reference = policy(sequences, reference=True).reference_logprobs
    torch.testing.assert_close(reference, naive(other, sequences)[0], rtol=1e-5, atol=1e-5)


def test_the_exact_kl_to_a_reference_of_its_own_is_that_of_both_models_logits():
    tokenizer = make_tokenizer()
    other = make_model(tokenizer, seed=5)
    policy, sequences = make_policy(model=make_model(tokenizer), ref_model=other), make_sequences()
    with torch.no_grad():
        kl = policy(sequences, full_kl=True).kl
        for b, prompt in enumerate(sequences.prompt_lengths.tolist()):
            ids = sequences.input_ids[b : b + 1, : int(sequences.attention_mask[b].sum())]
            p, q = (model(ids).logits[0, prompt - 1 : -1].log_softmax(-1) for model in (policy.model, other))
            torch.testing.assert_close(kl[b, : len(p)], (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=1e-5)
    assert kl[sequences.mask].min() > 0.1


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_the_reference_is_frozen_and_its_pass_needs_no_gradient(kind):
    policy, sequences = make_policy(kind), make_sequences()
    before = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert not policy(sequences, reference=True).reference_logprobs.requires_grad
    assert {name: parameter.requires_grad for name, parameter in policy.named_parameters()} == before
    wanted = ("critic", "") if kind == "full" else ("critic", f".{POLICY}.")
    for name, needed in before.items():
        assert needed == (any(part in name for part in wanted) and not name.startswith("reference_model")), name


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_the_reference_has_no_dropout_while_the_policy_trains(kind):
    model = make_model(make_tokenizer(), attention_dropout=0.5)
    policy, sequences = make_policy(kind, model=model), make_sequences()
    with torch.no_grad():
        quiet = policy(sequences, reference=True).reference_logprobs
        policy.train()
        assert torch.equal(policy(sequences, reference=True).reference_logprobs, quiet)
        assert not torch.equal(policy(sequences).logprobs, quiet)


def test_an_update_leaves_the_base_untouched():
    policy, sequences = make_policy("lora"), make_sequences()
    before = snapshot(policy)
    optimizer = torch.optim.SGD([parameter for parameter in policy.parameters() if parameter.requires_grad], lr=0.1)
    for _ in range(2):
        output = policy(sequences)
        (output.logprobs.sum() + output.values.sum()).backward()
        optimizer.step()
    for name, parameter in policy.named_parameters():
        trained = "lora" in name or "critic" in name
        assert torch.equal(parameter, before[name]) != trained, name


@pytest.mark.parametrize("padding_id", [0, 3], ids=["pad", "pad is eos"])
@pytest.mark.parametrize("extra", [0, 1, 9])
def test_padding_changes_nothing(extra, padding_id):
    policy, plain = perturb(make_policy(), only="lora"), make_sequences()
    padded = make_sequences(extra_padding=extra, padding_id=padding_id)
    width = plain.mask.shape[1]
    with torch.no_grad():
        everything = {"entropy": True, "reference": True, "full_kl": True}
        for wanted, actual in zip(policy(plain, **everything)[:5], policy(padded, **everything)[:5], strict=True):
            torch.testing.assert_close(actual[:, :width], wanted, rtol=1e-6, atol=1e-6)
            assert not actual[:, width:].any()


def test_rows_are_independent_of_their_neighbours():
    policy, sequences = perturb(make_policy(), only="lora"), make_sequences()
    with torch.no_grad():
        together = policy(sequences)
        for b in range(len(sequences)):
            alone = policy(sequences[torch.tensor([b])])
            width = alone.logprobs.shape[1]
            torch.testing.assert_close(alone.logprobs[0], together.logprobs[b, :width], rtol=0, atol=1e-5)
            torch.testing.assert_close(alone.values[0], together.values[b, :width], rtol=0, atol=1e-5)


def test_tokens_that_do_not_count_are_zero_and_give_no_gradient():
    policy, sequences = make_policy(), make_sequences()
    sequences.mask[1:] = False
    output = policy(sequences, entropy=True)
    for column in output[:3]:
        assert column[0, :4].all()
        assert not column[1:].any()


def test_a_batch_without_counted_tokens_gives_zero_gradients():
    policy, sequences = make_policy(), make_sequences()
    sequences.mask[:] = False
    for support in (None, [[torch.tensor([1, 2])] * 6] * 5):
        sequences.support = support
        output = policy(sequences)
        (output.logprobs.sum() + output.values.sum()).backward()
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert not parameter.grad.any()


def test_the_support_of_the_sampler_renormalises():
    policy = make_policy()
    sequences = Sequences.from_ids([[4, 5]], [[6, 7]], support=[[torch.tensor([6, 9]), torch.tensor([7, 8, 10])]])
    with torch.no_grad():
        logprobs = policy(sequences).logprobs[0]
        logits = policy.model(input_ids=sequences.input_ids).logits[0]
    expected = [logits[1, [6, 9]].log_softmax(-1)[0], logits[2, [7, 8, 10]].log_softmax(-1)[0]]
    torch.testing.assert_close(logprobs, torch.stack(expected), rtol=1e-5, atol=1e-5)


def gemma2():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=16,
        initializer_range=0.5,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


def granite():
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        logits_scaling=4.0,
    )
    return GraniteForCausalLM(config)


def cohere():
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    config = CohereConfig(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        logit_scale=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return CohereForCausalLM(config)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=29, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.5, bos_token_id=1
    )
    return GPT2LMHeadModel(config)


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=29,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return Qwen3ForCausalLM(config)


@pytest.mark.parametrize("make", [gemma2, granite, cohere, gpt2, qwen3])
def test_what_an_architecture_puts_behind_its_head_is_kept(make):
    """Gemma's soft cap, Granite's and Cohere's scaling, and plain ones with other module names."""
    model = make().eval()
    policy, sequences = make_policy("full", model=model), make_sequences()
    with torch.no_grad():
        output = policy(sequences, temperature=0.8)
        expected = naive(model, sequences, 0.8, policy.value_head)
    torch.testing.assert_close(output.logprobs, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.values, expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_saved_weights_load_into_a_fresh_policy(kind, tmp_path):
    policy, sequences = make_policy(kind), make_sequences()
    perturb(policy, only="" if kind == "full" else f".{POLICY}.")
    policy.save_pretrained(tmp_path)
    fresh = make_policy(kind)
    with torch.no_grad():
        wanted = policy(sequences)
        assert not torch.equal(fresh(sequences).logprobs, wanted.logprobs)
        fresh.load_weights(tmp_path)
        loaded = fresh(sequences)
    assert torch.equal(loaded.logprobs, wanted.logprobs)
    assert torch.equal(loaded.values, wanted.values)


def test_resuming_from_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="adapter_model"):
        make_policy().load_weights(tmp_path)


def test_a_peft_model_with_a_peft_config_is_refused():
    with pytest.raises(InputError, match="PeftModel"):
        wrap_policy(get_peft_model(make_model(make_tokenizer()), make_lora()), make_lora())


def test_prompt_tuning_is_refused():
    from peft import PromptTuningConfig

    with pytest.raises(InputError, match="PROMPT_TUNING"):
        wrap_policy(make_model(make_tokenizer()), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


@pytest.mark.parametrize("trainable", [True, False])
def test_a_peft_model_read_from_disk_trains(trainable, tmp_path):
    from peft import PeftModel

    perturb(get_peft_model(make_model(make_tokenizer()), make_lora()), only="lora").save_pretrained(tmp_path)
    start = PeftModel.from_pretrained(make_model(make_tokenizer()), tmp_path, is_trainable=trainable)
    policy, sequences = PolicyWithValue(wrap_policy(start)), make_sequences()
    output = policy(sequences)
    assert torch.equal(output.logprobs, policy(sequences, reference=True).reference_logprobs)
    output.logprobs.sum().backward()
    with_gradient = {name for name, parameter in policy.named_parameters() if parameter.grad is not None}
    assert with_gradient
    assert all(f".{POLICY}." in name for name in with_gradient)


@pytest.mark.parametrize("name", ["default", POLICY])
def test_a_start_beside_a_reference_model_is_held_once(name):
    model = get_peft_model(make_model(make_tokenizer()), make_lora(), adapter_name=name)
    size = sum(parameter.numel() for parameter in model.parameters())
    policy = wrap_policy(model, own_reference=True)
    assert list(policy.peft_config) == [POLICY]
    assert sum(parameter.numel() for parameter in policy.parameters()) == size


def test_other_adapters_of_a_start_stay():
    model = get_peft_model(make_model(make_tokenizer()), make_lora())
    model.add_adapter("of the user", make_lora())
    assert set(wrap_policy(model).peft_config) == {POLICY, "reference", "of the user"}


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        policy = perturb(make_policy(), only="lora").train()
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
            assert base_of(policy.model).is_gradient_checkpointing
        policy(make_sequences()).logprobs.sum().backward()
        gradients.append([parameter.grad for parameter in policy.model.parameters() if parameter.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-6)
