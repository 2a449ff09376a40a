import pytest
import torch
from rollout.draws import chi_squared_of_draws
from tiny import make_lora, make_model, make_tokenizer, perturb
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MistralConfig, MistralForCausalLM

from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.rollout.collect import collect
from hf_rlhf.rollout.engines import TransformersEngine, _head_in_pieces
from hf_rlhf.rollout.sampling import Sampling, row_seed, uniform_draws
from hf_rlhf.types import Sequences

PROMPTS = [[5, 9, 12], [8], [7, 7, 7, 11, 13, 20], [14, 2], [10, 9, 8, 7], [21, 22], [6]]
SEEDS = [row_seed(0, row) for row in range(len(PROMPTS))]


@pytest.fixture
def policy(tokenizer):
    model = wrap_policy(make_model(tokenizer), make_lora())
    return perturb(PolicyWithValue(model), only="lora").eval()


@pytest.fixture
def engine(policy, tokenizer):
    return TransformersEngine(policy.model, tokenizer)


@pytest.fixture
def never_stopping(tokenizer):
    """An engine whose model has no end token of its own."""
    tokenizer.eos_token = None
    model = make_model(tokenizer, eos_token_id=None)
    model.generation_config.eos_token_id = None
    return TransformersEngine(model.eval(), tokenizer)


def make_sliding_model(tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        eos_token_id=tokenizer.eos_token_id,
    )
    return MistralForCausalLM(config)


