"""One file is the same to every stage: what it holds is found in one place."""

import datasets
import pytest
from tiny import make_model, make_tokenizer

from hf_rlhf.data import prepare_preferences, prepare_prompts, prepare_texts
from hf_rlhf.data.layouts import layout_of
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import BadRows, LoadedRows
from hf_rlhf.data.texts import prepare_text_set
from hf_rlhf.errors import InputError

LIMIT = Limit("max_length", 50, "are skipped")
SYSTEM = {"role": "system", "content": "you are good"}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


DIALOGUE = [user("the cat"), assistant("sat"), user("on the mat")]
GOOD, BAD = [assistant("good")], [assistant("bad")]
ULTRAFEEDBACK = {"prompt": "the cat", "prompt_id": "x", "chosen": [user("the cat"), *GOOD], "rejected": [user("the cat"), *BAD], "messages": [user("the cat"), *GOOD], "score_chosen": 1.0}  # fmt: skip
IMPLICIT = "conversational, implicit prompt"

FILES = {  # row, what it holds, its prompts for PPO, the columns that sft reads
    "ultrafeedback": (ULTRAFEEDBACK, f"preference pairs ({IMPLICIT}) and messages", [user("the cat")], ("messages",)),
    "no messages": ({name: ULTRAFEEDBACK[name] for name in ("prompt", "chosen", "rejected")}, f"preference pairs ({IMPLICIT})", [user("the cat")], ()),
    "answers": ({"prompt": "the cat", "chosen": GOOD, "rejected": BAD}, f"preference pairs ({IMPLICIT})", [user("the cat")], ()),
    "no prompt": ({"chosen": DIALOGUE + GOOD, "rejected": DIALOGUE + BAD}, f"preference pairs ({IMPLICIT})", DIALOGUE, ()),
    "explicit": ({"prompt": DIALOGUE, "chosen": GOOD, "rejected": BAD}, "preference pairs (conversational, explicit prompt)", DIALOGUE, ()),
    "text": ({"prompt": "the cat", "chosen": " good", "rejected": " bad"}, "preference pairs (text, explicit prompt)", "the cat", ()),
    "hh": ({"chosen": "\n\nHuman: the cat\n\nAssistant: good", "rejected": "\n\nHuman: the cat\n\nAssistant: bad"}, "preference pairs (HH dialogues)", [user("the cat")], ()),
    "no robots": ({"prompt": "the cat", "messages": [SYSTEM, user("the cat"), *GOOD]}, "messages", [SYSTEM, user("the cat")], ("messages",)),
    "ultrachat": ({"prompt": "the cat", "messages": DIALOGUE + GOOD}, "messages", DIALOGUE, ("messages",)),
    "messages": ({"messages": DIALOGUE + GOOD}, "messages", DIALOGUE, ("messages",)),
    "unanswered": ({"messages": DIALOGUE}, "messages", DIALOGUE, ("messages",)),
    "completion": ({"prompt": DIALOGUE, "completion": GOOD}, "prompt and completion, messages", DIALOGUE, ("prompt", "completion")),
    "system text": ({"prompt": "you are good", "messages": [SYSTEM, user("the cat"), *GOOD]}, "messages", "you are good", ("messages",)),
    "topic": ({"prompt": "the dog", "messages": DIALOGUE + GOOD}, "messages", "the dog", ("messages",)),
    "whitespace": ({"prompt": "the  cat\n", "messages": DIALOGUE + GOOD}, "messages", DIALOGUE, ("messages",)),
    "both": ({"prompt": DIALOGUE, "messages": DIALOGUE + GOOD}, "messages", DIALOGUE, ("messages",)),
    "completion text": ({"prompt": "the cat", "completion": " sat"}, "prompt and completion, text", "the cat", ("prompt", "completion")),
    "prompts": ({"prompt": DIALOGUE}, "prompts (messages)", DIALOGUE, ()),
    "prompts text": ({"prompt": "the cat", "messages": None}, "prompts (text)", "the cat", ()),
    "plain": ({"text": "the cat sat"}, "text", None, ("text",)),
}  # fmt: skip
each_file = pytest.mark.parametrize(("row", "holds", "prompt", "texts"), FILES.values(), ids=FILES)


def read(row):
    return LoadedRows(datasets.Dataset.from_list([row]), "rows.jsonl", BadRows())


def of_stage(check, row, **options):
    """The row as the stage trains on it, or the message of its error."""
    try:
        checked = check(read(row), make_tokenizer(), role="training", limit=LIMIT, **options)
    except InputError as error:
        return None, str(error)
    return checked.dataset[0], checked.report


@each_file
def test_every_stage_takes_a_file_for_the_same(row, holds, prompt, texts):
    assert str(layout_of(datasets.Dataset.from_list([row]))) == holds
    stage = "reward" if "chosen" in row else "sft" if texts else "ppo"
    for_ppo, report = of_stage(prepare_prompt_set, row)
    if prompt is None:
        assert report.endswith(f"The set holds {holds}. `hf-rlhf {stage}` trains on it.")
    else:
        assert for_ppo["prompt"] == prompt
        assert not {"chosen", "rejected"} & set(for_ppo) or "prompt" in row
        assert report.layout.split("; ")[0] in (
            "text",
            "messages",
            "messages before the answers",
            "messages before the last answer",
        )
        assert report.layout.endswith(holds) or holds == f"prompts ({report.layout})"
        assert report.examples[0].keys() == {"prompt"}
    for_sft, report = of_stage(prepare_text_set, row)
    if texts:
        assert (for_sft, report.columns) == ({name: row[name] for name in texts}, list(texts))
        assert report.layout in (holds, f"messages; the set holds {holds}")
    else:
        assert f"texts need messages, or prompt and completion, or text. The set holds {holds}." in report
    for_reward, report = of_stage(prepare_preference_set, row)
    if "chosen" in row:
        assert for_reward["prompt"] == prompt  # the same as PPO's
        assert set(for_reward) == {"prompt", "chosen", "rejected"}
        assert report.layout in (holds.removeprefix("preference pairs (")[:-1], f"{IMPLICIT}; the set holds {holds}")
    else:
        assert 'no column "chosen" and "rejected"' in report
        assert report.endswith(f"The set holds {holds}. `hf-rlhf {stage}` trains on it.")


