"""Rewards from a real local server, in the shapes of vLLM, text-embeddings-inference and a server of one's own."""

import asyncio
import time

import pytest
from http_double import DROP, HTTPDouble, Late, Status
from tiny import make_prompts, make_tokenizer, make_trainer, metrics_of

from hf_rlhf.endpoints import client
from hf_rlhf.endpoints.client import EndpointError
from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.rewards.calls import call_all
from hf_rlhf.rewards.http import HTTPReward

MESSAGES = [{"role": "user", "content": "the cat"}]
ANSWER = [{"role": "assistant", "content": "sat"}]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def reward(server, path="", **settings):
    return HTTPReward(url=server.url + path, **{"retries": 1, "timeout": 5.0} | settings)


def vllm(*probs, label=None):
    return {"object": "list", "data": [{"index": 0, "label": label, "probs": list(probs), "num_classes": len(probs)}]}


@pytest.mark.parametrize(
    ("settings", "answer", "path", "body", "score"),
    [
        ({"route": "generic"}, 1.5, "/", {"prompt": "a", "completion": "b"}, 1.5),
        ({"route": "generic", "path": "/s"}, {"score": -2}, "/s", {"prompt": "a", "completion": "b"}, -2.0),
        ({"route": "generic"}, {"reward": 3}, "/", {"prompt": "a", "completion": "b"}, 3.0),
        (
            {"route": "vllm"}, vllm(0.25, label="LABEL_0"), "/classify",
            {"input": "ab", "use_activation": False, "activation": False}, 0.25,
        ),
        (
            {"route": "vllm", "path": "/pooling", "model": "rm", "raw": False}, {"data": [{"data": [[1.0], [2.0]]}]},
            "/pooling", {"input": "ab", "use_activation": True, "activation": True, "model": "rm"}, 2.0,
        ),
        ({"route": "vllm", "path": "/pooling"}, {"data": [{"data": [4.0]}]}, "/pooling", None, 4.0),
        (
            {"route": "vllm", "path": "/v1/score"}, {"data": [{"index": 0, "score": 0.5}]}, "/v1/score",
            {"text_1": "a", "text_2": "b", "use_activation": False, "activation": False}, 0.5,
        ),
        ({"route": "vllm", "label": "1"}, vllm(0.1, 0.7, 0.2), "/classify", None, 0.7),
        (
            {"route": "tgi"}, [{"score": 0.9, "label": "LABEL_0"}], "/predict",
            {"inputs": "ab", "raw_scores": True, "truncate": False}, 0.9,
        ),
        (
            {"route": "tgi", "label": "toxic"}, [{"score": 0.1, "label": "fine"}, {"score": 0.8, "label": "toxic"}],
            "/predict", None, 0.8,
        ),
    ],
)  # fmt: skip
def test_each_route_sends_and_reads_its_servers_shape(settings, answer, path, body, score):
    answer = answer if isinstance(answer, dict) else [answer]  # a list of the double is worked off
    with HTTPDouble(answer) as server:
        assert reward(server, **settings).score(["a"], ["b"]) == [score]
    assert server.requests[0][0] == path
    assert body is None or server.requests[0][1] == body


def test_the_chat_template_is_applied_here(tokenizer_folder):
    tokenizer = make_tokenizer()
    with HTTPDouble(vllm(2.0)) as server:
        reward(server, route="vllm", tokenizer=tokenizer_folder).score([MESSAGES, "the cat"], [ANSWER, " sat"])
    bodies = sorted((body["input"] for _, body in server.requests), key=len)
    whole = tokenizer.apply_chat_template(MESSAGES + ANSWER, tokenize=True, return_dict=True)["input_ids"]
    plain = tokenizer("the cat sat")["input_ids"]
    assert bodies == [[*plain, tokenizer.eos_token_id], whole]
    with HTTPDouble([[{"label": "a", "score": 2}]]) as server:
        reward(server, route="tgi", tokenizer=tokenizer_folder).score([MESSAGES, "the cat"], [ANSWER, " sat"])
    assert sorted(body["inputs"] for _, body in server.requests) == [
        tokenizer.apply_chat_template(MESSAGES + ANSWER, tokenize=False), "the cat sat<|im_end|>",
    ]  # fmt: skip


