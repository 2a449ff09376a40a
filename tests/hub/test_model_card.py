"""Model cards: right metadata, hostile text held inside its fence, and usage code that runs as printed."""

import io
import re
from contextlib import redirect_stdout

import pytest
from huggingface_hub import ModelCard

from hf_rlhf.evaluation.metrics import BeforeAfter
from hf_rlhf.evaluation.report import SamplePair
from hf_rlhf.hub import model_card
from hf_rlhf.hub.model_card import (
    fence,
    hub_names,
    inline,
    policy_card,
    reward_model_card,
    sft_card,
    shown_name,
    template_folder,
)

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
HOSTILE = "```\n---\n<script>alert(1)</script>\n````\n\n\n\n{{ 7*7 }} {% raw %}\n---\nlicense: mit\n---"


def outside_fences(markdown):
    """The lines that Markdown reads as Markdown: CommonMark closes a fence only by as many backticks as opened it."""
    lines, ticks = [], 0
    for line in markdown.splitlines():
        run = re.match(r"(`{3,})(\w*)$", line)
        if ticks and run and not run[2] and len(run[1]) >= ticks:
            ticks = 0
        elif not ticks and run:
            ticks = len(run[1])
        elif not ticks:
            lines.append(line)
    assert ticks == 0
    return "\n".join(lines)


def test_policy_metadata():
    card = ModelCard(policy_card(model_id="someone/cheerful", base_model=BASE, datasets=["someone/prompts"]))
    assert card.data.to_dict() == {
        "library_name": "peft",
        "base_model": BASE,
        "tags": ["hf_rlhf", "ppo", "rlhf", "lora"],
        "pipeline_tag": "text-generation",
        "language": "en",
        "datasets": ["someone/prompts"],
    }


def test_a_reward_model_says_what_it_was_trained_on_and_how_many_members_it_has():
    pairs = reward_model_card(model_id="someone/judge", base_model=BASE)
    assert "preference pairs with TRL's `RewardTrainer`" in pairs
    assert "member" not in pairs
    rated = reward_model_card(model_id="someone/judge", base_model=BASE, loss="k_wise", members=3, combination="min")
    assert "rated completions, with the loss k_wise" in rated
    assert "RewardTrainer" not in rated
    assert "3 LoRA adapters, each with a score head" in rated
    assert 'PeftModel.from_pretrained(base, "someone/judge", subfolder="member_1")' in rated
    assert "The reward is their `min`" in rated


def test_reward_model_metadata():
    data = ModelCard(reward_model_card(model_id="someone/judge", base_model=BASE, license="mit")).data.to_dict()
    assert data["pipeline_tag"] == "text-classification"
    assert data["license"] == "mit"
    assert {"hf_rlhf", "reward-model", "trl", "lora"} <= set(data["tags"])
    assert "ppo" not in data["tags"]
    assert "datasets" not in data


@pytest.mark.parametrize("make", [policy_card, reward_model_card, sft_card])
def test_a_model_of_all_weights_is_no_adapter(make):
    card = ModelCard(make(model_id="someone/m", base_model=BASE, adapter=False))
    assert card.data.library_name == "transformers"
    assert "lora" not in card.data.tags
    assert "peft" not in card.text.lower()
    assert "LoRA" not in card.text
    assert "lora" in ModelCard(make(model_id="someone/m", base_model=BASE)).data.tags


def test_names_that_only_this_machine_knows_are_shown_by_their_last_part(tmp_path):
    (tmp_path / "judge").mkdir()
    names = ["someone/judge", str(tmp_path / "judge"), "/a/b/tiny.py:happy", "rewards.tiny:happy"]
    assert [shown_name(name) for name in names] == ["someone/judge", "judge", "tiny.py:happy", "rewards.tiny:happy"]
    assert hub_names("someone/rows", None, "~/p.jsonl", "../p", str(tmp_path)) == ["someone/rows"]


def test_policy_body():
    text = policy_card(
        model_id="someone/cheerful",
        base_model=BASE,
        headline="It got better.",
        results=[BeforeAfter("score", 0.25, 0.8)],
        settings={"num_ppo_epochs": 2, "__odd__": "a|b"},
        samples=[SamplePair("Hello", "no", "yes", 0.1, 0.9)],
        curve_image="my curves.png",
        reward_model="someone/judge",
        simulated_annotator=True,
        demonstration=True,
        limits=["Only English."],
    )
    for words in (
        "# cheerful",
        "**Result.** It got better.",
        "| score | 0.25 | 0.80 | +0.55 |",
        "| num_ppo_epochs | 2 |",
        r"| \_\_odd\_\_ | a\|b |",
        "](my%20curves.png)",
        "The reward came from someone/judge.",
        "After (rating 0.90):\n\n```text\nyes\n```",
        "came from a program and not from people",
        "not meant for production",
        "- Only English.",
    ):
        assert words in text


