"""Completions on several ranks: each keeps its own, the surplus travels as bytes.

Minibatches are those of one process.
"""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppo.exchange_runs import MINIBATCH, SIZES, Rows, experience_of, in_numbers, own_loop
from ranks import run_ranks

from hf_rlhf.distributed import homes
from hf_rlhf.ppo.exchange import RowIndex, deal_out, pack, packed_size, unpack
from hf_rlhf.ppo.experience import Experience, micro_batches

SCRIPT = Path(__file__).with_name("exchange_script.py")
RANKS = len(SIZES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Return the facts that each rank of `exchange_script.py` wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks([SCRIPT, folder], RANKS, folder=folder, seconds=120)
    return [json.loads((folder / f"facts{number}.json").read_text()) for number in range(RANKS)]


def minibatches(batches):
    """Micro-batches of one row each, cut into minibatches of `size` on this rank."""
    size = len(batches) // Rows.updates_per_iteration
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def by_completion(rows):
    return sorted(rows, key=lambda row: row["completion"])


# Three ranks


def test_each_rank_holds_what_it_sampled_and_nothing_else(ranks):
    assert [facts["rows"] for facts in ranks] == list(SIZES)


def test_minibatches_are_those_of_one_process_to_the_last_bit(ranks):
    whole = minibatches([in_numbers(batch) for batch in micro_batches(experience_of(), Rows(), 0)])
    shares = [minibatches(facts["batches"]) for facts in ranks]
    for number, minibatch in enumerate(whole):
        assert len(minibatch) == MINIBATCH
        for share in shares:
            assert len(share[number]) == MINIBATCH // RANKS
        assert by_completion([row for share in shares for row in share[number]]) == by_completion(minibatch)
    supports = [row["bytes"] for minibatch in whole for row in minibatch]
    assert {2, 4, None} == set(supports)


def test_what_travels_is_what_another_rank_learns_from_and_nothing_else(ranks):
    rank_of = [home.rank for home in homes(SIZES)]
    moved = [
        row["completion"]
        for rank, facts in enumerate(ranks)
        for row in facts["batches"]
        if rank_of[row["completion"]] != rank
    ]
    experience = experience_of()
    sent = sum(sum(message) for facts in ranks for message in facts["sent"])
    assert sent == sum(packed_size(experience.row(row)) for row in moved) > 0


def test_no_completion_travels_as_an_object(ranks):
    for facts in ranks:
        assert facts["objects"] == []
        assert facts["objects of a run"]
        for item in facts["objects of a run"]:
            assert not any(word in item for word in ("Trajectory", "Experience", "tensor("))


def test_rows_and_numbers_of_unequal_shares_come_in_the_order_of_objects(ranks):
    for facts in ranks:
        assert facts["in order"] == [str(number) for number in range(sum(SIZES))]
        assert facts["rows in order"] == list(range(sum(SIZES)))
        assert facts["numbers in order"] == [None if number % 2 else number for number in range(sum(SIZES))]
        assert facts["of one rank"] == [[5.0, 5.0]]


def test_means_and_moments_are_of_all_ranks(ranks):
    # of 0 to 5, rank 0 counts 3, rank 1 nothing, rank 2 counts 5: mean 4, variance 1
    for facts in ranks:
        assert facts["mean"] == 4
        assert facts["moments"] == [4, 1, 2]


def test_an_own_loop_of_unequal_shares_is_that_of_one_process(ranks, tmp_path):
    """Its advantages compare a completion with those of all ranks."""
    expected = own_loop(tmp_path, range(sum(SIZES)))
    timed = ("time", "eps")
    for facts in ranks:
        for row, found in zip(expected, facts["metrics"], strict=True):
            assert set(row) == set(found)
            for name, value in row.items():
                if not any(part in name for part in timed):
                    assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


# Who learns from what


def index_of(sizes, lengths):
    return RowIndex(homes(sizes), lengths, lengths, lengths)


def tokens_of(shares, index):
    return [sum(index.lengths[row] for row in share) for share in shares]


def moves(shares, index):
    return sum(index.homes[row].rank != rank for rank, share in enumerate(shares) for row in share)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 6), st.booleans(), st.integers(0, 10**6))
