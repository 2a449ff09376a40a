"""The completion mask is exactly what was sampled, over random dialogues and the chat templates of real models."""

import re
from importlib import resources

import pytest
from environments.byte_tokenizers import TOKENS, byte_tokenizer, closing_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_model

from hf_rlhf.environments import Turn
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.environments.episodes import collect_episodes
from hf_rlhf.errors import InputError
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.types import Completion

TOKENIZERS = {name: byte_tokenizer(name) for name in TOKENS}
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
LIMITS = EpisodeLimits(max_turns=9)


class Prepared:
    """An engine whose completions are known: those of one episode after the other."""

    def __init__(self, episodes):
        self.episodes, self.contexts, self.turn = episodes, [], 0

    def generate(self, prompts, sampling, seeds):
        self.contexts.append([list(prompt) for prompt in prompts])
        live = [episode for episode in self.episodes if len(episode) > self.turn]
        self.turn += 1
        return [Completion(list(episode[self.turn - 1][0]), [], False) for episode in live]


class Says:
    """Answers each completion with prepared messages, and ends after the last."""

    def reset(self, row, rng):
        self.replies = list(row["replies"])
        return row["prompt"]

    def step(self, completion):
        if len(self.replies) == 1:
            return Turn(reward=1.0, terminated=True)
        return Turn(tuple(self.replies.pop(0)), reward=1.0)


def message(text, role="user"):
    return {"role": role, "content": text}


def prompt_ids(tokenizer, prompt, **options):
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)["input_ids"]


def collected(tokenizer, prompt, dialogue, **settings):
    """Play dialogues of (completion, messages) pairs, one a row, for the same prompt."""
    rows = [
        {"prompt": prompt, "prompt_ids": prompt_ids(tokenizer, prompt), "replies": [said for _, said in turns]}
        for turns in dialogue
    ]
    engine = Prepared(dialogue)
    seeds = list(range(len(rows)))
    episodes = collect_episodes(engine, rows, tokenizer, Sampling(64), seeds, Says, LIMITS, **settings)
    return episodes, engine.contexts


def ids_of(tokenizer):
    """Ids of a completion: any bytes and any added tokens, so also what no template would write."""
    return st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=8)


@st.composite
def dialogues(draw, name):
    tokenizer = TOKENIZERS[name]
    turn = st.tuples(ids_of(tokenizer), TEXT.map(lambda text: [message(text)]), st.booleans())
    episodes = draw(st.lists(st.lists(turn, min_size=1, max_size=4), min_size=1, max_size=3))
    end = closing_id(tokenizer, name)
    return [[(ids + [end] if ends else ids, said) for ids, said, ends in turns] for turns in episodes]