def step_logits(model, prompt, completion):
    """Logits of each step of `completion`, without padding and without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion.ids]])).logits[0].float()
    return logits[len(prompt) - 1 : -1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_completion_length=10, stop_token_ids=(9, 10, 11)),
        Sampling(max_completion_length=10, temperature=0.7, top_k=5, top_p=0.9),
        Sampling(max_completion_length=10, temperature=0),
    ],
    ids=["plain", "truncated", "greedy"],
)
def test_a_completion_depends_on_its_prompt_and_seed_alone(policy, tokenizer, sampling):
    whole = TransformersEngine(policy.model, tokenizer).generate(PROMPTS, sampling, SEEDS)
    assert len({len(completion.ids) for completion in whole}) > 1
    order = [4, 0, 6, 2, 5, 1, 3]
    for size, rows in ((1, range(7)), (3, range(7)), (None, order), (2, order[:5])):
        engine = TransformersEngine(policy.model, tokenizer, batch_size=size)
        batch = engine.generate([PROMPTS[row] for row in rows], sampling, [SEEDS[row] for row in rows])
        for row, completion in zip(rows, batch, strict=True):
            assert completion.ids == whole[row].ids
            assert completion.stopped == whole[row].stopped
            assert completion.logprobs == pytest.approx(whole[row].logprobs, abs=1e-5)


def test_another_seed_gives_another_completion(engine):
    sampling = Sampling(max_completion_length=10)
    first = engine.generate(PROMPTS, sampling, SEEDS)
    second = engine.generate(PROMPTS, sampling, [seed + 1 for seed in SEEDS])
    assert sum(a.ids != b.ids for a, b in zip(first, second, strict=True)) >= 6


def test_padding_that_equals_the_end_token_changes_nothing(policy):
    sampling = Sampling(max_completion_length=30)
    separate, same = (
        TransformersEngine(policy.model, make_tokenizer(pad_is_eos=pad_is_eos)).generate(
            PROMPTS * 4, sampling, list(range(28))
        )
        for pad_is_eos in (False, True)
    )
    assert len({len(completion.ids) for completion in separate if completion.stopped}) > 3
    assert [completion.ids for completion in separate] == [completion.ids for completion in same]


def test_greedy_takes_the_argmax_of_the_plain_model(engine, policy):
    for prompt, completion in zip(
        PROMPTS, engine.generate(PROMPTS, Sampling(max_completion_length=8, temperature=0), SEEDS), strict=True
    ):
        assert step_logits(policy.model, prompt, completion).argmax(-1).tolist() == completion.ids
        assert completion.logprobs == [0.0] * len(completion.ids)  # there was no choice


def test_one_token_to_choose_from_is_greedy(engine):
    greedy = engine.generate(PROMPTS, Sampling(max_completion_length=8, temperature=0), SEEDS)
    top_1 = engine.generate(PROMPTS, Sampling(max_completion_length=8, top_k=1, temperature=2.0), SEEDS)
    assert [completion.ids for completion in top_1] == [completion.ids for completion in greedy]
    assert all(abs(logprob) < 1e-6 for completion in top_1 for logprob in completion.logprobs)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("top_k", [0, 4])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_recorded_logprobs_are_of_the_distribution_that_was_sampled_from(engine, policy, temperature, top_k, top_p):
    sampling = Sampling(max_completion_length=8, temperature=temperature, top_k=top_k, top_p=top_p)
    completions = engine.generate(PROMPTS, sampling, SEEDS)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        logits = step_logits(policy.model, prompt, completion) / temperature
        for step, (token, logprob) in enumerate(zip(completion.ids, completion.logprobs, strict=True)):
            order = logits[step].argsort(descending=True)
            kept = order[: top_k or len(order)]
            probabilities = logits[step, kept].softmax(-1)
            kept = kept[probabilities.cumsum(-1) - probabilities < top_p]  # up to and with the one that reaches top_p
            assert token in kept
            expected = logits[step, kept].log_softmax(-1)[kept.tolist().index(token)]
            assert logprob == pytest.approx(expected.item(), abs=1e-5)
            if sampling.truncated:
                assert sorted(completion.support[step].tolist()) == sorted(kept.tolist())
    if not sampling.truncated:
        assert all(completion.support is None for completion in completions)

    sequences = Sequences.from_ids(
        PROMPTS,
        [completion.ids for completion in completions],
        None,
        [completion.support for completion in completions],
    )
    with torch.no_grad():
        forward = policy(sequences, temperature=temperature).logprobs
    for row, completion in zip(forward, completions, strict=True):
        torch.testing.assert_close(row[: len(completion.ids)], torch.tensor(completion.logprobs), rtol=1e-5, atol=1e-5)


def test_min_p_keeps_what_is_likely_enough(engine, policy):
    completions = engine.generate(PROMPTS, Sampling(max_completion_length=6, min_p=0.3), SEEDS)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        probabilities = step_logits(policy.model, prompt, completion).softmax(-1)
        for row, support in zip(probabilities, completion.support, strict=True):
            assert support.tolist() == (row >= 0.3 * row.max()).nonzero().squeeze(1).tolist()


def test_draws_follow_the_softmax(engine, policy):
    """28 degrees of freedom stay below 62 in all but 2 of 10,000 cases."""
    assert chi_squared_of_draws(engine, policy.model, PROMPTS[0], draws=4000) < 62


def test_any_of_several_end_tokens_stops_a_completion(policy, tokenizer):
    causal_lm = policy.model.get_base_model()
    causal_lm.generation_config.eos_token_id = [10, 11]
    sampling = Sampling(max_completion_length=40, stop_token_ids=(12,))
    ends = {tokenizer.eos_token_id, 10, 11, 12}
    completions = TransformersEngine(policy.model, tokenizer).generate(PROMPTS * 4, sampling, list(range(28)))
    assert {completion.ids[-1] for completion in completions if completion.stopped} == ends
    for completion in completions:
        assert ends.isdisjoint(completion.ids[:-1])
        assert completion.stopped == (completion.ids[-1] in ends)
        assert len(completion.ids) == len(completion.logprobs)


@pytest.mark.parametrize("kind", ["llama", "mistral"], ids=["whole", "sliding window"])
def test_rows_that_have_stopped_cost_nothing_more(tokenizer, kind):
    model = make_model(tokenizer) if kind == "llama" else make_sliding_model(tokenizer)
    engine = TransformersEngine(model.eval(), tokenizer)
    widths = []
    watch = model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    sampling = Sampling(max_completion_length=40, stop_token_ids=(9, 10, 11, 12), top_k=12)
    seeds = list(range(28))
    completions = engine.generate(PROMPTS * 4, sampling, seeds)
    watch.remove()
    longest = max(len(completion.ids) for completion in completions)
    assert len({len(completion.ids) for completion in completions}) > 4
    assert sum(widths) <= 2 * sum(len(completion.ids) for completion in completions) < 28 * longest
    one_by_one = TransformersEngine(model, tokenizer, batch_size=1).generate(PROMPTS * 4, sampling, seeds)
    for together, alone in zip(completions, one_by_one, strict=True):
        assert (together.ids, together.stopped) == (alone.ids, alone.stopped)
        assert together.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert [ids.tolist() for ids in together.support] == [ids.tolist() for ids in alone.support]


def test_the_length_limit_cuts_off_without_stopping(never_stopping):
    completions = never_stopping.generate(PROMPTS, Sampling(max_completion_length=7), SEEDS)
    assert [len(completion.ids) for completion in completions] == [7] * len(PROMPTS)
    assert not any(completion.stopped for completion in completions)


def test_an_end_token_on_the_last_place_counts_as_stopped(engine, tokenizer):
    completions = engine.generate(PROMPTS * 20, Sampling(max_completion_length=1), list(range(140)))
    assert {completion.stopped for completion in completions} == {True, False}
    for completion in completions:
        assert completion.stopped == (completion.ids == [tokenizer.eos_token_id])


def test_an_end_token_in_the_prompt_stops_nothing(engine, tokenizer):
    end = tokenizer.eos_token_id
    completion = engine.generate([[5, end, 9, end]], Sampling(max_completion_length=3, temperature=0), [1])[0]
    assert completion.ids
    assert end not in completion.ids[:-1]


def test_a_stop_string_of_several_tokens_ends_a_completion():
    """The byte-level decoder joins the letters, so that "ab" spans two tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"<pad>": 0, "a": 1, "b": 2, "c": 3, "d": 4}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    model = make_model(tokenizer, eos_token_id=None).eval()
    model.generation_config.eos_token_id = None
    prompts, seeds = [[1], [2, 3], [3, 1], [1, 2]] * 4, list(range(16))
    sampling = Sampling(max_completion_length=12, stop_strings=("ab", "dd"))
    completions = TransformersEngine(model, tokenizer).generate(prompts, sampling, seeds)
    assert {completion.stopped for completion in completions} == {True, False}
    for completion in completions:
        text = "".join("?abcd"[token] for token in completion.ids)
        ends = [at + 2 for at in range(len(text)) if text[at : at + 2] in sampling.stop_strings]
        assert ends == ([len(text)] if completion.stopped else [])
        assert completion.stopped or len(completion.ids) == 12


