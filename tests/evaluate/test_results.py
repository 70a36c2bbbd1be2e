"""A run's folder survives crashes, refuses other configurations, and never holds half a line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recollect.errors import StoreError
from recollect.evaluate.results import open_run, read, write_text

ABOUT = {"settings": {"seeds": 1, "keeps": (0.5,)}, "model": {"name": "m"}, "command": "x"}


def test_records_are_there_when_the_run_goes_on(tmp_path):
    with open_run(tmp_path, ABOUT) as run:
        run.append({"case": 1})
    with open_run(tmp_path, {**ABOUT, "command": "another"}) as run:
        assert run.records == [{"case": 1}]
        run.append({"case": 2})
    about, records = read(tmp_path)
    assert about["command"] == "x"
    assert records == [{"case": 1}, {"case": 2}]


def test_a_torn_last_line_is_dropped(tmp_path):
    with open_run(tmp_path, ABOUT) as run:
        run.append({"case": 1})
    file = tmp_path / "results.jsonl"
    file.write_text(file.read_text() + '{"case": 2, "met')
    assert read(tmp_path)[1] == [{"case": 1}]
    with open_run(tmp_path, ABOUT) as run:
        assert run.records == [{"case": 1}]
        run.append({"case": 2})
    assert file.read_text() == '{"case": 1}\n{"case": 2}\n'


def test_another_configuration_is_refused_in_words(tmp_path):
    with open_run(tmp_path, ABOUT):
        pass
    other = {**ABOUT, "settings": {"seeds": 2, "keeps": (0.5,)}}
    with pytest.raises(StoreError, match="seeds=1, not 2"), open_run(tmp_path, other):
        pass


def test_a_broken_line_in_the_middle_is_told(tmp_path):
    with open_run(tmp_path, ABOUT):
        pass
    (tmp_path / "results.jsonl").write_text('nonsense\n{"case": 1}\n')
    with pytest.raises(StoreError, match="line 1"):
        read(tmp_path)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(StoreError, match="holds no run"):
        read(tmp_path)


def test_an_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"), open_run(tmp_path / "file", ABOUT):
        pass


def test_a_device_without_space_is_told():
    with pytest.raises(StoreError, match="cannot write"):
        write_text(Path("/dev/full/report.html"), "x")


def test_a_full_disk_keeps_whole_lines_only(tmp_path):
    """A limit on file size stands in for a full disk: the write stops in the middle of a line."""
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
from pathlib import Path
from recollect.errors import StoreError
from recollect.evaluate.results import open_run
with open_run(Path({str(tmp_path)!r}), {ABOUT!r}) as run:
    try:
        for case in range(100):
            run.append({{"case": case, "text": "x" * 40}})
    except StoreError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "results.jsonl" in done.stdout
    assert "kept" in done.stdout
    assert done.stdout.count("\n") == 1
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["case"] for line in lines] == list(range(len(lines)))
    assert len(lines) > 3
