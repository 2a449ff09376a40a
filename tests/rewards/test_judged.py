"""A judge as a reward, behind a real local server and as a tiny model."""

import asyncio

import pytest
from http_double import HTTPDouble, Status, chat
from tiny import make_judge_tokenizer, make_model

from hf_rlhf.endpoints.client import EndpointError
from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.judges import ModelJudge
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.judged import EndpointJudgeReward, ModelJudgeReward, judge_reward
from hf_rlhf.rewards.named import make_reward
from hf_rlhf.rewards.sources import require_functions
from hf_rlhf.types import Completion, Trajectory


def rate_by_length(path, body):
    reply = body["messages"][0]["content"].split("[Reply]\n")[1].split("\n\n")[0]
    return chat("well..." if reply == "nonsense" else str(min(len(reply), 5)))


def prefer_longer(path, body):
    a, b = (body["messages"][0]["content"].split(f"[Reply {letter}]\n")[1].split("\n\n")[0] for letter in "AB")
    return chat("A" if len(a) > len(b) else "B" if len(a) < len(b) else "C")


def trajectories(*texts, **columns):
    rows = [{"prompt": "x", **{name: values[i] for name, values in columns.items()}} for i in range(len(texts))]
    return [Trajectory(row, [1], Completion([2], [], True), text) for row, text in zip(rows, texts, strict=True)]


def test_a_rating_is_the_reward():
    with HTTPDouble(rate_by_length) as server:
        reward = judge_reward(model="m", url=server.url, rubric="Is it long?")
        found = Rewards([reward]).compute(trajectories("a", "bbb"))
    assert [each.total for each in found.rewards] == [1.0, 3.0]
    assert found.metrics == {"judge/unanswered": [0.0]}
    assert isinstance(reward, EndpointJudgeReward)
    require_functions(Rewards([reward]))  # which may wait while sampling


def test_a_column_gives_the_win_rate_against_it_and_a_row_without_one_is_unscored():
    with HTTPDouble(prefer_longer) as server:
        reward = judge_reward(model="m", url=server.url, column="reference")
        given = trajectories("aaa", "b", "cc", "d", reference=["aa", "bb", "dd", None])
        found = Rewards([reward]).compute(given)
    assert [each.total for each in found.rewards] == [1.0, 0.0, 0.5, None]
    assert found.metrics == {"judge/survived_swap": [2 / 3], "judge/unanswered": [0.0]}
    assert len(server.requests) == 6


def test_an_unreadable_answer_ends_the_run_or_is_unscored_up_to_a_share():
    with HTTPDouble(rate_by_length) as server:
        settings = {"model": "m", "url": server.url}
        with pytest.raises(RunFailed, match=r"no score for 1 of 2 completions: .*such as 'well\.\.\.'.*on_error=none"):
            Rewards([judge_reward(**settings)]).compute(trajectories("nonsense", "a"))
        kept = judge_reward(**settings, on_error="none", max_failed_share=0.5)
        found = Rewards([kept]).compute(trajectories("nonsense", "a"))
        assert [each.total for each in found.rewards] == [None, 1.0]
        with pytest.raises(RunFailed, match="3 of 4 completions so far"):
            Rewards([kept]).compute(trajectories("nonsense", "nonsense"))


def test_a_failing_server_ends_the_run():
    with HTTPDouble(Status(400, "too long")) as server, pytest.raises(EndpointError, match="too long"):
        asyncio.run(judge_reward(model="m", url=server.url)(prompts=["x"], completions=["a"]))


def test_a_missing_column_is_an_error():
    with HTTPDouble(prefer_longer) as server, pytest.raises(InputError, match="takes reference, and"):
        Rewards([judge_reward(model="m", url=server.url, column="reference")]).compute(trajectories("a"))


def test_a_local_judge_gives_numbers():
    tokenizer = make_judge_tokenizer()
    judge = ModelJudge(make_model(tokenizer, max_position_embeddings=512), tokenizer, name="tiny")
    rewards = Rewards([ModelJudgeReward(judge), ModelJudgeReward(judge, "reference")])
    found = rewards.compute(trajectories("good cat", "bad", reference=["sad", "bad"])).rewards
    assert 1 <= found[0].parts["judge"] <= 5
    assert found[1].parts["judge_2"] == pytest.approx(0.5, abs=1e-5)


def test_arguments_of_a_server_need_a_url():
    with pytest.raises(InputError, match="max_tokens is for a judge behind a server"):
        judge_reward(model="m", max_tokens=4)


def test_the_cache_key_is_that_of_the_judge_and_the_column():
    keys = [judge_reward(model="m", url="http://h", column=column).cache_key for column in (None, "a", "b")]
    assert len(set(keys)) == 3
    assert judge_reward(model="m", url="http://h", temperature=1.0).cache_key is None


def test_a_comparison_that_fails_in_both_orders_is_one_completion_without_a_score():
    def refuses_bad(path, body):
        return Status(400, "filter") if "bad" in body["messages"][0]["content"] else prefer_longer(path, body)

    with HTTPDouble(refuses_bad) as server:
        reward = judge_reward(model="m", url=server.url, column="reference", on_error="none")
        found = Rewards([reward]).compute(trajectories("bad", "ccc", reference=["a", "a"]))
    assert [each.total for each in found.rewards] == [None, 1.0]


def test_judges_and_servers_are_rewards_by_name():
    with HTTPDouble(rate_by_length) as server:
        reward = make_reward(f'judge:model=m,url={server.url},rubric="Is it long, and good?",weight=0.5')
        assert [each.parts for each in Rewards([reward]).compute(trajectories("bbb")).rewards] == [{"judge": 3.0}]
    assert reward.judge.rubric == "Is it long, and good?"
    assert make_reward("http:url=http://h,route=vllm,on_error=none").endpoint.url == "http://h/classify"
    with pytest.raises(InputError, match="takes no 'modle'"):
        make_reward("judge:modle=m")
