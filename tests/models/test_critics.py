import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import make_lora, make_model, make_sequences, make_tokenizer, perturb, snapshot
from tiny_critics import WHOLE_TEXTS, given_classifier, make_places, scores_of

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapters import POLICY, REFERENCE, base_of
from hf_rlhf.models.critics import build_critic, saved_critics
from hf_rlhf.models.load import load_causal_lm, load_sequence_classifier
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.reward_model import load_reward_model
from hf_rlhf.models.value_model import ValueModel


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


def make_policy(places, kind="value_head", *, lora=True, dtype="float32", **critic):
    """A policy that has moved, with a critic; `lora="adapter"` continues from an adapter."""
    torch.manual_seed(0)
    model = load_causal_lm(places["base"], dtype=dtype)
    if lora == "adapter":
        model = perturb(get_peft_model(model, make_lora()), only="lora")
    model = wrap_policy(model, make_lora() if lora is True else None)
    perturb(model, only=f".{POLICY}." if lora else "", scale=0.1 if lora else 0.01)
    peft_config = model.peft_config[POLICY] if lora else None
    return PolicyWithValue(model, build_critic(kind, model, peft_config=peft_config, **critic))


def nudge(parameters, *, scale=0.1, seed=5):
    """Add noise to what is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += scale * torch.randn(parameter.shape, generator=generator)


def predict(policy, texts=WHOLE_TEXTS):
    return ValueModel(policy.model, policy.critic, make_tokenizer()).predict_value(texts)


def gradients(policy):
    """Return the gradients of what is trained, by name; zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in policy.named_parameters()
        if p.requires_grad
    }


# A start from a reward model


@pytest.mark.parametrize("moved", [False, True], ids=["fresh policy", "policy on an adapter"])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_critic_from_a_reward_adapter_predicts_its_scores(places, kind, moved):
    policy = make_policy(places, kind, start=places["reward"], lora="adapter" if moved else True)
    shared, _ = load_reward_model(places["reward"], policy=policy.model)
    separate, _ = load_reward_model(places["reward"], dtype="float32")
    values = predict(policy)
    assert values == pytest.approx(scores_of(shared), abs=1e-6)
    assert values == pytest.approx(scores_of(separate), abs=1e-5)
    assert torch.tensor(values).std() > 0.1


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("given", [True, False], ids=["object", "folder"])
def test_a_critic_from_a_full_reward_model_predicts_its_scores(places, lora, given):
    start = {"value_model": given_classifier(places)} if given else {"start": places["full_reward"]}
    policy = make_policy(places, "model", lora=lora, **start)
    reward, _ = load_reward_model(places["full_reward"], dtype="float32")
    assert predict(policy) == pytest.approx(scores_of(reward), abs=1e-6)
    assert torch.tensor(predict(policy)).std() > 0.1


def test_a_critic_from_a_lora_reward_model_as_an_object_predicts_its_scores(places):
    classifier = load_sequence_classifier(places["base"], dtype="float32")
    policy = make_policy(places, "model", value_model=PeftModel.from_pretrained(classifier, places["reward"]))
    reward, _ = load_reward_model(places["reward"], dtype="float32")
    assert predict(policy) == pytest.approx(scores_of(reward), abs=1e-6)
    names = {name for name, p in policy.critic.named_parameters() if p.requires_grad and name.startswith("model.")}
    assert names
    assert all("lora_" in name for name in names)


@pytest.mark.parametrize("kind", ["value_head", "adapter", "model"])
def test_a_fresh_critic_says_zero(places, kind):
    assert predict(make_policy(places, kind)) == [0.0] * len(WHOLE_TEXTS)


# Who learns from what


