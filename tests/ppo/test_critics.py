import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_config, make_prompts, metrics_of, snapshot
from tiny_critics import CRITICS, WHOLE_TEXTS, make_critic_trainer, make_places
from torch.nn.functional import mse_loss

from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyOutput
from hf_rlhf.models.value_model import load_value_model
from hf_rlhf.ops import gae
from hf_rlhf.ppo.loss import ppo_loss


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


def iterations_of(folder):
    return [row for row in metrics_of(folder) if "iteration" in row]


def bits(parameters):
    return [parameter.detach().clone() for parameter in parameters]


def equal(one, other):
    return [torch.equal(first, second) for first, second in zip(one, other, strict=True)]


def samples_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain_samples(places, tmp_path_factory):
    """The first iteration's completions of a run without anything special."""
    folder = tmp_path_factory.mktemp("plain")
    make_critic_trainer(folder, places, max_steps=4, num_logged_samples=8).train()
    return samples_of(folder)


# Training


@pytest.mark.parametrize("critic", CRITICS)
def test_every_critic_trains_from_an_undisturbed_start(places, plain_samples, tmp_path, critic):
    trainer = make_critic_trainer(tmp_path / "run", places, num_logged_samples=8, **CRITICS[critic](places))
    policy = trainer.policy
    before = snapshot(policy)
    of_critic, of_policy = policy.critic_parameters(), policy.policy_parameters()
    assert of_critic
    assert all(parameter.dtype == torch.float32 for parameter in of_critic)
    starts = bits(of_critic), bits(of_policy)
    trainer.train()
    assert not any(equal(bits(of_critic), starts[0]))
    assert not any(equal(bits(of_policy), starts[1]))
    trained = {id(parameter) for parameter in (*of_critic, *of_policy)}
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters() if id(p) not in trained)
    first, second = iterations_of(tmp_path / "run")
    assert first["objective/kl"] == 0
    assert second["objective/kl"] != 0
    assert first["val/first_ratio_error"] < 1e-5
    assert second["val/first_ratio_error"] < 1e-5
    assert first["sampling/logp_gap"] < 1e-5

    assert samples_of(tmp_path / "run")[: len(plain_samples)] == plain_samples


@pytest.mark.parametrize("critic", ["detached head", "adapter of a reward", "model of a full reward", "linear head"])
def test_a_reward_model_on_the_same_base_goes_with_every_critic(places, tmp_path, critic):
    trainer = make_critic_trainer(tmp_path, places, reward=places["reward"], **CRITICS[critic](places))
    of_critic, of_policy = trainer.policy.critic_parameters(), trainer.policy.policy_parameters()
    frozen = {name: p for name, p in snapshot(trainer.policy).items() if ".reward." in name}
    starts = bits(of_critic), bits(of_policy)
    trainer.train()
    assert not any(equal(bits(of_critic), starts[0]))
    assert not any(equal(bits(of_policy), starts[1]))
    assert frozen
    assert all(torch.equal(p, frozen[name]) for name, p in trainer.policy.named_parameters() if name in frozen)


@pytest.mark.parametrize("critic", ["adapter of a reward", "model of a full reward", "linear head"])
def test_a_critic_on_a_bf16_base_trains_in_fp32(places, tmp_path, critic):
    trainer = make_critic_trainer(tmp_path / "run", places, dtype="bfloat16", **CRITICS[critic](places))
    before, trained = snapshot(trainer.policy), trainer.policy.critic_parameters() + trainer.policy.policy_parameters()
    assert trainer.policy.model.dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in trained)
    trainer.train()
    names = {name for name, p in trainer.policy.named_parameters() if not torch.equal(p, before[name])}
    assert len(names) == len(trained)
    assert iterations_of(tmp_path / "run")[0]["objective/kl"] == 0
    trainer.save_model(str(tmp_path / "saved"))
    assert load_value_model(str(tmp_path / "saved")).predict_value(WHOLE_TEXTS) == trainer.predict_value(WHOLE_TEXTS)


# Saved, read again, gone on with


