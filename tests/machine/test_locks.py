"""The locks of the GPUs in a folder where everybody may write: nothing that lies there is trusted."""

import errno
import os
import re
import stat
import threading

import pytest

from moat.base.errors import ConfigError, DataError, MoatError
from moat.base.locks import only_one
from moat.commands import clean
from moat.data.fetch import fetch
from moat.machine import gpu_lease, locks, queue
from moat.machine.gpus import Gpu


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    return locks.make_folder(tmp_path / "locks")


def lease(folder):
    return gpu_lease.lease([Gpu("a", "a")], folder=folder, environ={})


def test_a_new_folder_is_as_tmp_is(folder):
    assert mode(folder) == 0o1777
    assert locks.make_folder(folder) == folder


def test_a_link_in_place_of_the_folder_changes_nothing_where_it_leads(tmp_path):
    """In the place of /tmp/moat-gpus, to somebody's home."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "locks").symlink_to(home)
    with pytest.raises(ConfigError, match=r"locks: no folder for the GPU locks \(a link or a file is in its place\)"):
        locks.make_folder(tmp_path / "locks")
    assert mode(home) == 0o700 and list(home.iterdir()) == []


def test_the_mode_of_a_folder_that_was_there_is_left(tmp_path):
    own = tmp_path / "own"
    own.mkdir(mode=0o750)
    assert locks.make_folder(own) == own and mode(own) == 0o750


def test_a_folder_where_everybody_may_remove_the_locks_of_others_is_refused(tmp_path):
    everybodys = tmp_path / "everybodys"
    everybodys.mkdir()
    everybodys.chmod(0o777)
    with pytest.raises(ConfigError, match=r"mode 777, needed: 1777"):
        locks.make_folder(everybodys)


def _pipe(path):
    os.mkfifo(path)


def _link(path):
    (path.parent.parent / "other").write_text("content")
    path.symlink_to(path.parent.parent / "other")


def _second_name(path):
    _link(path)
    path.unlink()
    os.link(path.parent.parent / "other", path)


def _folder(path):
    path.mkdir()


@pytest.mark.parametrize("plant", [_pipe, _link, _second_name, _folder])
@pytest.mark.parametrize("name", ["mutex", "slot.a.0"])
def test_what_is_no_lock_file_is_refused_in_one_line(folder, plant, name):
    plant(folder / name)
    with pytest.raises(ConfigError, match=f"{name}: no lock file .* remove it"), lease(folder):
        pass
    other = folder.parent / "other"
    assert not other.exists() or other.read_text() == "content"


@pytest.mark.parametrize("plant", [_pipe, _link, _second_name, _folder])
@pytest.mark.parametrize("name", ["ticket.7", "ticket.99999999999999999999999"])
def test_what_is_no_ticket_is_nobody_in_the_queue(folder, plant, name):
    plant(folder / name)
    assert queue.waiting(folder, ["a"]) == []
    with lease(folder) as slot:
        assert slot.name == "a slot 0"


def test_of_a_huge_lock_file_little_is_read(folder):
    with open(folder / "slot.a.0", "wb") as stream:
        stream.truncate(8 << 40 if os.statvfs(folder).f_bsize >= 4096 else 1 << 40)
    file = locks.open_file(folder / "slot.a.0")
    assert locks.read_owner(file) == {}
    os.close(file)
    with lease(folder):
        assert (folder / "slot.a.0").stat().st_size < 65536


@pytest.mark.parametrize("content", ["[1]", '{"gpus": 7}', '{"gpus": [[1]]}', "[" * 60_000, "\0"])
def test_a_ticket_may_say_anything(folder, content):
    held = locks.open_file(folder / "ticket.1")
    assert locks.try_lock(held)
    os.pwrite(held, content.encode(), 0)
    for file in queue.waiting(folder, ["a"]):
        os.close(file)
    os.close(held)


def test_a_held_mutex_is_waited_for_with_a_message_and_a_limit(folder, monkeypatch, caplog):
    monkeypatch.setattr(locks, "MUTEX_MESSAGE", 0.05)
    monkeypatch.setattr(locks, "MUTEX_LIMIT", 0.2)
    held = locks.open_file(folder / "mutex")
    assert locks.try_lock(held)
    with pytest.raises(MoatError, match=r"mutex: another process has held this lock .* MOAT_LOCKS"), lease(folder):
        pass
    assert caplog.text.count("mutex: waiting for another process") == 1
    monkeypatch.setattr(locks, "MUTEX_LIMIT", 600.0)
    threading.Timer(0.1, os.close, [held]).start()
    with lease(folder) as slot:
        assert slot.name == "a slot 0"


def as_user(user, tmp_path, act):
    """What ``act`` says when a user of that number does it: "" or an error's line. Needs root."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become other users")
    for parent in (tmp_path, *list(tmp_path.parents)[:-1]):
        if not mode(parent) & 0o001:
            parent.chmod(0o755)
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        os.umask(0o077)
        try:
            act()
        except MoatError as error:
            os.write(writing, str(error).encode())
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(process, 0)
    return said


