"""A real browser, and a page that has everything a page can have."""

import os
import shutil
from pathlib import Path

import pytest
from reporting_tree import build

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WHY = "the page is not looked at in a browser: {} (Debian: apt-get install chromium chromium-driver)"


@pytest.fixture(scope="session")
def report(tmp_path_factory) -> Path:
    """A page with numbers of every kind, claims, pictures, a failed check, stale results."""
    return build(tmp_path_factory.mktemp("browser")).base / "report.html"


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """Chromium without a window. MOAT_NEED_BROWSER makes its absence a failure: continuous integration sets it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    service = shutil.which("chromedriver")
    if not program or not service:
        _missing("no chromium" if not program else "no chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason=WHY.format("no selenium"))
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield started
    started.quit()


def _missing(what: str) -> None:
    text = WHY.format(what)
    if os.environ.get("MOAT_NEED_BROWSER"):
        pytest.fail(text)
    pytest.skip(text)
