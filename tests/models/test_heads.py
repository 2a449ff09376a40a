import pytest
import torch
from tiny import perturb

from hf_rlhf.errors import InputError
from hf_rlhf.models.heads import CONFIG_NAME, WEIGHTS_NAME, ValueHead


def test_a_saved_head_comes_back_bit_for_bit(tmp_path):
    head = perturb(ValueHead(8))
    head.save_pretrained(tmp_path)
    loaded = ValueHead.from_pretrained(tmp_path)
    assert torch.equal(loaded.summary.weight, head.summary.weight)
    assert torch.equal(loaded.summary.bias, head.summary.bias)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([WEIGHTS_NAME, CONFIG_NAME])


def test_a_missing_head_is_an_error_and_not_a_fresh_head(tmp_path):
    with pytest.raises(InputError, match=WEIGHTS_NAME):
        ValueHead.from_pretrained(tmp_path)


def test_a_fresh_head_says_zero():
    assert torch.equal(ValueHead(8)(torch.randn(3, 5, 8)), torch.zeros(3, 5))


def test_a_head_is_linear_in_the_state_and_fp32_under_autocast():
    head = perturb(ValueHead(8))
    hidden = torch.randn(3, 5, 8)
    expected = hidden @ head.summary.weight[0] + head.summary.bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(hidden)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
