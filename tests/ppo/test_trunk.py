"""A run in which the lower blocks are computed once per completion and iteration, and what it says of that."""

import re

import pytest
import torch
from peft import get_peft_model
from tiny import (
    make_config,
    make_lora,
    make_model,
    make_prompts,
    make_tokenizer,
    make_trainer,
    metrics_of,
    perturb,
    snapshot,
    trained,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from hf_rlhf.errors import InputError
from hf_rlhf.ppo.trainer import PPOTrainer

LAST = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}
ONCE = "the lowest 1 of 2 blocks, which are not trained, are computed once per completion and iteration"


def last_block_trainer(folder, **settings):
    trainer = make_trainer(folder, **{"lora": make_lora(**LAST)} | settings)
    perturb(trainer.policy, only="lora")
    return trainer


def runs_of_lowest_block(trainer):
    """A list that gets the number of tokens of each pass through the trunk, sampling omitted."""
    tokens = []
    policy = trainer.policy
    states = policy.trunk_states

    def counted(sequences):
        tokens.append(int(sequences.attention_mask.sum()))
        return states(sequences)

    policy.trunk_states = counted
    return tokens


def test_it_is_computed_once_in_an_iteration(tmp_path, capsys):
    trainer = last_block_trainer(tmp_path)
    tokens = runs_of_lowest_block(trainer)
    rows = []
    make_experience = trainer.make_experience

    def experience_of(*args):
        experience = make_experience(*args)
        rows.append(experience.sequences)
        return experience

    trainer.make_experience = experience_of
    trainer.train()
    assert len(rows) == 2
    each = [
        {tuple(ids[:n].tolist()) for ids, n in zip(s.input_ids, s.attention_mask.sum(1), strict=True)} for s in rows
    ]
    assert tokens == [sum(map(len, sequences)) for sequences in each]  # two equal completions are one
    assert not trainer.kept_states._by_tokens
    assert f"trunk: {ONCE}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lora": True}, "every block is trained"),
        ({"reuse_trunk": False}, "reuse_trunk=false"),
        ({"disable_dropout": False}, "computed anew in every pass, since disable_dropout=false"),
    ],
)
def test_the_plain_way(tmp_path, capsys, flags, words):
    trainer = last_block_trainer(tmp_path, max_steps=4, **flags)
    assert trainer.policy.trunk is None
    tokens = runs_of_lowest_block(trainer)
    trainer.train()
    printed = capsys.readouterr().out
    assert not tokens
    assert re.search(f"trunk: .*{words}\n", printed)


def test_an_architecture_that_cannot_be_entered(tmp_path, capsys):
    model = make_model(make_tokenizer())
    left = {}
    model.model.layers[0].register_forward_hook(lambda block, inputs, output: left.update(states=output))
    model.model.layers[1].register_forward_pre_hook(lambda block, inputs: (inputs[0] + left.pop("states"), *inputs[1:]))
    trainer = last_block_trainer(tmp_path, model=model, max_steps=4)
    trainer.train()
    assert "trunk: computed anew in every pass, since its code cannot begin at block 1" in capsys.readouterr().out


