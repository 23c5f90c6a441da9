"""Finished results, kept beside the checkpoints until the workflow has taken them for good.

Snakemake deletes a job's outputs before it runs the job again, for example when it was itself killed between the end
of a training and its own bookkeeping. The files are kept as hard links, which take no space while the results exist.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from moat.base.files import atomic_path, hash_file, read_json

FILES = ("model.safetensors", "last.safetensors", "history.csv", "run.json")


def keep(out: Path, folder: Path) -> None:
    """Remember a finished run's files in ``folder``; run.json, which vouches for the others, last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        _place(out / name, folder / name)


def restore(folder: Path, out: Path, *, identity: str, sources: Mapping[str, str]) -> bool:
    """Whether this very training is finished, in ``out`` or, put back from there, in ``folder``.

    Args:
        identity: digest of recipe, data and needed runs.
        sources: today's hashes of the package's parts: what other code made is trained again.
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
    """A hard link, or a copy where the folders lie on different file systems; under its name only when complete."""
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
