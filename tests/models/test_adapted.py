"""Loading of models on an adapter: with added tokens in each of PEFT's layouts, as every role, and as another task."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import make_config, make_lora, make_model, make_prompts, make_tokenizer, perturb, snapshot

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapted import load_adapted, load_policy, load_reward_start
from hf_rlhf.models.adapters import base_of, embedding_rows
from hf_rlhf.models.critics import build_critic
from hf_rlhf.models.load import (
    load_causal_lm,
    load_sequence_classifier,
    load_tokenizer,
    require_fitting_tokenizer,
)
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.reward_model import SeparateRewardModel, SharedRewardModel, load_reward_model
from hf_rlhf.models.value_model import ValueModel, load_value_model
from hf_rlhf.ppo.trainer import PPOTrainer

NEW = [29, 30]  # ids of the added tokens
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "whole": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "rows": {"trainable_token_indices": NEW},
    "rows of both": {"trainable_token_indices": {"embed_tokens": NEW, "lm_head": NEW}},
}


def save_base(folder, **config):
    tokenizer = make_tokenizer()
    make_model(tokenizer, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base")


def longer_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    return tokenizer


def save_longer(base, folder, *, load=load_causal_lm, saves_embeddings: Any = "auto", **lora):
    """Make an adapter with two added tokens, all of it noisy, whose base was resized at random.

    Returns the model in memory.
    """
    tokenizer = longer_tokenizer()
    model = load(base, dtype="float32")
    model.resize_token_embeddings(len(tokenizer))
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | lora
    adapted = perturb(get_peft_model(model, LoraConfig(**config)), only="lora")
    perturb(perturb(adapted, only="modules_to_save"), only="delta", scale=0.5).eval()
    adapted.save_pretrained(folder, save_embedding_layers=saves_embeddings)
    tokenizer.save_pretrained(folder)
    return adapted


def logits_of(model, ids=((5, 29, 7, 30), (30, 8, 29, 4))):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(ids)).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_policy_with_added_tokens_says_what_it_said_in_training(tmp_path, layout, tied):
    base = save_base(tmp_path / "base", tie_word_embeddings=tied)
    expected = logits_of(save_longer(base, tmp_path / "adapter", **LAYOUTS[layout]))
    loaded = load_policy(str(tmp_path / "adapter"), adds_adapter=True, dtype="float32")
    assert isinstance(loaded, PeftModel)
    torch.testing.assert_close(logits_of(loaded), expected)
    merged = load_policy(str(tmp_path / "adapter"), adds_adapter=False, merges_adapter=True)
    assert not isinstance(merged, PeftModel)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    torch.testing.assert_close(logits_of(merged), expected)
    assert len(load_tokenizer(merged.config._name_or_path)) == 31  # the base's would have 29
    critic = build_critic("model", wrap_policy(merged))
    assert torch.equal(critic.model.model.embed_tokens.weight, merged.model.embed_tokens.weight)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lora", [True, False], ids=["shared", "separate"])
def test_a_reward_model_with_added_tokens_scores_as_in_training(base, tmp_path, layout, lora):
    """Its embeddings are not the policy's: it gets a base of its own, and the policy stays as it is."""
    rows = LAYOUTS[layout].get("trainable_token_indices")
    own = (
        {"trainable_token_indices": NEW} if rows else {"modules_to_save": ["embed_tokens"]} if layout == "whole" else {}
    )
    own["modules_to_save"] = [*own.get("modules_to_save", []), "score"]
    trained = save_longer(base, tmp_path / "reward", load=load_sequence_classifier, task_type="SEQ_CLS", **own)
    policy = wrap_policy(load_causal_lm(base, dtype="float32"), make_lora()) if lora else None
    before = {} if policy is None else snapshot(policy)
    model, tokenizer = load_reward_model(str(tmp_path / "reward"), policy=policy, dtype="float32")
    assert isinstance(model, SeparateRewardModel)
    assert tokenizer.convert_tokens_to_ids("</think>") == 30
    ids = torch.tensor([[5, 29, 7, 30], [30, 8, 29, 4]])
    torch.testing.assert_close(model(ids, torch.ones_like(ids)), logits_of(trained)[:, 0])
    assert policy is None or all(torch.equal(weight, before[name]) for name, weight in snapshot(policy).items())