@pytest.mark.parametrize("critic", CRITICS)
def test_a_saved_critic_predicts_the_same_bits(places, tmp_path, critic):
    trainer = make_critic_trainer(tmp_path / "run", places, max_steps=4, **CRITICS[critic](places))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = load_value_model(str(tmp_path / "saved"), dtype="float32")
    for prompts in (make_prompts(5)["prompt"], WHOLE_TEXTS):
        values = trainer.predict_value(prompts)
        assert loaded.predict_value(prompts) == values
        assert len(set(values)) == len(values)
    suffixes = {file.suffix for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja", ".md"}


@pytest.mark.parametrize(
    ("kind", "lora"),
    [("value_head", True), ("adapter", True), ("model", True), ("value_head", False), ("model", False)],
)
def test_a_run_that_goes_on_from_a_saved_folder_goes_on_with_its_critic(places, tmp_path, kind, lora):
    """With a learning rate of 0, so that what the second run saves is what it started from."""
    from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments
    from hf_rlhf.recipes.ppo import train_ppo

    make_prompts().to_json(tmp_path / "prompts.jsonl")
    for folder, start, learning_rate in (("one", places["base"], 1e-2), ("two", str(tmp_path / "one"), 0.0)):
        train_ppo(
            PPOArguments(dataset_name=str(tmp_path / "prompts.jsonl")),
            make_config(tmp_path / folder, critic=kind, learning_rate=learning_rate, max_steps=4),
            ModelArguments(model_name_or_path=start, dtype="float32", use_peft=lora, lora_r=4),
            reward_funcs=[lambda prompts, completions, **_: [float(len(c[0]["content"])) for c in completions]],
        )
    one, two = ({f.relative_to(tmp_path / n): f for f in (tmp_path / n).rglob("*.safetensors")} for n in ("one", "two"))
    assert set(one) == set(two)
    for name in one:
        first, second = load_file(one[name]), load_file(two[name])
        assert set(first) == set(second)
        assert all(torch.equal(first[key], second[key]) for key in first), name
        assert any(tensor.any() for tensor in first.values())


@pytest.mark.parametrize(
    "flags",
    [
        {"critic": "adapter"},
        {"critic": "adapter", "critic_learning_rate": 3e-3, "critic_warmup_iterations": 3},
        {"critic": "model"},
        {"critic": "model", "lora": None, "critic_learning_rate": 3e-3},
    ],
    ids=["adapter", "adapter with rates of its own", "model", "full model with a rate of its own"],
)
def test_a_resumed_run_ends_in_the_same_bits(places, tmp_path, flags):
    flags = {"max_steps": 16, "save_strategy": "steps", "save_steps": 8, "learning_rate": 1e-3} | flags
    whole = make_critic_trainer(tmp_path / "whole", places, **flags)
    whole.train()
    resumed = make_critic_trainer(tmp_path / "resumed", places, **flags)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    expected = snapshot(whole.policy)
    for name, parameter in resumed.policy.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert iterations_of(tmp_path / "resumed") == iterations_of(tmp_path / "whole")[2:]
    rates = [[group["initial_lr"] for group in t.optimizer.param_groups] for t in (whole, resumed)]
    assert rates[0] == rates[1]


def test_a_checkpoint_without_its_critic_is_an_error(places, tmp_path):
    trainer = make_critic_trainer(tmp_path / "run", places, critic="adapter", save_strategy="steps", save_steps=8)
    trainer.train()
    (tmp_path / "run" / "checkpoint-8" / "critic" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="adapter_model"):
        make_critic_trainer(tmp_path / "again", places, critic="adapter", max_steps=16).train(
            resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8")
        )


# Settings

ONE_UPDATE = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1, "max_grad_norm": 0.0, "optim": "sgd"}


@pytest.mark.parametrize("kind", [{"value_head_mlp_size": 4}, {"critic": "adapter"}, {"critic": "model"}], ids=str)
def test_the_critics_learning_rate_is_the_critics_and_no_one_elses(places, tmp_path, kind):
    moves = []
    for rate in (None, 0.02):
        trainer = make_critic_trainer(
            tmp_path / str(rate),
            places,
            learning_rate=0.2,
            critic_learning_rate=rate,
            value_head_init_std=0.5,
            **ONE_UPDATE,
            **kind,
        )
        groups = trainer.policy.critic_parameters(), trainer.policy.policy_parameters()
        starts = [bits(group) for group in groups]
        trainer.train()
        moves.append(
            [[p.detach() - s for p, s in zip(*both, strict=True)] for both in zip(groups, starts, strict=True)]
        )
    (usual, of_policy), (slower, unchanged) = moves
    assert any(move.norm() > 1e-3 for move in usual)
    assert any(move.norm() > 1e-3 for move in of_policy)
    for move, tenth in zip(usual, slower, strict=True):
        torch.testing.assert_close(tenth, move / 10, rtol=1e-4, atol=1e-6)
    assert all(equal(of_policy, unchanged))


def test_the_schedule_is_one_for_both_learning_rates(places, tmp_path):
    trainer = make_critic_trainer(
        tmp_path, places, learning_rate=1e-2, critic_learning_rate=1e-3, num_ppo_epochs=1, max_steps=5, warmup_steps=10
    )
    trainer.train()
    of_critic = {id(parameter) for parameter in trainer.policy.critic_parameters()}
    peaks = {True: 1e-3, False: 1e-2}
    trained = 0
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            trained += 1
            assert group["lr"] == pytest.approx(peaks[id(parameter) in of_critic] * trainer.state.global_step / 10)
    assert trained == len(trainer.policy.critic_parameters()) + len(trainer.policy.policy_parameters())


