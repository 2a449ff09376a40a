"""A reward adapter above the trunk begins there where its tokens begin with a completion's; the rest stays the same."""

import pytest
import torch
from invariance.runs import iterations_of
from tiny import make_lora, make_prompts, make_tokenizer, perturb, trained
from tiny_critics import LAST, make_critic_trainer, make_places

from hf_rlhf.ops.padding import pad_sequences
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.types import Completion, Sequences, Trajectory

ONCE = "the lowest 1 of 2 blocks, which are not trained, are computed once per completion and iteration"
SPECIAL, ASSISTANT = 2, 6  # the prompt ends with the latter
BATCH = 8  # completions of an iteration; rewards read all of them at once, and so do policy and reference


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return make_places(tmp_path_factory.mktemp("places"))


class EndingEngine:
    """Samples as `engine` does, but the first `ended` completions end their turn and the others are cut off.

    The last `unlike` ones begin with a special token, which is not in the text that a reward reads.
    """

    def __init__(self, engine, ended, unlike):
        self.engine, self.ended, self.unlike = engine, ended, unlike

    def generate(self, prompts, sampling, seeds):
        completions = self.engine.generate(prompts, sampling, seeds)
        end = make_tokenizer().eos_token_id
        for row, completion in enumerate(completions):
            completion.stopped = row < self.ended
            words = [token if token > 6 else 7 for token in completion.ids[:-1]]
            if row >= len(completions) - self.unlike:
                words = [SPECIAL, *words[1:]]
            completion.ids = [*words, end if completion.stopped else 7 + row]
        return completions


def upper_trainer(folder, places, *, ended=BATCH, unlike=0, rewards=("upper",), reuse=True, **flags):
    """A trainer with everything in the last block; without `reuse`, rewards pass all blocks."""
    flags = {"lora": make_lora(**LAST), "rollout_forward_batch_size": BATCH, "max_steps": 4, "optim": "sgd"} | flags
    trainer = make_critic_trainer(folder, places, reward=[places[name] for name in rewards], **flags)
    trainer.engine = EndingEngine(trainer.engine, ended, unlike)
    perturb(trainer.policy, only="lora_B.policy")
    if not reuse:
        for function in trainer.rewards.functions:
            function.model.trunk_states = lambda input_ids, attention_mask: None
    return trainer


def watch(trainer, monkeypatch):
    """Return lists by stage: the sequences of each pass of the trunk for kept states, and those given to the stage."""
    passes = {"compute_rewards": [], "forward_pass": [], "training_step": []}
    given, stage = [], []
    states = trainer.policy.trunk_states

    def counted(sequences):
        each = zip(sequences.input_ids, sequences.attention_mask.sum(dim=1), strict=True)
        passes[stage[-1]].append({tuple(ids[:length].tolist()) for ids, length in each})
        return states(sequences)

    def in_stage(name, method):
        def call(*args, **kwargs):
            stage.append(name)
            result = method(*args, **kwargs)
            if name == "compute_rewards":
                given.extend((*each.prompt_ids, *each.completion.ids) for each in args[0])
            return result

        return call

    monkeypatch.setattr(trainer.policy, "trunk_states", counted)
    for name in passes:
        monkeypatch.setattr(trainer, name, in_stage(name, getattr(trainer, name)))
    return passes, given


def read_by_reward(ids, ended):
    """Return the tokens that a reward reads of a trajectory.

    A completion that was cut off is closed, and special tokens are not text.
    """
    start = len(ids) - ids[::-1].index(ASSISTANT)
    words = [token for token in ids[start:] if token != SPECIAL]
    return (*ids[:start], *words, *([] if ended else [make_tokenizer().eos_token_id]))