def test_models_of_their_own_are_named(tmp_path):
    from invariance.runs import classifier

    settings = {"critic": "model", "trainer_kwargs": {"value_model": classifier()}}
    settings["trainer_kwargs"]["ref_model"] = make_model(make_tokenizer(), seed=1)
    states = {}
    for reuse in (True, False):
        trainer = last_block_trainer(tmp_path / str(reuse), reuse_trunk=reuse, max_steps=4, optim="sgd", **settings)
        assert (trainer.policy.trunk is not None) == reuse
        trainer.train()
        states[reuse] = trained(trainer.policy)
        settings["trainer_kwargs"]["value_model"] = classifier()
    for name, weight in states[True].items():
        torch.testing.assert_close(weight, states[False][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("by_flag", [True, False])
def test_full_fine_tuning_of_the_upper_blocks(tmp_path, capsys, by_flag):
    """Check that frozen weights stay so, by the flag or as they came. The reference begins above the trunk too."""
    weights, metrics = {}, {}
    for reuse in (True, False):
        model = make_model(make_tokenizer())
        for part in () if by_flag else (model.model.embed_tokens, model.model.layers[0]):
            part.requires_grad_(False)
        trainer = make_trainer(
            tmp_path / str(reuse),
            model=model,
            lora=None,
            num_layers_unfrozen=1 if by_flag else None,
            reuse_trunk=reuse,
            optim="sgd",
            kl_estimator="full",
        )
        assert (trainer.policy.trunk is not None) == reuse
        start = snapshot(model)
        trainer.train()
        weights[reuse] = snapshot(model)
        assert {name for name, weight in start.items() if not torch.equal(weight, weights[reuse][name])} == {
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        metrics[reuse] = metrics_of(tmp_path / str(reuse))
    assert not any("layers.0" in name or "embed" in name for name in trained(model))
    assert metrics[True][0]["objective/kl"] == 0
    for with_trunk, without in zip(metrics[True], metrics[False], strict=True):
        assert with_trunk == pytest.approx(without, rel=1e-5, abs=1e-6)
    printed, reason = capsys.readouterr().out, "num_layers_unfrozen=1" if by_flag else "as it came"
    frozen = f"10,240 weights are trained and 10,208 frozen ({reason}); the reference shares the frozen ones"
    assert f"adapters: none, {frozen}\n" in printed
    assert f"trunk: {ONCE}\n" in printed
    for name, weight in weights[True].items():
        assert (weight - weights[False][name]).norm() <= 1e-6 * weight.norm(), name


def test_an_own_loop_with_masks_of_several_turns(tmp_path):
    """Completions from elsewhere, of which some tokens are another speaker's."""
    tokenizer, weights = make_tokenizer(), {}
    prompts = [row["prompt"] for row in make_prompts(8)]
    completions = [[7 + (b + t) % 20 for t in range(3 + b % 5)] for b in range(8)]
    masks = [[t % 3 != 1 for t in range(len(ids))] for ids in completions]
    for reuse in (True, False):
        trainer = PPOTrainer(
            make_model(tokenizer),
            None,
            make_config(tmp_path / str(reuse), reuse_trunk=reuse, optim="sgd", learning_rate=0.5),
            processing_class=tokenizer,
            peft_config=make_lora(**LAST),
        )
        perturb(trainer.policy, only="lora")
        start = trained(trainer.policy)
        for _ in range(2):
            trainer.step(prompts, completions, [float(b % 3) for b in range(8)], masks)
        weights[reuse] = trained(trainer.policy)
    for name, weight in weights[True].items():
        assert (weight - start[name]).norm() > 1e-4 * start[name].norm(), name
        assert (weight - weights[False][name]).norm() <= 1e-6 * weight.norm(), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lora": None, "num_layers_unfrozen": 1},
        {"lora": None, "num_layers_unfrozen": 1, "ref_model_sync_iterations": 1},
    ],
    ids=["lora", "full", "refreshed"],
)
def test_a_resumed_run_is_the_whole_run(tmp_path, settings):
    whole = last_block_trainer(tmp_path / "whole", save_strategy="steps", save_steps=4, **settings)
    whole.train()
    resumed = last_block_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.policy.trunk is not None
    for name, weight in snapshot(whole.policy).items():
        assert torch.equal(snapshot(resumed.policy)[name], weight), name
    if "lora" in settings:
        assert len(resumed.policy.weights_in_reference()) == 10


def test_a_saved_policy_of_upper_blocks_is_a_whole_model(tmp_path):
    trainer = make_trainer(tmp_path, lora=None, num_layers_unfrozen=1, max_steps=2)
    trainer.train()
    trainer.save_model()
    saved = snapshot(AutoModelForCausalLM.from_pretrained(tmp_path))
    for name, weight in snapshot(trainer.policy.model).items():
        assert torch.equal(saved[name], weight), name


def test_a_critic_model_is_trained_on_the_same_blocks(tmp_path):
    from invariance.runs import classifier

    trainer = make_trainer(
        tmp_path,
        lora=None,
        num_layers_unfrozen=1,
        critic="model",
        trainer_kwargs={"value_model": classifier()},
        max_steps=2,
    )
    of_critic = {name.removeprefix("critic.") for name in trained(trainer.policy) if name.startswith("critic.model")}
    of_policy = {name for name in trained(trainer.policy) if name.startswith("model.") and "lm_head" not in name}
    assert of_critic == of_policy
    trainer.train()


def test_evaluation_keeps_nothing(tmp_path):
    trainer = last_block_trainer(tmp_path, trainer_kwargs={"eval_dataset": make_prompts(4)})
    tokens = runs_of_lowest_block(trainer)
    assert trainer.evaluate()["eval_kl"] > 0
    assert len(tokens) == 1
    assert not trainer.kept_states._by_tokens


def test_weights_thawed_later_learn(tmp_path, caplog):
    trainer = last_block_trainer(tmp_path, max_steps=4)
    assert trainer.policy.trunk is not None
    lowest = [p for n, p in trainer.policy.named_parameters() if ".layers.0." in n and "lora_" not in n]
    for parameter in lowest:
        parameter.requires_grad_(True)
    before = [parameter.detach().clone() for parameter in lowest]
    trainer.train()
    assert "every pass computes all blocks now" in caplog.text
    assert not all(torch.equal(parameter, old) for parameter, old in zip(lowest, before, strict=True))


def test_the_reference_stays_where_weights_are_thawed_later(tmp_path):
    trainer = make_trainer(tmp_path, lora=None, num_layers_unfrozen=1, max_steps=4)
    reference = snapshot(trainer.policy.reference_model)
    trainer.policy.model.requires_grad_(True)
    trainer.train()
    for name, weight in snapshot(trainer.policy.model).items():
        assert not torch.equal(weight, reference[name]), name
    for name, weight in snapshot(trainer.policy.reference_model).items():
        assert torch.equal(weight, reference[name]), name


def test_the_reference_stays_where_a_run_with_thawed_weights_resumes(tmp_path):
    def thawed(folder, **flags):
        trainer = make_trainer(folder, lora=None, num_layers_unfrozen=1, max_steps=8, **flags)
        trainer.policy.model.requires_grad_(True)
        return trainer

    whole = thawed(tmp_path / "whole", save_strategy="steps", save_steps=4)
    reference = snapshot(whole.policy.reference_model)
    whole.train()
    resumed = thawed(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, weight in snapshot(resumed.policy.reference_model).items():
        assert torch.equal(weight, reference[name]), name
    for name, weight in snapshot(resumed.policy.model).items():
        assert torch.equal(weight, snapshot(whole.policy.model)[name]), name


def test_the_reference_stays_where_a_callback_thaws_weights_between_updates(tmp_path):
    class Thaws(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.policy.model.requires_grad_(True)

    model = make_model(make_tokenizer())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kwargs = {"optimizers": (optimizer, None), "callbacks": [Thaws()]}
    trainer = make_trainer(
        tmp_path, model=model, lora=None, num_layers_unfrozen=1, reuse_trunk=False, max_steps=4, trainer_kwargs=kwargs
    )
    reference = snapshot(trainer.policy.reference_model)
    trainer.train()
    lowest = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(snapshot(trainer.policy.model)[lowest], reference[lowest])
    for name, weight in snapshot(trainer.policy.reference_model).items():
        assert torch.equal(weight, reference[name]), name


def test_other_blocks_than_those_of_the_checkpoint_are_refused(tmp_path):
    make_trainer(tmp_path, lora=None, num_layers_unfrozen=1, max_steps=4, save_strategy="steps", save_steps=4).train()
    trainer = make_trainer(tmp_path / "resumed", lora=None, num_layers_unfrozen=2, max_steps=8)
    before = snapshot(trainer.policy.model)
    with pytest.raises(InputError, match=r"num_layers_unfrozen=1, and this one has 2: it would train other weights"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, weight in snapshot(trainer.policy.model).items():
        assert torch.equal(weight, before[name]), name


def test_a_merged_model_that_peft_left_frozen_is_trained_whole(tmp_path, capsys):
    model = make_model(make_tokenizer())
    adapted = get_peft_model(model, make_lora(modules_to_save=["lm_head"]))
    merged = adapted.merge_and_unload()
    assert 0 < sum(parameter.requires_grad for parameter in merged.parameters()) < len(list(merged.parameters()))
    trainer = make_trainer(tmp_path, model=merged, lora=None, max_steps=2)
    assert all(parameter.requires_grad for parameter in trainer.policy.model.parameters())
    trainer.train()
    assert "adapters: none, all weights are trained\n" in capsys.readouterr().out