@each_file
def test_sets_and_streams_from_python_give_the_same_prompts_and_texts(row, holds, prompt, texts):
    tokenizer, dataset = make_tokenizer(), datasets.Dataset.from_list([row])
    if prompt is not None:
        expected = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] if isinstance(prompt, list) else tokenizer(prompt)["input_ids"]  # fmt: skip
        streamed = dataset.to_iterable_dataset()
        for made in [dataset, streamed] if "prompt" in row or "chosen" not in row else [dataset]:
            prepared = prepare_prompts(made, tokenizer, max_prompt_length=50, source="rows")
            (found,) = list(prepared)
            assert (found["prompt"], found["prompt_ids"]) == (prompt, expected)
            again = prepare_prompts(prepared, tokenizer, max_prompt_length=50, source="rows")
            assert list(again) == [found]
    if texts:
        prepare_texts(dataset, tokenizer, max_ptx_length=50, source="rows")
    else:
        with pytest.raises(InputError, match="texts need messages"):
            prepare_texts(dataset, tokenizer, max_ptx_length=50, source="rows")
    if "chosen" in row:
        assert prepare_preferences(dataset, source="rows").dataset[0]["prompt"] == prompt


OTHER = {"prompt": "the dog", "messages": [user("the cat"), *GOOD]}
NO_QUESTION = 'the text of "prompt" is no message of the user before the answers'


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (OTHER, NO_QUESTION),
        ({"prompt": "the cat", "messages": [*GOOD, *GOOD]}, None),  # the dialogue begins after its question
        ({"prompt": "the cat", "messages": [SYSTEM, *GOOD]}, None),
        ({"prompt": None, "messages": [user("the cat"), *GOOD]}, 'the "prompt" beside it is None'),
        ({"prompt": "the cat", "messages": None}, "None"),
        ({"prompt": "the cat", "messages": [SYSTEM]}, "no message before the answer"),
    ],
)
def test_a_dialogue_without_a_prompt_of_its_own_is_a_bad_row(row, problem):
    rows = [FILES["no robots"][0], row, FILES["no robots"][0]]
    loaded = LoadedRows(datasets.Dataset.from_list(rows), "rows.jsonl", BadRows(1), ["f:1", "f:2", "f:3"])
    checked = prepare_prompt_set(loaded, make_tokenizer(), role="training", limit=LIMIT)
    assert checked.report.bad_rows == ([("f:2", f'column "messages": {problem}')] if problem else [])
    if problem is None:
        return
    for made in (datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows).to_iterable_dataset()):
        with pytest.raises(InputError, match=r"in 1 row \(1\)|row 1 of the stream") as caught:
            list(prepare_prompts(made, make_tokenizer(), max_prompt_length=50, source="rows"))
        assert problem in str(caught.value)


@pytest.mark.parametrize(("asked", "layout"), [(2, "messages before the last answer; the set holds messages"), (1, "text; the set holds messages")])  # fmt: skip
def test_most_rows_say_whether_the_dialogues_ask_the_prompt(asked, layout):
    rows = [FILES["no robots"][0]] * asked + [OTHER] * (3 - asked)
    rows += [{"prompt": "the cat", "messages": None}, {"prompt": None, "messages": DIALOGUE}]  # say nothing of it
    loaded = LoadedRows(datasets.Dataset.from_list(rows), "rows.jsonl", BadRows(3))
    assert prepare_prompt_set(loaded, make_tokenizer(), role="training", limit=LIMIT).report.layout == layout


def test_a_stream_of_pairs_names_the_row_that_has_no_prompt():
    bad = ULTRAFEEDBACK | {"prompt": "the dog"}
    stream = datasets.Dataset.from_list([ULTRAFEEDBACK, bad]).to_iterable_dataset()
    with pytest.raises(InputError, match=f"row 1 of the stream .*{NO_QUESTION}"):
        list(prepare_prompts(stream, make_tokenizer(), max_prompt_length=50, source="rows"))


@pytest.mark.parametrize("name", ["no robots", "both", "ultrafeedback"])
def test_trl_learns_the_messages_and_not_the_prompt_beside_them(tmp_path, name):
    import trl

    tokenizer, row = make_tokenizer(), FILES[name][0] | {"input_ids": [1, 2]}
    checked = prepare_text_set(read(row), tokenizer, role="training", limit=LIMIT)
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    trainer = trl.SFTTrainer(
        make_model(tokenizer), trl.SFTConfig(**options), train_dataset=checked.dataset, processing_class=tokenizer
    )
    assert trainer.train_dataset[0]["input_ids"] == tokenizer.apply_chat_template(row["messages"])["input_ids"]
