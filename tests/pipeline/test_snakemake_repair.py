"""What wrong clocks leave is put right."""

import os
import time
from pathlib import Path

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


def test_a_file_that_may_not_be_changed_is_a_warning(tmp_path, monkeypatch, caplog):
    """Another user's. What vanishes meanwhile, and a link that leads nowhere, are nothing."""
    (tmp_path / "theirs").touch()
    os.utime(tmp_path / "theirs", (time.time() + 3 * DAY,) * 2)
    (tmp_path / "link").symlink_to("gone")

    def utime(path: Path, times):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "utime", utime)
    assert clamp_future_mtimes(tmp_path) == []
    assert "theirs" in caplog.text and "another user's" in caplog.text and len(caplog.records) == 1
