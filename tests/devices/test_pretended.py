"""The pretended accelerator refuses what torch's fake tensors of a GPU refuse, and carries its mark along."""

import copy

import pytest
import torch
from devices.pretended import ACCELERATOR, CPU, DevicesMet, pretended_accelerator
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

# Of a and b, matrices on the accelerator and on the CPU; i and j, indices there; s and z, one number there.
REFUSED = {
    "both": lambda a, b, i, j, s, z: a + b,
    "number of the accelerator": lambda a, b, i, j, s, z: b * s,
    "written in place": lambda a, b, i, j, s, z: a.add_(b),
    "number written in place": lambda a, b, i, j, s, z: z.add_(s),
    "product": lambda a, b, i, j, s, z: a @ b,
    "concatenation": lambda a, b, i, j, s, z: torch.cat([a, b]),
    "stack": lambda a, b, i, j, s, z: torch.stack([b, a]),
    "embedding": lambda a, b, i, j, s, z: nn.functional.embedding(j, a),
    "gather": lambda a, b, i, j, s, z: a.gather(1, j[:, None]),
    "scatter": lambda a, b, i, j, s, z: a.scatter(1, i[:, None], b),
    "where, mask": lambda a, b, i, j, s, z: torch.where(b > 0, a, 0),
    "where, matrix": lambda a, b, i, j, s, z: torch.where(a > 0, a, b),
    "masked_fill": lambda a, b, i, j, s, z: a.masked_fill(b > 0, 0.0),
    "isin": lambda a, b, i, j, s, z: torch.isin(i, j),
    "searchsorted": lambda a, b, i, j, s, z: torch.searchsorted(a, b),
    "fresh here": lambda a, b, i, j, s, z: a + torch.ones(2, 2),
    "fresh like it, here": lambda a, b, i, j, s, z: a + torch.ones_like(a, device="cpu"),
    "new": lambda a, b, i, j, s, z: a + b.new_zeros(2, 2),
    "norm": lambda a, b, i, j, s, z: a * nn.functional.rms_norm(b, (2,)),
    "attention": lambda a, b, i, j, s, z: nn.functional.scaled_dot_product_attention(a[None], a[None], b[None]),
    "in a list": lambda a, b, i, j, s, z: torch._foreach_add([a, a], [a, b]),
    "index of the accelerator": lambda a, b, i, j, s, z: b[i],
    "written by such an index": lambda a, b, i, j, s, z: b.index_put((i,), z),
    "rows of the CPU written": lambda a, b, i, j, s, z: a.index_put((j,), b[0]),
}  # fmt: skip
DONE = {
    "same device": lambda a, b, i, j, s, z: a + a,
    "number of the CPU": lambda a, b, i, j, s, z: a * z,
    "gather there": lambda a, b, i, j, s, z: a.gather(1, i[:, None]),
    "where, number": lambda a, b, i, j, s, z: torch.where(a > 0, a, z),
    "index by the CPU": lambda a, b, i, j, s, z: a[j],
    "index by a list": lambda a, b, i, j, s, z: a[[0, 1]],
    "index, then write": lambda a, b, i, j, s, z: a.index_put((j,), z),
    "copy": lambda a, b, i, j, s, z: a.copy_(b),
    "copy back": lambda a, b, i, j, s, z: b.copy_(a),
    "assignment of rows": lambda a, b, i, j, s, z: a.__setitem__(slice(0, 1), b[:1]),
    "brought together": lambda a, b, i, j, s, z: a + b.to(a.device),
    "brought back": lambda a, b, i, j, s, z: a.cpu() + b,
    "as another": lambda a, b, i, j, s, z: a + b.to(a),
    "fresh there": lambda a, b, i, j, s, z: a + torch.ones(2, 2, device=a.device),
    "fresh like it": lambda a, b, i, j, s, z: a + torch.ones_like(a),
}  # fmt: skip
LENIENT = {"index of the accelerator", "written by such an index", "rows of the CPU written"}
"""Operations that fake tensors accept.

ATen refuses them: indices "should be either on cpu or on the same device as the indexed tensor".
"""


