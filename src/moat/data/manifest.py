"""``manifest.json`` lists the files of a fetched folder. It is written last, so that a folder with one is complete.

{"version", "dataset", "mirror": the files' source or null, "files": [{"name", "path", "sha256", "md5"?, "size",
"origin", "official": whether it is the file that the dataset's description names}]}. For a local folder of images it
has "folder" instead: {"path", "files": their number, "sha256": one hash of all names and contents}.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.base.errors import DataError
from moat.base.files import hash_file, read_json
from moat.data import archives

NAME = "manifest.json"
VERSION = 1


def read(folder: Path, dataset: str) -> dict[str, Any]:
    """Read the manifest of a fetched folder.

    Raises:
        DataError: it is missing, or another dataset's.
    """
    path = folder / NAME
    if not path.is_file():
        raise DataError(f"{path}: no such file; get the data with: moat fetch {dataset} --into {folder}")
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise DataError(f"{path}: not a manifest of this version of moat; run moat fetch again")
    if content["dataset"] != dataset:
        raise DataError(f"{path}: these are the files of dataset {content['dataset']!r}, not of {dataset!r}")
    return content


def verified_files(folder: Path, content: Mapping[str, Any]) -> dict[str, Path]:
    """Hash the files again, so that none that changed since it was fetched is opened, and return name -> path.

    Raises:
        DataError: a file is missing or differs from the manifest.
    """
    if content.get("folder"):
        path = Path(content["folder"]["path"])
        if describe_folder(path)["sha256"] != content["folder"]["sha256"]:
            raise DataError(f"{path}: this folder's content differs from {NAME}; run moat fetch again")
        return {"folder": path}
    files = {}
    for file in content["files"]:
        path = folder / file["path"]
        if not path.is_file():
            raise DataError(f"{path}: no such file, though {NAME} lists it; run moat fetch again")
        actual = hash_file(path)
        if actual != file["sha256"]:
            raise DataError(f"{path}: sha256 {actual} differs from {NAME} ({file['sha256']}); run moat fetch again")
        files[file["name"]] = path
    return files


def describe_folder(path: Path) -> dict[str, Any]:
    """The manifest's entry for a local folder: its path, number of files, and one sha256 of all names and contents.

    Raises:
        DataError: no such folder, or one that :func:`moat.data.archives.files` refuses.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    digest, count = hashlib.sha256(), 0
    for name, file in archives.files(path):
        digest.update(f"{hash_file(file)}  {name}\n".encode())
        count += 1
    return {"path": str(path), "files": count, "sha256": digest.hexdigest()}


def sources(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The identity of the files that a dataset is prepared from: names and hashes, without their locations."""
    if content.get("folder"):
        return [{"name": "folder", "sha256": content["folder"]["sha256"], "official": False}]
    return [{key: file[key] for key in ("name", "sha256", "official")} for file in content["files"]]
