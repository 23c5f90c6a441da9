"""A project in a temporary folder, and a web server that can misbehave."""

import hashlib
import http.server
import os
import re
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

import moat.data.download
from moat.commands.cli import main

ROOT = Path(__file__).parents[2]


@dataclass
class Workplace:
    """A project folder with one mirror; ``moat`` runs the real command line in it."""

    root: Path

    @property
    def mirror(self) -> Path:
        return self.root / "mirror"

    @property
    def into(self) -> Path:
        return self.root / "resources"

    @property
    def out(self) -> Path:
        return self.root / "prepared.safetensors"

    def dataset(self, base: str = "cifar10", **changes) -> str:
        """Write the description of a dataset "small": the project's own ``base``, changed."""
        spec = yaml.safe_load((ROOT / "config" / "datasets" / f"{base}.yaml").read_text())
        spec |= {"name": "small", **changes}
        path = self.root / "config" / "datasets" / "small.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in spec.items() if value is not None}))
        return "small"

    def publish(self, content: dict[str, bytes], *, sums: bool = True) -> None:
        """Put files into the mirror, with a SHA256SUMS of all."""
        for name, data in content.items():
            (self.mirror / name).parent.mkdir(parents=True, exist_ok=True)
            (self.mirror / name).write_bytes(data)
        if sums:
            lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items()]
            (self.mirror / "SHA256SUMS").write_text("".join(lines))

    def moat(self, *argv: str | Path) -> int:
        return main(["--project", str(self.root), *map(str, argv)])

    def fetch(self, *options: str) -> int:
        return self.moat("fetch", "small", "--into", self.into, *options)

    def prepare(self, *options: str) -> int:
        return self.moat("prepare", "small", "--from", self.into, "--out", self.out, *options)

    def fetch_and_prepare(self, *options: str) -> int:
        return self.fetch("--mirror", str(self.mirror)) or self.prepare(*options)

    def left(self) -> set[str]:
        """What lies in the fetched folder under a final name, and the prepared file if there is one."""
        files = {path.name for path in self.into.iterdir()} if self.into.is_dir() else set()
        return {name for name in files if not name.endswith(".part") and name[0] != "."} | (
            {self.out.name} if self.out.exists() else set()
        )


@dataclass
class Site:
    """What the server has and does. ``behave(request, path)`` may answer in its own way and return True."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    sent: int = 0
    support_range: bool = True
    behave: object = None


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Workplace:
    monkeypatch.delenv("MOAT_MIRROR", raising=False)
    monkeypatch.setattr(moat.data.download, "BACKOFF", (0, 0))
    (tmp_path / "config" / "datasets").mkdir(parents=True)
    (tmp_path / "mirror").mkdir()
    shutil.copy(ROOT / "config" / "config.yaml", tmp_path / "config")
    shutil.copytree(ROOT / "workflow" / "schemas", tmp_path / "workflow" / "schemas")
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def real_mirror() -> Path:
    """Real images in the official formats: $MOAT_MIRROR, or a folder shared/data beside the project."""
    path = Path(os.environ.get("MOAT_MIRROR", ROOT.parent / "shared" / "data"))
    if not (path / "SHA256SUMS").is_file():
        pytest.skip(f"needs a mirror folder with real data: {path} has no SHA256SUMS; set MOAT_MIRROR")
    return path


@pytest.fixture
def site():
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/").split("?")[0]
            site.ranges.append(self.headers.get("Range"))
            if site.behave and site.behave(self, name):
                return
            if name not in site.files:
                self.send_error(404)
                return
            self.answer(site.files[name])

        def answer(self, data: bytes, *, kind: str = "application/octet-stream", only: int | None = None):
            """Send ``data``, from where the client asks; with ``only``, break off after so many bytes."""
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            start = int(asked[1]) if asked and site.support_range else 0
            if start >= len(data) and start:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            body = data[start:][:only]
            site.sent += len(body)
            self.wfile.write(body)

        def log_message(self, *_):
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()
