"""A reference by name: the KL of a policy that continues is measured to where it is told, without a second base."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import make_lora, make_model, make_tokenizer, make_trainer, perturb

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.load import load_causal_lm


@pytest.fixture
def places(tmp_path):
    """Folders of a base and of two adapters on it, of which the second continues the first."""
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    make_model(tokenizer, seed=5).save_pretrained(tmp_path / "other")
    for seed, name in ((1, "first"), (2, "second")):
        policy = get_peft_model(load_causal_lm(str(tmp_path / "base"), dtype=torch.float32), make_lora())
        perturb(policy, only="lora", seed=seed, scale=0.3).save_pretrained(tmp_path / name)
    for name in ("base", "other", "first", "second"):
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def trainer_of(places, reference, **flags):
    base = load_causal_lm(str(places / "base"), dtype=torch.float32)
    start = PeftModel.from_pretrained(base, str(places / "second"))
    named = {"ref_model": reference and str(places / reference)}
    return make_trainer(places / f"run-{reference}", model=start, lora=None, trainer_kwargs=named, **flags)


@pytest.mark.parametrize(
    ("reference", "adapters", "loaded"),
    [
        (None, {"policy", "reference"}, False),
        ("base", {"policy"}, False),
        ("first", {"policy", "reference"}, False),
        ("other", {"policy"}, True),
    ],
)
def test_the_reference_has_the_logits_of_the_named_model(places, reference, adapters, loaded):
    trainer = trainer_of(places, reference)
    assert set(trainer.policy.model.peft_config) == adapters
    assert (trainer.policy.reference_model is not None) == loaded
    ids = torch.tensor([[5, 8, 11, 2, 7]])
    is_adapter = reference not in ("base", "other")
    expected = load_causal_lm(str(places / ("base" if is_adapter else reference)), dtype=torch.float32)
    if is_adapter:
        expected = PeftModel.from_pretrained(expected, str(places / (reference or "second")))
    with torch.no_grad(), trainer.policy.reference() as model:
        found = base_of(model).eval()(input_ids=ids).logits
        torch.testing.assert_close(found, expected.eval()(input_ids=ids).logits)


def test_training_starts_at_the_kl_to_the_named_reference_and_leaves_that_alone(places):
    ids = torch.tensor([[5, 8, 11, 2, 7]])
    kls = {}
    for reference in (None, "base"):
        trainer = trainer_of(places, reference, max_steps=4)
        with torch.no_grad(), trainer.policy.reference() as model:
            before = base_of(model)(input_ids=ids).logits
        trainer.train()
        with torch.no_grad(), trainer.policy.reference() as model:
            torch.testing.assert_close(base_of(model)(input_ids=ids).logits, before)
        kls[reference] = next(row["objective/kl"] for row in trainer.state.log_history if "objective/kl" in row)
    assert kls[None] == pytest.approx(0, abs=1e-5)
    assert kls["base"] > 0.1


def test_a_named_reference_cannot_follow_the_policy(places):
    with pytest.raises(InputError, match="ref_model stays what it is"):
        trainer_of(places, "base", ref_model_sync_iterations=1)


def logits_of(model):
    with torch.no_grad():
        return base_of(model).eval()(input_ids=torch.tensor([[5, 8, 11, 2, 7]])).logits


def merged(places, **lora):
    """The base with an adapter merged into it in Python: it keeps the base's name."""
    base = load_causal_lm(str(places / "base"), dtype=torch.float32)
    model = perturb(get_peft_model(base, make_lora(**lora)), only="lora", seed=3, scale=0.3).merge_and_unload()
    assert model.config._name_or_path == str(places / "base")
    return model


@pytest.mark.parametrize("lora", [{}, {"target_modules": ["lm_head"]}], ids=["blocks", "head"])
@pytest.mark.parametrize("reference", ["base", "first"])
def test_a_base_that_was_merged_in_python_is_not_taken_for_the_reference_of_its_name(places, lora, reference):
    expected = load_causal_lm(str(places / "base"), dtype=torch.float32)
    if reference == "first":
        expected = PeftModel.from_pretrained(expected, str(places / "first"))
    trainer = make_trainer(
        places / "run", model=merged(places, **lora), trainer_kwargs={"ref_model": str(places / reference)}
    )
    assert trainer.policy.reference_model is not None
    with trainer.policy.reference() as model:
        torch.testing.assert_close(logits_of(model), logits_of(expected))
    assert (logits_of(trainer.policy.model) - logits_of(expected)).abs().max() > 0.1


def test_tokens_that_were_added_to_the_base_make_no_second_base(places):
    model = load_causal_lm(str(places / "base"), dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + 3)
    trainer = make_trainer(places / "run", model=model, trainer_kwargs={"ref_model": str(places / "base")})
    assert trainer.policy.reference_model is None


def test_where_weights_cannot_be_compared_the_name_is_taken_and_that_is_said(places, monkeypatch, caplog):
    monkeypatch.setattr("hf_rlhf.models.same_base._weight_files", lambda *args: [])
    assert trainer_of(places, "base").policy.reference_model is None
    assert "is taken to be the policy's base by its name" in caplog.text
