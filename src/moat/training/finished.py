"""A second set of links to a finished run's results, beside its checkpoints.

Snakemake deletes a job's outputs before it runs the job again, even if the job had finished and only Snakemake was
killed before it could record that. The hard links take no space while the results exist.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from moat.base.files import atomic_path, hash_file, read_json

FILES = ("model.safetensors", "last.safetensors", "history.csv", "run.json")


def keep(out: Path, folder: Path) -> None:
    """Link a finished run's files into ``folder``; last run.json, whose hashes vouch for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        _place(out / name, folder / name)


def restore(folder: Path, out: Path, *, identity: str, sources: Mapping[str, str]) -> bool:
    """Return whether exactly this run is finished in ``out``, restoring it from ``folder`` if necessary.

    Args:
        identity: the digest of recipe, data and needed runs.
        sources: the current hashes of the package's parts; results of other code do not count.
    """
    if _is_finished(out, identity, sources):
        return True
    if not _is_finished(folder, identity, sources):
        return False
    for name in FILES:
        _place(folder / name, out / name)
    return True


def _is_finished(folder: Path, identity: str, sources: Mapping[str, str]) -> bool:
    if not all((folder / name).exists() for name in FILES):
        return False
    run = read_json(folder / "run.json")
    if run.get("identity") != identity or run.get("sources") != dict(sources):
        return False
    hashes = {"model.safetensors": run.get("model_sha256"), "last.safetensors": run.get("last_sha256")}
    return all(hash_file(folder / name) == value for name, value in hashes.items())


def _place(source: Path, target: Path) -> None:
    """Hard-link ``source`` to ``target``, or copy it to another file system, atomically."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