KINDS = {
    "value_head": {"kind": "value_head", "detach": True},
    "adapter": {"kind": "adapter"},
    "model": {"kind": "model"},
    "full policy, value_head": {"kind": "value_head", "lora": False, "detach": True},
    "full policy, model": {"kind": "model", "lora": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_shares_nothing_learns_from_its_own_loss_alone(places, kind):
    policy, sequences = make_policy(places, **KINDS[kind]), make_sequences()
    nudge(policy.critic_parameters())
    of_critic = {id(parameter) for parameter in policy.critic_parameters()}
    critics = {name for name, parameter in policy.named_parameters() if id(parameter) in of_critic}
    policy(sequences).values.sum().backward()
    assert {name for name, gradient in gradients(policy).items() if gradient.any()} == critics
    policy.zero_grad()
    policy(sequences).logprobs.sum().backward()
    policies = {name for name, gradient in gradients(policy).items() if gradient.any()}
    assert policies == set(gradients(policy)) - critics
    assert policies


def test_a_head_on_the_policys_states_teaches_the_policy(places):
    policy = make_policy(places)
    perturb(policy.critic)
    policy(make_sequences()).values.sum().backward()
    assert all(gradient.any() for gradient in gradients(policy).values())


@pytest.mark.parametrize("moved", [False, True], ids=["fresh policy", "policy on an adapter"])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_critic_changes_nothing_that_the_policy_and_its_reference_say(places, kind, moved):
    lora = "adapter" if moved else True
    plain, policy = make_policy(places, lora=lora), make_policy(places, kind, lora=lora, start=places["reward"])
    sequences = make_sequences()
    modes = {name: module.training for name, module in policy.named_modules()}
    needed = {name: parameter.requires_grad for name, parameter in policy.named_parameters()}
    assert sum(needed.values()) == len(policy.critic_parameters()) + len(policy.policy_parameters())
    with torch.no_grad():
        for _ in range(2):  # the second time after the critic was at work
            assert torch.equal(policy(sequences).logprobs, plain(sequences).logprobs)
            assert torch.equal(
                policy(sequences, reference=True).reference_logprobs,
                plain(sequences, reference=True).reference_logprobs,
            )
            nudge(policy.critic_parameters())
    assert policy.model.active_adapter == POLICY
    assert {name: module.training for name, module in policy.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in policy.named_parameters()} == needed
    assert (REFERENCE in policy.model.peft_config) == moved


@pytest.mark.parametrize("detach", [True, False])
def test_every_trained_parameter_takes_part_in_a_batch_without_counted_tokens(places, detach):
    """DDP waits for a gradient of each, on every rank."""
    for kind in ("value_head", "adapter", "model"):
        policy, sequences = make_policy(places, kind, detach=detach and kind == "value_head"), make_sequences()
        sequences.mask[:] = False
        output = policy(sequences)
        (output.logprobs.sum() + output.values.sum()).backward()
        assert all(parameter.grad is not None for parameter in policy.parameters() if parameter.requires_grad)


# Gradient checkpointing


@pytest.mark.parametrize("saved", ["down_proj", "post_attention_layernorm", "mlp"])
def test_a_copied_layer_of_the_policy_is_not_the_critics_in_recomputation(saved):
    """The critic's pass runs with the base's layer, and so does its recomputation."""
    gradients = []
    for checkpointing in (False, True):
        policy = wrap_policy(
            make_model(make_tokenizer()), make_lora(modules_to_save=[saved], target_modules=["q_proj", "v_proj"])
        )
        model = PolicyWithValue(policy, build_critic("adapter", policy))
        perturb(model, only="lora")
        perturb(model, only="modules_to_save", scale=0.5)
        perturb(model.value_head)
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model(make_sequences()).values.pow(2).sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, dtype) for kind in ("value_head", "adapter", "model") for dtype in ("float32", "bfloat16")]
    + [("full policy, model", "float32")],
)
def test_gradient_checkpointing_changes_no_gradient(places, kind, dtype):
    settings = {"kind": "value_head"} if kind == "value_head" else KINDS[kind]
    found = []
    for checkpointing in (False, True):
        policy = make_policy(places, dtype=dtype, mlp_size=4, init_std=1.0, **settings).train()
        nudge(policy.critic_parameters())
        if checkpointing:
            policy.gradient_checkpointing_enable()
            models = [policy.model] if kind in ("value_head", "adapter") else [policy.model, policy.critic.model]
            assert all(base_of(model).is_gradient_checkpointing for model in models)
        output = policy(make_sequences())
        (output.logprobs.sum() + output.values.square().sum()).backward()
        found.append(gradients(policy))
    plain, recomputed = found
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-5)


