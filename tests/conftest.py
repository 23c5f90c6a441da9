"""What the tests of several folders share: the digits, which cases `make test` runs of a large table, and on what."""

import os
import time

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from digits_nets import train
from moat.kernels import winograd

if os.environ.get("MOAT_TEST_COMPILED") == "no":
    # As on a machine without a compiler, for `make test-isa`.
    winograd.available = lambda: ()


# The files that take longest go first, so that no worker is left alone with one.
LONGEST = (
    "workflow/test_workflow.py",
    "evaluation/test_pathologies.py",
    "evaluation/test_checks.py",
    "reporting/test_figures.py",
    "training/test_resume.py",
    "evaluation/test_commands.py",
    "style/test_style.py",
)
# `make test-long MINUTES=…`: what has not begun by then is skipped, and counted among the skipped.
BEGAN = time.monotonic()
MINUTES = float(os.environ.get("MOAT_TEST_MINUTES") or "inf")


def pytest_runtest_setup():
    if time.monotonic() - BEGAN > 60 * MINUTES:
        pytest.skip(f"not begun within {MINUTES:g} minutes")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """``brief(keep=…)``: the cases whose parameters, a dictionary, ``keep`` takes stay; all others are ``long``."""
    items.sort(key=lambda item: not item.nodeid.partition("::")[0].endswith(LONGEST))
    for item in items:
        for mark in item.iter_markers("brief"):
            if not mark.kwargs["keep"](item.callspec.params):
                item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def digits():
    """Images (N, 3, 16, 16) in [0,1] and labels (N,)."""
    content = load_digits()
    x = torch.tensor(content.images / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    x = F.interpolate(x, 16, mode="bilinear").clamp(0, 1)
    return x, torch.tensor(content.target)


@pytest.fixture(scope="session")
def digits_net(digits):
    """A net trained on the digits as usual, to be copied."""
    torch.set_num_threads(1)
    return train(digits)