STRICT = {"written by such an index"}
"""And what a GPU's torch 2.11 does without a word, by copying the index."""


def outcome(operation, *errors):
    """Run the operation on six tensors that are made here, and return what it raises."""
    a, i, s = (
        torch.ones(2, 2, device="cuda"),
        torch.zeros(2, dtype=torch.long, device="cuda"),
        torch.ones((), device="cuda"),
    )
    b, j, z = torch.ones(2, 2), torch.zeros(2, dtype=torch.long), torch.ones(())
    try:
        operation(a, b, i, j, s, z)
    except errors as error:
        return error
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_two_devices_in_one_operation_are_refused(name):
    with pretended_accelerator():
        assert isinstance(outcome(REFUSED[name], DevicesMet), DevicesMet)


@pytest.mark.parametrize("name", DONE)
def test_what_a_gpu_does_with_tensors_of_the_cpu_is_done(name):
    with pretended_accelerator():
        assert outcome(DONE[name]) is None


@pytest.mark.parametrize("name", sorted({*REFUSED, *DONE} - LENIENT))
def test_fake_tensors_of_a_gpu_say_the_same(name):
    with FakeTensorMode():
        error = outcome((REFUSED | DONE)[name], RuntimeError)
    if "not linked" in str(error):
        pytest.skip("this operation of a fake tensor needs a torch with CUDA")
    assert (error is not None) == (name in REFUSED), error


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted({*REFUSED, *DONE} - STRICT))
def test_a_gpu_says_the_same(name):
    assert (outcome((REFUSED | DONE)[name], RuntimeError) is not None) == (name in REFUSED)


def test_numpy_and_generators_are_of_the_cpu():
    with pretended_accelerator():
        there = torch.ones(3, device="cuda")
        with pytest.raises(TypeError, match="cpu"):
            there.numpy()
        with pytest.raises(DevicesMet):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert there.cpu().numpy().tolist() == there.tolist() == [1, 1, 1]


def test_what_is_made_of_it_is_there_too():
    with pretended_accelerator():
        there, here = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        made = [there[0], there.T, there.sum(), there.long(), there.to(torch.float64), copy.deepcopy(there),
                there.nonzero(), there.clone(), there.detach(), torch.zeros_like(there), there.new_tensor([1.0]),
                here.to("cuda"), here.to(there), here.cuda(), torch.tensor([1], device="cuda"), here.to(device="cuda:0"),
                torch.as_tensor(here, device="cuda"), torch.zeros_like(here, device="cuda")]  # fmt: skip
        assert {tensor.device for tensor in made} == {ACCELERATOR}
        assert all(tensor.is_cuda and not tensor.is_cpu for tensor in made)
        back = [there.cpu(), there.to("cpu"), here, here.long(), torch.zeros_like(there, device="cpu"), there.cpu()[0]]
        assert {tensor.device for tensor in back} == {CPU}
        assert there.to("cuda") is there
        assert here.cpu() is here


def test_modules_and_gradients_are_where_the_weights_are():
    with pretended_accelerator():
        layer = nn.Linear(3, 2).to("cuda")
        copied = copy.deepcopy(layer)
        source = torch.ones(4, 3, requires_grad=True)
        copied(source.to("cuda")).sum().backward()
        assert copied.weight.grad.device == layer.weight.device == ACCELERATOR
        assert source.grad.device == CPU
        assert source.grad.abs().sum() > 0


def test_a_tensor_of_before_is_on_the_cpu_and_nothing_stays_marked():
    before = torch.ones(3)
    with pretended_accelerator():
        there = before.to("cuda")
        assert before.device == CPU
    assert there.device == before.device == CPU
    assert (there + before).tolist() == [2, 2, 2]


def test_what_python_waits_for_is_counted():
    with pretended_accelerator() as counts:
        there = torch.ones(3, device="cuda")
        there + there
        assert counts["waits"] == 0
        there.sum().item(), there.tolist(), there.cpu(), there.nonzero(), bool((there > 0).all())
        torch.ones(3).sum().item()
        assert counts["waits"] == 5