# Saving


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("start", [None, "reward", "full_reward"])
def test_a_saved_model_is_a_plain_sequence_classifier(places, tmp_path, lora, start):
    from transformers import AutoModelForSequenceClassification

    policy = make_policy(places, "model", lora=lora, start=None if start is None else places[start])
    nudge(policy.critic_parameters())
    torch.nn.init.zeros_(policy.value_head.summary.bias)
    policy.save_pretrained(tmp_path)
    folder = tmp_path / "critic"
    if (folder / "adapter_config.json").is_file():
        from peft import AutoPeftModelForSequenceClassification

        classifier = AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    else:
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        scores = [classifier.eval()(input_ids=torch.tensor([ids])).logits.item() for ids in WHOLE_TEXTS]
    assert predict(policy) == pytest.approx(scores, abs=1e-5)
    assert torch.tensor(scores).std() > 0.1


@pytest.mark.parametrize("start", [None, "reward"])
def test_a_saved_adapter_is_a_plain_adapter_on_the_base(places, tmp_path, start):
    policy = make_policy(places, "adapter", start=start and places[start])
    nudge(policy.critic_parameters())
    policy.save_pretrained(tmp_path)
    base = load_causal_lm(places["base"], dtype="float32")
    loaded = PeftModel.from_pretrained(base, tmp_path / "critic").eval()
    head = load_file(tmp_path / "critic" / "value_head.safetensors")
    for ids, value in zip(WHOLE_TEXTS, predict(policy), strict=True):
        with torch.no_grad():
            states = loaded(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
        expected = states @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
        assert value == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_the_policy_beside_a_critic_loads_with_plain_peft(places, tmp_path, kind):
    policy = make_policy(places, kind, start=places["reward"])
    policy.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(load_causal_lm(places["base"], dtype="float32"), tmp_path).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, policy.eval().model(ids).logits)
    assert saved_critics(tmp_path) == [kind]


# Continuing from an earlier run


def moved_run(places, folder, kind, **settings):
    policy = make_policy(places, kind, **settings)
    nudge(policy.critic_parameters())
    policy.save_pretrained(folder)
    assert saved_critics(folder) == [kind]
    return policy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mlp_size", [None, 4])
def test_a_critic_goes_on_from_an_earlier_run(places, tmp_path, kind, mlp_size):
    earlier = moved_run(places, tmp_path, **KINDS[kind], mlp_size=mlp_size)
    policy = make_policy(places, **KINDS[kind], start=str(tmp_path), mlp_size=mlp_size)
    assert predict(policy) == predict(earlier)
    before = snapshot(policy)
    optimizer = torch.optim.SGD(policy.critic_parameters(), lr=0.1)
    for _ in range(2):
        policy(make_sequences()).values.square().sum().backward()
        optimizer.step()
    moved = {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}
    assert len(moved) == len(policy.critic_parameters())
    trained = [len(p.critic_parameters()) for p in (policy, earlier)]
    assert trained[0] == trained[1]


@pytest.mark.parametrize(("kind", "lora"), [("adapter", True), ("model", True), ("model", False)])
def test_a_value_head_of_an_earlier_run_becomes_a_critic_of_its_own(places, tmp_path, kind, lora):
    earlier = moved_run(places, tmp_path, "value_head", lora=lora)
    policy = make_policy(places, kind, lora=lora, start=str(tmp_path))
    assert predict(policy) == pytest.approx(predict(earlier), abs=1e-5)


def test_a_lora_model_becomes_an_adapter(places, tmp_path):
    earlier = moved_run(places, tmp_path, "model")
    assert predict(make_policy(places, "adapter", start=str(tmp_path))) == pytest.approx(predict(earlier), abs=1e-5)


# What does not fit


def test_a_reward_of_another_base_is_no_adapter(places):
    with pytest.raises(InputError, match=r'an adapter of .*Take critic="model"'):
        make_policy({"base": places["other"]}, "adapter", start=places["reward"])


def test_a_full_reward_model_is_no_adapter(places):
    with pytest.raises(InputError, match="no adapter"):
        make_policy(places, "adapter", start=places["full_reward"])


@pytest.mark.parametrize("place", ["reward", "full_reward", "base"])
def test_a_value_head_does_not_start_from_a_reward_model(places, place):
    with pytest.raises(InputError, match=r"no value_head\.safetensors"):
        make_policy(places, start=places[place])


