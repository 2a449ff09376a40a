"""Sets of rows, damaged in ways that follow from a number: wrong values, keys and kinds of columns, broken bytes."""

import gzip
import json
import random
from datetime import datetime
from decimal import Decimal

from tiny import make_tokenizer

KINDS = ("pairs", "prompts", "texts")
SUFFIXES = ("jsonl", "jsonl", "jsonl", "json", "jsonl.gz", "csv", "parquet")


def message(role, text):
    return {"role": role, "content": text}


def good_rows(kind, rng, count):
    talk = rng.random() < 0.6
    beside = rng.random() < 0.2  # a text prompt beside answers that are messages
    for number in range(count):
        prompt, one, other = f"the cat {number}", f"good dog {number}", "bad . mat"
        if talk:
            prompt, one, other = [message("user", prompt)], [message("assistant", one)], [message("assistant", other)]
        if kind == "pairs":
            prompt = f"the cat {number}" if beside else prompt
            yield {"prompt": prompt, "chosen": one, "rejected": other}
        elif kind == "prompts":
            yield {"prompt": prompt, "id": number}
        else:
            yield (
                {"prompt": prompt, "completion": one}
                if number % 2 or not talk
                else {"prompt": prompt, "completion": other}
            )


def strange_value(rng):
    deep: object = "x"
    for _ in range(rng.choice((3, 60, 600))):
        deep = [deep]
    return rng.choice(
        [None, "", "  \n\t", 3, -0.5, True, [], {}, [None], ["text"], [[]], "x" * 50_000, "\x00", "\ud800", "\u202e\x1b[31m",
         10**30, float("nan"), float("inf"), {"role": "user"}, [{"role": "user", "content": None}], [{"role": 3, "content": "a"}],
         [{"content": "a"}], [{"role": "assistant", "content": ""}], [{"role": "user", "content": ["a"]}], deep,
         [{"role": "assistant", "content": ["a"], "tool_calls": [{"x": 1}]}], [{"role": "assistant", "content": None, "tool_calls": "f"}],
         [{"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
         [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "[{", [{"type": "function"}],
         [{"role": "martian", "content": "hello"}], {"a": {"b": [1, "x"]}}, "hf_" + "a" * 30, "<|im_end|>" * 3],
    )  # fmt: skip


def damage_row(row, rng):
    row = dict(row)
    key = rng.choice(sorted(row))
    what = rng.randrange(6)
    if what == 0:
        del row[key]
    elif what == 1:
        row[f"{key}s"] = row.pop(key)
    elif what == 2:
        row[rng.choice(("margin", "extra", "messages", "text", "chosen", "tools", "chat_template_kwargs", ""))] = (
            strange_value(rng)
        )
    elif what == 3 and isinstance(row[key], list):
        row[key] = [*row[key], strange_value(rng)]
    else:
        row[key] = strange_value(rng)
    return row


def damage_bytes(content, rng):
    at = rng.randrange(len(content) + 1)
    junk = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 8)))
    return [
        content[:at],
        content[:at] + junk + content[at:],
        content[:at] + junk + content[at + len(junk) :],
        b"\xef\xbb\xbf" + content,
        content.replace(b"\n", b"\r\n"),
        content.replace(b"\n", b"\n\n \n"),
        content + rng.choice((b"}", b"[]", b"null\n", b"{", b'{"prompt": "a", "prompt": "b"}\n', b"\xff\n", b"NaN\n")),
        content.decode("utf-8", "ignore").encode("utf-16"),
        content.replace(b'"', b"'", rng.randrange(3)),
        content.replace(b":", b"", 1),
        content[:at] + content[at:].replace(b"\n", b'\n"', 1),
        content[:at] + content[at:].replace(b",", b',"', 1),
        b"",
        content[::-1],
    ][rng.randrange(14)]


