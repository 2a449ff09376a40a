"""The server answers annotators alone: by token, by name of the host, from its own pages, and within a size."""

import http.client
import json

import pytest

pytest.importorskip("uvicorn", reason="the extra label is not installed")

from hf_rlhf.errors import InputError
from hf_rlhf.feedback import FeedbackStore, Form, Task
from hf_rlhf.feedback.page import Desk, Server, make_app
from hf_rlhf.feedback.page.security import Rules, hosts_of
from hf_rlhf.feedback.page.serve import _listen, run_in_thread
from hf_rlhf.feedback.store import MODEL, Event, new_uuid
from hf_rlhf.feedback.tasks import shown_mark

TASK = Task(Form("pairwise"), "question", ("good", "bad"), sources=("secret-model", "other-model"), columns={"id": 7})
SALT = "salt"


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        opened.add_tasks([TASK])
        opened.set("salt", SALT)
        yield opened


class Client:
    """Requests of a browser that has opened the address of the terminal and given a name."""

    def __init__(self, port, token, name="Ann"):
        self.port, self.host = port, f"127.0.0.1:{port}"
        self.headers = {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
        self.cookies = [f"hf_rlhf_session_{port}={token}", f"hf_rlhf_annotator_{port}={name}"]

    def ask(self, method, path, content=None, *, body=None, cookies=True, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        given = {**self.headers, **headers, **({"Cookie": "; ".join(self.cookies)} if cookies else {})}
        body = json.dumps(content) if content is not None else body
        connection.request(method, path, body, {name: value for name, value in given.items() if value is not None})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, text


@pytest.fixture
def client(store):
    with Server(Desk(store), port=0) as server:
        yield Client(server.port, server.rules.token)


def answer(**changed):
    value = {"preferred": 0, "strength": 2}
    mark = shown_mark(TASK.id, "Ann", SALT)
    given = {"uuid": new_uuid(), "task": TASK.id, "shown": mark, "kind": "answer", "value": value, "seconds": 1.5}
    return {**given, **changed}


REFUSED = {
    "another host": (400, {"Host": "evil.example"}, {}),
    "a foreign origin": (403, {"Origin": "http://evil.example"}, {}),
    "no origin": (403, {"Origin": None}, {}),
    "no token": (403, {}, {"cookies": False}),
    "a form's content type": (415, {"Content-Type": "application/x-www-form-urlencoded"}, {}),
    "more than 1 MiB": (413, {}, {"body": json.dumps({"x": "y" * (1 << 20)})}),
    "no JSON": (400, {}, {"body": "{"}),
    "a list": (400, {}, {"body": "[]"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_against_the_rules_is_refused_and_writes_nothing(client, store, case):
    status, headers, options = REFUSED[case]
    content = None if "body" in options else answer()
    response, text = client.ask("POST", "/api/events", content, **options, **headers)
    assert response.status == status
    assert json.loads(text)["error"].count(".") >= 1  # a sentence that says what to do
    assert store.events() == []
    assert client.ask("POST", "/api/events", answer())[0].status == 200


def test_a_body_without_a_length_is_cut_off_too(client):
    chunks = (b'"' + b"y" * 65536 for _ in range(40))
    response, _ = client.ask("POST", "/api/events", body=chunks)
    assert response.status == 413


@pytest.mark.parametrize("path", ["/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/etc/passwd", "/static//etc/passwd"])  # fmt: skip
def test_no_path_leads_out_of_the_page(client, path):
    response, text = client.ask("GET", path)
    assert response.status == 404
    assert "root:" not in text


def test_the_address_of_the_terminal_opens_the_page_once_and_its_cookie_after_that(client):
    token = client.cookies[0].partition("=")[2]
    assert client.ask("GET", "/", cookies=False)[0].status == 403
    assert client.ask("GET", "/?token=wrong", cookies=False)[0].status == 403
    response, text = client.ask("GET", f"/?token={token}", cookies=False)
    assert response.status == 200
    assert token not in text
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert client.ask("GET", "/")[0].status == 200


def test_every_response_carries_the_rules_of_the_browser(client):
    for path in ("/", "/nothing", "/static/app.js", "/api/session"):
        headers = client.ask("GET", path)[0].headers
        policy = headers["content-security-policy"]
        for rule in ("default-src 'none'", "script-src 'self'", "img-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"):  # fmt: skip
            assert rule in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_no_name_of_a_model_and_no_gold_answer_leaves_the_server(client, store):
    store.add_tasks([Task(Form("rating"), "gold", ("x",), ("secret-model",), gold={"ratings": {"quality": [5]}})])
    text = "".join(client.ask("POST", "/api/tasks", {})[1] for _ in range(2))
    for secret in ("secret-model", "other-model", 'gold":', "shown_order", "columns"):
        assert secret not in text
    client.ask("POST", "/api/events", answer())
    assert "secret-model" not in client.ask("GET", "/api/agreement")[1]


def test_the_uuid_of_an_answer_keeps_it_once_and_another_answer_by_it_is_refused(client, store):
    given = answer()
    first, second = (json.loads(client.ask("POST", "/api/events", given)[1]) for _ in range(2))
    assert first["saved"] == second["saved"]
    assert client.ask("POST", "/api/events", {**given, "value": {"preferred": "tie"}})[0].status == 409
    assert len(store.events()) == 1
    assert store.events()[0].seconds == 1.5


@pytest.mark.parametrize(
    "changed",
    [
        {"value": {"preferred": 2}},
        {"value": {"preferred": 1.0, "strength": 2}},
        {"value": {"preferred": True, "strength": 2}},
        {"kind": "undo"},
        {"uuid": "1"},
        {"comment": 3},
        {"value": {"preferred": [0]}},
        {"annotator": "Ben"},
    ],
)
def test_what_is_no_answer_is_refused_in_words(client, store, changed):
    response, text = client.ask("POST", "/api/events", answer(**changed))
    assert response.status == 400, text
    assert json.loads(text)["error"]
    assert store.events() == []


@pytest.mark.parametrize(
    ("given", "kept"), [("1" + "0" * 400, 86400.0), ("-1", 0.0), ("NaN", None), ("Infinity", None)]
)
def test_any_number_of_seconds_is_kept_as_far_as_it_can_be(client, store, given, kept):
    body = json.dumps(answer(seconds="?")).replace('"?"', given)
    assert client.ask("POST", "/api/events", body=body)[0].status == 200
    assert [event.seconds for event in store.events()] == [kept]


def test_a_cookie_of_another_program_is_no_hindrance(client):
    client.cookies = ['prefs={"a": 1}', "odd", "=", *client.cookies, 'more={"b": [2, "c"]}']
    assert client.ask("POST", "/api/events", answer())[0].status == 200


def test_an_unknown_task_is_refused(client):
    assert client.ask("POST", "/api/events", answer(task="0" * 64))[0].status == 404


def test_a_name_is_kept_in_letters_and_one_of_a_model_is_not_free(client, store):
    store.append(Event(new_uuid(), TASK.id, "judge", MODEL, value={"preferred": "tie"}))
    for wrong in ("", " ", "x" * 81, "a\0b", "judge", None):
        assert client.ask("POST", "/api/session", {"name": wrong})[0].status == 400
    response, text = client.ask("POST", "/api/session", {"name": "  Zoë  <b> 李 "})
    assert json.loads(text) == {"annotator": "Zoë <b> 李"}
    client.cookies[1] = response.headers["set-cookie"].split(";")[0]
    assert json.loads(client.ask("GET", "/api/session")[1])["annotator"] == "Zoë <b> 李"


def test_a_page_with_a_password_shows_nothing_without_it(store):
    listening = _listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app = make_app(Desk(store), Rules("token", port, hosts=None), password="pass wörd")
    server, thread = run_in_thread(app, listening)
    client = Client(port, "")
    assert client.ask("POST", "/api/tasks", {})[0].status == 403
    assert json.loads(client.ask("GET", "/api/session")[1])["password"] is True
    for _ in range(10):
        assert client.ask("POST", "/api/session", {"name": "Ann", "password": "guess"})[0].status == 403
    response, text = client.ask("POST", "/api/session", {"name": "Ann", "password": "pass wörd"})
    assert response.status == 400
    assert "Wait" in text  # after ten guesses the right one is not tried either
    server.should_exit = True
    thread.join()


def test_only_names_of_this_machine_are_hosts():
    assert hosts_of("127.0.0.1", 8642) == {"127.0.0.1:8642", "localhost:8642", "[::1]:8642"}
    assert {"192.0.2.7:1", "127.0.0.1:1"} <= hosts_of("192.0.2.7", 1)


def test_a_taken_port_is_an_error_with_a_way_out(store):
    with Server(Desk(store), port=0) as server, pytest.raises(InputError, match=r"port=\d+ is invalid.*--port 0"):
        Server(Desk(store), port=server.port)
