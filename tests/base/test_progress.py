"""Progress: a bar on a terminal, few lines in a log."""

import io

import pytest

import moat.base.progress
from moat.base.progress import progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(moat.base.progress, "time", clock)
    return clock


def test_log_has_a_line_about_every_tenth(clock):
    log = io.StringIO()
    for item in progress(range(1000), description="epoch 3", unit="batches", stream=log):
        clock.now = item + 1.0
    lines = log.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "epoch 3: 100 of 1000 batches (10 %), 100 s"
    assert lines[-1] == "epoch 3: 1000 of 1000 batches (100 %), 1000 s"


def test_bytes_resumed_with_a_note(clock):
    log = io.StringIO()
    with progress(10_000_000, description="x.tar", unit="B", initial=5_000_000, stream=log) as bar:
        bar.set_postfix_str("slow")
        clock.now = 12.0
        bar.update(500_000)
        bar.update(600_000)
    assert log.getvalue() == "x.tar: 6 of 10 MB (61 %), 12 s, slow\n"


def test_short_work_is_silent_and_unknown_totals_count(clock):
    log = io.StringIO()
    assert list(progress(iter("abc"), description="letters", stream=log)) == ["a", "b", "c"]
    assert log.getvalue() == ""
    with progress(None, description="stream", unit="B", stream=log) as bar:
        clock.now = 31.0
        bar.update(2_000_000)
    assert log.getvalue() == "stream: 2 MB, 31 s\n"


def test_terminal_gets_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    with progress(3, description="work", stream=terminal) as bar:
        bar.update(3)
        bar.set_postfix_str("done")
        bar.refresh()
    assert "work: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()
