"""One process with whole batches, which every other way to cut a run is compared with."""

import functools

import pytest


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Return a function from a run's name to the folder of that run, trained once."""
    from invariance.runs import train

    @functools.cache
    def folder_of(name):
        folder = tmp_path_factory.mktemp("whole")
        train(folder, name)
        return folder

    return folder_of
