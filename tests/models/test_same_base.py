"""A reward or critic adapter shares the policy's base only when that is, number by number, what it was trained on."""

import json

import pytest
import torch
from peft import get_peft_model
from tiny import make_lora, make_model, make_tokenizer, perturb
from tiny_critics import WHOLE_TEXTS, make_places, scores_of

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.critics import build_critic
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier
from hf_rlhf.models.policy import wrap_policy
from hf_rlhf.models.reward_model import SeparateRewardModel, SharedRewardModel, load_reward_model
from hf_rlhf.models.same_base import base_weights, stands_on


@pytest.fixture
def places(tmp_path):
    return make_places(tmp_path)


def policy_on(model):
    return wrap_policy(model, make_lora())


def every_weight():
    names = [name for name, _ in make_model(make_tokenizer()).model.named_parameters()]
    assert len(names) == 2 * 9 + 2
    return names


@pytest.mark.parametrize("name", every_weight())
def test_a_difference_in_any_tensor_is_found(places, name):
    model = load_causal_lm(places["base"], dtype="float32")
    assert stands_on(places["reward"], policy_on(load_causal_lm(places["base"], dtype="float32")))
    with torch.no_grad():
        model.model.get_parameter(name).view(-1)[-1] += 1e-3
    assert not stands_on(places["reward"], policy_on(model))


def test_a_base_merged_from_mlps_is_another(places):
    """It keeps its name; the reward model says what it says by itself."""
    lora = make_lora(target_modules=["gate_proj", "up_proj", "down_proj"])
    merged = perturb(get_peft_model(load_causal_lm(places["base"], dtype="float32"), lora), only="lora")
    policy = policy_on(merged.merge_and_unload())
    assert base_of(policy).config._name_or_path == places["base"]
    alone, _ = load_reward_model(places["reward"], dtype="float32")
    given, _ = load_reward_model(places["reward"], policy=policy, dtype="float32")
    assert isinstance(given, SeparateRewardModel)
    assert scores_of(given) == scores_of(alone)
    with pytest.raises(InputError, match="has other weights by now"):
        build_critic("adapter", policy, start=places["reward"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_and_the_dtype_make_no_other_base(places, dtype):
    """A reward model has no language-model head, and a base in bf16 is the same one, rounded."""
    model = load_causal_lm(places["base"], dtype=dtype)
    perturb(model.lm_head)
    assert stands_on(places["reward"], policy_on(model))


def test_shards_are_compared_too(places, tmp_path):
    model = load_causal_lm(places["base"], dtype="float32")
    model.save_pretrained(places["base"], max_shard_size="20KB")
    (tmp_path / "base" / "model.safetensors").unlink(missing_ok=True)
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert stands_on(places["reward"], policy_on(load_causal_lm(places["base"], dtype="float32")))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    assert not stands_on(places["reward"], policy_on(model))


def test_other_settings_make_another_base(places):
    """The same weights under another rope theta have other hidden states; dropout is off where nothing is trained."""
    rope = {"rope_theta": 500.0, "rope_type": "default"}
    assert not stands_on(places["reward"], policy_on(load_causal_lm(places["base"], rope_parameters=rope)))
    assert stands_on(places["reward"], policy_on(load_causal_lm(places["base"], attention_dropout=0.5)))


def test_names_on_disk_may_differ_from_those_in_memory(places, tmp_path, monkeypatch):
    """Load the base for the comparison if no stored tensor has a parameter's name."""
    from hf_rlhf.models import same_base

    stored = same_base._stored
    monkeypatch.setattr(same_base, "_stored", lambda *args: ((f"old.{name}", tensor) for name, tensor in stored(*args)))
    assert stands_on(places["reward"], policy_on(load_causal_lm(places["base"], dtype="float32")))
    perturbed = perturb(load_causal_lm(places["base"], dtype="float32"), only="norm")
    assert not stands_on(places["reward"], policy_on(perturbed))


def test_a_base_that_cannot_be_read_is_not_shared(places, monkeypatch):
    from hf_rlhf.models import same_base

    monkeypatch.setattr(same_base, "_weight_files", lambda *args: [])
    assert not stands_on(places["reward"], policy_on(load_causal_lm(places["base"], dtype="float32")))


def test_a_hub_base_is_compared_in_the_cache(places, tmp_path, monkeypatch):
    """A name of the Hub alone was enough before: another revision, or a merged model, has it too."""
    import huggingface_hub

    model = load_causal_lm(places["base"], dtype="float32")
    model.config._name_or_path = "someone/base"
    file = tmp_path / "reward" / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "someone/base", "revision": "old"})
    )
    asked = []

    def snapshot(name, *, revision, local_files_only):
        asked.append((name, revision, local_files_only))
        return places["base"]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr("hf_rlhf.models.same_base._same_settings", lambda *args: True)
    policy = policy_on(model)
    assert stands_on(places["reward"], policy)
    assert not stands_on(places["reward"], perturb(policy, only="mlp.up_proj.base_layer"))
    assert asked == [("someone/base", "old", True)] * 2


