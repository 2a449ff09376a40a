"""Damaged rows, columns and files: what comes out is a report or one InputError that names the file, never anything else."""

import gzip
import json
import random

import pytest
from tiny import make_tokenizer

from hf_rlhf.data.files import read_rows
from hf_rlhf.data.report import Limit, check_preferences, check_prompt_set, check_text_set
from hf_rlhf.errors import InputError

CHECKS = {"pairs": check_preferences, "prompts": check_prompt_set, "texts": check_text_set}
SUFFIXES = ("jsonl", "jsonl", "jsonl", "json", "jsonl.gz", "csv", "parquet")


def message(role, text):
    return {"role": role, "content": text}


def good_rows(kind, rng, count):
    talk = rng.random() < 0.5
    for number in range(count):
        prompt, one, other = f"the cat {number}", f"good dog {number}", "bad . mat"
        if talk:
            prompt, one, other = [message("user", prompt)], [message("assistant", one)], [message("assistant", other)]
        if kind == "pairs":
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
        row[rng.choice(("margin", "extra", "messages", "text", "chosen", ""))] = strange_value(rng)
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
        b"",
        content[::-1],
    ][rng.randrange(12)]


def as_bytes(rows, suffix, folder):
    """The rows as the content of a file; None where this kind of file cannot hold them."""
    import pyarrow as pa
    from pyarrow import parquet

    if suffix == "csv":
        names = sorted({key for row in rows for key in row})
        cells = [[json.dumps(row.get(name)) for name in names] for row in rows]
        return "\n".join(",".join(line) for line in [names, *cells]).encode("utf-8", "surrogatepass")
    if suffix == "parquet":
        try:
            parquet.write_table(pa.Table.from_pylist(rows), folder / "made.parquet")
        except Exception:  # arrow does not take every strange value
            return None
        return (folder / "made.parquet").read_bytes()
    if suffix == "json":
        return json.dumps(rows, indent=len(rows) % 2).encode()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(lines) if suffix.endswith("gz") else lines


def make_case(number, folder):
    """The kind of set, the file, and how many bad rows may be left out."""
    rng = random.Random(number)
    kind, suffix = rng.choice(sorted(CHECKS)), rng.choice(SUFFIXES)
    rows = list(good_rows(kind, rng, rng.randrange(1, 7)))
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(rows))
        rows[at] = damage_row(rows[at], rng) if rows[at] else rows[at]
    if rng.random() < 0.1:
        rows = [damage_row(rows[0] or {"prompt": "a"}, rng)] * len(rows)
    content = as_bytes(rows, suffix, folder)
    if content is None:
        return make_case(number + 10**9, folder)
    if rng.random() < 0.4:
        content = damage_bytes(content, rng)
    file = folder / f"rows.{suffix}"
    file.write_bytes(content)
    return kind, file, rng.choice((0, 0, 1, 3))


def outcome(number, folder, tokenizer):
    """`None` when the set can be used, else the message. Whatever else is raised ends the test."""
    kind, file, skip_bad = make_case(number, folder)
    limit = Limit("max_length", 16, "are left out")
    try:
        rows = read_rows(str(file), skip_bad=skip_bad)
        checked = CHECKS[kind](rows, tokenizer, role="training", limit=limit)
    except InputError as error:
        return str(error)
    report = checked.report
    assert len(checked.dataset) == report.rows > 0
    assert report.rows_read == report.rows + len(report.bad_rows) + sum(report.left_out.values())
    assert len(report.bad_rows) <= skip_bad
    assert str(report).isprintable() or all(line.isprintable() for line in str(report).splitlines())
    json.dumps(str(report)).encode("utf-8")
    return None


def run(cases, folder):
    tokenizer = make_tokenizer()
    messages = []
    for number in cases:
        try:
            found = outcome(number, folder, tokenizer)
        except Exception as error:
            raise AssertionError(f"case {number} (make_case({number}, folder) makes it)") from error
        messages += [found] if found is not None else []
    assert all("rows." in text for text in messages), next(text for text in messages if "rows." not in text)
    return messages


def test_damage_ends_in_a_report_or_in_one_message_that_names_the_file(tmp_path):
    messages = run(range(300), tmp_path)
    assert 60 < len(messages) < 270  # both happen


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_damaged_sets(tmp_path):
    messages = run(range(1000, 11_000), tmp_path)
    assert 2000 < len(messages) < 9000
