"""Numbers and values as people read them."""

from collections.abc import Mapping
from typing import Any


def duration(seconds: float | None) -> str | None:
    """``42 s``, ``3 min 5 s`` or ``2 h 7 min``."""
    if seconds is None:
        return None
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def quantity(value: float | None) -> str:
    """``11.17 M``: four significant digits and a power of a thousand."""
    if value is None:
        return "–"
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g}"


def memory(size: float | None) -> str | None:
    """``1,234 MiB`` of a number of bytes."""
    return None if size is None else f"{size / 2**20:,.0f} MiB"


def plain(value: Any) -> str:
    """A check's value or limit, whatever its shape, on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    return str(value)


def hardware(content: Mapping[str, Any]) -> str:
    """The hardware of a result's JSON record, on one line: the GPU if it used one, else the CPU."""
    described, device = content.get("hardware") or {}, content.get("device")
    gpus, cpu = described.get("gpus") or [], described.get("cpu")
    if gpus and device != "cpu":
        return str(device or gpus[0])
    cores = f", {described['cores']} cores" if described.get("cores") else ""
    return f"{cpu}{cores}" if cpu else device or "–"