def test_policy_and_reward_model_of_one_longer_base_share_it(base, tmp_path):
    policy = wrap_policy(_policy_of(base, tmp_path))
    classifier = load_reward_start(str(tmp_path / "sft"), adds_adapter=True, dtype="float32")
    perturb(perturb(classifier, only="lora", seed=3), only="score").save_pretrained(tmp_path / "reward")
    longer_tokenizer().save_pretrained(tmp_path / "reward")
    alone, _ = load_reward_model(str(tmp_path / "reward"), dtype="float32")
    shared, _ = load_reward_model(str(tmp_path / "reward"), policy=policy)
    assert isinstance(shared, SharedRewardModel)
    ids = torch.tensor([[5, 29, 7, 30], [30, 8, 29, 4]])
    before = logits_of(policy)
    torch.testing.assert_close(shared(ids, torch.ones_like(ids)), alone(ids, torch.ones_like(ids)))
    torch.testing.assert_close(logits_of(policy), before)


def _policy_of(base, tmp_path, **lora):
    save_longer(base, tmp_path / "sft", **lora)
    return load_policy(str(tmp_path / "sft"), adds_adapter=True, dtype="float32")


def test_an_adapter_that_trains_tokens_lives_beside_one_that_does_not(base, tmp_path):
    """PEFT asks every adapter for its tokens when one is loaded or saved, and ends in a KeyError."""
    tokenizer = make_tokenizer()
    classifier = get_peft_model(
        load_sequence_classifier(base, dtype="float32"), make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    )
    perturb(perturb(classifier, only="lora"), only="score").save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    policy = wrap_policy(load_causal_lm(base, dtype="float32"), make_lora(trainable_token_indices=[5, 6]))
    perturb(policy, only="delta", scale=0.5)
    alone, _ = load_reward_model(str(tmp_path / "reward"), dtype="float32")
    shared, _ = load_reward_model(str(tmp_path / "reward"), policy=policy)
    assert isinstance(shared, SharedRewardModel)
    ids = torch.tensor([[5, 2, 7, 6]])
    torch.testing.assert_close(shared(ids, torch.ones_like(ids)), alone(ids, torch.ones_like(ids)))
    PolicyWithValue(policy).save_pretrained(tmp_path / "saved")
    again = load_policy(str(tmp_path / "saved"), adds_adapter=True, dtype="float32")
    torch.testing.assert_close(logits_of(again, ids.tolist()), logits_of(policy, ids.tolist()))


