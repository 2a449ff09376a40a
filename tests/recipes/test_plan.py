"""A plan agrees with what a run then takes."""

import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from tiny import make_config, make_lora, make_model, make_tokenizer, make_trainer
from tiny_critics import make_places
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import base_of
from hf_rlhf.models.fast.attention import set_attention
from hf_rlhf.models.load import EMBEDDED_MODEL, read_config
from hf_rlhf.models.lora_targets import in_last_blocks
from hf_rlhf.models.machine import fastest
from hf_rlhf.models.policy import wrap_policy
from hf_rlhf.models.precision import native_dtype
from hf_rlhf.planning import work
from hf_rlhf.planning.layout import Layout
from hf_rlhf.planning.memory import kept_states, look_at, model_on_meta, model_without_data, plan_memory, saved_bytes
from hf_rlhf.planning.proposals import Setup, proposals
from hf_rlhf.planning.work import IterationSize, Machine, ModelShape, roofline
from hf_rlhf.recipes.arguments import ModelArguments, PPOArguments
from hf_rlhf.recipes.plan import PlanArguments, memory_model, plan_run


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch):
    """Plans count what their process holds, and that of a test holds what the tests before it left."""
    monkeypatch.setattr("hf_rlhf.planning.memory.resident_bytes", lambda: 0.5e9)


@pytest.mark.parametrize(("lora", "unfrozen"), [(True, None), (False, None), (False, 1)])
@pytest.mark.parametrize("length", [16, 300], ids=["plain attention", "fused attention"])
def test_what_is_counted_without_data_is_what_a_real_pass_keeps(lora, unfrozen, length):
    torch.manual_seed(0)
    model = make_model(make_tokenizer())
    config = model.config
    config.max_position_embeddings = 512
    real = wrap_policy(model, make_lora() if lora else None, num_layers_unfrozen=unfrozen)
    if lora:
        from hf_rlhf.models.fast.fused_lora import fuse_lora

        fuse_lora(real)
    with FakeTensorMode():
        without_data = model_without_data(config, torch.float32, make_lora() if lora else None, unfrozen)
        for model in (real, without_data) if length < 256 else ():
            set_attention({base_of(model): "eager"})
        planned = saved_bytes(without_data, 3, length)
    assert planned == saved_bytes(real, 3, length) > 0


def embedded_plan(tmp_path, **flags):
    args = make_config(tmp_path, max_prompt_length=64, max_completion_length=64, **flags)
    lora = make_lora(target_modules="all-linear", r=16)
    known = look_at(read_config(EMBEDDED_MODEL), args, dtype="bfloat16", peft_config=lora)
    return known, args


def test_the_shape_of_the_embedded_model(tmp_path):
    known, _ = embedded_plan(tmp_path)
    assert known.shape.parameters == 134_515_008
    assert known.shape.linear == 106_168_320
    assert known.trained == 16 * known.shape.linear_features
    assert plan_memory(known, make_config(tmp_path)).fixed["base"] == 2 * 134_515_008


def test_memory_grows_with_the_micro_batch_alone(tmp_path):
    known, _ = embedded_plan(tmp_path)
    peaks = {
        (micro, accumulated): plan_memory(
            known,
            make_config(
                tmp_path,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=accumulated,
                generation_batch_size=1,
                rollout_forward_batch_size=1,
                max_prompt_length=64,
                max_completion_length=64,
            ),
        ).peak
        for micro, accumulated in ((4, 1), (4, 8), (8, 1))
    }
    assert peaks[4, 1] == peaks[4, 8] < peaks[8, 1]


