"""Environments of other libraries: each plays in its own package, and a missing package is said."""

import importlib
import random
import threading
import time
from functools import partial

import pytest
from environments.byte_tokenizers import byte_tokenizer
from environments.test_masks import Prepared, message, prompt_ids

from hf_rlhf.environments import Turn, check_env
from hf_rlhf.environments.adapters import OpenEnvText, from_trl_environment, from_verifiers, verifiers_rows
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.sampling import Sampling

ROW = {"prompt": [message("Guess.")], "number": 3}
GUESS = '<tool_call>{"name": "guess", "arguments": {"number": %d}}</tool_call>'


class GuessForTRL:
    """A class as trl's documentation of `environment_factory` has them."""

    def reset(self, number, **row) -> str | None:
        self.number, self.won = number, False
        return " It is below 10."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: the guess
        """
        self.won = number == self.number
        return "right" if self.won else "wrong"

    def get_reward(self) -> float:
        return float(self.won)

    @property
    def never_read(self):
        raise AssertionError

    def _hidden(self):
        pass


class LaterForTRL(GuessForTRL):
    async def get_reward(self) -> float:
        return 2.0


def begun(make_env, row=ROW):
    env = make_env()
    return env, env.reset(row, random.Random(0))


def test_a_class_for_trl_has_its_methods_as_tools_and_pays_at_the_end():
    env, prompt = begun(from_trl_environment(GuessForTRL))
    assert prompt == [message("Guess. It is below 10.")]
    assert env.step(GUESS % 4).messages[0]["content"] == "wrong"
    assert env.step(GUESS % 3).messages[0]["content"] == "right"
    assert env.step("It is 3.") == Turn(reward=1.0, terminated=True, info={"tool_calls": 2.0, "tool_errors": 0.0})
    assert begun(from_trl_environment(LaterForTRL))[0].step("no").reward == 2.0
    check_env(from_trl_environment(GuessForTRL), [ROW])
    with pytest.raises(InputError, match="has no method reset"):
        from_trl_environment(object)()


def test_a_class_for_trl_has_the_tools_and_the_prompt_that_trl_gives_it(tmp_path):
    """By trl's own trainer."""
    pytest.importorskip("jmespath", reason="trl's trainer wants jmespath for tools, and it is not installed")
    from importlib import resources

    from datasets import Dataset
    from tiny import make_model
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = byte_tokenizer("qwen3")
    tokenizer.chat_template = (
        resources.files("trl").joinpath("chat_templates", "qwen3.jinja").read_text(encoding="utf-8")
    )
    args = GRPOConfig(str(tmp_path), use_cpu=True, report_to="none", per_device_train_batch_size=2, num_generations=2)
    theirs = GRPOTrainer(
        make_model(tokenizer),
        args=args,
        train_dataset=Dataset.from_list([ROW]),
        processing_class=tokenizer,
        environment_factory=GuessForTRL,
    )
    ours, _ = begun(from_trl_environment(GuessForTRL))
    assert [tool.__name__ for tool in ours.tools] == [tool.__name__ for tool in theirs.tools]


def test_an_episode_of_a_class_for_trl_is_played():
    tokenizer = byte_tokenizer("qwen3")
    end = [tokenizer.eos_token_id]
    turns = [(tokenizer(text, add_special_tokens=False)["input_ids"] + end, None) for text in (GUESS % 3, "It is 3.")]
    row = ROW | {"prompt_ids": prompt_ids(tokenizer, ROW["prompt"])}
    make_env = from_trl_environment(GuessForTRL)
    [episode] = collect_episodes(Prepared([turns]), [row], tokenizer, Sampling(64), [0], make_env)
    assert '"name": "guess"' in tokenizer.decode(episode.prompt_ids)
    assert (episode.text, episode.env_rewards.sum().item()) == ("It is 3.", 1.0)


# --- OpenEnv -----------------------------------------------------------------------------------------------------


def openenv_parts():
    pytest.importorskip("openenv.core", reason="openenv-core is not installed, so its environments are not tried")
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class GuessAction(Action):
        number: int

    class GuessObservation(Observation):
        said: str

    class GuessEnvironment(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed=None, episode_id=None, **kwargs):
            self.number, self.tries = kwargs.get("number", (seed or 0) % 10), 0
            return GuessObservation(said="guess")

        def step(self, action, timeout_s=None, **kwargs):
            self.tries += 1
            won = action.number == self.number
            return GuessObservation(said="no", reward=float(won), done=won or self.tries == 3)

        @property
        def state(self):
            return State(step_count=self.tries)

    return GuessEnvironment, GuessAction, GuessObservation


