import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import make_lora, make_model, make_sequences, make_tokenizer, perturb

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import is_peft_model
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier, load_tokenizer
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.reward_model import SeparateRewardModel, SharedRewardModel, load_reward_model


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reward(base, tmp_path):
    """A LoRA reward model with its score head, on `base`."""
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    classifier = get_peft_model(load_sequence_classifier(base, dtype="float32"), config)
    perturb(classifier, only="lora")
    perturb(classifier, only="score", scale=1.0, seed=1)
    folder = tmp_path / "reward"
    classifier.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def policy(base):
    model = wrap_policy(load_causal_lm(base, dtype="float32"), make_lora())
    return perturb(PolicyWithValue(model), only="lora", seed=2).eval()


def batch():
    sequences = make_sequences()
    return sequences.input_ids, sequences.attention_mask.long()


def standalone_scores(base, reward):
    """Return the scores of plain PEFT and transformers, one row at a time without padding."""
    classifier = PeftModel.from_pretrained(load_sequence_classifier(base, dtype="float32"), reward).eval()
    with torch.no_grad():
        rows = [ids[mask.bool()] for ids, mask in zip(*batch(), strict=True)]
        return torch.cat([classifier(input_ids=ids[None]).logits[:, 0] for ids in rows])


def test_on_the_policys_backbone_it_scores_as_it_does_alone(base, reward, policy):
    model, tokenizer = load_reward_model(reward, policy=policy.model)
    assert isinstance(model, SharedRewardModel)
    assert tokenizer.pad_token == "<pad>"
    scores = model(*batch())
    torch.testing.assert_close(scores, standalone_scores(base, reward), rtol=1e-5, atol=1e-5)
    assert scores.std() > 0.1


def test_as_a_model_of_its_own_it_scores_the_same(base, reward):
    model, _ = load_reward_model(reward, dtype="float32")
    assert isinstance(model, SeparateRewardModel)
    torch.testing.assert_close(model(*batch()), standalone_scores(base, reward), rtol=1e-5, atol=1e-5)


def test_loading_and_scoring_leave_the_policy_as_it_was(reward, policy):
    sequences = make_sequences()

    def state():
        with torch.no_grad():
            output = policy(sequences)
        gradients = {n: p.requires_grad for n, p in policy.named_parameters() if ".reward." not in n}
        modes = {n: m.training for n, m in policy.named_modules() if not n.endswith(".reward")}
        return output.logprobs, output.values, policy.model.active_adapter, gradients, modes

    policy.train()
    before = state()
    model, _ = load_reward_model(reward, policy=policy.model)
    loaded = state()
    model(*batch())
    for after in (loaded, state()):
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1])
        assert after[2:] == before[2:]
    assert not any(p.requires_grad for n, p in policy.named_parameters() if ".reward." in n)


def test_two_reward_models_share_the_backbone(base, reward, policy, tmp_path):
    other = PeftModel.from_pretrained(load_sequence_classifier(base, dtype="float32"), reward)
    perturb(other, only="lora", seed=9).save_pretrained(tmp_path / "other")
    first, _ = load_reward_model(reward, policy=policy.model, name="reward")
    second, _ = load_reward_model(str(tmp_path / "other"), policy=policy.model, name="reward_1")
    torch.testing.assert_close(first(*batch()), standalone_scores(base, reward), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second(*batch()), standalone_scores(base, str(tmp_path / "other")), rtol=1e-5, atol=1e-5)


def test_dropout_of_a_policy_in_training_does_not_reach_the_scores(base, tmp_path, reward):
    model = wrap_policy(load_causal_lm(base, dtype="float32", attention_dropout=0.5), make_lora(lora_dropout=0.5))
    scorer, _ = load_reward_model(reward, policy=model.train())
    torch.testing.assert_close(scorer(*batch()), standalone_scores(base, reward), rtol=1e-5, atol=1e-5)