@pytest.mark.parametrize(
    "bend",
    [
        {"repetition_penalty": 5.0},
        {"top_k": 1, "do_sample": True},
        {"temperature": 0.01, "do_sample": True},
        {"bad_words_ids": [[token] for token in range(4, 20)]},
        {"min_new_tokens": 9},
        {"max_length": 3},
        {"num_beams": 2},
        {"suppress_tokens": [8, 9, 10]},
    ],
    ids=lambda bend: next(iter(bend)),
)
def test_the_models_own_generation_config_bends_nothing_and_comes_back(engine, policy, bend):
    causal_lm = policy.model.get_base_model()
    sampling = Sampling(max_completion_length=10)
    wanted = engine.generate(PROMPTS, sampling, SEEDS)
    own = causal_lm.generation_config
    for name, value in bend.items():
        setattr(own, name, value)
    assert [completion.ids for completion in engine.generate(PROMPTS, sampling, SEEDS)] == [
        completion.ids for completion in wanted
    ]
    assert causal_lm.generation_config is own
    for name, value in bend.items():
        assert getattr(own, name) == value


def test_damaged_weights_raise_and_leave_config_and_mode_as_they_were(engine, policy):
    causal_lm = policy.model.get_base_model()
    own = causal_lm.generation_config
    policy.model.train()
    causal_lm.lm_head.weight.data[:, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN logits for token 1"):
        engine.generate(PROMPTS, Sampling(max_completion_length=4), SEEDS)
    assert causal_lm.generation_config is own
    assert policy.model.training


def test_sampling_has_no_dropout_and_restores_the_mode(tokenizer):
    model = make_model(tokenizer, attention_dropout=0.5)
    engine, sampling = TransformersEngine(model, tokenizer), Sampling(max_completion_length=8)
    model.train()
    first, second = (engine.generate(PROMPTS, sampling, SEEDS) for _ in range(2))
    assert [completion.ids for completion in first] == [completion.ids for completion in second]
    assert model.training


def test_no_prompts_give_no_completions(engine, tokenizer):
    assert engine.generate([], Sampling(), []) == []
    assert collect(engine, [], tokenizer, Sampling(), []) == []


def test_a_stop_token_outside_of_the_vocabulary_is_an_error(engine):
    with pytest.raises(InputError, match="1000"):
        engine.generate(PROMPTS, Sampling(stop_token_ids=(1000,)), SEEDS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 1.0},
        {"max_completion_length": 0},
    ],
)
def test_impossible_sampling_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_a_rows_random_numbers_do_not_depend_on_the_other_rows():
    together = uniform_draws(SEEDS, 5)
    for row, seed in enumerate(SEEDS):
        assert torch.equal(uniform_draws([seed], 5)[0], together[row])
    assert (together >= 0).all()
    assert (together < 1).all()


def test_seeds_differ_in_every_part():
    assert len({row_seed(*parts) for parts in ((0, 1, 2), (0, 1, 3), (0, 2, 2), (1, 1, 2), (0, 12), (0, 1, 2, 0))}) == 6
    assert row_seed(1, "train", 2) == row_seed(1, "train", 2)


