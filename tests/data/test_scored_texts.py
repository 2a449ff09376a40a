import pytest
from datasets import Dataset

from hf_rlhf.data.rows import BadRows, LoadedRows
from hf_rlhf.data.scored_texts import find_texts
from hf_rlhf.errors import InputError

USER = [{"role": "user", "content": "hi"}]


def answer(text):
    return [{"role": "assistant", "content": text}]


def texts_of(rows, skip_bad_rows=0):
    _, texts = find_texts(LoadedRows(Dataset.from_list(rows), "set", BadRows(skip_bad_rows)))
    return [(text.row, text.role, text.prompt, text.completion) for text in texts]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, [("completion", "a", "b")]),
        ({"prompt": USER, "completion": answer("b")}, [("completion", USER, "b")]),
        ({"prompt": "a", "completions": ["b", ""]}, [("completions", "a", "b"), ("completions", "a", "")]),
        ({"prompt": USER, "completions": [answer("b")]}, [("completions", USER, "b")]),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, [("chosen", "a", "b"), ("rejected", "a", "c")]),
        (
            {"chosen": USER + answer("b"), "rejected": USER + answer("c")},
            [("chosen", USER, "b"), ("rejected", USER, "c")],
        ),
        ({"messages": USER + answer("b")}, [("messages", USER, "b")]),
        ({"text": "b"}, [("text", "", "b")]),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: b", "rejected": "\n\nHuman: hi\n\nAssistant: c"},
            [("chosen", USER, "b"), ("rejected", USER, "c")],
        ),
    ],
)
def test_completions_are_found_in_every_layout(row, expected):
    assert texts_of([row]) == [(0, *each) for each in expected]


def test_bad_rows_are_named_and_may_be_skipped():
    rows = [{"messages": USER}, {"messages": USER + answer("b")}, {"messages": USER + answer("b") + answer("c")}]
    with pytest.raises(InputError, match="2 of 3 rows cannot be used"):
        texts_of(rows)
    assert texts_of(rows, skip_bad_rows=2) == [(0, "messages", USER, "b")]
    with pytest.raises(InputError, match="no completions to score"):
        texts_of([{"prompt": "a"}])