def odd_column(rng, count):
    """An arrow array of a kind that JSON has not, and what `datasets` is told that it is."""
    import pyarrow as pa

    junk = [{"bytes": b"junk", "path": None}] * count
    values, kind, feature = rng.choice([
        ([10**18] * count, pa.timestamp("s"), None),
        ([datetime(2026, 1, 1)] * count, pa.timestamp("ns", tz="UTC"), None),
        ([Decimal("1.5")] * count, pa.decimal128(5, 2), None),
        (["a"] * count, pa.dictionary(pa.int32(), pa.string()), None),
        ([b"\xff"] * count, pa.binary(), None),
        (["the cat"] * count, pa.large_string(), None),
        ([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64()), None),
        ([10**15] * count, pa.duration("us"), None),
        ([None] * count, pa.null(), None),
        ([["the"]] * count, pa.list_(pa.string(), 1), None),
        (junk, pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"_type": "Image"}),
        (junk, pa.struct({"bytes": pa.binary(), "path": pa.string()}), {"_type": "Audio"}),
        ([7] * count, pa.int64(), {"names": ["a"], "_type": "ClassLabel"}),
        (["a"] * count, pa.string(), {"dtype": "int64", "_type": "Value"}),
        (["a"] * count, pa.string(), {"_type": "NoSuchFeature"}),
    ])  # fmt: skip
    return pa.array(values, kind), feature


def with_odd_column(table, rng):
    """The table with a column of an odd kind, perhaps in the place of one that is used."""
    array, feature = odd_column(rng, len(table))
    name = rng.choice(["picture", *table.column_names])
    at = table.column_names.index(name) if name in table.column_names else len(table.column_names)
    table = table.set_column(at, name, array) if at < len(table.column_names) else table.append_column(name, array)
    if feature is None:
        return table
    features = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names} | {name: feature}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def as_bytes(rows, suffix, folder, rng):
    """The rows as the content of a file; None where this kind of file cannot hold them."""
    import pyarrow as pa
    from pyarrow import parquet

    if suffix == "csv":
        names = sorted({key for row in rows for key in row})
        cells = [[json.dumps(row.get(name)) for name in names] for row in rows]
        return "\n".join(",".join(line) for line in [names, *cells]).encode("utf-8", "surrogatepass")
    if suffix == "parquet":
        try:
            table = pa.Table.from_pylist(rows)
            table = with_odd_column(table, rng) if rng.random() < 0.5 else table
            parquet.write_table(table, folder / "made.parquet")
        except Exception:  # arrow does not take every strange value
            return None
        return (folder / "made.parquet").read_bytes()
    if suffix == "json":
        return json.dumps(rows, indent=len(rows) % 2).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if suffix.endswith("gz") else lines


def make_case(number, folder):
    """The kind of set, the file, and how many bad rows may be skipped."""
    rng = random.Random(number)
    kind, suffix = rng.choice(KINDS), rng.choice(SUFFIXES)
    rows = list(good_rows(kind, rng, rng.randrange(1, 7)))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(rows))
        rows[at] = damage_row(rows[at], rng) if rows[at] else rows[at]
    if rng.random() < 0.1:
        rows = [damage_row(rows[0] or {"prompt": "a"}, rng)] * len(rows)
    content = as_bytes(rows, suffix, folder, rng)
    if content is None:
        return make_case(number + 10**9, folder)
    if rng.random() < 0.4:
        content = damage_bytes(content, rng)
    file = folder / f"rows.{suffix}"
    file.write_bytes(content)
    return kind, file, rng.choice((0, 0, 1, 3))


def strict_tokenizer():
    """One whose chat template, as those of many models, raises, adds to what must be text, and looks into calls."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'martian' %}{{ raise_exception('no martians') }}{% endif %}"
        "<|im_start|> {{ message.role + ' ' }}{% if message.content %}{{ message.content + ' ' }}{% endif %}"
        "{% for call in message.tool_calls or [] %}{{ call.function.name + ' ' }}{% endfor %}<|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
    )
    return tokenizer
