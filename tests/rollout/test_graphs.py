"""Decoding steps that are replayed say what the model says; on a CPU the graph is a function that is called again."""

import functools
import gc
import weakref

import pytest
import torch
from models.test_kinds import ARCHITECTURES
from models.test_kinds import make as make_architecture
from tiny import make_lora, make_model, perturb

from hf_rlhf.errors import InputError
from hf_rlhf.models.fast.cache import RoomyLayer
from hf_rlhf.rollout import graphs
from hf_rlhf.rollout.engines import TransformersEngine
from hf_rlhf.rollout.sampling import Sampling

ON_GPU = torch.cuda.is_available()
PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15], [16, 17], [18, 5, 9]]
SEEDS = [3, 1, 4, 1, 5]


class CalledAgain:
    """Stand-in for a CUDA graph that calls the step anew and writes its result where the first one lies."""

    def __init__(self, step):
        self.step, self.output = step, step()

    def replay(self):
        self.output.logits.copy_(self.step().logits)


@pytest.fixture
def recorded(monkeypatch):
    """Steps recorded, by the number of their rows and the width they see; real CUDA graphs where there is a GPU."""
    seen = []
    own_record = graphs.record

    def record(step, stream):
        if ON_GPU:
            graph, output = own_record(step, stream)
        else:
            graph = CalledAgain(step)
            output = graph.output
        seen.append(tuple(output.logits.shape[:1]))
        return graph, output

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "_records", lambda device: True)
    return seen


def policy(tokenizer, **overrides):
    """A model with a LoRA adapter that changes what it says."""
    from peft import get_peft_model

    model = perturb(get_peft_model(make_model(tokenizer, **overrides), make_lora()), only="lora_B", scale=0.3)
    return model.to("cuda" if ON_GPU else "cpu")


def sampled(engine, **more):
    return engine.generate(PROMPTS, Sampling(**{"max_completion_length": 24, "temperature": 0.9} | more), SEEDS)


def require_equal(ours, plain):
    for one, other in zip(ours, plain, strict=True):
        assert one.ids == other.ids
        assert one.stopped == other.stopped
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{}, {"temperature": 0.0}, {"top_k": 5}, {"stop_token_ids": (9, 10)}])
@pytest.mark.parametrize("width", [256, 8])
def test_replayed_steps_sample_what_plain_ones_do(tokenizer, recorded, monkeypatch, more, width):
    monkeypatch.setattr(graphs, "_WIDTH", width)
    model = policy(tokenizer)
    plain = sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False), **more)
    assert not recorded
    engine = TransformersEngine(model, tokenizer)
    require_equal(sampled(engine, **more), plain)
    assert engine.graphs.reason is None
    assert len(recorded) >= (3 if width == 8 else 1)


REFUSED = {
    "attention": ({"attn_implementation": "eager"}, "its attention is eager, not sdpa"),
    "rotations": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
        "depend on the length",
    ),
}


@pytest.mark.parametrize(("overrides", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_known_not_to_be_recorded_is_not_tried(tokenizer, recorded, overrides, reason):
    engine = TransformersEngine(policy(tokenizer, **overrides), tokenizer)
    sampled(engine)
    assert reason in engine.graphs.reason
    assert not recorded


def test_experts_are_not_recorded(tokenizer, recorded):
    model = make_model(tokenizer)
    model.config.num_local_experts = 2
    engine = TransformersEngine(model, tokenizer)
    sampled(engine)
    assert "expert" in engine.graphs.reason
    assert not recorded


def test_rows_that_stop_are_left_out_of_a_new_graph(tokenizer, recorded):
    model = policy(tokenizer)
    engine = TransformersEngine(model, tokenizer)
    ours = sampled(engine, max_completion_length=60)
    require_equal(ours, sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False), max_completion_length=60))
    assert len({rows for (rows,) in recorded}) > 1, "no row stopped before the others: the seeds say nothing"


def test_weights_that_changed_meanwhile_are_those_that_sample(tokenizer, recorded):
    model = policy(tokenizer)
    engine = TransformersEngine(model, tokenizer)
    before = sampled(engine)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_A" in name:
                weight.mul_(-2)  # in place, as an optimizer writes it
    after = sampled(engine)
    assert [row.ids for row in before] != [row.ids for row in after]
    require_equal(after, sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False)))


def test_a_step_that_says_something_else_is_noticed_and_nothing_of_it_stays(tokenizer, recorded, monkeypatch, caplog):
    model = policy(tokenizer)
    replay = graphs._Recorded.replay

    def wrong(self, kwargs, done):
        output = replay(self, kwargs, done)
        if done >= 12:
            output.logits.copy_(output.logits.flip(-1))
        return output

    monkeypatch.setattr(graphs._Recorded, "replay", wrong)
    engine = TransformersEngine(model, tokenizer)
    require_equal(sampled(engine), sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False)))
    assert "moved" in engine.graphs.reason
    assert "without CUDA graphs" in caplog.text
    times = len(recorded)
    sampled(engine)
    assert len(recorded) == times