def test_embeddings_of_the_adapters_own_replace_the_bases(places, tmp_path):
    """`modules_to_save`: the reward model stands on all of the base but its embeddings."""
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["embed_tokens", "score"])
    classifier = get_peft_model(load_sequence_classifier(places["base"], dtype="float32"), config)
    for part in ("lora", "modules_to_save"):
        perturb(classifier, only=part, scale=0.5)
    classifier.save_pretrained(tmp_path / "own")
    make_tokenizer().save_pretrained(tmp_path / "own")
    policy = policy_on(load_causal_lm(places["base"], dtype="float32"))
    alone, _ = load_reward_model(str(tmp_path / "own"), dtype="float32")
    shared, _ = load_reward_model(str(tmp_path / "own"), policy=policy)
    assert isinstance(shared, SharedRewardModel)
    assert scores_of(shared) == pytest.approx(scores_of(alone), abs=1e-5)
    critic = build_critic("adapter", policy, start=str(tmp_path / "own"))
    assert values_of(critic, policy) == pytest.approx(scores_of(alone), abs=1e-5)


def test_embeddings_in_an_adapters_file_are_not_loaded_into_the_policy(places, tmp_path):
    """PEFT writes those of the base there when asked to, and puts them into the base that the policy has too."""
    classifier = load_sequence_classifier(places["base"], dtype="float32")
    perturb(classifier.model.embed_tokens, scale=0.5)
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    adapted = perturb(get_peft_model(classifier, config), only="lora")
    adapted.save_pretrained(tmp_path / "changed", save_embedding_layers=True)
    make_tokenizer().save_pretrained(tmp_path / "changed")
    policy = policy_on(load_causal_lm(places["base"], dtype="float32"))
    before = policy.get_input_embeddings().weight.clone()
    alone, _ = load_reward_model(str(tmp_path / "changed"), dtype="float32")
    given, _ = load_reward_model(str(tmp_path / "changed"), policy=policy, dtype="float32")
    assert scores_of(given) == scores_of(alone)
    assert torch.equal(policy.get_input_embeddings().weight, before)


def values_of(critic, policy):
    """Return the critic's values after the last token of each whole text."""
    from hf_rlhf.models.value_model import ValueModel

    return ValueModel(policy, critic, make_tokenizer()).predict_value(WHOLE_TEXTS)


@pytest.mark.parametrize("lora", [True, False])
def test_a_fresh_critic_model_starts_from_the_policys_own_base(places, lora):
    """Start from the merged model: by its name, the critic would get the base from before."""
    model = perturb(load_causal_lm(places["base"], dtype="float32"), only="mlp")
    expected = {name: weight.clone() for name, weight in base_weights(model).items()}
    policy = wrap_policy(model, make_lora() if lora else None)
    critic = build_critic("model", policy, peft_config=make_lora() if lora else None)
    found = base_weights(critic.model)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