def test_shares_are_equal_and_no_row_moves_needlessly(ranks, quota, alike, seed):
    rng = random.Random(seed)
    rows = list(range(ranks * quota))
    sizes = [0] * ranks
    for _ in rows:
        sizes[rng.randrange(ranks)] += 1
    index = index_of(sizes, [7 if alike else rng.randint(1, 50) for _ in rows])
    rng.shuffle(rows)
    shares = deal_out(rows, index, ranks)
    assert [len(share) for share in shares] == [quota] * ranks
    assert sorted(row for share in shares for row in share) == sorted(rows)
    for share in shares:
        assert [index.lengths[row] for row in share] == sorted(index.lengths[row] for row in share)
    if alike:
        assert moves(shares, index) == sum(max(size - quota, 0) for size in sizes)


def test_the_surplus_evens_out_the_tokens():
    # rank 0 holds 10, 20, 30 and 40 tokens, rank 1 nothing: any two could go
    index = index_of([4, 0], [10, 20, 30, 40])
    assert tokens_of(deal_out(range(4), index, 2), index) == [50, 50]


def test_a_long_and_a_short_share_swap_rows_and_alike_ones_do_not():
    # in the order of ranks 0, 1, 0, 1
    uneven, alike = index_of([2, 2], [100, 10, 100, 10]), index_of([2, 2], [100, 104, 100, 104])
    shares = deal_out(range(4), uneven, 2)
    assert tokens_of(shares, uneven) == [110, 110]
    assert moves(shares, uneven) == 2
    assert moves(deal_out(range(4), alike, 2), alike) == 0


def test_few_rows_move_and_ranks_wait_little():
    """Deal out 64 completions on each of 8 ranks, in minibatches of 128.

    Without a look at who holds them, 7 of 8 rows would move.
    """
    rng = random.Random(0)
    index = index_of([64] * 8, [rng.randint(64, 1024) for _ in range(512)])
    rows = list(range(512))
    rng.shuffle(rows)
    moved = 0
    for start in range(0, 512, 128):
        shares = deal_out(rows[start : start + 128], index, 8)
        tokens = tokens_of(shares, index)
        assert max(tokens) <= 1.05 * sum(tokens) / 8
        moved += moves(shares, index)
    assert moved <= 0.15 * 512


def test_a_process_alone_keeps_all():
    assert deal_out([2, 0, 1], index_of([3], [5, 4, 6]), 1) == [[1, 0, 2]]


# Bytes


def test_a_row_is_read_as_it_was_written():
    row = [
        torch.tensor([1.5, float("-inf")]),
        None,
        torch.tensor([True, False, True]),
        torch.tensor([65535, 3], dtype=torch.uint16),
        torch.tensor([], dtype=torch.int32),
        torch.tensor([2**40]),
        torch.tensor([0.1], dtype=torch.bfloat16),
    ]
    message = pack(row)
    assert message.dtype == torch.uint8
    assert len(message) == packed_size(row)
    for given_tensor, read in zip(row, unpack(message), strict=True):
        assert (given_tensor is None) == (read is None)
        if read is not None:
            assert read.dtype == given_tensor.dtype
            assert read.tolist() == given_tensor.tolist()


def test_rows_put_together_are_the_selection():
    experience = experience_of()
    rows = torch.tensor([3, 11, 5])
    joined = Experience.from_rows([unpack(pack(experience.row(int(row)))) for row in rows], experience.kl_coef)
    selected = experience[rows]
    for name in ("input_ids", "attention_mask", "prompt_lengths", "mask"):
        assert torch.equal(getattr(joined.sequences, name), getattr(selected.sequences, name)), name
    for name in ("scores", "logprobs", "values", "per_token_rewards", "advantages", "returns"):
        assert torch.equal(getattr(joined, name), getattr(selected, name)), name
    assert joined.kl_coef == selected.kl_coef
