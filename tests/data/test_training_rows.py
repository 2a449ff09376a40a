"""The ids that trl's trainers train on: those of trl, where trl's are right, and those that rewards score."""

import pytest
import trl
from datasets import Dataset, Features, Json
from tiny import make_model, make_tokenizer
from transformers import PreTrainedTokenizerFast

from hf_rlhf.data.json_columns import make_dataset
from hf_rlhf.data.training_rows import tokenized_pairs, tokenized_texts
from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_sequence_classifier
from hf_rlhf.rewards.learned import LearnedReward

TOOLS = [{"type": "function", "function": {"name": "mat"}}]
MARKED = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}{% if calm is defined %}no {% endif %}"
    "{% for message in messages %}{{ message.role }} {% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content }} <|im_end|>{% endgeneration %}{% else %}{{ message.content }} <|im_end|>{% endif %}"
    " {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)
ROW = {"tools": TOOLS, "chat_template_kwargs": {"calm": True}}


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def around(single: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with special tokens of its own around every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    ids = [(word, tokenizer.convert_tokens_to_ids(word)) for word in single.split() if word != "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def marked():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = MARKED
    return tokenizer


PAIRS = [
    {"prompt": "the cat", "chosen": " sat", "rejected": " ran <|im_end|>", "margin": 1.0},
    {"chosen": "the cat sat", "rejected": "the cat ran"},
    {"prompt": user("cat"), "chosen": assistant("sat"), "rejected": assistant("ran"), **ROW},
    {"prompt": user("cat"), "chosen": assistant("sat"), "rejected": assistant("ran"), "tools": "[]"},
]


def config(kind, folder, **more):
    return kind(str(folder), use_cpu=True, bf16=False, report_to="none", max_length=None, **more)


@pytest.mark.parametrize("row", PAIRS)
def test_pairs_are_those_of_trl_and_of_a_reward(row, tmp_path):
    tokenizer = marked()
    make_model(tokenizer).save_pretrained(tmp_path)
    dataset = Dataset.from_list([row])
    theirs = trl.RewardTrainer(
        load_sequence_classifier(str(tmp_path), dtype="float32"),
        config(trl.RewardConfig, tmp_path),
        train_dataset=dataset,
        processing_class=tokenizer,
    ).train_dataset[0]
    ours = tokenized_pairs(dataset, tokenizer, source="rows")[0]
    reward = LearnedReward(lambda *_: None, tokenizer)
    options = {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}
    for name in ("chosen", "rejected"):
        assert ours[f"{name}_ids"] == theirs[f"{name}_ids"]
        assert reward.tokenize(row.get("prompt", ""), row[name], **options) == ours[f"{name}_ids"]
    assert (ours["row"], ours.get("margin")) == (0, row.get("margin"))


TEXTS = [
    {"text": "the cat sat"},
    {"prompt": "the cat", "completion": " sat"},
    {"messages": user("cat") + assistant("sat"), **ROW},
    {"prompt": user("cat"), "completion": assistant("sat"), **ROW},
]


@pytest.mark.parametrize(
    ("row", "assistant_only"), [*((row, False) for row in TEXTS), *((row, True) for row in TEXTS[2:])]
)
def test_texts_are_those_of_trl(row, assistant_only, tmp_path):
    tokenizer, dataset = marked(), Dataset.from_list([row])
    theirs = trl.SFTTrainer(
        make_model(tokenizer),
        config(trl.SFTConfig, tmp_path, assistant_only_loss=assistant_only),
        train_dataset=dataset,
        processing_class=tokenizer,
    ).train_dataset[0]
    ours = tokenized_texts(dataset, tokenizer, source="rows", assistant_only=assistant_only)[0]
    assert ours["input_ids"] == theirs["input_ids"]
    masks = [ours[name] for name in ("completion_mask", "assistant_masks") if name in ours]
    assert [token if all(bits) else -100 for token, *bits in zip(ours["input_ids"], *masks, strict=True)] == theirs[
        "labels"
    ]


def test_a_row_without_options_beside_one_with_them():
    """Trl ends in a TypeError where a row has no chat_template_kwargs and another has."""
    rows = [
        {"messages": user("cat") + assistant("sat"), **own}
        for own in (ROW, {"tools": None, "chat_template_kwargs": None})
    ]
    lengths = [len(ids) for ids in tokenized_texts(Dataset.from_list(rows), marked(), source="rows")["input_ids"]]
    assert lengths == [8, 6]


BEGUN = "<|im_start|> the cat"
DAMAGED = [
    ("<|im_start|> $A", BEGUN, "<|im_start|> the cat sat <|im_end|>"),
    ("<|im_start|> $A <|im_end|>", "the cat", "<|im_start|> the cat sat <|im_end|>"),
    ("<|im_start|> $A <|im_end|>", BEGUN, "<|im_start|> the cat sat <|im_end|>"),
]


@pytest.mark.parametrize(("single", "prompt", "whole"), DAMAGED)
def test_text_begins_and_ends_once_in_training_and_scoring(single, prompt, whole):
    tokenizer = around(single)
    pairs = Dataset.from_list([{"prompt": prompt, "chosen": " sat", "rejected": " ran"}])
    wanted = tokenizer.convert_tokens_to_ids(whole.split())
    assert tokenized_pairs(pairs, tokenizer, source="rows")["chosen_ids"][:] == [wanted]
    assert LearnedReward(lambda *_: None, tokenizer).tokenize(prompt, " sat") == wanted
    texts = tokenized_texts(Dataset.from_list([{"text": f"{prompt} sat"}]), tokenizer, source="rows")
    assert texts["input_ids"][:] == [wanted]
    (text,) = tokenized_texts(Dataset.from_list([{"prompt": prompt, "completion": " sat"}]), tokenizer, source="rows")
    assert (text["input_ids"], text["completion_mask"]) == (wanted, [0, 0, 0, 1, 1])


@pytest.mark.parametrize("num_proc", [None, 2])
def test_parts_of_a_large_set_stay_in_order(num_proc):
    rows = Dataset.from_list(
        [{"prompt": "the", "chosen": " cat" * (n % 7 + 1), "rejected": " dog"} for n in range(2100)]
    )
    pairs = tokenized_pairs(rows, make_tokenizer(), source="rows", num_proc=num_proc)
    assert [len(ids) for ids in pairs["chosen_ids"]] == [n % 7 + 3 for n in range(2100)]
    assert pairs["row"][:] == list(range(2100))


@pytest.mark.parametrize("num_proc", [None, 2])
def test_each_row_keeps_its_own_keys_in_every_process(num_proc):
    calls = [{"x": 0.7}, {"y": "1", "z": None}, {"x": 2**70}, {}]
    rows = [{"messages": [*user("cat"), {"role": "assistant", "content": "sat", "calls": call}]} for call in calls]
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% for key, value in (message.calls or {}).items() %}"
        "{{ ('cat' if key == 'x' else 'dog') + (' mat ' if value in [0.7, '1', 1180591620717411303424] else ' on ') }}"
        "{% endfor %}{% endfor %}"
    )
    dataset = make_dataset({"messages": [row["messages"] for row in rows]})
    dataset.info.features = Features({"messages": Json()})  # as in a set that others made
    texts = tokenized_texts(dataset, tokenizer, source="rows", num_proc=num_proc)
    assert tokenizer.batch_decode(texts["input_ids"][:]) == ["cat mat", "dog mat dog on", "cat mat", ""]


def test_what_a_process_refuses_is_one_clear_message():
    rows = Dataset.from_list([{"messages": user("the cat")}] * 2)
    with pytest.raises(InputError, match="assistant_only_loss=True is invalid: "):
        tokenized_texts(rows, marked(), source="train", assistant_only=True, num_proc=2)


def test_a_dialogue_in_which_the_assistant_says_nothing_cannot_be_learned_from():
    rows = Dataset.from_list([{"messages": user("the cat")}])
    with pytest.raises(InputError, match=r"assistant_only_loss=True is invalid: .* the train set: .*the cat"):
        tokenized_texts(rows, marked(), source="train", assistant_only=True)
