"""The tiny project that the methods are tested in."""

import pytest
import torch
from tiny_methods import Tiny, prepared


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    return prepared(tmp_path_factory.mktemp("tiny"))
