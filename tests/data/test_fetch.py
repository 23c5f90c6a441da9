"""Fetching: from official addresses and mirrors, resumed, retried, taken in turns."""

import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from small_data import cifar_members, tar

import moat.data.download
from moat.base.errors import ConfigError, DataError
from moat.commands.fetch import chosen_mirror
from moat.config.project import Project
from moat.data.fetch import fetch, read_sums

ROOT = Path(__file__).parents[2]
CONTENT = b"0123456789" * 1000
NAME = "cifar-10-python.tar.gz"


def described(site, content: bytes = CONTENT, **changes) -> dict:
    """A file entry for ``content`` at the site."""
    entry = {"name": NAME, "urls": [f"{site.url}/{NAME}"], "size": len(content)}
    return entry | {"sha256": hashlib.sha256(content).hexdigest()} | changes


def manifest(workplace) -> dict:
    return json.loads((workplace.into / "manifest.json").read_text())


@pytest.mark.parametrize("checksum", ["sha256", "md5"])
def test_official(workplace, site, checksum):
    site.files[NAME] = CONTENT
    entry = described(site) | {checksum: hashlib.new(checksum, CONTENT).hexdigest()}
    if checksum == "md5":
        del entry["sha256"]
    workplace.dataset(files=[entry])
    assert workplace.fetch() == 0
    assert (workplace.into / NAME).read_bytes() == CONTENT
    assert workplace.left() == {NAME, "manifest.json"}
    assert not (workplace.into / f"{NAME}.part").exists()
    (file,) = manifest(workplace)["files"]
    assert file == {
        "name": NAME,
        "path": NAME,
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "md5": hashlib.md5(CONTENT).hexdigest(),
        "size": len(CONTENT),
        "origin": f"{site.url}/{NAME}",
        "official": True,
    }


def test_second_call_fetches_nothing(workplace, site):
    site.files[NAME] = CONTENT
    workplace.dataset(files=[described(site)])
    assert workplace.fetch() == 0
    before = (workplace.into / "manifest.json").read_bytes()
    assert workplace.fetch() == 0
    assert len(site.ranges) == 1
    assert (workplace.into / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "http", "file"])
def test_mirror(workplace, site, kind):
    subset = CONTENT[:1000]
    # MNIST's files lie in a folder of the mirror; the name alone finds them.
    workplace.publish({f"deeper/{NAME}": subset})
    site.files = {name: (workplace.mirror / name).read_bytes() for name in ("SHA256SUMS", f"deeper/{NAME}")}
    workplace.dataset(files=[described(site)])
    address = {"folder": str(workplace.mirror), "http": site.url, "file": workplace.mirror.as_uri()}[kind]
    assert workplace.fetch("--mirror", address) == 0
    assert (workplace.into / NAME).read_bytes() == subset
    assert not (workplace.into / NAME).is_symlink()
    assert manifest(workplace)["mirror"] == address
    assert manifest(workplace)["files"][0]["official"] is False


def test_file_put_there_by_hand(workplace):
    workplace.into.mkdir()
    (workplace.into / NAME).write_bytes(CONTENT)
    workplace.dataset(files=[{"name": NAME, "sha256": hashlib.sha256(CONTENT).hexdigest()}])
    assert workplace.fetch() == 0
    assert manifest(workplace)["files"][0]["origin"] is None


@pytest.mark.parametrize("content, words", [(None, ["no official address", "--mirror"]), (b"other", ["sha256 is"])])
def test_file_without_an_address(workplace, capsys, content, words):
    workplace.into.mkdir()
    if content is not None:
        (workplace.into / NAME).write_bytes(content)
    workplace.dataset(files=[{"name": NAME, "sha256": hashlib.sha256(CONTENT).hexdigest()}])
    assert workplace.fetch() == 3
    error = capsys.readouterr().err
    assert all(word in error for word in [NAME, *words])
    assert not (workplace.into / "manifest.json").exists()


def test_second_address_when_the_first_has_nothing(workplace, site):
    site.files["copy"] = CONTENT
    workplace.dataset(files=[described(site, urls=[f"{site.url}/gone", f"{site.url}/copy"])])
    assert workplace.fetch() == 0
    assert manifest(workplace)["files"][0]["origin"] == f"{site.url}/copy"


@pytest.mark.parametrize("support_range", [True, False])
@pytest.mark.parametrize("fault", ["500", "429", "short", "drop"])
def test_retried(workplace, site, fault, support_range):
    """The first answer is an error, or breaks off half way; the second is right."""

    def behave(request, name):
        if len(site.ranges) > 1:
            return False
        if fault in ("short", "drop"):
            request.answer(CONTENT, only=4000 if fault == "short" else 0)
        else:
            request.send_error(int(fault))
        return True

    site.files[NAME], site.behave, site.support_range = CONTENT, behave, support_range
    workplace.dataset(files=[described(site)])
    assert workplace.fetch() == 0
    assert (workplace.into / NAME).read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=4000-" if fault == "short" else None]