def test_code_that_cannot_be_recorded_goes_the_plain_way(tokenizer, recorded, monkeypatch, caplog):
    model = policy(tokenizer)

    def record(step, stream):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "_torch_stays_recording", lambda: False)
    engine = TransformersEngine(model, tokenizer)
    require_equal(sampled(engine), sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False)))
    assert "cannot be recorded (RuntimeError: operation not permitted" in caplog.text
    monkeypatch.setattr(graphs, "_torch_stays_recording", lambda: True)
    with pytest.raises(
        InputError, match=r"use_cuda_graphs=true is invalid for this model .*RuntimeError.* Set it to false"
    ):
        sampled(TransformersEngine(model, tokenizer))


def test_a_step_for_which_there_is_no_memory_goes_the_plain_way_and_the_next_is_tried(tokenizer, recorded, monkeypatch):
    model, own, calls = policy(tokenizer), graphs.record, []

    def record(step, stream):
        calls.append(step)
        if len(calls) <= 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(step, stream)

    monkeypatch.setattr(graphs, "record", record)
    engine = TransformersEngine(model, tokenizer)
    require_equal(sampled(engine), sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False)))
    assert engine.graphs.reason is None
    assert len(calls) > 2
    assert recorded


def test_a_difference_is_seen_where_a_model_forbids_words(tokenizer, recorded, monkeypatch):
    """Logits of -inf, as models have them for words that only pad the vocabulary."""
    model = policy(tokenizer)
    forbidden = torch.tensor([0, 1], device=model.device)

    def forbid(module, inputs, output):
        return output.index_fill(-1, forbidden, float("-inf"))

    model.get_base_model().lm_head.register_forward_hook(forbid)
    replay = graphs._Recorded.replay

    def wrong(self, kwargs, done):
        output = replay(self, kwargs, done)
        output.logits.copy_(output.logits.roll(5, -1))
        return output

    monkeypatch.setattr(graphs._Recorded, "replay", wrong)
    engine = TransformersEngine(model, tokenizer)
    sampled(engine)
    assert "moved" in engine.graphs.reason


def test_the_first_step_of_each_width_is_compared(tokenizer, recorded, monkeypatch):
    monkeypatch.setattr(graphs, "_WIDTH", 8)
    compared = []
    monkeypatch.setattr(graphs.Steps, "_require_the_same", lambda self, *_: compared.append(self.recorded.width))
    sampled(TransformersEngine(policy(tokenizer), tokenizer), max_completion_length=40)
    assert {8, 16, 24, 32, 40} <= set(compared)


def test_a_forward_that_somebody_has_replaced_is_theirs_again(tokenizer, recorded):
    model = make_model(tokenizer).to("cuda" if ON_GPU else "cpu")
    own, calls = model.forward, []

    @functools.wraps(own)
    def theirs(*args, **kwargs):
        calls.append(1)
        return own(*args, **kwargs)

    model.forward = theirs
    sampled(TransformersEngine(model, tokenizer))
    assert model.forward is theirs
    assert calls


def test_dropped_rows_leave_no_room_behind(tokenizer, recorded, monkeypatch):
    rooms = weakref.WeakSet()
    make = RoomyLayer._with_room

    def with_room(self, held, states):
        gc.collect()
        alive = [room for room in rooms if room.shape[0] > states.shape[0]]
        assert not alive or states.shape[0] == len(PROMPTS)
        room = make(self, held, states)
        rooms.add(room)
        return room

    monkeypatch.setattr(RoomyLayer, "_with_room", with_room)
    sampled(TransformersEngine(policy(tokenizer), tokenizer), max_completion_length=60)
    assert len({rows for (rows,) in recorded}) > 1


def test_nothing_is_recorded_without_a_gpu(tokenizer, monkeypatch):
    monkeypatch.setattr(graphs, "record", None)
    model = make_model(tokenizer)
    engine = TransformersEngine(model, tokenizer)
    sampled(engine)
    assert engine.graphs.reason == "no CUDA device"
    assert "forward" not in vars(model)


def test_forward_is_the_models_own_again_after_an_error(tokenizer, recorded, monkeypatch):
    model = policy(tokenizer)
    monkeypatch.setattr(graphs._Recorded, "replay", lambda self, kwargs, done: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampled(TransformersEngine(model, tokenizer))
    assert "forward" not in vars(model.get_base_model())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_says_the_same_or_is_not_recorded(tokenizer, recorded, monkeypatch, architecture):
    monkeypatch.setattr(graphs, "_WIDTH", 16)
    model = make_architecture(architecture).eval().to("cuda" if ON_GPU else "cpu")
    engine = TransformersEngine(model, tokenizer)
    if ON_GPU and architecture in COPIES_TO_THE_GPU and graphs._torch_stays_recording():
        with pytest.raises(InputError, match="use_cuda_graphs=true is invalid"):
            sampled(engine)
        return
    require_equal(sampled(engine), sampled(TransformersEngine(model, tokenizer, use_cuda_graphs=False)))
    assert (engine.graphs.reason is None) == bool(recorded)
    expected = RECORDED - COPIES_TO_THE_GPU if ON_GPU else RECORDED
    assert bool(recorded) == (architecture in expected), engine.graphs.reason


RECORDED = {
    "Llama",
    "Qwen2",
    "Qwen3",
    "GPTNeoX",
    "GPT2",
    "OPT",
    "OPT with a narrow head",
    "Phi",
    "Falcon with dropout",
    "Starcoder2 with dropout",
}
COPIES_TO_THE_GPU = {"Falcon with dropout"}  # its code selects keys by a list of Python's