def test_fewer_blocks_take_less(tmp_path):
    """Plan a quarter of the blocks, 8 of 30.

    It takes the activations of 8, and 2 bytes of each of the 576 numbers of a token's state.
    """
    config = read_config(EMBEDDED_MODEL)
    args = make_config(tmp_path, per_device_train_batch_size=4)
    lora = in_last_blocks(make_lora(), model_on_meta(config), "0.25")
    every, quarter = (look_at(config, args, dtype="bfloat16", peft_config=each) for each in (make_lora(), lora))
    assert (every.trunk, quarter.trunk) == (0, 22)
    assert quarter.trained == pytest.approx(every.trained * 8 / 30)
    assert quarter.activations == pytest.approx(every.activations * 8 / 30, rel=0.03)
    assert quarter.block_activations == pytest.approx(every.block_activations, rel=0.03)
    ddp = Layout()
    assert kept_states(quarter, args, ddp) == 8 * 40 * 576 * 2
    assert kept_states(every, args, ddp) == 0
    plain = make_config(tmp_path, per_device_train_batch_size=4, reuse_trunk=False)
    assert kept_states(quarter, plain, ddp) == 0
    with_states, without = (plan_memory(quarter, each, ddp).phases for each in (args, plain))
    assert with_states["update"] - without["update"] == pytest.approx(8 * 40 * 576 * 2)
    assert with_states["sample"] == without["sample"]


@pytest.mark.parametrize("critic", ["value_head", "model"])
@pytest.mark.parametrize("unfrozen", [1, None])
def test_full_fine_tuning_of_upper_blocks_takes_what_is_planned(tmp_path, unfrozen, critic):
    """Bytes of all weights, of gradients and of the two moments, counted after an update."""
    from invariance.runs import classifier

    settings = {"num_layers_unfrozen": unfrozen, "critic": critic, "max_steps": 1, "num_mini_batches": 1}
    given = {"value_model": classifier()} if critic == "model" else {}
    trainer = make_trainer(tmp_path, lora=None, trainer_kwargs=given, **settings, num_ppo_epochs=1)
    config, args = trainer.policy.config, trainer.args
    fixed = plan_memory(look_at(config, args, dtype="float32", peft_config=None), args).fixed
    trainer.train()
    policy = trainer.policy
    reference = {*policy.reference_model.parameters()} - policy.weights_in_reference()
    assert fixed["reference"] == 4 * sum(weight.numel() for weight in reference)
    of_policy = [weight for weight in policy.model.parameters() if weight.requires_grad]
    kept = [trainer.optimizer.state[weight][name] for weight in of_policy for name in ("exp_avg", "exp_avg_sq")]
    assert fixed["what is trained, its gradients and moments"] == 4 * sum(x.numel() for x in (*of_policy, *kept))
    assert fixed["base"] == 4 * sum(weight.numel() for weight in policy.model.parameters())
    if critic == "model":
        assert fixed["critic"] == fixed["base"] + fixed["what is trained, its gradients and moments"]