def guessed(make_action, text):
    return make_action(number=int(text)) if text.strip().isdigit() else None


def test_an_environment_of_openenv_is_played_in_this_process():
    make, action, _ = openenv_parts()
    make_env = partial(OpenEnvText, make, lambda seen: seen.said, partial(guessed, action), columns=["number"])
    env, prompt = begun(make_env)
    assert prompt == [message("Guess.\nguess")]
    turn = env.step("I do not know")
    assert (turn.reward, turn.info, turn.messages[0]["content"]) == (
        -0.1,
        {"invalid": 1.0},
        "That is no action. Try again.",
    )
    assert env.step("4") == Turn((message("no"),), info={"invalid": 0.0})
    assert env.step("3") == Turn(reward=1.0, terminated=True, info={"invalid": 0.0})
    with pytest.raises(RuntimeError, match="over"):
        env.step("3")
    with pytest.raises(InputError, match="columns=number is invalid"):
        begun(make_env, {"prompt": "Guess."})


def test_an_environment_of_openenv_is_played_behind_its_server():
    make, action, observation = openenv_parts()
    uvicorn = pytest.importorskip("uvicorn")
    from openenv.core import GenericEnvClient
    from openenv.core.env_server.http_server import create_fastapi_app

    app = create_fastapi_app(make, action, observation, max_concurrent_envs=4)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        client = partial(GenericEnvClient, base_url=f"http://127.0.0.1:{port}")
        make_env = partial(OpenEnvText, client, lambda seen: seen["said"], partial(guessed, dict), columns=["number"])
        envs = [begun(make_env)[0] for _ in range(2)]
        assert envs[0].step("4").messages == (message("no"),)
        assert [env.step("3").reward for env in envs] == [1.0, 1.0]
    finally:
        server.should_exit = True
        thread.join(10)


# --- verifiers ---------------------------------------------------------------------------------------------------


def verifiers():
    """The package, of the versions that take one turn at a time."""
    reason = "verifiers 0.1 is not installed, so its environments are not tried"
    pytest.importorskip("verifiers.envs.multiturn_env", reason=reason)
    return importlib.import_module("verifiers")


def dataset():
    from datasets import Dataset

    return Dataset.from_list([{"prompt": ROW["prompt"], "answer": "3"}])


def test_a_dialogue_of_verifiers_is_played_and_scored():
    vf = verifiers()

    class Guess(vf.MultiTurnEnv):
        async def setup_state(self, state):
            state["tries"] = 0

        async def env_response(self, messages, state, **kwargs):
            state["tries"] += 1
            if messages[-1].content == state["answer"]:
                state["final_env_response"] = [message("yes")]
                return state["final_env_response"]
            return [message("no")]

    def won(completion, answer):
        return float(completion[-1].content == "yes")

    theirs = Guess(max_turns=4, dataset=dataset(), rubric=vf.Rubric(funcs=[won], weights=[2.0]))
    [row] = verifiers_rows(theirs)
    env, prompt = begun(from_verifiers(theirs), row)
    assert [each["content"] for each in prompt] == ["Guess."]
    assert env.step("4").messages == (message("no"),)
    last = env.step("3")
    assert (last.reward, last.terminated, last.info["won"], last.info["num_turns"]) == (2.0, True, 1.0, 2.0)
    lost, _ = begun(from_verifiers(theirs), row)
    turns = [lost.step("4") for _ in range(4)]
    assert [turn.ends for turn in turns] == [False, False, False, True]
    assert turns[-1].reward == 0.0


def test_a_single_turn_and_tools_of_verifiers_are_played():
    vf = verifiers()

    def right(completion, answer):
        return float(answer in completion[-1].content)

    single = vf.SingleTurnEnv(dataset=dataset(), rubric=vf.Rubric(funcs=[right]))
    env, _ = begun(from_verifiers(single), verifiers_rows(single)[0])
    assert env.step("It is 3.").reward == 1.0

    def guess(number: int) -> str:
        """Guess the number.

        Args:
            number: the guess
        """
        return "right" if number == 3 else "wrong"

    tools = vf.ToolEnv(tools=[guess], dataset=dataset(), rubric=vf.Rubric(funcs=[right]))
    env, _ = begun(from_verifiers(tools), verifiers_rows(tools)[0])
    assert env.tools[0]["function"]["name"] == "guess"
    [said] = env.step(GUESS % 4).messages
    assert (said["role"], said["content"]) == ("tool", "wrong")
    assert env.step("It is 3.").reward == 1.0


def test_what_is_no_environment_of_verifiers_is_refused():
    with pytest.raises(InputError, match="it is no MultiTurnEnv"):
        from_verifiers(object())