def test_a_text_begins_once_where_the_server_adds_the_beginning(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<unk>"})
    start = ("<unk>", tokenizer.unk_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[start])
    tokenizer.chat_template = "<unk> " + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    with HTTPDouble([[{"label": "a", "score": 1}]]) as server:
        reward(server, route="tgi", tokenizer=str(tmp_path)).score([MESSAGES], [ANSWER])
    assert server.requests[0][1]["inputs"].split() == ["<|im_start|>", "user", "the", "cat", "<|im_end|>", "<|im_start|>", "assistant", "sat", "<|im_end|>"]  # fmt: skip


@pytest.mark.parametrize(
    ("route", "answer", "said"),
    [
        ("vllm", {"data": []}, r"no data\[0\]\.probs"),
        ("vllm", vllm(), "no labels"),
        ("vllm", vllm(None), "no finite number"),
        ("tgi", {"error": "no"}, "no list of labels"),
        ("generic", {"score": "high"}, "no finite number"),
        ("generic", {"value": 1}, "it has no score or reward"),
        ("generic", '{"score": NaN}', "it has NaN"),
        ("generic", '{"score": 1e999}', "no finite number"),
        ("generic", True, "no finite number"),
        ("generic", "<html>", "not JSON"),
        ("generic", DROP, "no connection"),
    ],
)
def test_nonsense_ends_the_run_with_an_error_that_names_it(route, answer, said):
    with HTTPDouble(answer) as server, pytest.raises(EndpointError, match=said):
        reward(server, route=route).score(["a"], ["b"])
    assert len(server.requests) == 2


def test_several_labels_without_a_choice_are_refused_and_asked_once():
    with HTTPDouble(vllm(0.1, 0.9)) as server:
        with pytest.raises(InputError, match=r"has 2 labels \(0, 1\)\. Name one by label"):
            reward(server, route="vllm").score(["a"], ["b"])
        with pytest.raises(InputError, match="label=toxic is invalid"):
            reward(server, route="vllm", label="toxic").score(["a"], ["b"])
    assert len(server.requests) == 2


def test_another_score_is_not_taken_for_a_label_that_is_missing():
    with HTTPDouble({"score": 0.1, "toxic": 0.9}) as server:
        assert reward(server, label="toxic").score(["a"], ["b"]) == [0.9]
        with pytest.raises(EndpointError, match="it has no toxicity"):
            reward(server, label="toxicity").score(["a"], ["b"])


@pytest.mark.parametrize(("route", "answer"), [("vllm", vllm(1.0)), ("tgi", [[{"label": "LABEL_0", "score": 1}]])])
def test_a_softmax_over_one_label_is_no_reward(route, answer):
    with HTTPDouble(answer) as server:
        scorer = reward(server, route=route)
        assert scorer.score(["a"] * 6, ["b"] * 6) == [1.0] * 6  # one text
        assert scorer.score(["a"] * 2, ["c", "d"]) == [1.0] * 2
        with pytest.raises(RunFailed, match="gave 1 to 4 different texts, as a softmax over one label"):
            scorer.score(["a"], ["e"])


def test_a_score_of_one_among_others_is_a_score():
    with HTTPDouble(lambda path, body: vllm(2.0 if body["input"] == "ab" else 1.0)) as server:
        scorer = reward(server, route="vllm")
        assert scorer.score(["a"] * 2, ["b", "c"]) == [2.0, 1.0]
        assert scorer.score(["a"] * 5, list("cdefg")) == [1.0] * 5


@pytest.mark.parametrize("route", ["vllm", "tgi"])
def test_the_chat_template_gets_the_options_of_a_row(tmp_path, route):
    """The training of the reward model read `chat_template_kwargs`, too."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if mood %}{{ mood }} {% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    answer = vllm(2.0) if route == "vllm" else [[{"label": "a", "score": 2}]]
    with HTTPDouble(answer) as server:
        scorer = reward(server, route=route, tokenizer=str(tmp_path), concurrency=1)
        asyncio.run(scorer([MESSAGES] * 2, [ANSWER] * 2, chat_template_kwargs=[{"mood": "happy"}, None]))
    (_, first), (_, second) = server.requests
    if route == "vllm":
        assert first["input"] == tokenizer("happy")["input_ids"] + second["input"]
    else:
        assert first["inputs"] == "happy " + second["inputs"]


def test_messages_for_a_server_of_texts_need_a_tokenizer():
    with HTTPDouble(vllm(1.0)) as server, pytest.raises(InputError, match="Give tokenizer"):
        reward(server, route="vllm").score([MESSAGES], [ANSWER])
    assert not server.requests


def _fails_for(*bad):
    return lambda path, body: DROP if body["completion"] in bad else {"score": len(body["completion"])}


def test_null_is_unscored_and_a_failed_row_only_where_it_is_asked_for():
    completions = ["a", "bb", "ccc", "dddd"]
    with HTTPDouble(lambda path, body: {"score": None if body["completion"] == "a" else 2}) as server:
        assert reward(server).score(["x"] * 4, completions) == [None, 2, 2, 2]
    with HTTPDouble(_fails_for("bb")) as server:
        with pytest.raises(EndpointError, match="after 2 tries"):
            reward(server).score(["x"] * 4, completions)
        assert reward(server, on_error="none").score(["x"] * 4, completions) == [1, None, 3, 4]


def test_failed_rows_end_the_run_above_their_share_of_all_rows_so_far():
    with HTTPDouble(_fails_for("bad")) as server:
        scorer = reward(server, on_error="none", max_failed_share=0.25)
        assert scorer.score(["x"] * 4, ["bad", "a", "a", "a"]) == [None, 1, 1, 1]
        assert scorer.score(["x"] * 4, ["bad", "a", "a", "a"]) == [None, 1, 1, 1]
        with pytest.raises((EndpointError, RunFailed), match="2 of 4 requests failed"):
            scorer.score(["x"] * 4, ["bad", "bad", "a", "a"])


def test_completions_are_asked_at_the_same_time_while_other_rewards_compute():
    def here(prompts, completions):
        time.sleep(0.2)
        return [0.0] * len(prompts)

    with HTTPDouble(lambda path, body: Late(0.2, 1.0)) as server:
        arguments = {"prompts": ["a"] * 8, "completions": ["b"] * 8}
        begun = time.monotonic()
        found: list = []
        call_all([here, reward(server)], ["here", "http"], [arguments] * 2, [found.append] * 2)
        assert time.monotonic() - begun < 0.8
    assert sorted(found) == [[0.0] * 8, [1.0] * 8]
    assert server.most_at_once == 8


def test_when_another_reward_fails_the_server_is_not_waited_for():
    def fails(prompts, completions):
        time.sleep(0.2)
        raise RuntimeError("here")

    begun, arguments = time.monotonic(), {"prompts": ["a"], "completions": ["b"]}
    with HTTPDouble(Status(503, "busy", Retry_After="20")) as server, pytest.raises(RuntimeError, match="here"):
        call_all([fails, reward(server, retries=5)], ["fails", "http"], [arguments] * 2, [print] * 2)
    assert time.monotonic() - begun < 5


def test_the_cache_key_has_all_that_a_score_depends_on():
    keys = [
        HTTPReward(url="http://h", **settings).cache_key
        for settings in (
            {},
            {"route": "tgi"},
            {"route": "vllm"},
            {"route": "vllm", "model": "m"},
            {"label": "1"},
            {"raw": False},
        )
    ]
    assert len(set(keys)) == len(keys)
    assert HTTPReward(url="http://h", timeout=1.0).cache_key == keys[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"route": "grpc"}, "route=grpc is invalid"),
        ({"route": "vllm", "url": "http://h/v1"}, "ask.* /classify, /pooling or /score"),
        ({"on_error": "skip"}, "on_error=skip is invalid"),
        ({"max_failed_share": 2}, "max_failed_share=2 is invalid"),
        ({"url": "h:80"}, "not the address of a server"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        HTTPReward(**{"url": "http://h"} | settings)


def test_ppo_runs_with_it_while_sampling(tmp_path):
    with HTTPDouble(lambda path, body: {"score": len(body["completion"][0]["content"])}) as server:
        trainer = make_trainer(
            tmp_path, reward=reward(server), data=make_prompts(8), reward_while_sampling=True, generation_batch_size=2,
            per_device_train_batch_size=4, max_steps=1,
        )  # fmt: skip
        trainer.train()
    assert len(server.requests) >= 4
    assert metrics_of(tmp_path)[0]["rewards/http/mean"] > 0


def test_the_call_is_a_coroutine():
    with HTTPDouble({"score": 1}) as server:
        assert asyncio.run(reward(server)(prompts=["a"], completions=["b"], topic=["c"])) == [1.0]