@pytest.mark.parametrize("kind", ["value_head", "adapter"])
def test_a_model_of_its_own_is_no_other_kind_of_critic(places, kind):
    with pytest.raises(InputError, match='Set critic="model"'):
        make_policy(places, kind, value_model=given_classifier(places))


def test_a_given_model_and_a_path_are_an_error(places):
    with pytest.raises(InputError, match="critic_path"):
        make_policy(places, "model", value_model=given_classifier(places), start=places["full_reward"])


def test_a_model_without_a_trained_head_is_no_start(places):
    with pytest.raises(InputError, match="no trained score head"):
        make_policy(places, "model", start=places["base"])


def test_a_model_is_no_longer_fresh_when_nobody_knows_its_base():
    model = wrap_policy(make_model(make_tokenizer()), make_lora())
    with pytest.raises(InputError, match="critic_path or value_model"):
        build_critic("model", model, peft_config=model.peft_config[POLICY])


def test_a_given_model_with_two_labels_is_an_error(places):
    from transformers import AutoModelForSequenceClassification

    two = AutoModelForSequenceClassification.from_pretrained(places["base"], num_labels=2)
    with pytest.raises(InputError, match="2 labels"):
        make_policy(places, "model", value_model=two)


def test_a_causal_lm_is_no_given_model(places):
    with pytest.raises(InputError, match="value_model"):
        make_policy(places, "model", value_model=load_causal_lm(places["base"], dtype="float32"))


def encoder(vocab_size):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=vocab_size, num_labels=1, **sizes))


@pytest.mark.parametrize("given", ["object", "folder", "adapter"])
def test_an_encoder_is_no_critic(places, tmp_path, given):
    """Its states depend on the tokens that are still to come."""
    model = encoder(40)
    model.save_pretrained(tmp_path / "encoder")
    start = {"start": str(tmp_path / "encoder")}
    if given == "object":
        start = {"value_model": model}
    elif given == "adapter":
        model = load_sequence_classifier(str(tmp_path / "encoder"), dtype="float32")
        config = make_lora(task_type="SEQ_CLS", modules_to_save=["classifier"])
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
        start = {"start": str(tmp_path / "adapter")}
    with pytest.raises(InputError, match="decoder with a score layer"):
        make_policy(places, "model", **start)


def test_a_given_model_is_not_trained_whole_in_bf16(places):
    model = load_sequence_classifier(places["full_reward"], dtype="bfloat16")
    with pytest.raises(InputError, match="float32"):
        make_policy(places, "model", lora=False, value_model=model)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_what_a_critic_trains_is_fp32_on_a_bf16_base(places, tmp_path, kind):
    """Also embeddings that a reward adapter brings (`modules_to_save`), which PEFT leaves in the dtype of the base."""
    config = make_lora(task_type="SEQ_CLS", modules_to_save=["embed_tokens", "score"])
    get_peft_model(load_sequence_classifier(places["base"]), config).save_pretrained(tmp_path / "own")
    policy = make_policy(places, kind, dtype="bfloat16", start=str(tmp_path / "own"))
    trained = policy.critic_parameters()
    assert any(parameter.shape == (29, 32) for parameter in trained)
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_a_head_of_another_size_is_an_error(places, tmp_path):
    moved_run(places, tmp_path, "value_head")
    with pytest.raises(InputError, match="value_head_mlp_size=4"):
        make_policy(places, start=str(tmp_path), mlp_size=4)
    with pytest.raises(InputError, match="value_head_mlp_size=4"):
        make_policy(places, "adapter", start=places["reward"], mlp_size=4)


def test_a_run_on_the_hub_is_read_with_its_critic(places, tmp_path, monkeypatch):
    """Critics lie in files that no adapter has."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    earlier = moved_run(places, tmp_path / "run", "adapter")

    def download(name, filename):
        if not (tmp_path / "run" / filename).is_file():
            raise LocalEntryNotFoundError(filename)
        return str(tmp_path / "run" / filename)

    def snapshot_download(name, allow_patterns=None, ignore_patterns=None):
        from huggingface_hub.utils import filter_repo_objects

        files = [str(f.relative_to(tmp_path / "run")) for f in (tmp_path / "run").rglob("*") if f.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            target = tmp_path / "cache" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((tmp_path / "run" / file).read_bytes())
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert predict(make_policy(places, "adapter", start="someone/run")) == predict(earlier)
