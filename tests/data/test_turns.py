"""Facts read off a chat template: the end of an answer, and what the generation prompt puts at its beginning."""

import pytest
from tiny import CHAT_TEMPLATE, make_tokenizer

from hf_rlhf.data.tokens import row_ids
from hf_rlhf.data.turns import TurnEnd, end_of_turn, prefill
from hf_rlhf.rollout.collect import trajectory_of
from hf_rlhf.types import Completion

THINKING = (
    "{% if enable_thinking is defined and not enable_thinking %}<think> \n </think> {% else %}<think> \n{% endif %}"
)
TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|> user {{ m.content }} END {% else %}"
    "<|im_start|> assistant ANSWER END {% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant"
    " OPEN{% endif %}"
)


def turns(*, answer="{{ m.content }}", end="<|im_end|>", opened="", before=""):
    """A template of turns: how it writes an answer, an end and a generation prompt, and what it does before all."""
    return before + TURNS.replace("ANSWER", answer).replace("END", end).replace("OPEN", opened)


def begun(tokenizer, *messages, run=None, **columns):
    """The prefill of a row of messages by the user, prepared as in a run."""
    prompt = [{"role": "user", "content": text} for text in messages or ["hello"]]
    ids = row_ids(prompt, tokenizer, continued=True, options=columns, chat_template_kwargs=run)
    return prefill({"prompt": prompt, "prompt_ids": ids, **columns}, tokenizer, run)


@pytest.fixture
def tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|end|>", "<|user|>"], special_tokens=True)
    tokenizer.add_tokens(["<turn>", "<think>", "</think>"])
    return tokenizer


REFUSES_LONE_TURNS = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
ENDS = {
    "ChatML": (CHAT_TEMPLATE, "<|im_end|>", ["<|im_end|>"]),
    "a new line behind": (turns(end="<|im_end|>\n"), "<|im_end|>", ["<|im_end|>"]),
    "an added token that is not special": (turns(end="<turn>"), "<turn>", ["<turn>"]),
    "two tokens": (turns(end="<|end|> <|im_end|>"), "<|end|> <|im_end|>", ["<|end|>", "<|im_end|>"]),
    "in pieces": (turns(end="### end"), "### end", []),
    "content in parts": (turns(answer="{{ m.content[0].text }}"), "<|im_end|>", ["<|im_end|>"]),
    "content trimmed": (turns(answer="{{ m.content | trim }}"), "<|im_end|>", ["<|im_end|>"]),
    "a system message needed": (turns(before=REFUSES_LONE_TURNS), "<|im_end|>", ["<|im_end|>"]),
    "another at the last turn": (
        turns(answer="{{ m.content }} {{ '<turn>' if loop.last else '<|end|>' }}", end=""),
        "<turn>",
        ["<turn>"],
    ),
}


@pytest.mark.parametrize(("template", "text", "tokens"), ENDS.values(), ids=ENDS)
def test_the_end_of_an_answer_is_what_the_template_writes_behind_it(tokenizer, template, text, tokens):
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) == TurnEnd(text, tuple(tokenizer.convert_tokens_to_ids(tokens)))


def test_where_nothing_is_written_behind_the_last_answer_the_next_turn_ends_it(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else 'bot' }} {{ m.content }} {% endfor %}"
    )
    assert end_of_turn(tokenizer) == TurnEnd("<|user|>", (tokenizer.convert_tokens_to_ids("<|user|>"),), trained=False)


@pytest.mark.parametrize(
    "template",
    [None, "{{ raise_exception('no') }}", "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"],
    ids=["no template", "takes nothing", "writes no end"],
)
def test_no_end_is_none(tokenizer, template):
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) is None


def test_the_end_is_read_with_the_options_of_the_row_and_of_the_run(tokenizer):
    needs = "{{ raise_exception('no tools') if not tools }}{{ raise_exception('nobody') if not bot }}"
    tokenizer.chat_template = turns(before=needs, end="{{ '<turn>' if bot == 'b' else '<|end|>' }}")
    assert end_of_turn(tokenizer) is None
    row = {"tools": [{"type": "function"}], "chat_template_kwargs": {"bot": "b"}}
    assert end_of_turn(tokenizer, row).text == "<turn>"
    assert end_of_turn(tokenizer, row | {"chat_template_kwargs": None}, {"bot": "a"}).text == "<|end|>"
    assert end_of_turn(tokenizer, row, {"bot": "a"}).text == "<turn>"


