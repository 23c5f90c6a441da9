"""What an attack notices about the model while it runs, as data for whoever evaluates.

An attack calls :func:`flag`; who wants to know wraps the call in :func:`collect`. Without a collector the flag is
a warning in the log, so that nothing is lost when an attack is called by itself.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger(__name__)

_collector: ContextVar[dict[str, str] | None] = ContextVar("collector", default=None)


def flag(name: str, message: str) -> None:
    """Say once per ``name`` that something makes a result doubtful; the first message is kept."""
    found = _collector.get()
    if found is None:
        log.warning("%s: %s", name, message)
    else:
        found.setdefault(name, message)


@contextmanager
def collect() -> Iterator[dict[str, str]]:
    """The flags raised inside the block: name -> message."""
    found: dict[str, str] = {}
    token = _collector.set(found)
    try:
        yield found
    finally:
        _collector.reset(token)