def test_connection_that_always_breaks_but_brings_something(workplace, site):
    site.files[NAME] = CONTENT
    site.behave = lambda request, name: request.answer(CONTENT, only=1000) or True
    workplace.dataset(files=[described(site)])
    assert workplace.fetch() == 0
    assert (workplace.into / NAME).read_bytes() == CONTENT
    assert site.sent == len(CONTENT)


def test_old_part_of_another_file_is_dropped(workplace, site):
    site.files[NAME] = CONTENT
    workplace.dataset(files=[described(site)])
    workplace.into.mkdir()
    (workplace.into / f"{NAME}.part").write_bytes(b"x" * 500)
    assert workplace.fetch() == 0
    assert (workplace.into / NAME).read_bytes() == CONTENT
    assert site.ranges == ["bytes=500-", None]


def test_kill_during_download_then_resume(workplace, site):
    """SIGKILL with half the file there: nothing under a final name; the next call asks for the rest only."""
    half, go_on = 3 << 20, threading.Event()
    content = os.urandom(2 * half)

    def behave(request, name):
        if len(site.ranges) > 1:
            return False
        request.answer(content, only=half)
        request.wfile.flush()
        go_on.wait(60)
        return True

    site.files[NAME], site.behave = content, behave
    workplace.dataset(files=[described(site, content)])
    command = ["-m", "moat", "--project", workplace.root, "fetch", "small", "--into", workplace.into]
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    part = workplace.into / f"{NAME}.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 1 << 20):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    go_on.set()
    assert workplace.left() == set()
    have = part.stat().st_size
    site.sent = 0
    assert workplace.fetch() == 0
    assert (workplace.into / NAME).read_bytes() == content
    assert site.ranges[1:] == [f"bytes={have}-"]
    assert site.sent == len(content) - have


def test_two_calls_take_turns(workplace, site):
    workplace.dataset(files=[described(site)])
    site.files[NAME] = CONTENT
    spec = Project(workplace.root).dataset("small")
    threads = [threading.Thread(target=fetch, args=(spec, workplace.into)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.ranges) == 1
    assert workplace.left() == {NAME, "manifest.json"}


def test_embedded_data_needs_no_mirror(workplace):
    workplace.dataset("digits")
    assert workplace.fetch("--mirror", "/nowhere") == 0
    assert manifest(workplace)["files"] == [] and manifest(workplace)["mirror"] is None


# -- which mirror -----------------------------------------------------------------
CONFIG = "config/config.yaml"


@pytest.mark.parametrize(
    "option, environment, configured, chosen",
    [
        ("a", "b", "c", "a"),
        (None, "b", "c", "b"),
        (None, None, "../c", "{root}/../c"),
        (None, None, "/c", "/c"),
        (None, None, "https://mirror/c", "https://mirror/c"),
        (None, None, None, None),
    ],
)
def test_order_of_mirrors(workplace, monkeypatch, option, environment, configured, chosen):
    content = yaml.safe_load((ROOT / CONFIG).read_text())
    content["data"]["mirror"] = configured
    (workplace.root / CONFIG).write_text(yaml.safe_dump(content))
    if environment:
        monkeypatch.setenv("MOAT_MIRROR", environment)
    expected = chosen and chosen.format(root=workplace.root)
    assert chosen_mirror(option, Project(workplace.root)) == expected


def test_environment_variable_reaches_the_command(workplace, monkeypatch):
    workplace.publish({NAME: tar(cifar_members(2))})
    workplace.dataset()
    monkeypatch.setenv("MOAT_MIRROR", str(workplace.mirror))
    assert workplace.fetch() == 0
    assert manifest(workplace)["mirror"] == str(workplace.mirror)


# -- descriptions -----------------------------------------------------------------
@pytest.mark.parametrize("name", Project(ROOT).names("datasets"))
def test_every_description_is_valid(name):
    from moat.data.formats import READERS

    spec = Project(ROOT).dataset(name)
    assert spec["name"] == name
    assert spec["format"] in READERS
    assert len(spec["mean"]) == len(spec["std"]) == spec["channels"]
    assert len(spec.get("classes", range(spec["num_classes"]))) == spec["num_classes"]


def test_schema_lists_exactly_the_readers():
    from moat.data.formats import READERS

    schema = yaml.safe_load((ROOT / "workflow" / "schemas" / "dataset.schema.yaml").read_text())
    assert set(schema["properties"]["format"]["enum"]) == set(READERS)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"flip": True}, ["flip", "augment"]),
        ({"format": "cifar"}, ["'cifar'", "cifar_pickle"]),
        ({"channels": 2}, ["channels", "2"]),
        ({"files": [{"name": "../x", "md5": "0" * 32}]}, ["files.0.name", "../x"]),
        ({"files": [{"name": "x"}]}, ["files.0"]),
        ({"name": "other"}, ["'other'", "'small'"]),
    ],
)
def test_faulty_description(workplace, capsys, changes, words):
    workplace.dataset(**changes)
    assert workplace.fetch() == 2
    error = capsys.readouterr().err
    assert all(word in error for word in ["small.yaml", *words])


