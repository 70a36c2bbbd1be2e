"""A process killed while it writes leaves whole entries, a whole index and a whole audit log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crashes.py")


def crashed(folder, restarts):
    command = [sys.executable, str(SCRIPT), str(folder), str(restarts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("restarts", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_kill_during_writes(tmp_path, restarts):
    found = crashed(tmp_path, restarts)
    assert found["acknowledged"] > restarts / 2
    assert found["lost"] == found["wrong"] == found["damaged"] == 0
    assert found["index"] == found["entries"]
    assert found["ledger_whole"]
