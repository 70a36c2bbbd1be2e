"""Before anything imports triton: without a GPU its kernels run in triton's interpreter.

In CI, hypothesis draws the same examples every time.
"""

import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, settings

from redis_server import ABSENT, BINARY, RedisServer

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the processors
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is no failure: examples have no deadline.
settings.register_profile("busy", deadline=None)
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much],
)
settings.load_profile("ci" if os.environ.get("CI") else "busy")


@pytest.fixture(scope="session")
def redis_url():
    """A Redis that tests share (RECOLLECT_TEST_REDIS names another one, say a Valkey).

    Tests keep apart by the namespaces they choose.
    """
    if url := os.environ.get("RECOLLECT_TEST_REDIS"):
        yield url
        return
    if BINARY is None:
        pytest.skip(ABSENT)
    server = RedisServer()
    yield server.url
    server.close()


@pytest.fixture
def redis_servers():
    """Call it for a Redis of one's own, to be killed, frozen or given a password."""
    if BINARY is None:
        pytest.skip(ABSENT)
    servers = []

    def start(*options, password=""):
        servers.append(RedisServer(*options, password=password))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium that keeps what pages log; a new one for every module."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with chromedriver here: scripts/install-browser.sh installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1280,1400", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()
