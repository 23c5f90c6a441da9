"""Warnings of an attack about the model that it runs on, as data for the evaluation.

An attack calls :func:`flag`; an evaluation wraps it in :func:`collect`. Without a collector a flag is a warning in the
log, so that it is not lost when an attack is called on its own.
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