def test_full_fine_tuning_of_the_last_8_blocks_of_the_embedded_model(tmp_path):
    """Each of 30 blocks has a thirtieth of the linear weights and two norms; the tied head is frozen."""
    config, args = read_config(EMBEDDED_MODEL), make_config(tmp_path, num_layers_unfrozen=8)
    last = look_at(config, args, dtype="bfloat16", peft_config=None)
    assert (last.lora, last.trunk, last.itemsize) == (False, 22, 4)
    assert last.trained == 8 * (106_168_320 // 30 + 2 * 576) + 576
    assert plan_memory(last, args).fixed["reference"] == 4 * last.trained
    assert plan_memory(last, args, Layout("fsdp2", 2)).fixed["reference"] == 4 * 134_515_008 / 2
    assert kept_states(last, args, Layout()) == 8 * 40 * 576 * 4


@pytest.mark.parametrize("share", [0.9, 0.4, 0.02])
@pytest.mark.parametrize("micro", [32, 6])
def test_proposals_end_with_one_that_fits(tmp_path, micro, share):
    setup = Setup(*embedded_plan(tmp_path, per_device_train_batch_size=micro), Layout())
    whole = setup.plan
    assert proposals(setup, whole.peak) == []
    fixed = sum(whole.fixed.values())
    available = fixed + share * (whole.peak - fixed)
    *before, (_, last) = proposals(setup, available)
    assert last.plan.peak <= available
    assert all(changed.plan.peak > available for _, changed in before)
    assert last.args.rollout_batch_size == setup.args.rollout_batch_size


def proposed_flags(setup, available):
    """The flags of all proposals; the last of them fits."""
    steps = proposals(setup, available)
    assert steps[-1][1].plan.peak <= available
    return [flags for flags, _ in steps]


def test_one_change_that_is_enough_is_proposed_alone(tmp_path):
    setup = Setup(*embedded_plan(tmp_path, gradient_checkpointing=True), Layout("fsdp2", 8))
    gathered = setup.plan.peak - setup.plan.phases["update"]
    setup = replace(setup, model=replace(setup.model, shape=replace(setup.model.shape, parameters=10**10)))
    by_block = setup.changed({"gather_for_rollout": False})
    assert by_block.plan.peak < setup.plan.peak - gathered
    assert proposed_flags(setup, by_block.plan.peak) == [{"gather_for_rollout": False}]


@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_run_that_no_batch_size_makes_fit_is_sharded(tmp_path, strategy):
    args = make_config(tmp_path, gradient_checkpointing=True)
    whole = look_at(read_config(EMBEDDED_MODEL), args, dtype="float32", peft_config=None)
    setup = Setup(whole, args, Layout(strategy, 8))
    sharded = setup.changed({"strategy": "fsdp2"})
    by_block = setup.changed({"strategy": "fsdp2", "gather_for_rollout": False})
    assert sharded.plan.peak < sum(setup.plan.fixed.values())
    assert proposed_flags(setup, sharded.plan.peak) == [{"strategy": "fsdp2"}]
    assert proposed_flags(setup, by_block.plan.peak)[0] == {"strategy": "fsdp2", "gather_for_rollout": False}


def test_what_is_trained_changes_where_nothing_else_is_enough(tmp_path):
    args = make_config(tmp_path)
    whole = look_at(read_config(EMBEDDED_MODEL), args, dtype="float32", peft_config=None)
    setup = Setup(whole, args, Layout(), with_lora=embedded_plan(tmp_path)[0])
    available = 0.8 * sum(setup.plan.fixed.values())
    assert {"use_peft": True} in proposed_flags(setup, available)


def test_weights_of_8_and_4_bits(tmp_path):
    """And embeddings in the base's dtype: 28.3M of them, of the 134.5M weights of the embedded model."""
    args, lora = make_config(tmp_path), make_lora(target_modules="all-linear", r=16)
    plans = {
        bits: plan_memory(
            look_at(read_config(EMBEDDED_MODEL), args, dtype="bfloat16", peft_config=lora, bits=bits), args
        )
        for bits in (None, 8, 4)
    }
    weights = 106_168_320
    assert plans[None].fixed["base"] - plans[8].fixed["base"] == weights
    assert plans[8].fixed["base"] - plans[4].fixed["base"] == pytest.approx(0.44 * weights)


def test_a_base_of_4_bits_is_not_proposed_where_it_is_refused(tmp_path):
    known, args = embedded_plan(tmp_path)
    asked = {layout: [flags for flags, _ in proposals(Setup(known, args, layout), 0.0)] for layout in LAYOUTS}
    assert [{"load_in_4bit": True} in flags for flags in asked.values()] == [True, True, False]


LAYOUTS = (Layout(), Layout("zero2", 2), Layout("fsdp2", 2))


def test_a_reward_adapter_has_a_base_of_its_own_beside_a_policy_that_it_cannot_share(tmp_path):
    known, args = embedded_plan(tmp_path)
    setup = Setup(replace(known, reward=1.0, reward_bases=10.0), args, Layout("fsdp2", 2))
    assert setup.plan.fixed["reward models"] == 1.0
    assert setup.changed({"gather_for_rollout": False}).plan.fixed["reward models"] == 11.0
    one_device = replace(setup, layout=Layout())
    assert one_device.changed({"load_in_4bit": True}).plan.fixed["reward models"] == 11.0


def test_episodes_are_planned_at_their_own_length(tmp_path):
    """The policy samples 8 of 20 tokens behind the prompt, for each of 3 completions."""
    flags = {"max_prompt_length": 16, "max_completion_length": 8, "max_turns": 3, "max_episode_length": 60}
    args, config = make_config(tmp_path, **flags), read_config(EMBEDDED_MODEL)
    whole = {"dtype": "bfloat16", "peft_config": make_lora()}
    one, several = (look_at(config, args, **whole, episodes=episodes) for episodes in (False, True))
    assert ((one.length, one.sampled), (several.length, several.sampled)) == ((24, 8), (76, 24))
    short, long = plan_memory(one, args), plan_memory(several, args)
    assert short.fixed == pytest.approx(long.fixed)
    keys_and_values = 2 * one.shape.layers * one.shape.kv_width * one.itemsize * args.rank_batch_size
    assert long.phases["sample"] - short.phases["sample"] == pytest.approx(1.15 * keys_and_values * (76 - 24))
    assert long.phases["update"] > 2 * short.phases["update"]
    script = PPOArguments(environment="frozen_lake")
    assert memory_model(script, args, ModelArguments().on(args.device)).length == 76
    assert memory_model(PPOArguments(), args, ModelArguments().on(args.device)).length == 24


def test_the_command_says_what_to_change(tmp_path, capsys):
    training = make_config(tmp_path, per_device_train_batch_size=32, max_prompt_length=64, max_completion_length=64)
    known, _ = embedded_plan(tmp_path, per_device_train_batch_size=32)
    whole = plan_memory(known, training)
    plan_run(PlanArguments(memory_gb=1000), PPOArguments(), training, ModelArguments())
    assert "fits" in capsys.readouterr().out
    memory_gb = (sum(whole.fixed.values()) + 0.5 * max(whole.phases.values())) / 1e9
    plan_run(PlanArguments(memory_gb=memory_gb), PPOArguments(), training, ModelArguments())
    printed = capsys.readouterr().out
    assert "does not fit" in printed
    assert "--per_device_train_batch_size 8" in printed
    assert "In this order:" in printed
    with pytest.raises(InputError, match="Take a smaller model"):
        plan_run(PlanArguments(memory_gb=0.1), PPOArguments(), training, ModelArguments())
    assert "No flag here makes it fit" in capsys.readouterr().out


def test_the_plan_of_a_whole_run_fits_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    training = make_config(tmp_path, per_device_train_batch_size=32, max_prompt_length=64, max_completion_length=64)
    monkeypatch.setattr("hf_rlhf.recipes.plan.available_bytes", lambda *_: 3e9)
    monkeypatch.setattr("hf_rlhf.models.precision._multiplies_bfloat16", lambda device: True)
    plan_run(PlanArguments(memory_gb=3), PPOArguments(), training, ModelArguments())
    printed = capsys.readouterr().out
    says = "The base is loaded in dtype bfloat16; native is bfloat16, since this cpu multiplies bfloat16 in hardware."
    assert says in " ".join(printed.split())
    assert "The whole run has 2 iterations of 64 prompts: about" in " ".join(printed.split())
    assert "roofline" in printed
    assert "…" not in printed
    assert re.search(
        r"^ +\d\.\d GB  --per_device_train_batch_size 8 --gradient_accumulation_steps 4$", printed, re.MULTILINE
    )
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(("reward", "shares"), [("upper", True), ("full_reward", False)])
def test_the_plan_says_whether_a_reward_may_begin_above_the_trunk(tmp_path, capsys, reward, shares):
    places = make_places(tmp_path)
    script = PPOArguments(reward_model_path=places[reward])
    model = ModelArguments(model_name_or_path=places["base"], lora_layers="0.5")
    plan_run(PlanArguments(memory_gb=1000), script, make_config(tmp_path / "run"), model)
    printed = " ".join(capsys.readouterr().out.split())
    assert "The lowest 1 of 2 blocks are not trained." in printed
    assert ("A reward adapter on the same blocks begins above them too" in printed) == shares


@pytest.mark.parametrize("bits", [4, 8])
def test_the_plan_says_in_how_many_bits_the_base_is_loaded(tmp_path, capsys, bits):
    model = ModelArguments(dtype="float32", **{f"load_in_{bits}bit": True})
    plan_run(PlanArguments(memory_gb=1000), PPOArguments(), make_config(tmp_path), model)
    assert f"The base is loaded in dtype float32, in {bits} bits; native" in " ".join(capsys.readouterr().out.split())


def test_a_plan_that_trains_every_weight_is_in_float32_and_proposes_lora_in_the_native_dtype(
    tmp_path, capsys, monkeypatch
):
    make_model(make_tokenizer()).save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr("hf_rlhf.models.precision._multiplies_bfloat16", lambda device: True)
    looked_at = []

    def look(script, training, model):
        looked_at.append((model.use_peft, model.dtype))
        return memory_model(script, training, model)

    monkeypatch.setattr("hf_rlhf.recipes.plan.memory_model", look)
    model = ModelArguments(model_name_or_path=str(tmp_path / "tiny"), use_peft=False)
    with pytest.raises(InputError, match="does not fit"):
        plan_run(PlanArguments(memory_gb=0.1), PPOArguments(), make_config(tmp_path), model)
    assert "The base is loaded in dtype float32; native is bfloat16" in " ".join(capsys.readouterr().out.split())
    assert looked_at == [(False, "float32"), (True, "bfloat16")]


def test_a_plan_of_upper_blocks(tmp_path, capsys):
    make_model(make_tokenizer()).save_pretrained(tmp_path / "tiny")
    training = make_config(tmp_path, num_layers_unfrozen=1)
    model = ModelArguments(model_name_or_path=str(tmp_path / "tiny"), use_peft=False)
    plan_run(PlanArguments(), PPOArguments(), training, model)
    printed = " ".join(capsys.readouterr().out.split())
    assert "The lowest 1 of 2 blocks are not trained." in printed
    assert "An iteration with 1 block trained and a value head" in printed
    wide = LlamaConfig(num_hidden_layers=8, hidden_size=1024, intermediate_size=4096, num_attention_heads=16)
    wide.save_pretrained(tmp_path / "tiny")
    training.num_layers_unfrozen = 6
    plan_run(PlanArguments(memory_gb=2.0), PPOArguments(), training, model)
    printed = capsys.readouterr().out
    assert "--use_peft true" in printed
    assert "With use_peft, omit num_layers_unfrozen" in printed


@pytest.mark.parametrize(("given", "said"), [(None, "without num_processes"), (1, "with num_processes=1")])
@pytest.mark.parametrize("strategy", ["fsdp2", "zero2"])
def test_a_strategy_of_several_ranks_asks_how_many(tmp_path, strategy, given, said):
    with pytest.raises(InputError, match=rf"strategy={strategy} is invalid {said}.*2 or more"):
        PlanArguments(strategy=strategy, num_processes=given).layout(make_config(tmp_path))


def test_the_sizes_of_a_run_are_those_of_the_planned_ranks(tmp_path, capsys):
    training = make_config(tmp_path, num_mini_batches=1, max_steps=-1, num_train_epochs=3)
    plan_run(PlanArguments(num_processes=8, memory_gb=1000), PPOArguments(), training, ModelArguments())
    printed = " ".join(capsys.readouterr().out.split())
    assert "32 completions an iteration = 4 per device x 1 accumulated x 1 minibatch x 8 ranks" in printed
    assert "The run has 3 epochs, each of one iteration for every 32 prompts." in printed
    training.total_episodes = 100
    plan_run(PlanArguments(num_processes=8, memory_gb=1000), PPOArguments(), training, ModelArguments())
    printed = " ".join(capsys.readouterr().out.split())
    assert "The whole run has 4 iterations of 32 prompts. Times are omitted: the plan is for 8 devices" in printed
    assert "roofline" not in printed


@pytest.mark.parametrize(
    ("flags", "models", "strategy", "said"),
    [
        ({"early_stop_kl": 0.1}, {}, "zero2", "early_stop_kl needs the optimizer, which DeepSpeed owns"),
        ({"torch_compile": True}, {}, "fsdp2", "torch_compile must be false"),
        (
            {"reward_while_sampling": True, "generation_batch_size": 1, "gather_for_rollout": False},
            {},
            "fsdp2",
            "reward_while_sampling must be false with gather_for_rollout=false",
        ),
        (
            {"use_transformers_continuous_batching": True, "gather_for_rollout": False},
            {},
            "fsdp2",
            "use_transformers_continuous_batching must be false with gather_for_rollout=false",
        ),
        ({"optim": "adafactor"}, {}, "fsdp2", "optim=adafactor is invalid under FSDP2"),
        ({}, {"load_in_4bit": True}, "fsdp2", "load_in_4bit and load_in_8bit are invalid under FSDP2"),
        ({"use_vllm": True}, {"use_peft": False}, "ddp", "use_vllm needs a LoRA policy"),
        ({"critic": "adapter"}, {"use_peft": False}, "ddp", "critic=adapter is invalid without LoRA"),
        ({"num_layers_unfrozen": 1}, {}, "ddp", "num_layers_unfrozen=1 is invalid with LoRA.*set lora_layers=1"),
        ({"num_layers_unfrozen": 99}, {"use_peft": False}, "ddp", "num_layers_unfrozen=99 is invalid: the model has"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_that_the_trainer_refuses_is_not_planned(tmp_path, flags, models, strategy, said):
    plan = PlanArguments(strategy=strategy, num_processes=2)
    with pytest.raises(InputError, match=said):
        plan_run(plan, PPOArguments(), make_config(tmp_path, **flags), ModelArguments(**models))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "An iteration with all weights trained and a value head takes about"),
        ({"critic": "model"}, "An iteration with all weights trained and a critic model takes about"),
    ],
)
def test_the_time_says_what_is_trained(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.setattr(Machine, "measured", lambda *_: Machine(flops=1e6, bandwidth=1e12))
    make_model(make_tokenizer()).save_pretrained(tmp_path / "tiny")
    model = ModelArguments(model_name_or_path=str(tmp_path / "tiny"), use_peft=False)
    plan_run(PlanArguments(), PPOArguments(), make_config(tmp_path, **flags), model)
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed
    assert re.search(r"\(sample [\d.]+ s, forward_pass [\d.]+ s, update [\d.]+ (s|min)\)", printed)


def test_times_of_this_machine_are_not_those_of_a_device_with_other_memory(tmp_path, capsys):
    plan_run(PlanArguments(memory_gb=5000), PPOArguments(), make_config(tmp_path), ModelArguments())
    assert "Times are omitted: the plan is for a device of 5000 GB" in " ".join(capsys.readouterr().out.split())


def test_rows_that_are_not_there_are_named():
    with pytest.raises(InputError, match=r"nope\.jsonl: no such file"):
        plan_run(PlanArguments(), PPOArguments(dataset_name="nope.jsonl"), None, ModelArguments())


def test_an_unknown_model_is_named():
    with pytest.raises(InputError, match="no model config could be read from 'no/such-model'"):
        read_config("no/such-model")


def test_the_roofline_by_hand():
    shape = ModelShape(
        layers=1,
        hidden=4,
        vocab=10,
        kv_width=4,
        query_width=4,
        linear=100,
        quantizable=100,
        linear_features=0,
        parameters=140,
    )
    size = IterationSize(completions=2, prompt_length=3, completion_length=5, num_ppo_epochs=1, reward_model=False)
    seconds = roofline(shape, size, Machine(flops=1.0, bandwidth=1e12), itemsize=2)
    attention = 2 * 4 * 8
    forward, head = 2 * 100 + attention, 2 * 10 * 4
    assert seconds["sample"] == pytest.approx(2 * 3 * forward + 5 * 2 * (forward + head))
    assert seconds["forward_pass"] == 2 * 16 * forward + 2 * 10 * head
    assert seconds["update"] == 16 * (forward + 2 * 100 + 2 * attention) + 10 * 2 * head
    slow = roofline(shape, size, Machine(flops=1e12, bandwidth=1.0), itemsize=2)
    whole = roofline(shape, replace(size, lora_rank=0), Machine(flops=1.0, bandwidth=1e12), itemsize=2)
    assert whole["update"] == seconds["update"] + 16 * 2 * 100 + 10 * head  # the gradient of the weights
    critic = roofline(shape, replace(size, own_critic=True), Machine(flops=1.0, bandwidth=1e12), itemsize=2)
    assert critic["forward_pass"] == seconds["forward_pass"] + 16 * forward
    assert slow["sample"] == pytest.approx(5 * (2 * 140 + 2 * 2 * 4 * 2 * (3 + 2.5)), rel=1e-6)


def test_a_measurement_of_a_slow_dtype_takes_no_longer_than_its_limit(monkeypatch):
    done = []

    def emulated(states, weight):  # 1 GFLOP/s, where a product of the largest size would take 9 s
        work = 2 * states.shape[0] * weight.numel()
        done.append(work)
        time.sleep(work / 1e9)

    monkeypatch.setattr(torch.nn.functional, "linear", emulated)
    begun = time.perf_counter()
    machine = Machine.measured(torch.float32, limit=0.2)
    assert time.perf_counter() - begun < 2
    assert machine.flops == pytest.approx(1e9, rel=0.3)
    assert sum(done) < 0.3e9
    assert machine.bandwidth > 1e8


def test_a_reward_model_is_planned_in_the_dtype_in_which_it_is_loaded(tmp_path, monkeypatch, caplog):
    make_model(make_tokenizer()).save_pretrained(tmp_path / "tiny")
    training, script = make_config(tmp_path), PPOArguments(reward_model_path="a/hub-name")
    model = ModelArguments(model_name_or_path=str(tmp_path / "tiny"), dtype="float32")
    for native in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("hf_rlhf.recipes.plan.native_dtype", lambda device, native=native: native)
        known = memory_model(script, training, model)
        assert known.reward == native.itemsize * known.shape.parameters
        assert known.itemsize == 4
    assert "a/hub-name: its config cannot be read, so it is assumed as large as the policy" in caplog.text


def test_a_reward_model_is_as_large_as_its_own_config_says(tmp_path, caplog):
    make_model(make_tokenizer()).save_pretrained(tmp_path / "tiny")
    wide = make_model(make_tokenizer(), hidden_size=64)
    wide.config.save_pretrained(tmp_path / "wide")  # a folder with only a config.json
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": str(tmp_path / "wide"), "peft_type": "LORA"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(bytes(100))
    model = ModelArguments(model_name_or_path=str(tmp_path / "tiny"), dtype="float32")
    weights = sum(weight.numel() for weight in wide.model.parameters()) + 64  # the score head
    itemsize = native_dtype("cpu").itemsize
    for name, more in (("wide", 0), ("adapter", 100)):
        script = PPOArguments(reward_model_path=str(tmp_path / name))
        assert memory_model(script, make_config(tmp_path), model).reward == weights * itemsize + more
    script = PPOArguments(reward_funcs=[f"classifier:model={tmp_path / 'wide'},label=LABEL_0", "regex:pattern=a"])
    assert memory_model(script, make_config(tmp_path), model).reward == weights * 4  # a named reward's is in fp32
    assert not caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"per_device_train_batch_size": 8, "max_completion_length": 32},
        {"per_device_train_batch_size": 32, "max_completion_length": 64},
        {"per_device_train_batch_size": 16, "max_completion_length": 128, "gradient_checkpointing": "true"},
    ],
    ids=["small", "large", "checkpointing"],
)
def test_the_peak_of_a_real_run_is_within_15_percent_of_the_plan(tmp_path, flags):
    prompt = " ".join(["the"] * 60)
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "{prompt}"}}\n' * 32, encoding="utf-8")
    (tmp_path / "reward.py").write_text("def zero(completions, **_):\n    return [0.0] * len(completions)\n")
    command = [sys.executable, "-m", "hf_rlhf.cli", "ppo", "--dataset_name", str(tmp_path / "prompts.jsonl")]
    for name, value in {
        "reward_funcs": f"{tmp_path / 'reward.py'}:zero",
        "output_dir": str(tmp_path / "run"),
        "max_prompt_length": 64,
        "max_steps": 2,
        "num_ppo_epochs": 1,
        "report_to": "none",
        "stop_token_ids": 0,
        **flags,
    }.items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["measured_peak_gb"] == pytest.approx(plan["planned_peak_gb"], rel=0.15)


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock by which everything that is timed takes half a second."""
    seconds = itertools.count(0.0, 0.5)
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))


def test_a_copy_is_read_and_written_and_a_product_multiplies_and_adds(slow_clock, monkeypatch):
    monkeypatch.setattr(work, "CPU_PRODUCTS", ((2, 4),))
    monkeypatch.setattr(work, "_CPU_COPY", 1000)
    assert Machine.measured(torch.float32) == Machine(flops=2 * 2 * 4 * 4 / 0.5, bandwidth=2 * 1000 / 0.5)


def test_a_slow_function_is_timed_no_longer_than_the_limit(slow_clock):
    calls = []
    assert fastest(lambda: calls.append(1), "cpu", limit=1.2) == 0.5
    assert len(calls) == 3
