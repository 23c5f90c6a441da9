"""A process that leases one GPU slot and writes down what it saw; started, and killed, by test_gpu_lease.py.

usage: holder.py JOURNAL HOLD_SECONDS

Every line of the journal is one event: nanoseconds, pid, what, and the device (or the place in the queue).
"""

import fcntl
import logging
import os
import re
import sys
import time
from pathlib import Path

from moat.machine.gpu_lease import lease


def main(journal: Path, hold: float) -> None:
    log = os.open(journal, os.O_WRONLY | os.O_APPEND)

    def note(what: str, where: str) -> None:
        os.write(log, f"{time.monotonic_ns()} {os.getpid()} {what} {where}\n".encode())

    class Waiting(logging.Handler):
        def emit(self, record):
            if place := re.search(r"waiting, (\d+) before", record.getMessage()):
                note("queued", place[1])

    logging.getLogger("moat").addHandler(Waiting())
    # Opened before the lease, so that a killed process gives the witness back no later than the slot.
    witnesses = {name: os.open(journal.with_suffix(f".{name}"), os.O_RDWR) for name in ("a", "b", "c")}
    with lease():
        device = os.environ["CUDA_VISIBLE_DEVICES"]
        # Another kind of lock than the lease's own: it proves that nobody else is on this device.
        try:
            fcntl.lockf(witnesses[device], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            note("CLASH", device)
        note("in", device)
        time.sleep(hold)
        note("out", device)
        fcntl.lockf(witnesses[device], fcntl.LOCK_UN)
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