def test_another_base_is_loaded_as_a_model_of_its_own(base, reward, tmp_path):
    other = tmp_path / "other_base"
    make_model(make_tokenizer(), seed=4).save_pretrained(other)
    policy = wrap_policy(load_causal_lm(str(other), dtype="float32"), make_lora())
    model, _ = load_reward_model(reward, policy=policy, dtype="float32")
    assert isinstance(model, SeparateRewardModel)
    torch.testing.assert_close(model(*batch()), standalone_scores(base, reward), rtol=1e-5, atol=1e-5)


def test_a_policy_without_adapters_shares_nothing(base, reward):
    model, _ = load_reward_model(reward, policy=load_causal_lm(base, dtype="float32"), dtype="float32")
    assert isinstance(model, SeparateRewardModel)
    assert is_peft_model(model.model)


def test_a_full_classifier_scores_what_it_scores(base, tmp_path):
    classifier = perturb(load_sequence_classifier(base, dtype="float32")).eval()
    classifier.save_pretrained(tmp_path / "full")
    load_tokenizer(base).save_pretrained(tmp_path / "full")
    model, _ = load_reward_model(str(tmp_path / "full"), dtype="float32")
    with torch.no_grad():
        rows = [ids[mask.bool()] for ids, mask in zip(*batch(), strict=True)]
        expected = torch.cat([classifier(input_ids=ids[None]).logits[:, 0] for ids in rows])
    torch.testing.assert_close(model(*batch()), expected, rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("pad_token_id", [None, 3, 0])
def test_the_score_is_read_where_the_models_own_forward_reads_it(base, pad_token_id):
    """Also for a model trained with the end token as padding, however the batch at hand is padded."""
    classifier = perturb(load_sequence_classifier(base, dtype="float32")).eval()
    classifier.config.pad_token_id = pad_token_id
    ids = torch.tensor([[5, 6, 7, 8, 9, 3], [5, 6, 7, 3, 0, 0], [9, 8, 3, 0, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    with torch.no_grad():
        rows = [row[chosen.bool()] for row, chosen in zip(ids, mask, strict=True)]
        expected = torch.cat([classifier(input_ids=row[None]).logits[:, 0] for row in rows])
    for padding in (0, 3):
        padded = torch.where(mask.bool(), ids, padding)
        scores = SeparateRewardModel(classifier)(padded, mask)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_a_merged_policy_does_not_share_its_backbone(base, reward):
    """Merging keeps the model's name but not its weights, so the reward adapter needs a base of its own."""
    merged = get_peft_model(load_causal_lm(base, dtype="float32"), make_lora())
    perturb(merged, only="lora")
    policy = wrap_policy(merged.merge_and_unload(), make_lora())
    model, _ = load_reward_model(reward, policy=policy, dtype="float32")
    assert isinstance(model, SeparateRewardModel)


def test_a_causal_lm_is_no_reward_model(base):
    with pytest.raises(InputError, match=r"no trained score head: score\.weight"):
        load_reward_model(base)


def test_an_adapter_without_its_score_head_is_no_reward_model(base, policy, tmp_path):
    get_peft_model(load_causal_lm(base), make_lora()).save_pretrained(tmp_path / "headless")
    for given in (policy.model, None):
        with pytest.raises(InputError, match="modules_to_save"):
            load_reward_model(str(tmp_path / "headless"), policy=given)
    assert "reward" not in policy.model.peft_config


@pytest.mark.parametrize("adapter", [True, False])
def test_two_labels_are_no_reward(base, policy, tmp_path, adapter):
    from transformers import AutoModelForSequenceClassification

    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    if adapter:
        classifier = get_peft_model(classifier, make_lora(task_type="SEQ_CLS", modules_to_save=["score"]))
    classifier.save_pretrained(tmp_path / "two")
    load_tokenizer(base).save_pretrained(tmp_path / "two")
    with pytest.raises(InputError, match="2 labels"):
        load_reward_model(str(tmp_path / "two"), policy=policy.model)


def test_a_name_that_leads_nowhere_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        load_reward_model(str(tmp_path / "nowhere"))
