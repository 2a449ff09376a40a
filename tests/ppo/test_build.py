"""Refusals of `PPOTrainer` before it trains, and the objects that it leaves as they were."""

import json
from collections import Counter

import pytest
import torch
from datasets import Dataset
from tiny import (
    happy_reward,
    make_config,
    make_lora,
    make_model,
    make_prompts,
    make_tokenizer,
    make_trainer,
    metrics_of,
)
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, TrainerCallback

from hf_rlhf.data.prompts import prepare_prompt_set, prompt_limit
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.errors import InputError
from hf_rlhf.models.backbone import require_known_head
from hf_rlhf.ppo.iteration_log import IterationLog
from hf_rlhf.ppo.trainer import PPOTrainer
from hf_rlhf.types import Sequences


def make_classifier():
    config = make_model(make_tokenizer()).config
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def test_a_model_cannot_be_its_own_reference(tmp_path):
    model = make_model(make_tokenizer())
    with pytest.raises(InputError, match="model and ref_model are the same model"):
        make_trainer(tmp_path, model=model, trainer_kwargs={"ref_model": model})
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_reward_model_cannot_be_the_critic_too(tmp_path):
    classifier = make_classifier()
    with pytest.raises(InputError, match=r"value_model and reward_funcs\[0\] are the same model"):
        make_trainer(tmp_path, reward=classifier, critic="model", trainer_kwargs={"value_model": classifier})


@pytest.mark.parametrize("flag", ["bf16", "fp16"])
def test_mixed_precision_is_refused(tmp_path, flag):
    with pytest.raises((InputError, ValueError), match=r"mixed precision|fp16"):
        make_trainer(tmp_path, **{flag: True})


def test_kernels_for_gpus_are_refused_on_a_cpu(tmp_path):
    with pytest.raises(InputError, match="use_liger_kernel=true is invalid without a GPU"):
        make_trainer(tmp_path, use_liger_kernel=True)


def test_a_head_that_is_not_known_is_refused():
    model = make_model(make_tokenizer())
    require_known_head(model)
    forward = model.forward

    def doubled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    model.forward = doubled
    with pytest.raises(InputError, match="LlamaForCausalLM changes its logits behind its head"):
        require_known_head(model)


def counting_tokenizer():
    """A tokenizer, and how often it rendered each prompt by its text."""
    tokenizer, renders = make_tokenizer(), Counter()
    render = tokenizer.apply_chat_template

    def counted(messages, **options):
        renders[messages[0]["content"]] += 1
        return render(messages, **options)

    tokenizer.apply_chat_template = counted
    return tokenizer, renders


def prepared_prompts(tokenizer, args, rewards=(), **settings):
    rows = LoadedRows.given(make_prompts(), source="rows")
    settings = {"overlong": args.overlong_prompts, "chat_template_kwargs": args.chat_template_kwargs} | settings
    limit = prompt_limit(settings.pop("max_prompt_length", args.max_prompt_length), settings["overlong"])
    named = {str(number): each for number, each in enumerate(rewards)}
    return prepare_prompt_set(rows, tokenizer, role="training", limit=limit, reward_tokenizers=named, **settings)


@pytest.mark.parametrize("prepared", [True, False])
def test_each_prompt_is_rendered_once_for_the_policy_and_once_for_each_reward_model(tmp_path, prepared):
    tokenizer, policy_renders = counting_tokenizer()
    rewards = [counting_tokenizer() for _ in range(2)]
    tokenizers = [each for each, _ in rewards]
    data = prepared_prompts(tokenizer, make_config(tmp_path), tokenizers) if prepared else make_prompts()
    kwargs = {"reward_processing_classes": tokenizers}
    classifiers = [make_classifier() for _ in rewards]
    make_trainer(tmp_path, tokenizer=tokenizer, reward=classifiers, data=data, trainer_kwargs=kwargs)
    for renders in (policy_renders, *(renders for _, renders in rewards)):
        assert {renders[row["prompt"][0]["content"]] for row in make_prompts()} == {1}