@pytest.mark.parametrize("critic", ["value_head", "adapter", "model"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ppo_from_added_tokens_saves_what_loads_again(base, tmp_path, layout, critic):
    save_longer(base, tmp_path / "sft", **LAYOUTS[layout])
    trainer = PPOTrainer(
        load_policy(str(tmp_path / "sft"), adds_adapter=True, dtype="float32"),
        lambda prompts, completions, **_: [float(len(completion)) for completion in completions],
        make_config(tmp_path / "out", critic=critic, max_steps=1, num_ppo_epochs=1, num_mini_batches=1),
        make_prompts(4),
        processing_class=longer_tokenizer(),
    )
    perturb(perturb(trainer.model, only="lora", seed=5), only="summary")
    trainer.save_model()
    prompts = [[5, 29, 7], [30, 8]]
    values = trainer.model.critic
    assert trainer.model.config.vocab_size == 31
    loaded = load_value_model(str(tmp_path / "out"))
    assert isinstance(loaded.critic, type(values))
    ours = ValueModel(getattr(values, "model", trainer.model.model), values, longer_tokenizer())
    assert loaded.predict_value(prompts) == pytest.approx(ours.predict_value(prompts), abs=1e-5)
    policy = load_policy(str(tmp_path / "out"), adds_adapter=True, dtype="float32")
    torch.testing.assert_close(logits_of(policy), logits_of(trainer.model.model))


def test_lost_embeddings_are_an_error_that_names_them(base, tmp_path):
    """The tokens were read in training, and nothing says what they were to the model."""
    save_longer(base, tmp_path / "adapter", saves_embeddings=False)
    message = r"2 tokens .*no embeddings for \('<think>', '</think>': ids up to 30, and 29 embeddings\)"
    with pytest.raises(InputError, match=message) as refusal:
        load_policy(str(tmp_path / "adapter"), adds_adapter=True)
    assert "save_embedding_layers=True" in str(refusal.value)
    assert base in str(refusal.value)


def test_a_lost_row_for_padding_is_the_mean_of_the_others(base, tmp_path, caplog):
    """No text contains it; every load gives it the same row, where transformers draws one."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    get_peft_model(load_causal_lm(base, dtype="float32"), make_lora()).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    model = base_of(load_policy(str(tmp_path / "adapter"), adds_adapter=True, dtype="float32"))
    original = load_causal_lm(base, dtype="float32")
    for ours, theirs in ((model.model.embed_tokens, original.model.embed_tokens), (model.lm_head, original.lm_head)):
        assert torch.equal(ours.weight[:29], theirs.weight)
        torch.testing.assert_close(ours.weight[29], theirs.weight.mean(dim=0))
    assert "no rows of model.embed_tokens for the tokens 29 to 29" in caplog.text


def test_a_shrunk_vocabulary_is_shrunk_again(base, tmp_path):
    """Load an adapter of users who resize a padded vocabulary to `len(tokenizer)`."""
    model = load_causal_lm(base, dtype="float32")
    model.resize_token_embeddings(25)
    adapted = perturb(get_peft_model(model, make_lora()), only="lora").eval()
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = load_policy(str(tmp_path / "adapter"), adds_adapter=True, dtype="float32")
    torch.testing.assert_close(logits_of(loaded, [[5, 8, 24]]), logits_of(adapted, [[5, 8, 24]]))


def test_embeddings_are_saved_where_the_hub_is_out_of_reach(base, tmp_path, monkeypatch):
    """PEFT asks the Hub for the base's config, and without an answer saves none of them."""
    from hf_rlhf.models.adapters import POLICY, save_adapter

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *args: None)
    policy = wrap_policy(_policy_of(base, tmp_path))
    expected = logits_of(policy)
    policy.peft_config[POLICY].base_model_name_or_path = "someone/base"
    save_adapter(policy, POLICY, tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    again = load_policy(str(tmp_path / "saved"), adds_adapter=True, dtype="float32")
    torch.testing.assert_close(logits_of(again), expected)


@pytest.mark.parametrize("load", [load_causal_lm, load_sequence_classifier])
def test_an_adapter_is_no_whole_model(base, tmp_path, load):
    """Transformers injects it into the base, and the next adapter takes its place."""
    get_peft_model(load_causal_lm(base), make_lora()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=f"is an adapter of '{base}'"):
        load(str(tmp_path / "adapter"))


def test_a_reward_model_is_no_policy(base, tmp_path):
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    get_peft_model(load_sequence_classifier(base), config).save_pretrained(tmp_path / "reward")
    with pytest.raises(InputError, match="adapter of a reward model"):
        load_policy(str(tmp_path / "reward"), adds_adapter=True)


@pytest.mark.parametrize("merges", [False, True])
def test_a_reward_model_starts_from_what_the_language_model_knows(base, tmp_path, merges):
    """Its hidden states before the first update are those of the adapter, whatever kind of adapter that is."""
    lora: Any = {"use_dora": True, "modules_to_save": ["lm_head"]}
    sft = perturb(get_peft_model(load_causal_lm(base, dtype="float32"), make_lora(**lora)), only="lora").eval()
    sft.save_pretrained(tmp_path / "sft")
    start = load_reward_start(str(tmp_path / "sft"), adds_adapter=not merges, merges_adapter=merges, dtype="float32")
    ids = torch.tensor([[5, 2, 7, 6]])
    with torch.no_grad():
        ours, theirs = (base_of(model.eval()).model(input_ids=ids).last_hidden_state for model in (start, sft))
    torch.testing.assert_close(ours, theirs)
    trained = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    assert any("score" in name for name in trained)
    assert all(merges or "lora" in name or "score" in name for name in trained)


def test_a_reward_model_goes_on_from_a_reward_model(base, tmp_path):
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["score"])
    earlier = get_peft_model(load_sequence_classifier(base, dtype="float32"), config)
    perturb(perturb(earlier, only="lora"), only="score").save_pretrained(tmp_path / "reward")
    start = load_reward_start(str(tmp_path / "reward"), adds_adapter=True, dtype="float32")
    torch.testing.assert_close(logits_of(start, [[5, 2, 7]]), logits_of(earlier, [[5, 2, 7]]))


def test_a_reward_adapter_without_its_head_is_no_start(base, tmp_path):
    adapted = get_peft_model(load_causal_lm(base), make_lora(task_type="CAUSAL_LM"))
    adapted.peft_config["default"].task_type = "SEQ_CLS"
    adapted.save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match="no trained score head"):
        load_reward_start(str(tmp_path / "headless"), adds_adapter=True)


