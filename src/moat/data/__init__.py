"""Datasets: download and verify their files, prepare one tensor file per dataset, serve augmented batches."""

import importlib

# Imported on first use, so that `import moat` is enough for `moat.data.corruptions.corrupt`.
_PUBLIC = ("corruptions", "datasets")


def __getattr__(name: str):
    if name in _PUBLIC:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
