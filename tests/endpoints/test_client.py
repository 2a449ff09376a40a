"""One JSON client against a real server that fails in every way, and comes back."""

import socket
import threading
import time
from multiprocessing.reduction import ForkingPickler

import pytest
from http_double import CUT, DROP, HTTPDouble, Late, Status, dead_url

from hf_rlhf.endpoints import client
from hf_rlhf.endpoints.answers import Answer
from hf_rlhf.endpoints.client import Endpoint, EndpointError, Unusable
from hf_rlhf.errors import InputError

KEY = "sk-1234567890abcdefghijklmn"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.02)


def score(content):
    if not isinstance(content, dict) or "score" not in content:
        raise Unusable("it has no score")
    return content["score"]


def ask(server, **settings):
    return Endpoint(server.url, **{"timeout": 5.0, "retries": 2} | settings).post("/score", {"text": "a"}, score)


@pytest.mark.parametrize(
    "failure",
    [DROP, CUT, Status(503, "loading"), Status(429, "slow down"), "<html>", '{"score": NaN}', {"scores": 1}, [1]],
    ids=["dropped", "cut", "503", "429", "html", "nan", "wrong shape", "list"],
)
def test_a_server_that_fails_and_comes_back_is_asked_again(failure):
    with HTTPDouble([failure, failure, {"score": 2}]) as server:
        assert ask(server) == 2
    assert server.requests == [("/score", {"text": "a"})] * 3


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (DROP, "no connection"),
        (CUT, "closed 10 bytes before the end"),
        (Status(503, '{"error": {"message": "still loading"}}'), "status 503: still loading"),
        (Status(500, '{"error": "out of memory"}'), "status 500: out of memory"),
        ("<html>", "it is not JSON: '<html>'"),
        ('{"score": NaN}', "it has NaN"),
        ({"scores": 1}, "it has no score: '{\"scores\": 1}'"),
    ],
    ids=["dropped", "cut", "503", "500", "html", "nan", "wrong shape"],
)
def test_after_the_last_try_the_error_names_url_status_and_what_came(failure, said):
    with HTTPDouble(failure) as server, pytest.raises(EndpointError) as raised:
        ask(server)
    message = str(raised.value)
    assert message.startswith(f"{server.url}/score gave no usable answer after 3 tries: ")
    assert said in message
    assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_named():
    endpoint = Endpoint(dead_url(), retries=1)
    for ask_it in (lambda: endpoint.post("", {}, score), endpoint.require_reachable):
        with pytest.raises(EndpointError, match=r"after 2 tries: no connection \(.*refused"):
            ask_it()


def test_a_server_that_answers_get_in_any_way_is_there_but_not_one_that_refuses_the_key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for get in (None, "{}", Status(405), Status(404), Status(403)):  # None: 501
        with HTTPDouble({}, get) as server:
            Endpoint(server.url, retries=0).require_reachable()
    with HTTPDouble({}, Status(401, f"wrong key {KEY}")) as server, pytest.raises(EndpointError) as raised:
        Endpoint(server.url, api_key_env="JUDGE_KEY").require_reachable()
    assert "status 401: wrong key <token>" in str(raised.value)
    assert server.requests == []


def test_a_slow_server_is_given_up_after_the_timeout():
    with HTTPDouble([Late(2.0, {"score": 1}), {"score": 3}]) as server:
        begun = time.monotonic()
        assert ask(server, timeout=0.3) == 3
        assert time.monotonic() - begun < 1.5


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_too():
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        connection.recv(10000)
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        try:
            for _ in range(100):
                connection.send(b" ")
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=drip, daemon=True).start()
    begun = time.monotonic()
    with listener, pytest.raises(EndpointError, match=r"no answer in 0\.4 s"):
        Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.4, retries=0).post("", {}, score)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("status", "for_all"), [(400, False), (422, False), (401, True), (404, True), (308, True)])
def test_a_refusal_is_not_asked_again(status, for_all):
    refusal = Status(status, "no", Location="http://elsewhere/")
    with HTTPDouble(refusal) as server, pytest.raises(EndpointError, match=f"answer: status {status}") as raised:
        ask(server)
    assert len(server.requests) == 1
    assert raised.value.for_all == for_all


def test_retry_after_is_obeyed():
    with HTTPDouble([Status(429, Retry_After="1"), {"score": 1}]) as server:
        begun = time.monotonic()
        assert ask(server) == 1
        assert time.monotonic() - begun >= 1


