"""Dialogues with simulated users: what is said, who is asked together, and how an episode ends."""

import json
import random
from functools import partial

import pytest
from environments.playing import play, rows_of
from http_double import HTTPDouble, Status, chat
from tiny import make_model, make_tokenizer

from hf_rlhf.environments import Dialogue, ModelUser, Scene, ScriptedUser, Turn, check_env
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.errors import InputError
from hf_rlhf.writers import EndpointWriter, ModelWriter

ROW = {"prompt": [{"role": "user", "content": "hello"}]}


def begun(*args, row=ROW, **settings):
    dialogue = Dialogue(*args, **settings)
    dialogue.reset(row, random.Random(0))
    return dialogue


def said(text):
    return ({"role": "user", "content": text},)


def test_a_script_is_said_line_by_line_and_then_ends():
    dialogue = begun(["why ?", "good"])
    assert [dialogue.step("yes"), dialogue.step("no")] == [Turn(said("why ?")), Turn(said("good"))]
    assert dialogue.step("you") == Turn(terminated=True)
    with pytest.raises(RuntimeError, match="over"):
        dialogue.step("again")
    of_row = begun(ScriptedUser(column="lines"), row=ROW | {"lines": ["a"]})
    assert [of_row.step("x").messages, of_row.step("x").terminated] == [said("a"), True]


def test_the_budget_of_turns_truncates():
    dialogue = begun(["a", "b", "c"], max_turns=2)
    assert not dialogue.step("x").ends
    assert dialogue.step("x") == Turn(said("b"), truncated=True)


def test_a_goal_that_is_reached_pays_and_ends():
    def polite(messages, row):
        return 0.5 * len(messages) if "please" in messages[-1]["content"] else None

    dialogue = begun(["and ?"], reached=polite)
    assert dialogue.step("give") == Turn(said("and ?"))
    assert dialogue.step("give, please") == Turn(reward=2.0, terminated=True, info={"reached": 1.0})
    assert begun([], reached=polite).step("give").info == {"reached": 0.0}


def test_a_function_plays_the_user_and_may_pay():
    def user(messages, row, rng):
        number = rng.randint(1, 9)
        return Turn(said(f"{number}"), reward=1.0) if len(messages) < 4 else None

    dialogue = begun(user)
    assert dialogue.step("x") == Turn(said(str(random.Random(0).randint(1, 9))), reward=1.0)
    assert dialogue.step("x") == Turn(terminated=True)
    with pytest.raises(InputError, match="user=float is invalid"):
        begun(lambda *_: 1.0).step("x")
    check_env(partial(Dialogue, _echo), [ROW, {"prompt": "hello"}])


def _echo(messages, row, rng):
    return f"{messages[-1]['content']} {rng.random()}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dialogue(["a"], max_turns=0), "max_turns=0"),
        (lambda: ScriptedUser(), "Give one of them"),
        (lambda: ScriptedUser("one"), "it is one text"),
        (lambda: begun(ScriptedUser(column="lines")).step("x"), "column=lines is invalid"),
        (lambda: ModelUser(None, max_tokens=0), "max_tokens=0"),  # pyright: ignore
        (lambda: ModelUser(None, end_mark=" "), "end_mark is invalid"),  # pyright: ignore
    ],
)
def test_what_is_no_user_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_server_plays_the_user_of_all_live_dialogues_at_once():
    asked = []

    def answer(path, body):
        text = body["messages"][0]["content"]
        asked.append(text)
        return chat("Bye. [END]" if "thanks" in text else "Louder, please.")

    with HTTPDouble(answer) as server:
        writer = EndpointWriter("user-model", server.url, temperature=0.0)
        user = ModelUser(writer, persona="a pirate", goal="to buy a ship")
        envs = [begun(user), begun(user, row=ROW | {"persona": "a nun"})]
        turns = Dialogue.step_all(envs, ["aye", "thanks"])
        check_env(partial(Dialogue, user), [ROW])
    assert turns == [Turn(said("Louder, please.")), Turn(said("Bye."), terminated=True)]
    first, second = sorted(asked[:2], key=lambda text: "nun" in text)
    assert "The user is: a pirate" in first
    assert "The user wants: to buy a ship" in first
    assert "User: hello\nAssistant: aye" in first
    assert "The user is: a nun" in second
    assert "pirate" not in second


def test_a_server_that_fails_is_the_failure_of_every_dialogue():
    tokenizer = make_tokenizer()
    rows = rows_of(tokenizer, 3)
    with HTTPDouble(Status(401, json.dumps({"error": "no key"}))) as server:
        user = ModelUser(EndpointWriter("user-model", server.url, retries=0))
        with pytest.raises(InputError, match=r"3 of 3 episodes of Dialogue raised an exception.*401"):
            play(make_model(tokenizer), tokenizer, rows, partial(Dialogue, user))


def test_a_model_plays_the_users_in_one_batch_and_the_same_at_every_size():
    tokenizer = make_tokenizer()
    rows = rows_of(tokenizer, 4)
    policy = make_model(tokenizer, max_position_embeddings=512)
    calls = []

    class Counting(ModelWriter):
        def write(self, dialogues, seeds, max_tokens):
            calls.append(len(dialogues))
            return super().write(dialogues, seeds, max_tokens)

    writer = Counting(make_model(tokenizer, seed=1, max_position_embeddings=512), tokenizer, name="user")
    make_env = partial(Dialogue, ModelUser(writer, max_tokens=3), max_turns=3)
    limits = EpisodeLimits(max_turns=3)
    together = play(policy, tokenizer, rows, make_env, limits)
    assert calls[0] == 4
    assert len(calls) <= 3
    alone = [play(policy, tokenizer, [row], make_env, limits)[0] for row in rows]
    assert [each.completion.ids for each in together] == [each.completion.ids for each in alone]
    assert all(each.messages[1]["role"] == "user" for each in together)


def test_scenes_of_one_user_are_asked_together_and_others_apart():
    class Recording:
        def __init__(self):
            self.sizes = []

        def reply(self, scenes: list[Scene]):
            self.sizes.append(len(scenes))
            return ["go on"] * len(scenes)

    one, other = Recording(), Recording()
    envs = [begun(one), begun(other), begun(one)]
    assert Dialogue.step_all(envs, ["a", "b", "c"]) == [Turn(said("go on"))] * 3
    assert (one.sizes, other.sizes) == ([2], [1])
