"""Dicts in rows: each row keeps its own keys and types, from every kind of file to what reads it."""

import gzip
import json

import datasets
import pytest
from tiny import make_model, make_tokenizer

from hf_rlhf.data import load_rows, prepare_preferences, prepare_prompts, prepare_texts
from hf_rlhf.data.files import read_rows
from hf_rlhf.data.json_columns import make_dataset
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prompts import prepare_prompt_set
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import fingerprint, read_columns
from hf_rlhf.data.texts import prepare_text_set

LIMIT = Limit("max_length", 500, "are skipped")


def call(question, name, arguments, answer="good"):
    """A question, a call of a tool, and the answer."""
    function = {"name": name, "arguments": arguments}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]},
        {"role": "tool", "name": name, "content": "yes"},
        {"role": "assistant", "content": answer},
    ]


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": [*properties, None]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("weather", city={"type": "string"})
ADD = tool("add", a={"type": "integer"}, b={"type": "integer", "default": 0.7})
CALLS = [call("the cat", "weather", {"city": "Oslo"}), call("the dog", "add", {"a": 1, "b": 2.5})]
TOOLS = [[WEATHER], [ADD]]
UNLIKE = [
    {"v": 1},
    {"v": "1"},
    {"v": True},
    {"v": 1.0},
    {"v": 0.7},
    {"v": [1, "one", None]},
    {"v": None},
    {"w": {"v": {}}},
    {"v": '{"quoted": 1}', "w": 2},
    {"w": 2**70, "v": "[]"},
    {},
]


def rows_of(kind):
    """Rows of calls in each layout that takes messages."""
    for messages, tools in zip(CALLS, TOOLS, strict=True):
        answer = {"role": "assistant", "content": "bad"}
        yield {
            "messages": {"messages": messages},
            "texts": {"prompt": messages[:-1], "completion": messages[-1:]},
            "pairs": {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [answer]},
            "dialogues": {"chosen": messages, "rejected": [*messages[:-1], answer]},
            "prompts": {"prompt": messages[:-1]},
        }[kind] | {"tools": tools}


def same(found, expected):
    """Equal in keys, their order and types, where `==` takes 1, 1.0 and True for the same."""
    return repr(found) == repr(expected)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_unlike_dicts_of_json_files_stay_what_they_are(tmp_path, name):
    rows = [{"n": n, "info": value, "list": [value, *UNLIKE[:n]]} for n, value in enumerate(UNLIKE)]
    lines = "".join(json.dumps(row) + "\n" for row in rows) if "jsonl" in name else json.dumps(rows)
    (tmp_path / name).write_bytes(gzip.compress(lines.encode()) if name.endswith("gz") else lines.encode())
    loaded = load_rows(str(tmp_path / name))
    assert same(list(loaded), rows)
    assert same(loaded.select([3, 4]).with_format(None)[:]["info"], UNLIKE[3:5])
    assert same(read_columns(loaded, ["info", "n"])["info"], UNLIKE)
    assert same(list(load_rows(str(tmp_path / name), streaming=True)), rows)
    assert same(list(loaded.map(lambda row: {"m": len(row["list"])})["n"]), list(range(len(rows))))


