"""What wrong clocks leave is put right."""

import os
import time

from moat.pipeline.snakemake_repair import clamp_future_mtimes

DAY = 86400


def test_times_in_the_future_become_now(tmp_path):
    ahead, past = tmp_path / "a/ahead", tmp_path / "past"
    ahead.parent.mkdir()
    for path, moment in ((ahead, time.time() + 3 * DAY), (past, 1_000_000_000)):
        path.touch()
        os.utime(path, (moment, moment))
    assert clamp_future_mtimes(tmp_path) == [ahead]
    assert ahead.stat().st_mtime <= time.time() + 1 and past.stat().st_mtime == 1_000_000_000
