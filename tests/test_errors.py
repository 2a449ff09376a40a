"""Refusals of a library are told from bugs."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_config
from transformers import AutoConfig, PreTrainedConfig, Trainer, TrainerCallback, get_scheduler

from hf_rlhf.errors import InputError, refusals_of_libraries


def message_of(call, *settings, **kwargs):
    with pytest.raises(InputError) as caught, refusals_of_libraries(*settings, **kwargs):
        call()
    return str(caught.value)


def test_a_refusal_keeps_its_words_and_names_the_flag(tmp_path):
    args = make_config(tmp_path, optim="adamw_8bit")
    message = message_of(lambda: Trainer.get_optimizer_cls_and_kwargs(args), args, blamed=["optim"])
    assert message.startswith("optim=adamw_8bit is invalid: ")
    assert "`pip install -U bitsandbytes`" in message
    assert message.endswith("(says transformers)")


def test_a_flag_that_the_message_names_goes_before_those_that_are_blamed(tmp_path, model):
    args = make_config(tmp_path, torch_empty_cache_steps=7)
    lora = LoraConfig(target_modules=["no_such_layer"])
    assert message_of(lambda: get_peft_model(model, lora)).startswith("the settings are invalid: ")
    assert "(says peft)" in message_of(lambda: get_peft_model(model, lora))

    def refuse():
        AutoConfig.for_model("torch_empty_cache_steps")  # which transformers does, and repeats the word

    assert message_of(refuse, args, blamed=["max_steps"]).startswith("torch_empty_cache_steps=7 is invalid: ")


def test_a_flag_whose_value_the_message_repeats(tmp_path):
    """And a refusal that the standard library words for a library, here that of an Enum."""
    from accelerate.utils import TorchDynamoPlugin

    args = make_config(tmp_path, run_name="foo")
    message = message_of(lambda: TorchDynamoPlugin(backend="foo"), args, blamed=["max_steps"])
    assert message == "run_name=foo is invalid: 'FOO' is not a valid DynamoBackend (says accelerate)"


def test_keyword_arguments_of_the_user_are_a_refusal():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    refused = {"num_warmup_steps": 0, "num_training_steps": 4, "scheduler_specific_kwargs": {"a": 1}}
    assert "unexpected keyword argument 'a'" in message_of(lambda: get_scheduler("cosine", optimizer, **refused))
    refused["scheduler_specific_kwargs"] = "a"
    assert "must be a mapping, not str" in message_of(lambda: get_scheduler("cosine", optimizer, **refused))


def test_a_callback_of_the_users_that_takes_no_more_arguments_is_no_refusal(tmp_path, model):
    class Narrow(TrainerCallback):
        def on_train_begin(self, args, state, control):
            """Without `**kwargs`, which Trainer gives."""

    trainer = Trainer(model, make_config(tmp_path), callbacks=[Narrow()])
    with pytest.raises(TypeError, match="on_train_begin"), refusals_of_libraries(trainer.args):
        trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_a_damaged_file_is_no_refusal(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match="Expecting value"), refusals_of_libraries():
        PreTrainedConfig._dict_from_json_file(tmp_path / "config.json")


def _bug_in_here():
    raise ValueError("ours")


def _bug_in_a_library():
    get_peft_model(None, LoraConfig())  # AttributeError: None has no config


def _wrong_call():
    get_scheduler("cosine", no_such_argument=1)  # fails here, and not in the library


@pytest.mark.parametrize("bug", [_bug_in_here, _bug_in_a_library, _wrong_call])
def test_a_bug_stays_what_it_is(bug):
    with pytest.raises((ValueError, AttributeError, TypeError)) as caught, refusals_of_libraries():
        bug()
    assert not isinstance(caught.value, InputError)


def test_nothing_is_a_refusal_once_training_has_begun(model):
    lora = LoraConfig(target_modules=["no_such_layer"])
    with pytest.raises(ValueError, match="no_such_layer") as caught, refusals_of_libraries(until=lambda: True):
        get_peft_model(model, lora)
    assert not isinstance(caught.value, InputError)
