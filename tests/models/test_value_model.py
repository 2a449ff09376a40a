import pytest
import torch
from tiny import make_lora, make_prompts, make_tokenizer, perturb
from tiny_critics import WHOLE_TEXTS, make_places

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import POLICY
from hf_rlhf.models.critics import build_critic
from hf_rlhf.models.load import load_causal_lm
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.value_model import ValueModel, load_value_model
from hf_rlhf.types import Sequences


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


@pytest.fixture(params=["value_head", "adapter", "model"])
def policy(places, request):
    model = perturb(wrap_policy(load_causal_lm(places["base"], dtype="float32"), make_lora()), only="lora")
    critic = build_critic(request.param, model, peft_config=model.peft_config[POLICY])
    policy = PolicyWithValue(model, critic)
    perturb(perturb(policy, only=".critic."), only="head.")
    return policy.eval()


@pytest.fixture
def folder(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_value_of_a_prompt_is_that_of_the_state_before_its_completion(policy, folder):
    """Whatever the completion, the batch and the padding."""
    values = load_value_model(folder, dtype="float32").predict_value(WHOLE_TEXTS)
    with torch.no_grad():
        alone = [policy(Sequences.from_ids([ids], [[7, 8, 9]])).values[0, 0].item() for ids in WHOLE_TEXTS]
    assert values == pytest.approx(alone, abs=1e-5)
    assert torch.tensor(values).std() > 0.01


def test_batches_change_no_value(folder):
    model = load_value_model(folder, dtype="float32")
    prompts = make_prompts(7)["prompt"]
    whole = model.predict_value(prompts)
    for size in (1, 3, 100):
        assert model.predict_value(prompts, batch_size=size) == pytest.approx(whole, abs=1e-5)


def test_text_messages_and_ids_mean_the_same(folder):
    model, tokenizer = load_value_model(folder, dtype="float32"), make_tokenizer()
    messages = [[{"role": "user", "content": "the cat sat"}], [{"role": "user", "content": "no !"}]]
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    assert model.predict_value(messages) == model.predict_value(texts) == model.predict_value(ids)


@pytest.mark.parametrize("fails", [False, True])
def test_asking_for_values_leaves_every_mode_as_it_was(policy, fails, monkeypatch):
    def broken(hidden):
        raise IndexError("no value")

    policy.train()
    policy.critic.head.eval()
    modes = {name: module.training for name, module in policy.named_modules()}
    model = ValueModel(policy.model, policy.critic, make_tokenizer())
    if fails:
        monkeypatch.setattr(policy.critic.head, "forward", broken)
        with pytest.raises(IndexError):
            model.predict_value(WHOLE_TEXTS)
    else:
        model.predict_value(WHOLE_TEXTS)
    assert {name: module.training for name, module in policy.named_modules()} == modes


def test_dropout_reaches_no_value(places):
    model = load_causal_lm(places["base"], dtype="float32", attention_dropout=0.5)
    policy = PolicyWithValue(wrap_policy(model, make_lora(lora_dropout=0.5))).train()
    perturb(perturb(policy.critic), only="head")
    values = ValueModel(policy.model, policy.critic, make_tokenizer())
    assert values.predict_value(WHOLE_TEXTS) == values.predict_value(WHOLE_TEXTS)


def test_a_folder_without_a_critic_is_an_error(places):
    for place in ("base", "reward", "full_reward"):
        with pytest.raises(InputError, match="holds no critic"):
            load_value_model(places[place])


def test_a_critic_without_its_head_is_an_error(policy, folder, tmp_path):
    next(tmp_path.rglob("value_head.safetensors")).unlink()
    with pytest.raises(InputError, match=r"no value_head\.safetensors|holds no critic"):
        load_value_model(folder)


def test_no_prompts_are_an_error(folder):
    with pytest.raises(InputError, match="no prompts"):
        load_value_model(folder).predict_value([])
