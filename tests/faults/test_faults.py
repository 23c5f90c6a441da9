"""A dozen faults, each kind once; `make faults N=200` injects more."""

import pytest
from harness import Harness

import faults


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness(tmp_path_factory.mktemp("faults"), seed=1)


@pytest.mark.long
@pytest.mark.parametrize("fault", faults.KINDS, ids=lambda fault: fault.__name__)
def test_after_a_fault_the_same_command_gives_the_same_results(harness, fault):
    if fault is faults.full_disk and not harness.can_fill_a_disk:
        pytest.skip("this user may not mount a tmpfs, which a full disk needs")
    # Two models and the data, two tables of rows, the table in three forms, the cells, the numbers, the claims.
    assert len(harness.undisturbed) >= 10
    # One that comes too late meets no occasion.
    assert any(harness.inject(fault) for _ in range(4))
