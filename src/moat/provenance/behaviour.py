"""What a source file does, whatever it is called and wherever it lies.

The *behaviour* of a Python file is a hash of its syntax tree without comments, docstrings and imports. A name that
another library gave is replaced by its full name there (``F.relu`` and ``torch.relu`` are what they stand for), and one
that a module of moat gave by its number in the order of use; :attr:`Source.uses` tells what each number stands for.
So moving or renaming a module, with the imports rewritten, changes the behaviour of no file, and neither does the
format of the code.
"""

import ast
import functools
import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from moat.base.remembered import Remembered, key_of

# Strings that name modules, as `importlib.import_module` takes them.
_MODULE_NAME = re.compile(r"moat(\.\w*)+")
# What says nothing (whether a name is read or bound follows from the place), or is new in some version of Python.
_IGNORED_FIELDS = {"ctx", "kind", "type_comment", "type_params"}


@dataclass(frozen=True)
class Source:
    """One file of the package.

    Attributes:
        behaviour: 16 hex digits; "" where nothing is left, as in a package that only passes names on.
        names: every name that an import binds, anywhere in the file -> its full name, ``moat.methods.losses.kl``.
        uses: the full names of moat's that the file uses, in the order of their first use.
    """

    behaviour: str
    names: dict[str, str]
    uses: tuple[str, ...]


def read(path: Path, module: str) -> Source:
    """The source file ``path``, Python or C++, which is the module of that full name."""
    return _read_once(path, module, tuple(key_of(path)))


def remember() -> None:
    """Let other processes know what was read, so that they need not parse it."""
    _remembered().save()


@functools.cache
def _remembered() -> Remembered:
    reader = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return Remembered("sources.json", f"{reader} Python {sys.version_info[0]}.{sys.version_info[1]}")


@functools.cache
def _read_once(path: Path, module: str, key: tuple[int, ...]) -> Source:
    """Parsed, unless that was done before and the file (of a package also the names of its modules) is the same."""
    package = path.stem == "__init__"
    siblings = sorted({other.stem for other in path.parent.iterdir()}) if package else []
    known_by = [*key, module, digest(" ".join(siblings))]
    found = _remembered().get(path, known_by)
    if found is None:
        source = _parse(path, module, set(siblings))
        _remembered().put(path, known_by, [source.behaviour, source.names, source.uses])
        return source
    behaviour, names, uses = found
    return Source(behaviour, names, tuple(uses))


def _parse(path: Path, module: str, siblings: set[str]) -> Source:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        lines = (line.strip() for line in text.splitlines())
        return Source(digest("\n".join(line for line in lines if line and not line.startswith("//"))), {}, ())
    tree = ast.parse(text)
    package = path.stem == "__init__"
    names = _imported(tree, module if package else module.rpartition(".")[0])
    writer = _Writer(names, siblings)
    writer.write_all(tree.body)
    return Source(digest(" ".join(writer.words)), names, tuple(writer.uses))


def digest(text: str) -> str:
    """16 hex digits; none of no text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""


def _imported(tree: ast.AST, package: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import torch.nn` binds torch; of moat's own modules the one that is meant counts.
                dotted = alias.name if alias.asname or alias.name.startswith("moat.") else alias.name.partition(".")[0]
                names[alias.asname or dotted] = dotted
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    return names


class _Writer:
    """Writes a syntax tree as words that are the same on every version of Python."""

    def __init__(self, names: dict[str, str], siblings: set[str]):
        self.names, self.siblings = names, siblings
        self.words: list[str] = []
        self.uses: dict[str, int] = {}

    def write_all(self, statements: list) -> None:
        for statement in statements:
            if not _says_nothing(statement):
                self.write(statement)

    def write(self, node) -> None:
        kind = type(node)
        if kind is ast.Name or kind is ast.Attribute:
            self._write_name(node)
        elif kind is ast.Constant:
            self.words.append("module" if self._names_a_module(node.value) else repr(node.value))
        elif isinstance(node, ast.AST):
            self.words.append(kind.__name__)
            for field in node._fields:
                value = None if field in _IGNORED_FIELDS else getattr(node, field, None)
                if value is None or value == []:
                    continue
                self.words.append(field)
                if type(value) is list:
                    self.words.append("(")
                    self.write_all(value)
                    self.words.append(")")
                else:
                    self.write(value)
        else:
            self.words.append(repr(node))

    def _write_name(self, node) -> None:
        """``steps.ascend`` as ``#0.ascend``, where ``steps`` is the first of moat's names that the file uses."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name):
            self.words.append(self._full_name([node.id, *attributes]))
        else:
            self.write(node)
            self.words += [f".{attribute}" for attribute in attributes]

    def _full_name(self, dotted: list[str]) -> str:
        # `import moat.methods` is used as `moat.methods.get`: the longest name that is imported is meant.
        for length in range(len(dotted), 0, -1):
            origin = self.names.get(".".join(dotted[:length]))
            if origin is not None:
                if origin.startswith("moat."):
                    origin = f"#{self.uses.setdefault(origin, len(self.uses))}"
                return ".".join([origin, *dotted[length:]])
        return ".".join(dotted)

    def _names_a_module(self, value) -> bool:
        return isinstance(value, str) and (value in self.siblings or _MODULE_NAME.fullmatch(value) is not None)


def _says_nothing(statement) -> bool:
    """Imports, what only type checkers import, strings that stand for themselves, and lists of public names.

    So do declared parameters, whose defaults are part of what a run was told, and declared costs, which are for plans.
    """
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    if isinstance(statement, ast.If):
        return isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    if isinstance(statement, ast.Assign):
        return isinstance(statement.targets[0], ast.Name) and statement.targets[0].id in (
            "__all__",
            "PARAMETERS",
            "PASSES",
        )
    return isinstance(statement, (ast.Import, ast.ImportFrom))
