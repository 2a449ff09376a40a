"""A policy against the model it started from."""

import pytest
from peft import get_peft_model
from tiny import make_lora, make_model, make_tokenizer

from hf_rlhf.data.prompts import prompt_rows
from hf_rlhf.evaluation.before_after import measure_side
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling

OPENED = "<|im_start|> assistant {{ '<think> ' if thinking }}"


@pytest.mark.parametrize(("kwargs", "begun"), [({"thinking": True}, True), (None, False)], ids=["on", "off"])
def test_both_sides_have_what_the_runs_template_arguments_began(kwargs, begun):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|> assistant {% endif", OPENED + "{% endif")
    assert OPENED in tokenizer.chat_template
    rows = prompt_rows([[{"role": "user", "content": "hello"}]], tokenizer, chat_template_kwargs=kwargs)
    model = get_peft_model(make_model(tokenizer), make_lora())
    for adapter in (False, True):
        side = measure_side(
            model,
            TransformersEngine(model, tokenizer),
            rows,
            Sampling(max_completion_length=3),
            [0],
            adapter=adapter,
            judge=lambda trajectory: 0.0,
            reward=lambda prompts, completions: [0.0] * len(completions),
            chat_template_kwargs=kwargs,
        )
        assert side.trajectories[0].text.startswith("<think> ") == begun
