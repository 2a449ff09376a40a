"""A judge behind a real local server that answers well, badly, and not at all."""

import pytest
from http_double import DROP, HTTPDouble, Status, chat

from hf_rlhf.endpoints import client
from hf_rlhf.endpoints.client import EndpointError
from hf_rlhf.errors import InputError
from hf_rlhf.judges import EndpointJudge, agreement

PROMPT = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.01)


def judge(server, **settings):
    return EndpointJudge("judge-1", server.url, **{"retries": 1, "timeout": 5} | settings)


def asked(body):
    return body["messages"][0]["content"]


def shown(body, letter):
    """The reply that a request shows under a letter."""
    return asked(body).split(f"[Reply {letter}]\n")[1].split("\n\n")[0]


def longer(path, body):
    return chat("A" if len(shown(body, "A")) > len(shown(body, "B")) else "B")


def test_each_pair_is_asked_in_both_orders():
    with HTTPDouble(longer) as server:
        found = judge(server).compare([PROMPT, "Say hello."], ["hello", "a"], [[{"content": "hi"}], "bcd"])
    assert [each.preference for each in found] == [1.0, 0.0]
    assert sorted((shown(body, "A"), shown(body, "B")) for _, body in server.requests) == [
        ("a", "bcd"), ("bcd", "a"), ("hello", "hi"), ("hi", "hello"),
    ]  # fmt: skip
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
        "model": "judge-1", "temperature": 0.0, "max_tokens": 16,
    }  # fmt: skip


def test_a_judge_that_always_says_a_gives_ties_and_is_reported():
    with HTTPDouble(chat("A")) as server:
        found = judge(server).compare(["x"] * 3, ["a"] * 3, ["b"] * 3)
    assert [each.preference for each in found] == [0.5] * 3
    assert agreement(found).survived_share == 0
    assert agreement(found).shown_first_share == 1


@pytest.mark.parametrize("answer", ["A", " (A).", "**A**", '"A"', "[[A]]", "<think>B is bad. B?</think>\n\nA"])
def test_a_letter_is_read_with_marks_around_it_and_thoughts_before_it(answer):
    with HTTPDouble(chat(answer)) as server:
        (found,) = judge(server).compare(["x"], ["a"], ["b"])
    assert (found.shown_first, found.shown_second) == (1.0, 0.0)


@pytest.mark.parametrize("answer", ["", "A or B", "I like A", "D", "AB", "a", "<think>A"])
def test_what_is_no_letter_is_asked_for_once_more_and_then_counts_as_no_answer(answer):
    with HTTPDouble(chat(answer)) as server:
        one = judge(server)
        (found,) = one.compare(["x"], ["a"], ["b"])
    assert found.preference is None
    assert len(server.requests) == 4
    assert one.counts == {"asked": 2, "repeated": 2, "unreadable": 2, "failed": 0, "lost": 0}
    assert one.example == answer


def test_the_second_time_it_is_told_what_an_answer_is():
    with HTTPDouble([chat("Well, both."), chat("C"), chat("A"), chat("A")]) as server:
        one = judge(server, concurrency=1)
        (found,) = one.compare(["x"], ["a"], ["b"])
    assert (found.shown_first, found.shown_second) == (0.5, 0.0)
    assert [turn["content"] for turn in server.requests[1][1]["messages"][1:]] == [
        "Well, both.", "Answer with one letter alone: A, B or C.",
    ]  # fmt: skip
    assert one.counts["repeated"] == 1


@pytest.mark.parametrize(
    ("answer", "rating"), [("4", 4), ("5.", 5), ("3/5", 3), ("2.0", 2), ("6", None), ("4 or 5", None), ("10", None)]
)
def test_a_rating_is_a_whole_number_from_1_to_5(answer, rating):
    with HTTPDouble(chat(answer)) as server:
        assert judge(server, rubric="Is it short?").rate([PROMPT], ["hello"]) == [rating]
    assert asked(server.requests[0][1]).startswith("Is it short?\n\n[Conversation]\nUser: Say hello.\n\n[Reply]\nhello")


def test_a_failing_server_ends_the_call_and_kept_errors_are_no_answers():
    def answer(path, body):
        return DROP if shown(body, "A") == "bad" else chat("A")

    prompts, first, second = ["x"] * 4, ["bad", "a", "a", "a"], ["b"] * 4
    with HTTPDouble(answer) as server:
        with pytest.raises(EndpointError, match="after 2 tries: no connection"):
            judge(server).compare(prompts, first, second)
        kept = judge(server)
        kept.keep_errors = 1
        assert [each.preference for each in kept.compare(prompts, first, second)] == [None, 0.5, 0.5, 0.5]
    assert kept.counts == {"asked": 8, "repeated": 0, "unreadable": 0, "failed": 1, "lost": 1}


@pytest.mark.parametrize(
    "content", [{"choices": []}, {"error": "no"}, "[]", {"choices": [{"message": {"content": 3}}]}]
)
def test_json_that_is_no_chat_completion_is_an_error(content):
    with HTTPDouble(content) as server, pytest.raises(EndpointError, match=r"choices\[0\]\.message\.content"):
        judge(server).rate(["x"], ["a"])


@pytest.mark.parametrize(
    ("url", "path"),
    [("", "/v1/chat/completions"), ("/v1", "/v1/chat/completions"), ("/api/chat/completions", "/api/chat/completions")],
)
def test_the_address_may_end_at_host_version_or_path(url, path):
    with HTTPDouble(chat("3")) as server:
        EndpointJudge("m", server.url + url).rate(["x"], ["a"])
    assert server.requests[0][0] == path


def test_request_replaces_and_omits_keys():
    with HTTPDouble(chat("3")) as server:
        judge(server, request='{"max_tokens": null, "max_completion_tokens": 9}').rate(["x"], ["a"])
    assert server.requests[0][1].keys() == {"model", "temperature", "messages", "max_completion_tokens"}


def test_the_cache_key_changes_with_all_that_an_answer_depends_on_and_random_answers_have_none():
    def key(model="m", url="http://host", **settings):
        return EndpointJudge(model, url, **settings).cache_key

    keys = [key(), key("n"), key(url="http://other"), key(rubric="r"), key(question="q"), key(request='{"top_p": 0.5}')]
    assert len(set(keys)) == len(keys)
    assert key() == key(timeout=3.0, retries=1)
    assert key(temperature=0.5) is None
    assert key(request='{"temperature": 1}') is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rubric": "no/such.txt"}, "rubric=no/such.txt is invalid: it cannot be read"),
        ({"question": " "}, "question is invalid: it is empty"),
        ({"temperature": -1}, "temperature=-1 is invalid"),
        ({"max_tokens": 0}, "max_tokens=0 is invalid"),
        ({"request": "[1]"}, r"request=\[1\] is invalid"),
        ({"request": '{"api_key": "x"}'}, "api_key must not stand here"),
        ({"url": "host"}, "url=host is invalid: it is not the address of a server"),
        ({"model": ""}, "model is missing"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        EndpointJudge(**{"model": "m", "url": "http://host"} | settings)


def test_server_that_is_busy_is_asked_again():
    with HTTPDouble([Status(503, "loading"), chat("3")]) as server:
        assert judge(server).rate(["x"], ["a"]) == [3.0]
