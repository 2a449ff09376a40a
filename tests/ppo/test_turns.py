"""Chat turns in PPO: the token that closes one ends a completion, and what the prompt began belongs to the answer."""

import json

import pytest
from datasets import Dataset
from tiny import make_base_tokenizer, make_config, make_lora, make_model, make_prompts, make_tokenizer, make_trainer
from transformers import GenerationConfig

from hf_rlhf.ppo.trainer import PPOTrainer

IM_END, THINK = 3, "<think> "


def watch(seen):
    """A reward that keeps what it is given."""

    def reward(prompts, completions, completion_ids):
        seen.extend(zip(completions, completion_ids, strict=True))
        return [float(len(ids)) for ids in completion_ids]

    return reward


def trainer_of(folder, tokenizer, *, data=None, seen=None, **more):
    """A trainer of one iteration; `seen` takes what the reward was given."""
    settings = {"max_steps": 4, "max_completion_length": 12} | more
    return make_trainer(
        folder,
        model=make_model(tokenizer),
        tokenizer=tokenizer,
        reward=watch([] if seen is None else seen),
        data=data,
        **settings,
    )


def rows_of(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_end_is_read_with_the_tools_of_the_rows_and_the_settings_of_the_run(tmp_path, streamed):
    tokenizer, seen = make_base_tokenizer(), []
    tokenizer.chat_template = "{{ raise_exception('no') if not (tools and bot) }}" + tokenizer.chat_template
    rows = [{**row, "tools": [{"type": "function"}]} for row in make_prompts()]
    data = Dataset.from_list(rows).to_iterable_dataset() if streamed else Dataset.from_list(rows)
    trainer = trainer_of(tmp_path, tokenizer, data=data, seen=seen, chat_template_kwargs={"bot": "b"})
    assert IM_END in trainer.policy.model.get_base_model().generation_config.eos_token_id


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("lora", [True, None], ids=["adapter", "full"])
def test_training_stops_at_the_end_of_the_turn_and_saves_that(tmp_path, streamed, lora):
    tokenizer, seen = make_base_tokenizer(), []
    data = make_prompts().to_iterable_dataset() if streamed else None
    trainer = trainer_of(tmp_path, tokenizer, data=data, seen=seen, lora=lora, eval_strategy="no")
    trainer.train()
    ids = [ids for _, ids in seen]
    ended = sum(each[-1] == IM_END for each in ids)
    assert ended
    assert not any(IM_END in each[:-1] for each in ids)
    (row, *_) = rows_of(tmp_path, "metrics.jsonl")
    stopped = ended + sum(each[-1] == tokenizer.eos_token_id for each in ids)
    assert row["completions/clipped_ratio"] == 1 - stopped / len(ids)
    if lora is None:
        trainer.save_model(str(tmp_path / "saved"))
        saved = GenerationConfig.from_pretrained(tmp_path / "saved")
        assert saved.eos_token_id == [tokenizer.eos_token_id, IM_END]


def test_plain_text_runs_on_behind_the_end_of_a_turn(tmp_path):
    tokenizer, seen = make_base_tokenizer(), []
    data = Dataset.from_dict({"prompt": ["the cat sat"] * 16})
    trainer_of(tmp_path, tokenizer, data=data, seen=seen).train()
    assert any(IM_END in ids[:-1] for _, ids in seen)


def test_an_evaluation_of_messages_stops_at_the_end_of_the_turn(tmp_path):
    tokenizer, seen = make_base_tokenizer(), []
    data = Dataset.from_dict({"prompt": ["the cat sat"] * 16})
    trainer_of(tmp_path, tokenizer, data=data, seen=seen).evaluate(make_prompts())
    assert not any(IM_END in ids[:-1] for _, ids in seen)
    assert any(ids[-1] == IM_END for _, ids in seen)


def own(folder, tokenizer):
    return PPOTrainer(
        make_model(tokenizer),
        None,
        make_config(folder, max_completion_length=12),
        processing_class=tokenizer,
        peft_config=make_lora(),
    )


def test_the_own_loop_stops_at_the_end_of_the_turn(tmp_path):
    trainer, prompts = own(tmp_path, make_base_tokenizer()), make_prompts(8)["prompt"]
    completions = trainer.generate(prompts)
    assert not any(IM_END in completion.ids[:-1] for completion in completions)
    assert all(completion.stopped for completion in completions if completion.ids[-1] == IM_END)


def test_ids_that_end_with_the_turn_are_completions_that_stopped(tmp_path):
    trainer, prompts = own(tmp_path, make_base_tokenizer()), make_prompts(8)["prompt"]
    metrics = trainer.step(prompts, [[9, IM_END]] * 3 + [[9, 10]] * 5, rewards=[1.0] * 8)
    assert metrics["val/num_eos_tokens"] == 3


@pytest.fixture
def thinking():
    """A tokenizer whose template begins every answer with `<think>`."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template += "{% if add_generation_prompt %}" + THINK + "{% endif %}"
    return tokenizer


def test_rewards_and_samples_have_what_the_generation_prompt_began(tmp_path, thinking):
    seen = []
    trainer = trainer_of(tmp_path, thinking, seen=seen)
    trainer.train()
    trainer.evaluate(make_prompts(4))
    assert len(seen) == 8 + 4
    for completion, ids in seen:
        sampled = thinking.decode(ids, skip_special_tokens=True)
        assert completion == [{"role": "assistant", "content": THINK + sampled}]
    samples = rows_of(tmp_path, "samples.jsonl")
    assert {row["split"] for row in samples} == {"train", "eval"}
    assert {row["completion"] for row in samples} <= {completion[0]["content"] for completion, _ in seen}


def test_samples_of_the_own_loop_have_what_the_generation_prompt_began(tmp_path, thinking):
    trainer, prompts = own(tmp_path, thinking), make_prompts(8)["prompt"]
    trainer.step(prompts, [thinking("happy dog")["input_ids"]] * 8, rewards=[1.0] * 8)
    assert {row["completion"] for row in rows_of(tmp_path, "samples.jsonl")} == {"<think> happy dog"}