def test_an_optimizer_of_ones_own_has_its_own_learning_rates(places, tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(InputError, match="critic_learning_rate"):
        make_critic_trainer(
            tmp_path, places, critic_learning_rate=1e-3, trainer_kwargs={"optimizers": (optimizer, None)}
        )


@pytest.mark.parametrize(
    "critic", ["linear head", "adapter of a reward", "model of a full reward", "full policy, linear head"]
)
def test_while_the_critic_warms_up_not_a_bit_of_the_policy_moves(places, tmp_path, critic):
    seen = []

    def reward(prompts, completions, **columns):
        seen.append((bits(trainer.policy.policy_parameters()), bits(trainer.policy.critic_parameters())))
        return [float(len(completion[0]["content"])) for completion in completions]

    trainer = make_critic_trainer(
        tmp_path,
        places,
        reward=reward,
        max_steps=16,
        weight_decay=0.1,
        kl_target=0.1,
        kl_horizon=80,
        critic_warmup_iterations=2,
        **CRITICS[critic](places),
    )
    trainer.train()
    seen.append((bits(trainer.policy.policy_parameters()), bits(trainer.policy.critic_parameters())))
    policies, critics = zip(*seen, strict=True)
    for before, after in ((0, 1), (1, 2)):
        assert all(equal(policies[before], policies[after]))
        assert not all(equal(critics[before], critics[after]))
    for before, after in ((2, 3), (3, 4)):
        assert not all(equal(policies[before], policies[after]))
        assert not all(equal(critics[before], critics[after]))
    rows = iterations_of(tmp_path)
    assert [row["objective/kl"] == 0 for row in rows] == [True, True, True, False]
    coefficients = [row["objective/kl_coef"] for row in rows]
    assert coefficients[0] == coefficients[1] == coefficients[2] != coefficients[3]


def test_the_loss_of_the_warm_up_is_the_value_loss(places, tmp_path):
    flags = {"value_head_init_std": 1.0, "vf_coef": 0.3, "entropy_coef": 0.1}
    trainer = make_critic_trainer(tmp_path, places, critic_warmup_iterations=1, **flags)
    experience = trainer.make_experience(0)
    output = PolicyOutput(experience.logprobs + 0.1, experience.values, experience.entropy)
    loss = trainer.loss(output, experience)
    torch.testing.assert_close(loss.total, 0.3 * loss.stats["loss/value_avg"])
    assert loss.total > 0.1


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_the_head_starts_as_wide_as_it_is_asked_to(places, tmp_path, std):
    trainer = make_critic_trainer(tmp_path, places, value_head_init_std=std, value_head_mlp_size=500)
    assert trainer.policy.value_head.summary.weight.std().item() == pytest.approx(std, rel=0.15)
    assert any(trainer.predict_value(WHOLE_TEXTS)) == (std > 0)


def test_a_value_clip_of_zero_is_no_clip(places, tmp_path):
    trainer = make_critic_trainer(tmp_path, places, cliprange_value=0, value_head_init_std=1.0)
    experience = trainer.make_experience(0)
    values = experience.values + torch.randn(experience.values.shape) * experience.mask
    losses = {}
    for clip in (0.0, None, 0.2):
        trainer.args.cliprange_value = clip
        losses[clip] = ppo_loss(PolicyOutput(experience.logprobs, values), experience, trainer.args)
    error = mse_loss(values[experience.mask], experience.returns[experience.mask], reduction="sum") / 2
    torch.testing.assert_close(losses[0.0].stats["loss/value_avg"], error)
    assert torch.equal(losses[0.0].total, losses[None].total)
    assert losses[0.0].stats["val/clipfrac_avg"] == 0
    assert losses[0.2].stats["loss/value_avg"] > error
    assert losses[0.2].stats["val/clipfrac_avg"] > 0


def test_lambda_of_the_critic_changes_its_targets_and_no_advantage(places, tmp_path):
    flags = {"value_head_init_std": 1.0, "lam": 0.7, "whiten_advantages": False}
    plain = make_critic_trainer(tmp_path / "plain", places, **flags).make_experience(0)
    other = make_critic_trainer(tmp_path / "other", places, critic_lam=1.0, **flags).make_experience(0)
    assert torch.equal(plain.values, other.values)
    assert torch.equal(plain.advantages, other.advantages)
    assert not torch.allclose(plain.returns, other.returns)
    assert torch.equal(other.returns, gae(other.per_token_rewards, other.values, other.mask, 1.0, 1.0).returns)


# What does not fit


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"critic": "adapter", "lora": None}, "critic=adapter is invalid without LoRA"),
        ({"critic": "nobody"}, "value_head, adapter, model"),
        ({"critic": "adapter", "value_head_detach": True}, "value_head_detach"),
        ({"critic_warmup_iterations": -1}, "critic_warmup_iterations"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate"),
        ({"value_head_mlp_size": 0}, "value_head_mlp_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_critics_are_refused(places, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        make_critic_trainer(tmp_path, places, **flags)