@pytest.mark.parametrize("ended", [0, 3, BATCH])
@pytest.mark.parametrize("unlike", [0, 2, BATCH])
@pytest.mark.parametrize("rewards", [("upper",), ("upper", "upper")], ids=str)
def test_what_is_computed_in_each_stage(places, tmp_path, monkeypatch, ended, unlike, rewards):
    trainer = upper_trainer(tmp_path, places, ended=ended, unlike=unlike, rewards=rewards)
    passes, given = watch(trainer, monkeypatch)
    trainer.train()
    assert len(given) == BATCH
    read = [read_by_reward(ids, row < ended) for row, ids in enumerate(given)]
    again = set(read) - set(given)  # by the second reward: what is kept is not all that it reads
    second = [again] if len(rewards) > 1 and again else []
    assert passes["compute_rewards"] == ([set(read), *second] if unlike < BATCH else [])
    assert passes["forward_pass"] == ([set(given[BATCH - unlike :])] if unlike else [])
    assert passes["training_step"] == []
    assert not trainer.kept_states._by_tokens


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize(("ended", "unlike"), [(0, 0), (3, 2), (BATCH, 0)])
def test_the_same_as_without(places, tmp_path, padding_free, ended, unlike):
    weights, rows, totals = {}, {}, {}
    for reuse in (True, False):
        folder = tmp_path / str(reuse)
        trainer = upper_trainer(
            folder, places, ended=ended, unlike=unlike, reuse=reuse, padding_free=padding_free, max_steps=8
        )
        compute_rewards, totals[reuse] = trainer.compute_rewards, []

        def keeping(trajectories, compute_rewards=compute_rewards, kept=totals[reuse]):
            rewards = compute_rewards(trajectories)
            kept.append([reward.total for reward in rewards])
            return rewards

        trainer.compute_rewards = keeping
        trainer.train()
        weights[reuse], rows[reuse] = trained(trainer.policy), iterations_of(folder)
    assert totals[True][0] == totals[False][0]  # to the bit, since all rows are one batch
    assert len(set(totals[True][0])) > 1
    assert totals[True][1] == pytest.approx(totals[False][1], rel=1e-6, abs=1e-6)
    for name, weight in weights[False].items():
        assert (weights[True][name] - weight).norm() <= 1e-6 * weight.norm(), name
    for one, other in zip(rows[True], rows[False], strict=True):
        for name in ("objective/kl", "reward", "loss/policy_avg", "loss/value_avg"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (("upper",), "; for the reward upper too, where its text has the same tokens"),
        (("reward",), "; not for the reward reward, whose adapter begins below"),
        (
            ("full_reward", "upper", "reward"),
            "; not for the reward full_reward, a model of its own; for the reward upper too, where its text has the"
            " same tokens; not for the reward reward, whose adapter begins below",
        ),
    ],
    ids=str,
)
def test_the_start_names_each_reward_model(places, tmp_path, capsys, monkeypatch, rewards, words):
    trainer = upper_trainer(tmp_path, places, rewards=rewards)
    assert trainer.choices["trunk"] == ONCE + words
    assert trainer.policy.trunk.depth == 1
    passes, given = watch(trainer, monkeypatch)
    trainer.train()
    wanted = [set(given)]
    assert passes == {
        "compute_rewards": wanted if "upper" in rewards else [],
        "forward_pass": [] if "upper" in rewards else wanted,
        "training_step": [],
    }
    assert f"trunk: {ONCE}{words}\n" in capsys.readouterr().out


def test_what_is_kept_holds_no_other_rows(places, tmp_path, monkeypatch):
    trainer = upper_trainer(tmp_path, places, ended=3, unlike=2)
    compute_rewards = trainer.compute_rewards

    def watched(trajectories):
        rewards = compute_rewards(trajectories)
        kept = trainer.kept_states._by_tokens
        assert len(kept) == BATCH - 2
        for states in kept.values():
            assert states.untyped_storage().nbytes() == states.numel() * states.element_size()
        return rewards

    monkeypatch.setattr(trainer, "compute_rewards", watched)
    trainer.train()