def test_what_is_not_given_is_not_claimed():
    for text in (policy_card(model_id="m", base_model=BASE), reward_model_card(model_id="m", base_model=BASE)):
        for words in (
            "simulated",
            "program",
            "production",
            "## Results",
            "## Samples",
            "## Training settings",
            "![",
            "None",
        ):
            assert words not in text


def test_hostile_samples_stay_inside_their_fence():
    text = policy_card(model_id="m", base_model=BASE, samples=[SamplePair(HOSTILE, HOSTILE, HOSTILE)])
    assert ModelCard(text).data.to_dict() == ModelCard(policy_card(model_id="m", base_model=BASE)).data.to_dict()
    assert text.count(HOSTILE) == 3  # letter for letter, blank lines included
    body = outside_fences(ModelCard(text).text)
    for words in ("<script>", "{{", "49", "license: mit"):
        assert words not in body


def test_hostile_short_values_are_plain_text():
    hostile = "x\n---\n<script>alert(1)</script> {{ 7*7 }} | [a](b) `c` **d**"
    text = policy_card(
        model_id="m",
        base_model=BASE,
        description=hostile,
        headline=hostile,
        results=[BeforeAfter(hostile, 0, 1)],
        settings={hostile: hostile},
        reward_model=hostile,
        limits=[hostile],
        license="apache-2.0",
    )
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    body = outside_fences(card.text)
    assert "<script>" not in body
    assert "\n---\n" not in body
    assert "49" not in body
    assert body.count(inline(hostile)) == 7


def test_metadata_values_cannot_end_the_metadata():
    card = ModelCard(policy_card(model_id="m", base_model=BASE, datasets=["a\n---\nb"]))
    assert card.data.datasets == ["a\n---\nb"]
    assert card.data.library_name == "peft"


def test_fence_is_longer_than_any_run_inside():
    assert fence("plain", "text") == "```text\nplain\n```"
    assert fence("a ````` b").startswith("``````\n")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("num_ppo_epochs", "num_ppo_epochs"),
        ("_a_", r"\_a\_"),
        ("# a\n- b", r"\# a - b"),
        ("<b> & `c`", r"&lt;b&gt; &amp; \`c\`"),
        (0.0005, "0.0005"),
    ],
)
def test_inline(value, expected):
    assert inline(value) == expected


def test_a_local_path_is_not_published(tmp_path):
    (tmp_path / "base").mkdir()
    text = policy_card(model_id="m", base_model=str(tmp_path / "base"))
    assert str(tmp_path) not in text
    assert ModelCard(text).data.base_model is None


@pytest.mark.parametrize("place", ["hf_rlhf/_model_cards", "model_cards"])
def test_templates_are_found_in_a_wheel_and_in_a_checkout(tmp_path, monkeypatch, place):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "policy.md.j2").touch()
    monkeypatch.setattr(model_card, "__file__", str(tmp_path / "hf_rlhf" / "hub" / "model_card.py"))
    assert template_folder() == tmp_path / place


def test_missing_templates_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(model_card, "__file__", str(tmp_path / "hf_rlhf" / "hub" / "model_card.py"))
    with pytest.raises(FileNotFoundError, match="_model_cards"):
        template_folder()


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("kind", ["policy", "reward", "sft"])
def test_the_printed_code_runs(tmp_path, monkeypatch, kind, adapter):
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    text = "<pad> <unk> I just finished painting my kitchen . That sounds lovely ! hope you enjoy it"
    words = text.split()
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    if kind != "reward":
        make = policy_card if kind == "policy" else sft_card
        model, lora = LlamaForCausalLM(config), LoraConfig(r=2, task_type="CAUSAL_LM")
    else:
        config.num_labels = 1
        lora = LoraConfig(r=2, task_type="SEQ_CLS", modules_to_save=["score"])
        model, make = LlamaForSequenceClassification(config), reward_model_card
    (get_peft_model(model, lora) if adapter else model).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)

    code = re.search(
        r"```python\n(.*?)```", make(model_id="adapter", base_model="base", adapter=adapter), flags=re.DOTALL
    )
    assert code is not None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code[1], "model card", "exec"), {})
    assert printed.getvalue().strip()
    if kind == "reward":
        float(printed.getvalue())
