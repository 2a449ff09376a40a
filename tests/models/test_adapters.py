import copy
import re

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_lora, make_model, make_tokenizer, perturb, snapshot

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import ADAPTER_FILE, adapter_base
from hf_rlhf.models.adapters import (
    POLICY,
    copy_adapter,
    load_adapter_weights,
    save_adapter,
    saved_names,
    saves_embeddings,
    use_adapter,
)
from hf_rlhf.models.policy import wrap_policy


@pytest.fixture
def peft_model(model):
    """Two adapters with different weights, and a part of the base that is trained.

    `policy` is active and all but one of its matrices are trainable, as is one of the base's. One block is in train
    mode.
    """
    wrapped = get_peft_model(model, make_lora(), adapter_name=POLICY)
    wrapped.add_adapter("other", make_lora())
    wrapped.set_adapter(POLICY)
    perturb(wrapped, only="lora")
    wrapped.eval()
    wrapped.get_base_model().model.layers[0].train()
    wrapped.get_base_model().model.norm.weight.requires_grad_(True)
    next(p for name, p in wrapped.named_parameters() if f"lora_A.{POLICY}" in name).requires_grad_(False)
    return wrapped


def state_of(model):
    return (
        model.active_adapter,
        list(model.active_adapters),
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        [module.disable_adapters for module in model.modules() if hasattr(module, "lora_A")],
    )


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[2, 5, 9, 11]])).logits


@pytest.mark.parametrize("name", ["other", POLICY, None])
@pytest.mark.parametrize("fails", [False, True])
def test_a_block_leaves_adapter_gradients_and_modes_as_they_were(peft_model, name, fails):
    before, outputs = state_of(peft_model), logits_of(peft_model)
    assert any(before[2].values())
    assert len(set(before[3].values())) == 2
    with pytest.raises(RuntimeError) if fails else use_adapter(peft_model, None), use_adapter(peft_model, name):
        peft_model.train()
        peft_model.get_base_model().model.layers[1].eval()
        if fails:
            raise RuntimeError("inside the block")
    assert state_of(peft_model) == before
    assert torch.equal(logits_of(peft_model), outputs)


def test_an_adapter_added_between_two_blocks_is_found(peft_model):
    with use_adapter(peft_model, "other"):
        policy_off = logits_of(peft_model)
    wider = make_lora(target_modules=["q_proj", "v_proj", "down_proj", "lm_head"])
    peft_model.add_adapter("third", wider)
    perturb(peft_model, only=".third.")
    with use_adapter(peft_model, "third"):
        third = logits_of(peft_model)
    peft_model.set_adapter("third")
    assert torch.equal(third, logits_of(peft_model))
    assert not torch.allclose(third, policy_off, atol=1e-2)
    with pytest.raises(ValueError, match="fourth"), use_adapter(peft_model, "fourth"):
        pass


def test_an_adapter_of_the_same_name_is_found_anew(peft_model):
    """Find the new adapter although its config may lie in memory where the config of a deleted one was."""
    for target in ("q_proj", "down_proj"):
        for _ in range(8):
            peft_model.add_adapter("again", make_lora(target_modules=[target]))
            perturb(peft_model, only=".again.")
            with use_adapter(peft_model, "again"):
                used = logits_of(peft_model)
            peft_model.set_adapter("again")
            assert torch.equal(used, logits_of(peft_model))
            peft_model.set_adapter(POLICY)
            peft_model.delete_adapter("again")


def test_a_merged_adapter_is_unmerged_with_a_warning(peft_model):
    with use_adapter(peft_model, "other"):
        expected = logits_of(peft_model)
    peft_model.merge_adapter()
    with pytest.warns(UserWarning, match="unmerged"), use_adapter(peft_model, "other"):
        torch.testing.assert_close(logits_of(peft_model), expected)


def test_switching_needs_no_walk_through_peft(peft_model, monkeypatch):
    """Several switches a batch, each in a fraction of a pass."""
    with use_adapter(peft_model, None):
        pass
    monkeypatch.setattr(type(peft_model), "set_adapter", None)
    monkeypatch.setattr(type(peft_model), "modules", None)
    with use_adapter(peft_model, "other"), use_adapter(peft_model, None):
        pass


def test_a_copied_model_has_switches_of_its_own(peft_model):
    with use_adapter(peft_model, "other"):
        expected = logits_of(peft_model)
    other = copy.deepcopy(peft_model)
    with use_adapter(other, "other"):
        assert torch.equal(logits_of(other), expected)
        assert not torch.equal(logits_of(peft_model), expected)


@pytest.mark.parametrize("inference", [True, False])
def test_eval_mode_lasts_as_long_as_the_block(peft_model, inference):
    before = {name: module.training for name, module in peft_model.named_modules()}
    with use_adapter(peft_model, "other", inference=inference):
        assert any(module.training for module in peft_model.modules()) is not inference
    assert {name: module.training for name, module in peft_model.named_modules()} == before