def test_an_adapter_loads_on_the_revision_of_its_base(base, tmp_path, monkeypatch):
    get_peft_model(load_causal_lm(base), make_lora(revision="abc")).save_pretrained(tmp_path / "adapter")
    seen = []

    def load(name, **kwargs):
        seen.append((name, kwargs["revision"]))
        return load_causal_lm(name)

    load_adapted(load, tmp_path / "adapter", revision="main")
    assert seen == [(base, "abc")]


def test_a_critic_adapter_trains_no_rows_of_the_head(base):
    """It ends in hidden states: they would never have a gradient, and DDP waits for one."""
    policy = wrap_policy(
        load_causal_lm(base, dtype="float32"), make_lora(trainable_token_indices={"embed_tokens": [5], "lm_head": [5]})
    )
    build_critic("adapter", policy)
    rows = [name for name, _ in policy.named_parameters() if "trainable_tokens_delta.critic" in name]
    assert rows == ["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.critic"]


def test_an_encoder_whose_head_has_layers_is_loaded_and_goes_on(tmp_path):
    """RoBERTa's head is two layers, and counts as trained."""
    import transformers

    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=1,
        max_position_embeddings=40, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    transformers.RobertaForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    encoder = load_sequence_classifier(str(tmp_path / "encoder"), dtype="float32")
    lora = make_lora(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"])
    trained = perturb(perturb(get_peft_model(encoder, lora), only="lora"), only="modules_to_save").eval()
    trained.save_pretrained(tmp_path / "reward")
    make_tokenizer().save_pretrained(tmp_path / "reward")
    ids = torch.tensor([[5, 8, 7, 4]])
    expected = logits_of(trained, ids.tolist())
    loaded, _ = load_reward_model(str(tmp_path / "reward"), dtype="float32")
    torch.testing.assert_close(loaded(ids, torch.ones_like(ids)), expected[:, 0])
    start = load_reward_start(str(tmp_path / "reward"), adds_adapter=True, dtype="float32")
    torch.testing.assert_close(logits_of(start, ids.tolist()), expected)


def test_an_adapter_of_the_embeddings_is_a_start(base, tmp_path):
    """PEFT's layer around an embedding does not say how many rows it has."""
    adapter = get_peft_model(
        load_causal_lm(base, dtype="float32"), make_lora(target_modules=["q_proj", "embed_tokens"])
    )
    adapter.save_pretrained(tmp_path / "adapter")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "adapter")
    for load in (load_policy, load_reward_start):
        model = load(str(tmp_path / "adapter"), adds_adapter=True, dtype="float32")
        require_fitting_tokenizer(model, tokenizer)
        assert embedding_rows(model) == len(tokenizer)


ENDS = {
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "head, and rows": {"target_modules": ["lm_head"], "trainable_token_indices": {"embed_tokens": [5, 7]}},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 7]},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_merged_adapter_of_the_embeddings_or_the_head_says_what_it_said(tmp_path, ends, tied):
    base, ids = save_base(tmp_path / "base", tie_word_embeddings=tied), ((5, 9, 7, 3), (8, 5, 5, 4))
    config = LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **ENDS[ends])
    adapted = perturb(get_peft_model(load_causal_lm(base, dtype="float32"), config), only="delta", scale=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits_of(adapted, ids)
    if tied and ends == "head, and rows":
        with pytest.raises(InputError, match="cannot merge both"):
            load_policy(str(tmp_path / "adapter"), adds_adapter=False, merges_adapter=True)
        return
    merged = load_policy(str(tmp_path / "adapter"), adds_adapter=False, merges_adapter=True)
    torch.testing.assert_close(logits_of(merged, ids), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits_of(load_causal_lm(str(tmp_path / "merged"), dtype="float32"), ids), expected, atol=1e-4, rtol=1e-4
    )
    is_tied = merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert is_tied == merged.config.tie_word_embeddings == (tied and ends == "rows")