def test_two_users_share_a_folder_that_one_of_them_has_made(tmp_path):
    """The first user makes it for all."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)

    def hold():
        with lease(locks.make_folder(shared / "locks")):
            pass

    assert [as_user(user, tmp_path, hold) for user in (65534, 12345)] == ["", ""]
    assert (shared / "locks").stat().st_uid == 65534 and mode(shared / "locks") == 0o1777


def _lease_in(folder):
    with lease(locks.make_folder(folder)):
        pass


def _fetch_into(folder):
    fetch({"name": "digits", "files": []}, folder)


def _clean(folder):
    clean.run(clean.Request(folder))


@pytest.mark.parametrize(
    ("folder_mode", "file", "act", "words"),
    [
        (0o700, None, _lease_in, r"no folder for the GPU locks \(Permission denied: .*locks belongs to root\); MOAT_"),
        (0o755, None, _lease_in, "which belongs to root, cannot be written; MOAT_LOCKS names another"),
        (0o1777, "mutex", _lease_in, r"mutex: no lock file \(Permission denied: .*mutex belongs to root\).*MOAT_LOCKS"),
        (0o1777, ".fetch.lock", _fetch_into, r"cannot be fetched into \(.*fetch.lock belongs to root\); --into names"),
        (0o1777, "checkpoint", _clean, r"checkpoint: cannot be removed \(.*checkpoint belongs to root\)"),
        (0o755, None, _clean, r"locks: cannot be removed \(Permission denied"),
    ],
)
def test_what_belongs_to_another_user_is_said_in_one_line(tmp_path, folder_mode, file, act, words):
    folder = tmp_path / "locks"
    folder.mkdir()
    if file is not None:
        (folder / file).touch(mode=0o600)
    folder.chmod(folder_mode)
    said = as_user(65534, tmp_path, lambda: act(folder))
    assert re.search(words, said) and len(said.splitlines()) == 1, said


@pytest.mark.parametrize("file_there", [True, False])
def test_on_a_read_only_file_system_a_lock_is_held_or_refused_in_one_line(tmp_path, monkeypatch, file_there):
    if file_there:
        (tmp_path / "lock").touch()
        (tmp_path / ".fetch.lock").touch()
    opened = os.open

    def read_only(path, flags, *mode, **options):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(ConfigError, match=r"mutex: no lock file \(Read-only .* MOAT_LOCKS"), lease(tmp_path):
        pass
    if file_there:
        with only_one(tmp_path / "lock", waiting="nobody"):
            pass
    else:
        with pytest.raises(OSError, match="Read-only file system"), only_one(tmp_path / "lock", waiting="nobody"):
            pass
        with pytest.raises(DataError, match=r"cannot be fetched into \(Read-only file system\); --into names"):
            _fetch_into(tmp_path)