@pytest.mark.parametrize("name", TOKENS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_of_any_dialogue_the_mask_is_what_was_sampled_and_no_token_is_made_again(name, data):
    dialogue = data.draw(dialogues(name))
    episodes, contexts = collected(TOKENIZERS[name], [message("hello")], dialogue)
    seen = [[] for _ in dialogue]
    for turn, prompts in enumerate(contexts):
        live = [b for b, turns in enumerate(dialogue) if len(turns) > turn]
        for b, prompt in zip(live, prompts, strict=True):
            seen[b].append(prompt)
    for b, (episode, turns) in enumerate(zip(episodes, dialogue, strict=True)):
        whole, mask = episode.prompt_ids + episode.completion.ids, episode.completion_mask
        assert [t for t, own in zip(episode.completion.ids, mask, strict=True) if own] == [
            t for ids, _ in turns for t in ids
        ]
        for context, (ids, _) in zip(seen[b], turns, strict=True):  # what was seen and said stays as it was
            assert whole[: len(context) + len(ids)] == context + ids
            assert mask[len(context) - len(episode.prompt_ids) :][: len(ids)] == [True] * len(ids)
        paid = [t for t, reward in enumerate(episode.env_rewards.tolist()) if reward]
        assert paid == [len(context) - len(episode.prompt_ids) + len(ids) - 1 for context, (ids, _) in zip(seen[b], turns, strict=True)]  # fmt: skip


@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("name", TOKENS)
def test_tokens_of_a_dialogue_are_what_the_template_writes_for_all_of_it(name, stops):
    tokenizer = TOKENIZERS[name]
    end = [closing_id(tokenizer, name)] if stops else []
    answers, replies = ["Yes it is", "Three"], ["and then?", "none"]
    turns = [
        (tokenizer(text, add_special_tokens=False)["input_ids"] + end, [message(reply)])
        for text, reply in zip(answers, replies, strict=True)
    ]
    [episode], _ = collected(tokenizer, [message("hello")], [turns])
    text = tokenizer.decode(episode.prompt_ids + episode.completion.ids)
    whole = [message("hello"), message(answers[0], "assistant"), message(replies[0])]
    expected = tokenizer.apply_chat_template(whole, add_generation_prompt=True, tokenize=False)
    expected += answers[1] + (tokenizer.decode(end) if stops else "")
    assert text == expected.replace("[/INST] Yes", "[/INST]Yes")  # the policy, and not the prompt, writes that space


def test_thoughts_stay_among_the_tokens_though_the_template_leaves_them_out_of_the_past():
    tokenizer = TOKENIZERS["qwen3"]
    end = closing_id(tokenizer, "qwen3")
    said = ["<think>\nlong\n</think>\n\nYes", "<think>\nshort\n</think>\n\nNo"]
    turns = [(tokenizer(text, add_special_tokens=False)["input_ids"] + [end], [message("why?")]) for text in said]
    [episode], contexts = collected(tokenizer, [message("hello")], [turns])
    written = [message("hello"), message(said[0], "assistant"), message("why?")]
    assert "long" not in tokenizer.apply_chat_template(written, tokenize=False)
    assert (
        tokenizer.decode(contexts[1][0]).count("<think>\nlong\n</think>\n\nYes<|im_end|>\n<|im_start|>user\nwhy?") == 1
    )
    assert sum(episode.completion_mask) == sum(len(ids) for ids, _ in turns)


def test_without_thinking_every_answer_begins_behind_an_empty_block():
    tokenizer = TOKENIZERS["qwen3"]
    turns = [(tokenizer("Yes<|im_end|>")["input_ids"], [message("why?")])] * 2
    prompt = [message("hello")]
    row = {
        "prompt": prompt,
        "prompt_ids": prompt_ids(tokenizer, prompt, enable_thinking=False),
        "replies": [said for _, said in turns],
    }
    engine = Prepared([turns])
    kwargs = {"enable_thinking": False}
    collect_episodes(engine, [row], tokenizer, Sampling(64), [0], Says, LIMITS, kwargs)
    for [context] in engine.contexts:
        assert tokenizer.decode(context).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("name", "prompt", "said", "reason"),
    [
        ("mistral", [message("be short", "system"), message("hello")], [message("why?")], "earlier turns differently"),
        ("gemma", [message("hello")], [message("8", "tool")], "roles must alternate"),
        ("gemma", [message("hello")], [message("one"), message("two")], "roles must alternate"),
        ("mistral", [message("hello")], [message("be short", "system")], "roles must alternate"),
    ],
)
def test_a_dialogue_that_a_template_cannot_continue_is_refused_with_the_reason(name, prompt, said, reason):
    tokenizer = TOKENIZERS[name]
    with pytest.raises(InputError, match=reason):
        collected(tokenizer, prompt, [[([5, 6], said), ([7], [])]])


def test_a_prompt_of_an_environment_that_a_template_does_not_take_is_refused_with_the_reason():
    class Instructs(Says):
        def reset(self, row, rng):
            return [message("be short", "system"), *super().reset(row, rng)]

    tokenizer = TOKENIZERS["gemma"]
    row = {"prompt": [message("hello")], "prompt_ids": [1], "replies": [[]]}
    with pytest.raises(InputError, match=r"environment=Instructs is invalid.*System role not supported"):
        collect_episodes(Prepared([[([5], [])]]), [row], tokenizer, Sampling(4), [0], Instructs)


DIALOGUES = [
    [message("a ")],
    [message("a"), message(" b ", "assistant"), message("c")],
    [message("a"), message("<think>\nx\n</think>\n\nb", "assistant"), message("c"), message("d", "assistant")],
]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma"])
def test_a_template_of_this_folder_writes_what_the_one_of_the_model_does(name):
    tokenizer = TOKENIZERS[name]
    real = resources.files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
    for dialogue in DIALOGUES:
        for continued in (True, False):
            ours, theirs = (
                tokenizer.apply_chat_template(
                    dialogue, chat_template=template, add_generation_prompt=continued, tokenize=False
                )
                for template in (tokenizer.chat_template, real)
            )
            assert ours == theirs


def test_a_policy_that_samples_bytes_sees_its_own_tokens_again():
    tokenizer = TOKENIZERS["llama3"]
    model = make_model(tokenizer, max_position_embeddings=512, bos_token_id=tokenizer.bos_token_id)
    seen = []

    class Recording(TransformersEngine):
        def generate(self, prompts, sampling, seeds):
            found = super().generate(prompts, sampling, seeds)
            seen.append([(list(prompt), each.ids) for prompt, each in zip(prompts, found, strict=True)])
            return found

    prompt = [message("hello")]
    row = {"prompt": prompt, "prompt_ids": prompt_ids(tokenizer, prompt), "replies": [[message("ä?")]] * 3}
    [episode] = collect_episodes(Recording(model, tokenizer), [row], tokenizer, Sampling(8), [3], Says, LIMITS)
    whole = episode.prompt_ids + episode.completion.ids
    for [(context, ids)] in seen:
        assert whole[: len(context) + len(ids)] == context + ids
    assert not re.search("\ufffd", tokenizer.decode(seen[0][0][0]))
