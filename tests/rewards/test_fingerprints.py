import pytest
import torch
from peft import get_peft_model
from tiny import make_lora, make_model, make_tokenizer, perturb

from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier
from hf_rlhf.models.reward_model import SeparateRewardModel, SharedRewardModel
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.sources import resolve_rewards


@pytest.fixture
def places(tmp_path):
    """A base, and a reward adapter on it."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    classifier = load_sequence_classifier(str(tmp_path / "base"), dtype="float32")
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    perturb(get_peft_model(classifier, config), only="lora").save_pretrained(tmp_path / "helpful")
    tokenizer.save_pretrained(tmp_path / "helpful")
    return tmp_path


def reward_of(places, policy=None):
    source = str(places / "helpful")
    [function] = resolve_rewards(source, None, policy=policy, device=torch.device("cpu"), weights=None).functions
    return function


def policy_on(places):
    return get_peft_model(load_causal_lm(str(places / "base"), dtype="float32"), make_lora(), adapter_name="policy")


def test_a_shared_reward_models_identity_is_of_its_base_adapter_and_head_and_not_of_the_policys(places):
    one, other = reward_of(places, policy_on(places)), reward_of(places, perturb(policy_on(places), only="lora"))
    assert isinstance(one.model, SharedRewardModel)
    assert one.cache_key == other.cache_key
    changed = reward_of(places, policy_on(places))
    changed.model.head[0, 0] += 1e-3
    adapter = reward_of(places, policy_on(places))
    perturb(adapter.model.model, only="lora_A.reward")
    base = reward_of(places, policy_on(places))
    perturb(base.model.model, only="embed_tokens")
    assert len({each.cache_key for each in (one, changed, adapter, base)}) == 4


def test_a_separate_reward_models_identity_follows_what_is_in_its_folder(places):
    one = reward_of(places)
    assert isinstance(one.model, SeparateRewardModel)
    assert reward_of(places).cache_key == one.cache_key
    template = reward_of(places)
    template.tokenizer.chat_template += " "
    perturb(get_peft_model(load_sequence_classifier(str(places / "base"), dtype="float32"), make_lora(
        task_type="SEQ_CLS", modules_to_save=["score"])), only="lora", seed=8).save_pretrained(places / "helpful")  # fmt: skip
    assert len({one.cache_key, template.cache_key, reward_of(places).cache_key}) == 3


def test_a_reward_on_a_base_that_is_trained_and_one_of_a_function_have_no_identity(places):
    shared = reward_of(places, policy_on(places))
    shared.model.model.base_model.model.model.norm.weight.requires_grad_(True)
    assert shared.cache_key is None
    assert LearnedReward(lambda input_ids, attention_mask: input_ids.sum(1), make_tokenizer()).cache_key is None