def test_white_space_that_is_a_token_of_its_own_ends_no_answer(tokenizer):
    tokenizer.add_tokens(["\n"])
    tokenizer.chat_template = turns(end="<|end|>\n<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer).tokens) == ["<|end|>", "<|im_end|>"]


def test_an_end_that_is_not_in_the_vocabulary_is_not_the_unknown_token(tokenizer):
    tokenizer.chat_template = turns(end="</s>")
    assert end_of_turn(tokenizer) == TurnEnd("</s>", ())


BLOCK = "{{ '<think></think>' if '</think>' not in m.content }}{{ m.content }}"
PREFILLS = {
    "none": (turns(), ""),
    "white space": (turns(opened=" \n"), ""),
    "a tag": (turns(opened="<think> \n"), "<think> \n"),
    "words": (turns(opened="Let me think. <think>"), "Let me think. <think>"),
    "a tag, and an empty block before every answer": (turns(answer=BLOCK, opened="<think>\n"), "<think>\n"),
    "an empty block": (turns(opened="<think>\n\n</think>\n\n"), ""),
    "an empty block before every answer": (turns(answer=BLOCK, opened="<think></think>"), ""),
    "a special token": (turns(opened="<|end|><think>"), "<think>"),
    "a block that only the last answer has": (
        turns(answer="{{ '<think> \n </think>' if loop.last }}{{ m.content }}", opened="<think>\n"),
        "<think>\n",
    ),
}


@pytest.mark.parametrize(("template", "text"), PREFILLS.values(), ids=PREFILLS)
def test_a_prefill_is_what_the_generation_prompt_has_beyond_the_header(tokenizer, template, text):
    tokenizer.chat_template = template
    assert begun(tokenizer) == text


def test_a_prefill_follows_the_rows_own_options(tokenizer):
    tokenizer.chat_template = turns(opened=THINKING)
    columns = {"chat_template_kwargs": {"enable_thinking": False}}
    assert begun(tokenizer) == "<think> \n"
    assert begun(tokenizer, **columns) == ""
    assert begun(tokenizer, run={"enable_thinking": False}) == ""
    own = {"chat_template_kwargs": {"enable_thinking": True}, "tools": None}
    assert begun(tokenizer, run={"enable_thinking": False}, **own) == "<think> \n"
    assert begun(tokenizer, chat_template_kwargs=None) == "<think> \n"


ROLES = "{% for m in messages %}USER {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}OPEN{% endif %}"


def roles(user, assistant, opened):
    """A template of turns that begin with a marker of the role."""
    marker = f"{{{{ '{user}' if m.role == 'user' else '{assistant}' }}}}"
    return ROLES.replace("USER", marker).replace("OPEN", opened)


V3 = turns(answer="</think>{{ m.content }}", opened="<think>")  # of DeepSeek-V3.1
MARKERS = {
    "no generation prompt": ("{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}", ""),
    "a marker before a space": (roles("<User>", "<Bot>", "<Bot>"), ""),
    "a marker in brackets before a new line": (roles("[USER]", "[ASSISTANT]", "[ASSISTANT]\n"), ""),
    "a marker on a line of its own": (roles("<user>\\n", "<assistant>\\n", "<assistant>"), ""),
    "a marker that no answer has": (roles("<user>", "<model>", "<assistant>"), ""),
    "more before the marker": (roles("<user>", "<sep><assistant>", "<sep><assistant>"), ""),
    "a marker, and an empty block": (
        roles("<user>", "<sep><assistant><think></think>", "<sep><assistant>\n"),
        "",
    ),
    "a marker, an empty block and a tag": (
        roles("<user>", "<assistant><think></think>", "<assistant><think>\n"),
        "<think>\n",
    ),
    "a closed block before every answer": (V3, "<think>"),
    "no answer to compare with": ("{{ messages[0].content }}{% if add_generation_prompt %} to <bot>{% endif %}", ""),
}


@pytest.mark.parametrize(("template", "text"), MARKERS.values(), ids=MARKERS)
def test_neither_a_marker_of_the_role_nor_the_users_own_tag_is_a_prefill(tokenizer, template, text):
    tokenizer.chat_template = template
    for said in ("hello", "is <b>", "is <think>"):
        assert begun(tokenizer, said) == text


def test_options_that_change_only_how_an_answer_is_written_are_told_apart(tokenizer):
    tokenizer.chat_template = turns(answer="{{ '<think>' if opened }}{{ m.content }}", opened="<think>")
    assert begun(tokenizer) == "<think>"
    assert begun(tokenizer, run={"opened": True}) == ""
    assert begun(tokenizer, chat_template_kwargs={"opened": True}) == ""


def test_plain_text_is_never_prefilled(tokenizer):
    tokenizer.chat_template = turns(opened="<think>")
    assert prefill({"prompt": "hello", "prompt_ids": [7]}, tokenizer) == ""


def count_renders(tokenizer, monkeypatch):
    """Record the messages given to the template from here on, one entry for each rendering."""
    renders, render = [], tokenizer.apply_chat_template

    def counted(messages, **kwargs):
        renders.append(messages)
        return render(messages, **kwargs)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counted)
    return renders


