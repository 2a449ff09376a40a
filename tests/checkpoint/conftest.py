import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Threads of torch do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