@pytest.mark.parametrize(
    "other",
    [
        {"max_prompt_length": 31},
        {"overlong": "filter"},
        {"chat_template_kwargs": {"calm": True}},
        {"tokenizer": None},
        {"chat_template": "{{ messages[0].content }}"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_set_that_was_prepared_otherwise_is_refused(tmp_path, other):
    tokenizer, template = make_tokenizer(), other.pop("chat_template", None)
    by = make_tokenizer() if "tokenizer" in other else tokenizer
    data = prepared_prompts(by, make_config(tmp_path), **{k: v for k, v in other.items() if k != "tokenizer"})
    tokenizer.chat_template = template or tokenizer.chat_template
    with pytest.raises(InputError, match="train_dataset is invalid: it was prepared with another"):
        make_trainer(tmp_path, tokenizer=tokenizer, data=data)


def test_ids_that_a_set_brings_along_are_not_trusted(tmp_path):
    trainer, rows = make_trainer(tmp_path), make_prompts(4)
    expected = trainer.evaluate(rows)
    found = trainer.evaluate(rows.add_column("prompt_ids", [[7]] * 4))
    assert {**found, "eval_runtime": 0} == {**expected, "eval_runtime": 0}


def test_texts_longer_than_the_positions_are_refused(tmp_path):
    texts = Dataset.from_dict({"text": ["the cat sat on the mat " * 40]})
    with pytest.raises(InputError, match="tokens and the model 128 positions; lower max_ptx_length"):
        make_trainer(tmp_path, ptx_coef=0.1, trainer_kwargs={"ptx_dataset": texts})


def test_a_reference_with_another_vocabulary_is_refused(tmp_path):
    other = make_model(make_tokenizer(), vocab_size=40)
    with pytest.raises(InputError, match="ref_model has a vocabulary of 40 tokens and the policy one of"):
        make_trainer(tmp_path, trainer_kwargs={"ref_model": other})


def test_a_stream_among_several_evaluation_sets_is_refused(tmp_path):
    sets = {"seen": make_prompts(4), "endless": make_prompts(4).to_iterable_dataset()}
    with pytest.raises(InputError, match="endless is an IterableDataset"):
        make_trainer(tmp_path, trainer_kwargs={"eval_dataset": sets})


@pytest.mark.parametrize("name", ["reward", "objective/kl", "rewards/happy_reward/mean"])
def test_a_reward_cannot_log_under_a_name_of_ppos_own(name):
    with pytest.raises(InputError, match=f"{name} by log_metric"):
        IterationLog(8).add_reward_metrics({name: [99.0]})


def test_what_rewards_log_is_logged_in_evaluation_too(tmp_path):
    def reward(prompts, completions, log_metric):
        log_metric("words", 3.0)
        return happy_reward(prompts, completions)

    make_trainer(tmp_path, reward=reward, trainer_kwargs={"eval_dataset": make_prompts(4)}).evaluate()
    assert metrics_of(tmp_path)[-1]["eval_words"] == 3.0


def test_a_run_that_cannot_begin_leaves_no_settings(tmp_path):
    trainer = make_trainer(tmp_path, data=make_prompts().to_iterable_dataset(), max_steps=-1)
    with pytest.raises(InputError, match="give max_steps"):
        trainer.train()
    assert not (tmp_path / "config.yaml").exists()


def test_a_saved_model_keeps_its_dropout(tmp_path):
    model = make_model(make_tokenizer(), attention_dropout=0.25)
    trainer = make_trainer(tmp_path, model=model, lora=None, max_steps=4)
    assert model.config.attention_dropout == 0.0
    trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["attention_dropout"] == 0.25
    assert model.config.attention_dropout == 0.0


def test_a_callback_added_later_cannot_save_inside_an_iteration(tmp_path):
    class SaveAlways(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = True

    trainer = make_trainer(tmp_path, max_steps=8)
    trainer.add_callback(SaveAlways())
    trainer.train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_what_is_trained_is_fp32_also_when_the_adapter_brings_a_head(tmp_path):
    model = make_model(make_tokenizer()).bfloat16()
    trainer = make_trainer(tmp_path, model=model, lora=make_lora(modules_to_save=["lm_head"]))
    dtypes = {parameter.dtype for parameter in trainer.policy.parameters() if parameter.requires_grad}
    assert dtypes == {torch.float32}


def test_generating_after_the_end_leaves_the_reference_alone(tmp_path):
    trainer = make_trainer(
        tmp_path, ref_model_sync_iterations=2, max_steps=8, trainer_kwargs={"eval_dataset": make_prompts(4)}
    )
    trainer.train()
    before = trainer.evaluate()["eval_kl"]
    trainer.generate(["the cat"])
    assert trainer.evaluate()["eval_kl"] == before != 0


def test_an_adapter_folder_as_model_goes_on_from_that_adapter(tmp_path):
    tokenizer = make_tokenizer()
    make_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    first = make_trainer(tmp_path / "first", model=base, max_steps=4)
    first.train()
    first.save_model()
    second = PPOTrainer(str(tmp_path / "first"), happy_reward, make_config(tmp_path / "second"), make_prompts())
    sequences = Sequences.from_ids([[5, 6]], [[7, 8, 9]])
    with torch.no_grad():
        output = second.policy.eval()(sequences, reference=True)
        trained = first.policy.eval()(sequences).logprobs
    torch.testing.assert_close(output.logprobs, trained, rtol=0.02, atol=0.02)  # the second has its base in bf16
    assert torch.equal(output.reference_logprobs, output.logprobs)


def test_a_run_is_not_written_into_the_folder_of_another(tmp_path):
    make_trainer(tmp_path, max_steps=4).train()
    before = metrics_of(tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        make_trainer(tmp_path).train()
    with pytest.raises(InputError, match="holds a run already"):
        make_trainer(tmp_path).step(["the cat"] * 8, [[5]] * 8, [0.0] * 8)
    assert metrics_of(tmp_path) == before


@pytest.mark.parametrize("name", ["README.md", "config.yaml", "adapter_model.safetensors", "tokenizer_config.json"])
def test_files_of_others_are_never_written_over(tmp_path, name):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds {name}, which this run would overwrite"):
        make_trainer(tmp_path, max_steps=4).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes.txt", name])
    (tmp_path / name).unlink()
    make_trainer(tmp_path, max_steps=4).train()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_reward_that_needs_a_column_says_so_before_anything_is_sampled(tmp_path):
    def needs_answers(prompts, completions, answer):
        return [0.0 for _ in completions]

    with pytest.raises(InputError, match="'needs_answers' takes answer, and the dataset has no such column"):
        make_trainer(tmp_path, reward=needs_answers)


@pytest.mark.parametrize("flag", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_batches_of_nothing_are_refused(tmp_path, flag):
    with pytest.raises(InputError, match=f"{flag}=0 is invalid: it must be at least 1"):
        make_config(tmp_path, **{flag: 0})


SHOWS = (
    "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{% for m in messages %}{{ m.content }} {% endfor %}"
    "{{ mood is defined and mood or '' }}"
)


def moody_rows(count=8):
    """Rows of one word, of which the first asks for a mood and a tool of its own."""
    first = {"tools": [{"name": "mat"}], "chat_template_kwargs": {"mood": "happy"}}
    rows = [{"tools": None, "chat_template_kwargs": None} | (first if n == 0 else {}) for n in range(count)]
    return [{"prompt": [{"role": "user", "content": "cat"}], **row} for row in rows]


def moody_trainer(folder, data, **more):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = SHOWS
    return make_trainer(folder, tokenizer=tokenizer, data=data, chat_template_kwargs={"mood": "sad"}, **more)


def test_the_runs_template_arguments_reach_all_prompts(tmp_path):
    rows = Dataset.from_list(moody_rows())
    texts = Dataset.from_list(
        [{"messages": [{"role": "user", "content": "dog"}, {"role": "assistant", "content": "sat"}]}]
    )
    sets = {"eval_dataset": {"one": rows, "other": rows.select([1])}, "ptx_dataset": texts}
    trainer = moody_trainer(tmp_path, rows, ptx_coef=0.1, value_head_init_std=0.5, trainer_kwargs=sets)

    def shown(ids):
        return trainer.processing_class.decode(ids).strip()

    assert [shown(ids) for ids in trainer.prompt_set["prompt_ids"][:2]] == ["mat cat happy", "cat sad"]
    assert shown(trainer.eval_dataset["one"][0]["prompt_ids"]) == "mat cat happy"
    assert shown(trainer.eval_dataset["other"][0]["prompt_ids"]) == "cat sad"
    text = trainer.texts.dataset[0]
    assert shown(text["prompt_ids"] + text["completion_ids"]) == "dog sat sad"
    given = [row["prompt"] for row in moody_rows(2)]
    assert [shown(row["prompt_ids"]) for row in trainer._given_prompts(given)] == [
        "cat sad",
        "cat sad",
    ]  # these have no columns
    ids = [trainer.processing_class("cat sad")["input_ids"]]
    assert trainer.predict_value(given[:1]) == trainer.predict_value(ids)


def test_the_runs_template_arguments_reach_a_stream(tmp_path):
    trainer = moody_trainer(tmp_path, Dataset.from_list(moody_rows()).to_iterable_dataset())
    rows = trainer.prompts.rows(0)
    assert [trainer.processing_class.decode(row["prompt_ids"]).strip() for row in rows[:2]] == [
        "mat cat happy",
        "cat sad",
    ]


@pytest.mark.parametrize("given", [{"a": "1"}, '{"a": "1"}', None, "null", {}])
def test_template_arguments_are_a_mapping_or_json(tmp_path, given):
    wanted = None if given in (None, "null") else {"a": "1"} if given else {}
    assert make_config(tmp_path, chat_template_kwargs=given).chat_template_kwargs == wanted


@pytest.mark.parametrize("given", ["thinking", "[1]", [1], "{'a': 1}"])
def test_template_arguments_that_are_no_mapping_are_refused(tmp_path, given):
    with pytest.raises(InputError, match=r"chat_template_kwargs=.* is invalid: it is no mapping. Write JSON"):
        make_config(tmp_path, chat_template_kwargs=given)


@pytest.fixture
def learned():
    """A reward model as an object, with the tokenizer to give beside it."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()), max_position_embeddings=48, num_labels=1, pad_token_id=0, **shape
    )
    return LlamaForSequenceClassification(config), make_tokenizer()


def test_prompts_are_tried_with_the_reward_model_before_training(tmp_path, learned):
    """The prompt with "sad" is the fourth; sets of evaluation, streams and what is given to evaluate() alike."""
    model, tokenizer = learned
    plain, rest = make_prompts(8), {"trainer_kwargs": {"reward_processing_classes": [tokenizer]}}
    sad = Dataset.from_list([*plain.to_list()[:3], {"prompt": [{"role": "user", "content": "sad"}], "number": 9}])
    refuses = (
        "{% for m in messages %}{% if m.content == 'sad' %}{{ raise_exception('no sadness') }}{% endif %}"
        "{{ m.content }} {% endfor %}"
    )
    tokenizer.chat_template = refuses
    refused = r"reward model 'reward_model': the chat template refuses it \(no sadness\) in 1 row \("
    trainer = make_trainer(tmp_path, reward=model, data=plain, **rest)
    with pytest.raises(InputError, match=f"eval_dataset: {refused}3"):
        trainer.evaluate(sad)
    both = {"trainer_kwargs": rest["trainer_kwargs"] | {"eval_dataset": {"held": sad}}}
    with pytest.raises(InputError, match=f"held: {refused}3"):
        make_trainer(tmp_path, reward=model, data=plain, **both)
    with pytest.raises(InputError, match=f"train_dataset: {refused}0"):
        make_trainer(tmp_path, reward=model, data=sad.select([3]).to_iterable_dataset(), **rest)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"train_dataset: reward model 'reward_model': .* has no chat template"):
        make_trainer(tmp_path, reward=model, data=plain, **rest)


def test_a_prompt_and_completion_beyond_the_reward_models_positions_are_told_before_training(tmp_path, learned):
    model, tokenizer = learned
    rest = {"trainer_kwargs": {"reward_processing_classes": [tokenizer]}, "reward": model}
    data = make_prompts(8)  # the longest has 6 words, 12 tokens with the template's
    make_trainer(tmp_path, data=data, max_completion_length=36, **rest)
    with pytest.raises(InputError, match=r"takes 48 tokens, and prompt 4 .* has 12 by its tokenizer"):
        make_trainer(tmp_path, data=data, max_completion_length=37, **rest)


@pytest.mark.parametrize("role", ["ref_model", "value_model"])
def test_every_model_needs_positions_for_prompt_and_completion(tmp_path, role):
    from transformers import LlamaForSequenceClassification

    short = make_model(make_tokenizer(), max_position_embeddings=39, num_labels=1)
    if role == "value_model":
        short = LlamaForSequenceClassification(short.config)
    critic = {"critic": "model"} if role == "value_model" else {}
    with pytest.raises(InputError, match=r"= 40 tokens, but (ref_model|the critic) has 39 positions"):
        make_trainer(tmp_path, trainer_kwargs={role: short}, **critic)
