import torch

from hf_rlhf.types import Sequences, TokenSupport

WIDE = 2**16


def random_support(tokens, allowed, vocab_size=49152):
    generator = torch.Generator().manual_seed(1)
    return [torch.randperm(vocab_size, generator=generator)[:allowed].sort().values.int() for _ in range(tokens)]


def test_a_support_end_to_end_is_the_same_sequence():
    support = [torch.tensor([3, 40000, WIDE - 1]), torch.tensor([], dtype=torch.int), torch.tensor([7])]
    compact = TokenSupport.of(support)
    assert [ids.tolist() for ids in compact] == [ids.tolist() for ids in support]
    assert compact[2].tolist() == [7]
    assert len(compact) == 3
    assert TokenSupport.of(compact) is compact


def test_ids_take_two_bytes_where_they_fit():
    assert TokenSupport.of([torch.tensor([0, WIDE - 1])]).ids.element_size() == 2
    for beyond in (WIDE, -1):  # -1 is padding
        compact = TokenSupport.of([torch.tensor([1, beyond])])
        assert compact.ids.element_size() == 4
        assert compact[0].tolist() == [1, beyond]


def test_a_completion_without_tokens_has_an_empty_support():
    assert list(TokenSupport.of([])) == []


def test_a_batch_holds_supports_compactly_and_gives_those_of_counted_tokens():
    support = random_support(4, 50)
    sequences = Sequences.from_ids(
        [[1], [2]], [[5, 6, 7, 8], [9]], [[True, False, True, True], [True]], [support, None]
    )
    assert isinstance(sequences.support[0], TokenSupport)
    counted = sequences.counted_support()
    assert [None if ids is None else ids.tolist() for ids in counted] == [
        *(support[t].tolist() for t in (0, 2, 3)),
        None,
    ]


def test_a_token_takes_the_bytes_of_its_ids_and_four_more():
    compact = TokenSupport.of(random_support(200, 50))
    assert compact.ids.nbytes + compact.counts.nbytes == 200 * (50 * 2 + 4)