def test_retry_after_may_be_a_date_and_has_a_limit(monkeypatch):
    assert Answer(503, "", {"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT"}).retry_after > 3600
    monkeypatch.setattr(client, "_LONGEST_PAUSE_SECONDS", 0.1)
    with HTTPDouble([Status(503, Retry_After="3600"), {"score": 1}]) as server:
        assert ask(server) == 1


def test_the_key_comes_from_the_environment_and_is_in_no_message(monkeypatch, caplog):
    for key in (KEY, "a key of no known form".replace(" ", "-")):
        monkeypatch.setenv("JUDGE_KEY", key)
        said = f"Incorrect API key provided: {key}"
        with HTTPDouble(Status(500, said)) as server, pytest.raises(EndpointError, match="<token>") as raised:
            ask(server, api_key_env="JUDGE_KEY")
        assert server.headers[0]["Authorization"] == f"Bearer {key}"
        assert key not in str(raised.value) + caplog.text
        assert "<token>" in caplog.text


def test_a_copy_for_another_process_takes_the_key_from_its_environment(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    with HTTPDouble({"ok": 1}) as server:
        copied = bytes(ForkingPickler.dumps(Endpoint(server.url, api_key_env="SOME_KEY")))
        assert KEY.encode() not in copied
        assert ForkingPickler.loads(copied).post("", {}, lambda content: content) == {"ok": 1}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_key_that_the_message_cuts_in_two_is_not_in_it_either(monkeypatch):
    key = "a-key-of-no-known-form"
    monkeypatch.setenv("JUDGE_KEY", key)
    for answer in (Status(400, "x" * 290 + key), "x" * 290 + key):
        with HTTPDouble(answer) as server, pytest.raises(EndpointError) as raised:
            ask(server, api_key_env="JUDGE_KEY")
        assert "a-key" not in str(raised.value)


def test_concurrency_is_bounded_and_results_are_in_order():
    with HTTPDouble(lambda path, body: Late(0.05 if body["n"] % 2 else 0.1, {"score": body["n"]})) as server:
        endpoint, done = Endpoint(server.url, concurrency=4), []
        found = endpoint.call_all(lambda n, post: post("", {"n": n}, score), range(12), on_done=done.append)
    assert found == list(range(12))
    assert 2 <= server.most_at_once <= 4
    assert done == [1] * 12


def test_the_first_error_ends_the_other_calls():
    def answer(path, body):
        return Status(400, "too long") if body["n"] == 0 else Late(0.1, {"score": 1})

    with HTTPDouble(answer) as server, pytest.raises(EndpointError, match="too long"):
        Endpoint(server.url, concurrency=2).call_all(lambda n, post: post("", {"n": n}, score), range(50))
    assert len(server.requests) < 10


def test_some_errors_are_kept_and_one_more_is_raised():
    def answer(path, body):
        return Status(400, "too long") if body["n"] % 4 == 0 else {"score": body["n"]}

    def call(n, post):
        return post("", {"n": n}, score)

    with HTTPDouble(answer) as server:
        found = Endpoint(server.url).call_all(call, range(8), keep_errors=2)
        assert [type(each).__name__ for each in found] == ["EndpointError", *["int"] * 3] * 2
        with pytest.raises(EndpointError, match=r"2 of 8 requests failed, the last so: .*too long"):
            Endpoint(server.url).call_all(call, range(8), keep_errors=1)


def test_a_wrong_key_is_raised_though_errors_are_kept():
    with HTTPDouble(Status(401, "wrong key")) as server, pytest.raises(EndpointError, match="wrong key"):
        Endpoint(server.url).call_all(lambda n, post: post("", {}, score), range(3), keep_errors=3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "not the address of a server"),
        ({"url": "http://user:pa55@host"}, "looks like an access token"),
        ({"url": "http://host/?api_key=abc"}, "api_key must not stand here"),
        ({"api_key_env": KEY}, "looks like an access token"),
        ({"api_key_env": "not-a-name"}, "name of a variable"),
        ({"api_key_env": "NO_SUCH_KEY"}, "no such variable"),
        ({"timeout": 0}, "timeout=0 is invalid"),
        ({"retries": -1}, "retries=-1 is invalid"),
        ({"concurrency": 0}, "concurrency=0 is invalid"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_asked(settings, said):
    with pytest.raises(InputError, match=said) as raised:
        Endpoint(**{"url": "http://host"} | settings)
    assert KEY not in str(raised.value)