def test_inside_the_block_the_adapter_asked_for_is_at_work(peft_model, tmp_path):
    base = logits_of(make_model(make_tokenizer()))
    policy = logits_of(peft_model)
    with use_adapter(peft_model, None):
        torch.testing.assert_close(logits_of(peft_model), base, rtol=0, atol=0)
    with use_adapter(peft_model, "other"):
        other = logits_of(peft_model)
        assert not any(parameter.requires_grad for name, parameter in peft_model.named_parameters() if "other" in name)
    assert not torch.allclose(policy, base, atol=1e-2)
    assert not torch.allclose(policy, other, atol=1e-2)


def test_a_saved_adapter_is_what_plain_peft_loads(peft_model, tmp_path):
    save_adapter(peft_model, POLICY, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = PeftModel.from_pretrained(make_model(make_tokenizer()), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(peft_model), rtol=0, atol=1e-6)


def test_saving_again_replaces_the_adapter_and_nothing_else(peft_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    save_adapter(peft_model, POLICY, tmp_path)
    perturb(peft_model, only="lora")
    save_adapter(peft_model, POLICY, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    loaded = PeftModel.from_pretrained(make_model(make_tokenizer()), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(peft_model), rtol=0, atol=1e-6)


def test_an_adapter_named_default_is_saved_the_same_way(model, tmp_path):
    wrapped = perturb(get_peft_model(model, make_lora()), only="lora")
    save_adapter(wrapped, "default", tmp_path)
    loaded = PeftModel.from_pretrained(make_model(make_tokenizer()), tmp_path)
    torch.testing.assert_close(logits_of(loaded), logits_of(wrapped), rtol=0, atol=1e-6)


def test_a_copy_is_equal_frozen_and_stays_when_its_source_moves(peft_model):
    before, outputs = state_of(peft_model), logits_of(peft_model)
    copy_adapter(peft_model, POLICY, "reference")
    after = state_of(peft_model)
    assert after[:2] == before[:2]
    assert {name: needed for name, needed in after[2].items() if "reference" not in name} == before[2]
    assert not any(parameter.requires_grad for name, parameter in peft_model.named_parameters() if "reference" in name)
    weights = snapshot(peft_model)
    copies = [name for name in weights if "reference" in name]
    assert copies
    assert all(torch.equal(weights[name], weights[name.replace("reference", POLICY)]) for name in copies)

    perturb(peft_model, only=f".{POLICY}.")
    assert not torch.allclose(logits_of(peft_model), outputs, atol=1e-3)
    with use_adapter(peft_model, "reference"):
        assert torch.equal(logits_of(peft_model), outputs)


def test_the_base_of_an_adapter_is_read_from_its_config(tmp_path):
    assert adapter_base(tmp_path) is None
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/base"}')
    assert adapter_base(tmp_path) == "someone/base"
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter_config"):
        adapter_base(tmp_path)


def test_blocks_can_be_nested():
    tokenizer = make_tokenizer()
    policy = wrap_policy(make_model(tokenizer), make_lora())
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.tensor([[7, 8, 9]])
    with torch.no_grad(), use_adapter(policy, None):
        off = policy(ids).logits
        with use_adapter(policy, "policy"):
            assert not torch.equal(policy(ids).logits, off)
        with use_adapter(policy, None):
            pass
        assert torch.equal(policy(ids).logits, off)
    assert not torch.equal(policy(ids).logits, off)


def test_a_file_that_lacks_weights_of_the_adapter_is_refused_before_any_is_replaced(peft_model, tmp_path):
    save_adapter(peft_model, "other", tmp_path)
    weights = load_file(tmp_path / ADAPTER_FILE)
    lost = sorted(weights)[0]
    save_file({key: tensor for key, tensor in weights.items() if key != lost}, tmp_path / ADAPTER_FILE)
    before = snapshot(peft_model)
    with pytest.raises(InputError, match=rf"lacks weights of the adapter 'policy', such as {re.escape(lost)}"):
        load_adapter_weights(peft_model, tmp_path, POLICY)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(peft_model).items())


@pytest.mark.parametrize(
    "kind", ["lora", "biases", "whole layers", "tokens", "resized", "resized and told", "adapted embeddings"]
)
def test_what_is_gathered_to_be_saved_is_all_that_peft_saves(tmp_path, kind):
    """A sharded model hands PEFT the weights of these names, and nothing says it if one is missing."""
    from peft import get_peft_model, get_peft_model_state_dict

    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path)
    base = type(make_model(tokenizer)).from_pretrained(tmp_path)
    if "resized" in kind:
        base.resize_token_embeddings(len(tokenizer) + 3)
    base.has_own_vocabulary = "told" in kind
    flags = {
        "biases": {"bias": "all"},
        "whole layers": {"modules_to_save": ["embed_tokens", "lm_head"]},
        "tokens": {"trainable_token_indices": [1, 2]},
        "adapted embeddings": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    }.get(kind, {})
    model = get_peft_model(base, make_lora(**flags))
    names = saved_names(model)
    gathered = {name: weight for name, weight in model.state_dict().items() if name in names}
    embeddings = saves_embeddings(model)
    expected = get_peft_model_state_dict(model, save_embedding_layers=embeddings)
    found = get_peft_model_state_dict(model, state_dict=gathered, save_embedding_layers=embeddings)
    assert set(found) == set(expected)
    assert any("embed_tokens" in name for name in found) == (kind not in ("lora", "biases"))
    assert len(names) < len(list(model.named_parameters())), "the frozen base is not gathered"
