import pytest
import torch

from hf_rlhf.ops import lengths_to_mask, pad_sequences


def test_padding_goes_to_the_side_that_is_named():
    assert pad_sequences([[1, 2, 3], [4]], 0).tolist() == [[1, 2, 3], [4, 0, 0]]
    assert pad_sequences([[1, 2, 3], [4]], 9, side="left").tolist() == [[1, 2, 3], [9, 9, 4]]


def test_dtype_is_that_of_the_first_sequence_with_values():
    assert pad_sequences([[], [1]], 0).dtype == torch.int64
    assert pad_sequences([[], [1.0]], 0).dtype == torch.float32
    assert pad_sequences([torch.tensor([1.0], dtype=torch.bfloat16)], 0).dtype == torch.bfloat16
    assert pad_sequences([torch.tensor([True]), torch.tensor([True, True])], False).dtype == torch.bool
    assert pad_sequences([[1, 0]], 0, dtype=torch.bool).tolist() == [[True, False]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_empty_sequences_are_all_padding(side):
    assert pad_sequences([[], []], 0, side=side).shape == (2, 0)
    assert pad_sequences([[], [5, 6]], 0, side=side).tolist() == [[0, 0], [5, 6]]
    assert pad_sequences([[], [5]], 0, side=side, min_length=2).tolist() == [
        [0, 0],
        [5, 0] if side == "right" else [0, 5],
    ]


def test_wrong_calls_are_named():
    with pytest.raises(ValueError, match="no sequences"):
        pad_sequences([], 0)
    with pytest.raises(ValueError, match=r"sequence 1 has shape \(1, 2\)"):
        pad_sequences([torch.zeros(2), torch.zeros(1, 2)], 0)
    with pytest.raises(ValueError, match="middle"):
        pad_sequences([[1]], 0, side="middle")  # pyright: ignore


def test_mask_is_true_before_each_length():
    mask = lengths_to_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert lengths_to_mask(torch.tensor([], dtype=torch.int64), 3).shape == (0, 3)


def test_mask_agrees_with_padding_even_when_a_token_equals_the_padding():
    sequences = [[0, 0], [0, 1, 0]]
    mask = lengths_to_mask(torch.tensor([len(sequence) for sequence in sequences]), 3)
    padded = pad_sequences(sequences, 0)
    assert [row[keep].tolist() for row, keep in zip(padded, mask, strict=True)] == sequences


@pytest.mark.parametrize("lengths", [[4], [-1]])
def test_lengths_that_do_not_fit_are_an_error(lengths):
    with pytest.raises(ValueError, match="3 tokens"):
        lengths_to_mask(torch.tensor(lengths), 3)
