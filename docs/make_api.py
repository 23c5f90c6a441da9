"""Write docs/api.md: the public Python API, from the docstrings. `python docs/make_api.py` in the project's root."""

import functools
import inspect
import re
from pathlib import Path

import moat

DOCS = Path(__file__).parent
# Heading -> what is listed below it.
LISTED = {
    "Measure": ["evaluate", "verify", "evaluation.CheckReport", "evaluation.CheckResult", "load"],
    "Attacks": [f"attacks.{name}" for name in ("fgsm", "bim", "pgd", "cw_inf", "cw_l2", "autoattack", "for_attack")],
    "Models": [f"models.{name}" for name in ("build", "build_moe_cnn", "build_mixture", "ChannelExpertConv2d")]
    + ["models.ChannelExpertConv2d.forward"],
    "Losses": [f"methods.losses.{name}" for name in ("trades", "mart", "kl")],
    "Data": ["data.corruptions.corrupt"],
}
INTRODUCTION = """# Python API

`import moat` is quick: the packages below load on first use, and torch with them. Images are float32 in [0, 1],
(B, C, H, W), unless a function says otherwise; labels are int64; epsilon is in pixel units. Messages of wrong arguments
are of `moat.base.errors.ConfigError`, a `ValueError`.

This page is made from the docstrings by `python docs/make_api.py`.

## Example

[example.py](example.py):

```python
{code}```

It prints (the last digits depend on the processor)

```
{output}```
"""
# Default values that are fractions in the source.
FRACTIONS = {8 / 255: "8/255", 2 / 255: "2/255"}


def page() -> str:
    code, output = ((DOCS / f"example.{suffix}").read_text() for suffix in ("py", "txt"))
    parts = [INTRODUCTION.format(code=code, output=output)]
    for heading, names in LISTED.items():
        parts += [f"## {heading}\n", *map(entry, names)]
    return "\n".join(parts)


def entry(name: str) -> str:
    found = functools.reduce(getattr, name.split("."), moat)
    # What is made by other calls is not called itself.
    arguments = "" if name.startswith("evaluation.Check") else signature(found)
    return f"### `moat.{name}{arguments}`\n\n{markdown(inspect.getdoc(found))}\n"


def signature(function) -> str:
    """The parameters with their defaults, without annotations: the docstring says what they are."""
    parameters = []
    for each in inspect.signature(function).parameters.values():
        default = FRACTIONS.get(each.default, each.default) if isinstance(each.default, float) else each.default
        # Objects have no literal.
        literal = default if isinstance(each.default, float) else repr(default)
        shown = "…" if str(literal).count("(") else literal
        if each.kind is each.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        stars = "**" if each.kind is each.VAR_KEYWORD else ""
        parameters.append(f"{stars}{each.name}" + ("" if each.default is each.empty else f"={shown}"))
    return f"({', '.join(each for each in parameters if each != 'self')})"


def markdown(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections as lists, its roles as code."""
    text = re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", docstring).replace("``", "`")
    lines = []
    for line in text.splitlines():
        section = re.fullmatch(r"(Args|Attributes|Raises|Returns):(.*)", line)
        item = re.match(r"    (?! )([\w, ]+): (.*)", line)
        if section:
            lines += ["", f"**{section[1]}**{section[2]}", ""]
        elif item:
            names = ", ".join(f"`{each}`" for each in item[1].split(", "))
            lines.append(f"- {names}: {item[2]}")
        else:
            lines.append(line.removeprefix("    ") if line.startswith("     ") else line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


if __name__ == "__main__":
    (DOCS / "api.md").write_text(page())