def test_large_integers_stay_where_all_rows_are_alike(tmp_path):
    rows = [{"info": {"v": 2**70}}, {"info": {"v": -(2**70)}}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert list(load_rows(str(tmp_path / "rows.json"))) == rows


def test_plain_messages_are_an_ordinary_column(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "the"}] * n} for n in (1, 2, 3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    loaded = load_rows(str(tmp_path / "rows.json"))
    assert loaded.features["messages"] == datasets.List(
        {name: datasets.Value("string") for name in ("role", "content")}
    )
    assert list(loaded) == rows


def test_values_of_another_kind_than_dicts_and_half_characters_are_still_bad_rows(tmp_path):
    lines = [{"info": {"a": 1}}, {"info": {"b": "x"}}, {"info": "text"}, {"info": {"a": "\ud800"}}, {"info": [1]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    rows = read_rows(str(tmp_path / "rows.jsonl"), skip_bad_rows=3)
    assert [row.place.rpartition(":")[2] for row in rows.bad_rows.found] == ["3", "4", "5"]
    assert rows.bad_rows.found[0].problem.startswith('column "info" holds a str, where most rows have a dict')
    assert list(rows.dataset) == lines[:2]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The rows as a set read back from JSON lines, Parquet, `save_to_disk` or the Hub, or never stored at all."""

    def stored(rows, where):
        made = datasets.Dataset.from_list(rows)  # whose structs are filled with None
        if where == "jsonl":
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            return read_rows(str(tmp_path / "rows.jsonl"))
        if where == "parquet":
            made.to_parquet(tmp_path / "rows.parquet")
            return read_rows(str(tmp_path / "rows.parquet"))
        if where == "json in parquet":
            datasets.Dataset.from_list(rows, on_mixed_types="use_json").to_parquet(tmp_path / "rows.parquet")
            return read_rows(str(tmp_path / "rows.parquet"))
        if where == "saved":
            made.save_to_disk(tmp_path / "saved")
            return read_rows(str(tmp_path / "saved"))
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
        return read_rows("someone/rows")

    return stored


STORES = ["jsonl", "parquet", "json in parquet", "saved", "hub"]


@pytest.mark.parametrize("where", STORES)
@pytest.mark.parametrize(("kind", "check"), [("messages", prepare_text_set), ("texts", prepare_text_set), ("pairs", prepare_preference_set), ("dialogues", prepare_preference_set), ("prompts", prepare_prompt_set)])  # fmt: skip
def test_every_store_gives_each_row_its_own_keys(stored, where, kind, check):
    rows = list(rows_of(kind))
    checked = check(stored(rows, where), make_tokenizer(), role="training", limit=LIMIT).dataset
    if kind == "dialogues":
        rows = list(rows_of("pairs"))
    assert [{name: row[name] for name in rows[0]} for row in checked] == rows


@pytest.mark.parametrize("stream", [False, True])
def test_sets_from_python_are_given_their_own_keys_too(stream):
    tokenizer = make_tokenizer()
    made = datasets.Dataset.from_list([row | {"info": {"a": 1}} for row in rows_of("prompts")])
    assert "None" in str(made[0]["prompt"])
    prepared = prepare_prompts(
        made.to_iterable_dataset() if stream else made, tokenizer, max_prompt_length=500, source="rows"
    )
    assert [(row["prompt"], row["tools"]) for row in prepared] == [
        (row["prompt"], row["tools"]) for row in rows_of("prompts")
    ]
    pairs = prepare_preferences(datasets.Dataset.from_list(list(rows_of("dialogues"))), source="rows").dataset
    assert [pairs[n]["prompt"] for n in range(2)] == [messages[:-1] for messages in CALLS]
    assert [row["tools"] for row in pairs] == TOOLS


def test_texts_from_python_are_given_their_own_keys_too(monkeypatch):
    tokenizer, given = make_tokenizer(), []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda m, **kw: given.append(m) or render(m, **kw))
    prepare_texts(datasets.Dataset.from_list(list(rows_of("messages"))), tokenizer, max_ptx_length=500, source="rows")
    assert given[-2:] == CALLS


def test_a_none_of_ones_own_stays(tmp_path):
    """Keep a None in lists, and as a key of a JSON file; a struct cannot tell it from one that arrow filled in."""
    rows = [call("the", "add", {"a": [1, None], "b": None}), call("the", "add", {"a": [None], "b": 2})]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": messages} for messages in rows]))
    assert load_rows(str(tmp_path / "rows.json"))["messages"][:] == rows
    datasets.Dataset.from_list([{"messages": messages} for messages in rows]).to_parquet(tmp_path / "rows.parquet")
    arguments = [
        m[1]["tool_calls"][0]["function"]["arguments"] for m in load_rows(str(tmp_path / "rows.parquet"))["messages"]
    ]
    assert arguments == [{"a": [1, None]}, {"a": [None], "b": 2}]


@pytest.mark.parametrize("where", STORES)
def test_rows_without_template_options_have_none(stored, where):
    """Trl unpacks what a row has of them."""
    rows = [
        {"messages": CALLS[0], "chat_template_kwargs": {"a": 1}},
        {"messages": CALLS[1], "chat_template_kwargs": None},
    ]
    checked = prepare_text_set(stored(rows, where), make_tokenizer(), role="training", limit=LIMIT)
    assert checked.dataset["chat_template_kwargs"][:] == [{"a": 1}, {}]


@pytest.mark.parametrize("where", ["jsonl", "parquet"])
@pytest.mark.parametrize("trainer", ["sft", "reward"])
def test_what_trl_renders_is_each_row_alone(stored, tmp_path, monkeypatch, where, trainer):
    import trl

    tokenizer, given = make_tokenizer(), []
    render = tokenizer.apply_chat_template
    monkeypatch.setattr(
        tokenizer, "apply_chat_template", lambda m, **kw: given.append((m, kw.get("tools"))) or render(m, **kw)
    )
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "max_length": 500}
    if trainer == "sft":
        checked = prepare_text_set(stored(list(rows_of("messages")), where), tokenizer, role="training", limit=LIMIT)
        given.clear()
        trl.SFTTrainer(make_model(tokenizer), trl.SFTConfig(**options), train_dataset=checked.dataset, processing_class=tokenizer)  # fmt: skip
    else:
        from transformers import AutoModelForSequenceClassification

        checked = prepare_preference_set(
            stored(list(rows_of("dialogues")), where), tokenizer, role="training", limit=LIMIT
        )
        given.clear()
        config = make_model(tokenizer).config
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config)
        trl.RewardTrainer(model, trl.RewardConfig(**options), train_dataset=checked.dataset, processing_class=tokenizer)  # fmt: skip
    chosen = [(messages, tools) for messages, tools in given if messages[-1]["content"] == "good"]
    assert chosen == list(zip(CALLS, TOOLS, strict=True))


def test_reward_columns_reach_the_trainer_as_they_were(tmp_path):
    rows = [{"prompt": "the cat", "info": value} for value in UNLIKE]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    prepared = prepare_prompts(
        load_rows(str(tmp_path / "rows.json")), make_tokenizer(), max_prompt_length=5, source="rows"
    )
    assert same([prepared[n]["info"] for n in range(len(rows))], UNLIKE)
    prepared.save_to_disk(tmp_path / "saved")
    assert same(list(load_rows(str(tmp_path / "saved"))["info"]), UNLIKE)


def test_rows_that_differ_in_an_argument_that_is_none_are_two():
    given, missing = call("the", "add", {"a": None}), call("the", "add", {})
    assert fingerprint(given) != fingerprint(missing)
    assert fingerprint([{"role": "user", "content": "a", "name": None}]) == fingerprint(
        [{"role": "user", "content": "a"}]
    )
    answer = [{"role": "assistant", "content": "bad"}]
    rows = [
        {"prompt": messages, "chosen": CALLS[0][-1:], "rejected": answer} for messages in (given[:-1], missing[:-1])
    ]
    assert (
        prepare_preferences(datasets.Dataset.from_list(rows, on_mixed_types="use_json"), source="rows").report.rows_out
        == 2
    )


def test_rows_that_differ_in_their_tools_are_no_duplicates():
    rows = [
        {
            "prompt": CALLS[0][:1],
            "chosen": CALLS[0][-1:],
            "rejected": [{"role": "assistant", "content": "bad"}],
            "tools": tools,
        }
        for tools in (*TOOLS, None, None)
    ]
    made = make_dataset({name: [row[name] for row in rows] for name in rows[0]})
    assert prepare_preferences(made, source="rows").report.rows_out == 3
    dialogues = make_dataset(
        {name: [row["prompt"] + row[name] for row in rows] for name in ("chosen", "rejected")}
        | {"tools": [row["tools"] for row in rows]}
    )
    prompts = prepare_prompts(dialogues, make_tokenizer(), max_prompt_length=50, source="rows")
    assert prompts["tools"][:] == [*TOOLS, None]


def test_alike_dicts_keep_the_order_of_their_keys_and_their_nones(tmp_path):
    rows = (
        [{"tools": [{"a": 1, "b": 2}]}, {"tools": [{"b": 2, "a": 1}]}],
        [{"tools": [{"a": None}]}, {"tools": [{"a": 1}]}],
    )
    for pair in rows:
        (tmp_path / "rows.json").write_text(json.dumps(pair))
        assert same(list(load_rows(str(tmp_path / "rows.json"))), pair)


def test_a_stream_of_a_file_gives_prompts_with_their_own_keys(tmp_path):
    rows = [*rows_of("prompts"), {"prompt": call("the", "add", {"a": None})[:-1], "tools": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = load_rows(str(tmp_path / "rows.jsonl"), streaming=True)
    prepared = prepare_prompts(stream, make_tokenizer(), max_prompt_length=500, source="rows")
    assert [{"prompt": row["prompt"], "tools": row["tools"]} for row in prepared] == rows
