"""The log of a job: attempt after attempt, and how each ended; the next asks for more of what the last one lacked."""

import re
from pathlib import Path

_HEADER, _END = "== attempt at", "== ended with"
# What a process says that found no memory; 137: it was killed, as by the kernel where there is none left.
_OUT_OF_MEMORY = re.compile(
    r"\bMemoryError\b|out of memory|OutOfMemoryError|can('t|not) allocate memory|oom-kill", re.IGNORECASE
)
_KILLED = 137
#: Exit codes of a command that was told to stop and may go on from where it was.
_INTERRUPTED = (75, 143)


def logged(command: str) -> str:
    """A rule's shell command that appends what ``command`` says to the rule's log, below a line for each attempt.

    It ends as ``command`` does. (In braces, with a subshell that fails: `exit` would close a terminal that it is pasted
    into.)
    """
    header = f'echo "{_HEADER} $(date -u +%Y-%m-%dT%H:%M:%SZ) on $(uname -n)" >> {{log:q}}'
    end = f'code=$?; echo "{_END} exit code $code" >> {{log:q}}; (exit $code)'
    return f"{header}; {command} >> {{log:q}} 2>&1 || {{{{ {end}; }}}}"


def failures(log: Path) -> list[str]:
    """How the attempts in a log failed, the last one last: ``memory``, ``time`` or ``other``.

    An attempt that was ended before its shell could say how may have lacked either: ``killed``.
    """
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [_failure(part) for part in text.split(_HEADER)[1:]]


def _failure(said: str) -> str:
    ended = re.search(rf"^{_END} exit code (\d+)$", said, re.MULTILINE)
    if ended is None:
        return "killed"
    code = int(ended[1])
    if code == _KILLED or _OUT_OF_MEMORY.search(said):
        return "memory"
    return "time" if code in _INTERRUPTED else "other"