def test_unknown_dataset(workplace, capsys):
    workplace.dataset()
    assert workplace.moat("fetch", "smal", "--into", workplace.into) == 2
    assert "did you mean 'small'" in capsys.readouterr().err


@pytest.mark.parametrize("address", [Path, Path.as_uri], ids=["folder", "file URL"])
def test_a_mirror_that_is_not_there_is_not_one_without_checksums(workplace, capsys, address):
    workplace.dataset()
    nowhere = str(address(workplace.root / "nowhere"))
    assert workplace.fetch("--mirror", nowhere) == 3
    assert f"{nowhere}: no such folder; a mirror is a folder or a URL with SHA256SUMS" in capsys.readouterr().err


def test_python_interface_raises(workplace):
    workplace.dataset()
    spec = Project(workplace.root).dataset("small")
    with pytest.raises(DataError, match="no SHA256SUMS in this mirror"):
        fetch(spec, workplace.into, mirror=str(workplace.mirror))
    with pytest.raises(ConfigError):
        Project(workplace.root).dataset("none")


# -- what is not followed, not tried again, not read -------------------------------
def to(address: str):
    def behave(request, name):
        request.send_response(302)
        request.send_header("Location", address)
        request.end_headers()
        return True

    return behave


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_a_redirect_leads_to_http_or_https_only(workplace, site, capsys, address):
    site.behave = to(address)
    workplace.dataset(files=[described(site)])
    assert workplace.fetch() == 3
    assert len(site.ranges) == 1 and workplace.left() == set()


@pytest.mark.parametrize(
    ("first", "then", "followed"),
    [
        ("https://a/x", "https://b/x", True),
        ("http://a/x", "https://b/x", True),
        ("http://a/x", "http://b/x", True),
        ("https://a/x", "http://b/x", False),
        ("https://a/x", "ftp://b/x", False),
        ("http://a/x", "ftp://b/x", False),
    ],
)
def test_a_redirect_never_gives_up_https(first, then, followed):
    handler, request = moat.data.download._Redirects(), urllib.request.Request(first)
    if followed:
        assert handler.redirect_request(request, None, 302, "Found", {}, then).full_url == then
    else:
        with pytest.raises(DataError, match=f"{first}: leads to {then}"):
            handler.redirect_request(request, None, 302, "Found", {}, then)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (urllib.error.URLError(ssl.SSLCertVerificationError("certificate has expired")), 1),
        (urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "Name or service not known")), 1),
        (urllib.error.URLError("no host given"), 1),
        (http.client.InvalidURL("nonnumeric port: 'x'"), 1),
        (urllib.error.URLError(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")), 3),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), 3),
        (ConnectionResetError(104, "Connection reset by peer"), 3),
        (TimeoutError("timed out"), 3),
    ],
)
def test_what_no_later_attempt_can_mend_is_tried_once(workplace, monkeypatch, error, attempts):
    opened = []

    def fails(self, request, timeout):
        opened.append(request.full_url)
        raise error

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", fails)
    with pytest.raises(DataError, match="https://somewhere/SHA256SUMS: "):
        read_sums("https://somewhere")
    assert len(opened) == attempts


def test_checksums_of_more_than_a_mebibyte_are_refused(site):
    site.files["SHA256SUMS"] = f"{'0' * 64}  x\n".encode() * 16_000
    with pytest.raises(DataError, match=r"SHA256SUMS: has more than 1048576 bytes; refused"):
        read_sums(site.url)


def test_checksums_may_begin_with_a_byte_order_mark(site):
    site.files["SHA256SUMS"] = b"\xef\xbb\xbf" + f"{'0' * 64}  x\n".encode()
    assert read_sums(site.url) == {"x": "0" * 64}


@pytest.mark.parametrize("address", ["http://[::1/x", "https://[/"])
def test_an_address_that_is_none_is_one_line(workplace, capsys, address):
    workplace.dataset()
    assert workplace.fetch("--mirror", address) == 3
    assert f"{address}: neither a URL nor a path" in capsys.readouterr().err


def test_a_dead_proxy_is_named_without_its_password(workplace, monkeypatch, capsys):
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    workplace.dataset(files=[{"name": NAME, "urls": ["http://moat.invalid/x"], "md5": "0" * 32}])
    assert workplace.fetch() == 3
    said = capsys.readouterr().err
    assert "Connection refused" in said and "(through the proxy 127.0.0.1:9 of http_proxy)" in said
    assert "secret" not in said


# -- other people's folders ---------------------------------------------------------
def test_in_a_complete_folder_that_cannot_be_written_there_is_nothing_to_do(workplace, monkeypatch):
    workplace.publish({NAME: tar(cifar_members(2))})
    workplace.dataset()
    options = ("--mirror", str(workplace.mirror))
    assert workplace.fetch(*options) == 0
    (workplace.into / ".fetch.lock").unlink()
    before = (workplace.into / "manifest.json").stat().st_mtime_ns
    # As for another user; root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert workplace.fetch(*options) == 0
    assert (workplace.into / "manifest.json").stat().st_mtime_ns == before
    assert not (workplace.into / ".fetch.lock").exists()