def test_a_reward_on_another_policy_shares_nothing(places, tmp_path):
    other = upper_trainer(tmp_path / "other", places)
    reward = other.rewards.functions[0]
    trainer = upper_trainer(tmp_path / "own", {**places, "upper": reward})
    assert trainer.choices["trunk"].endswith("; not for the reward upper, a model of its own")
    assert trainer.kept_states.rewards == []
    trainer.train()


def test_rows_that_begin_alike_are_found_in_several_batches(places, tmp_path):
    """Two completions are the same, and one is the start of another."""
    trainer = upper_trainer(tmp_path, places)
    kept, prompt = trainer.kept_states, [2, 5, 9]
    completions = [[7, 8, 3], [7, 8, 3], [7, 8, 9], [7, 8, 9, 10]]
    trajectories = [Trajectory({}, prompt, Completion(ids, [], False), "") for ids in completions]
    with kept.share(trajectories):
        for rows in ([[7, 8, 9, 10, 3], [7, 8, 3]], [[7, 8, 9, 3], [7, 8, 3]]):
            lengths = torch.tensor([[len(prompt) + len(row)] for row in rows])
            ids = pad_sequences([prompt + row for row in rows], 0)
            real = torch.arange(ids.shape[1]) < lengths
            entry = kept.states_for_reward(ids, real.long())
            plain = trainer.policy.trunk_states(Sequences(ids, real, torch.ones_like(ids[:, 0]), real[:, 1:]))
            for ours, theirs in zip(entry.sequences, plain, strict=True):
                torch.testing.assert_close(ours, theirs)
    assert len(kept._by_tokens) == 3
    own = Sequences.from_trajectories(trajectories)
    for ours, theirs in zip(kept.find_or_compute(own), trainer.policy.trunk_states(own), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_tokenizer_with_other_ids_shares_nothing(places, tmp_path, monkeypatch):
    trainer = upper_trainer(tmp_path, places)
    function = trainer.rewards.functions[0]
    assert isinstance(function, LearnedReward)
    function.tokenizer.chat_template = "yes {{ messages[-1]['content'] }}"
    passes, given = watch(trainer, monkeypatch)
    trainer.train()
    assert passes == {"compute_rewards": [], "forward_pass": [set(given)], "training_step": []}


def test_an_evaluation_keeps_nothing_and_gives_the_same(places, tmp_path, monkeypatch):
    metrics = {}
    for reuse in (True, False):
        data = {"eval_dataset": make_prompts(4)}
        trainer = upper_trainer(tmp_path / str(reuse), places, reuse=reuse, trainer_kwargs=data)
        passes, _ = watch(trainer, monkeypatch)
        metrics[reuse] = {name: value for name, value in trainer.evaluate().items() if "runtime" not in name}
        assert passes["compute_rewards"] == []
        assert len(passes["forward_pass"]) == 1
        assert not trainer.kept_states._by_tokens
    assert metrics[True] == metrics[False]


def test_a_resumed_run_is_the_whole_run(places, tmp_path):
    settings = {"max_steps": 8, "optim": "adamw_torch", "ended": 3}
    whole = upper_trainer(tmp_path / "whole", places, save_strategy="steps", save_steps=4, **settings)
    whole.train()
    resumed = upper_trainer(tmp_path / "resumed", places, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, weight in trained(whole.policy).items():
        assert torch.equal(trained(resumed.policy)[name], weight), name


def test_weights_thawed_later_end_it(places, tmp_path, monkeypatch, caplog):
    trainer = upper_trainer(tmp_path, places)
    for name, parameter in trainer.policy.named_parameters():
        parameter.requires_grad_(parameter.requires_grad or (".layers.0." in name and "lora_" not in name))
    passes, _ = watch(trainer, monkeypatch)
    trainer.train()
    assert "every pass computes all blocks now" in caplog.text
    assert not any(passes.values())