def test_collect_pairs_rows_with_their_completions(engine, tokenizer):
    rows = [{"prompt": str(number), "prompt_ids": ids, "number": number} for number, ids in enumerate(PROMPTS)]
    sampling = Sampling(max_completion_length=6)
    trajectories = collect(engine, rows, tokenizer, sampling, SEEDS)
    for trajectory, row, completion in zip(trajectories, rows, engine.generate(PROMPTS, sampling, SEEDS), strict=True):
        assert trajectory.row is row
        assert trajectory.prompt_ids == row["prompt_ids"]
        assert trajectory.completion.ids == completion.ids
        assert trajectory.text == tokenizer.decode(completion.ids, skip_special_tokens=True)
        assert trajectory.completion_mask == [True] * len(completion.ids)


def test_every_sampled_token_is_counted_for_a_progress_bar(tokenizer):
    tokenizer.eos_token = None
    model = make_model(tokenizer, eos_token_id=None)
    model.generation_config.eos_token_id = None
    counts = []
    engine = TransformersEngine(model.eval(), tokenizer, batch_size=4, on_tokens=counts.append)
    engine.generate(PROMPTS, Sampling(max_completion_length=3), SEEDS)
    assert counts == [4, 4, 4, 3, 3, 3]


WIDE = 10_000  # words: six pieces and a part of one


@pytest.fixture
def with_mkl(monkeypatch):
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: True)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 1, 32), (7, 3, 32), (64, 32)])
def test_a_head_in_pieces_says_what_the_whole_one_says(tokenizer, with_mkl, shape):
    model = make_model(tokenizer, vocab_size=WIDE)
    hidden = torch.randn(shape)
    plain = model.lm_head(hidden)
    with _head_in_pieces(model):
        logits = model.lm_head(hidden)
    torch.testing.assert_close(logits, plain, rtol=1e-6, atol=1e-6)
    assert logits.is_contiguous()
    assert "forward" not in vars(model.lm_head)


def test_a_head_in_pieces_makes_no_tensor_as_large_as_its_weight(tokenizer, with_mkl):
    model, sizes = make_model(tokenizer, vocab_size=WIDE), []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.out:
                sizes.append(result.shape[1])
            else:
                assert func.is_view or result.numel() < model.lm_head.weight.numel()
            return result

    with torch.no_grad(), _head_in_pieces(model), Sizes():
        model.lm_head(torch.randn(16, 1, 32))
    assert sizes == [1536] * 6 + [784]


def test_a_wide_head_samples_the_same_in_pieces(tokenizer, with_mkl, monkeypatch):
    engine = TransformersEngine(make_model(tokenizer, vocab_size=WIDE).eval(), tokenizer)
    product, calls = torch.mm, []
    monkeypatch.setattr("torch.mm", lambda *args, **kwargs: calls.append(args) or product(*args, **kwargs))
    in_pieces = engine.generate(PROMPTS, Sampling(max_completion_length=6), SEEDS)
    assert len(calls) >= 7 * 6
    calls.clear()
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    whole = engine.generate(PROMPTS, Sampling(max_completion_length=6), SEEDS)
    assert not calls
    assert [each.ids for each in in_pieces] == [each.ids for each in whole]
    for ours, theirs in zip(in_pieces, whole, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def _with_bias(model):
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(WIDE))
    return model


def _with_own_forward(model):
    model.lm_head.forward = model.lm_head.forward
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.bfloat16(),
        lambda model: model.to("meta"),
        lambda model: wrap_policy(model, make_lora(target_modules=["lm_head"])).get_base_model(),
        _with_bias,
        _with_own_forward,
    ],
)
def test_other_heads_are_left_alone(tokenizer, with_mkl, change):
    model = change(make_model(tokenizer, vocab_size=WIDE))
    before = vars(model.get_output_embeddings()).get("forward")
    with _head_in_pieces(model):
        assert vars(model.get_output_embeddings()).get("forward") is before
    assert vars(model.get_output_embeddings()).get("forward") is before


def test_small_vocabularies_and_other_libraries_than_mkl_are_left_alone(tokenizer, with_mkl, monkeypatch):
    small, wide = make_model(tokenizer), make_model(tokenizer, vocab_size=WIDE)
    with _head_in_pieces(small):
        assert "forward" not in vars(small.lm_head)
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: False)
    with _head_in_pieces(wide):
        assert "forward" not in vars(wide.lm_head)


@torch.no_grad()
def test_a_head_in_pieces_still_heeds_autocast(tokenizer, with_mkl):
    model = make_model(tokenizer, vocab_size=WIDE)
    with _head_in_pieces(model), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.lm_head(torch.randn(4, 32)).dtype == torch.bfloat16