def test_a_template_is_read_once_for_all_rows_and_iterations(tokenizer, monkeypatch):
    tokenizer.chat_template = turns(opened="<think> \n")
    prompts = [[{"role": "user", "content": text}] for text in ("hello", "the cat sat", "a dog", "")]
    rows = [{"prompt": prompt, "prompt_ids": row_ids(prompt, tokenizer, continued=True)} for prompt in prompts * 2]
    completion, renders = Completion(ids=[7], logprobs=[0.0], stopped=True), count_renders(tokenizer, monkeypatch)
    for _ in range(2):
        assert {trajectory_of(row, completion, tokenizer).text[:9] for row in rows} == {"<think> \n"}
        end_of_turn(tokenizer)
    assert (
        len(renders) == 4 + 2
    )  # two prompts with an answer, one opened, one closed; an end of turn last and in the middle


def test_a_prompt_with_another_ending_does_not_get_the_first_ones_prefill(tokenizer):
    switch = (
        "{{ '<think>' if '/think' in messages[0].content else '<think> </think>' if '/no' in messages[0].content }}"
    )
    tokenizer.chat_template = turns(opened=switch)
    for _ in range(2):
        assert [begun(tokenizer, text) for text in ("hello", "/think", "/no")] == ["", "<think>", ""]


def test_a_prompt_that_is_written_otherwise_without_a_generation_prompt_is_told_by_all_of_it(tokenizer):
    opened = "{{ '<think> <turn>' if '/think' in messages[0].content else ' <turn>' }}"
    tokenizer.chat_template = turns(opened=opened, before="{{ 'cat' if not add_generation_prompt }}")
    tokenizer.chat_template = tokenizer.chat_template.replace("'cat' if", "'cat' if messages | length == 1 and")
    for _ in range(2):
        assert [begun(tokenizer, text) for text in ("hello", "/think")] == [" <turn>", "<think> <turn>"]


def test_a_generation_prompt_that_follows_only_a_user_is_told_by_the_roles(tokenizer):
    template = turns(end="<turn>", opened=" <think> <turn>")
    condition = "add_generation_prompt and messages[-1].role == 'user'"
    tokenizer.chat_template = template.replace("add_generation_prompt", condition)
    user, assistant = ({"role": role, "content": "hello"} for role in ("user", "assistant"))
    for prompt, text in ([user, assistant], ""), ([user], " <think> <turn>"):
        ids = row_ids(prompt, tokenizer, continued=True)
        assert prefill({"prompt": prompt, "prompt_ids": ids}, tokenizer) == text


def test_another_template_or_another_token_is_read_anew(tokenizer):
    for opened, end in ("<think>", "<|end|>"), ("<turn>", "<|im_end|>"), ("", "<new>"):
        tokenizer.chat_template = turns(opened=opened, end=end)
        assert begun(tokenizer) == opened
        assert end_of_turn(tokenizer).text == end
    assert end_of_turn(tokenizer).tokens == ()
    tokenizer.add_tokens("<new>")
    assert end_of_turn(tokenizer).tokens == (tokenizer.convert_tokens_to_ids("<new>"),)


def test_added_tokens_are_not_searched_where_nothing_is_begun(tokenizer, monkeypatch):
    tokenizer.chat_template = turns()
    monkeypatch.setattr(type(tokenizer), "added_tokens_decoder", property(lambda self: pytest.fail("searched")))
    assert begun(tokenizer) == ""
