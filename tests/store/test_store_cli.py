"""`recollect store` on real folders."""

from __future__ import annotations

import json
import tarfile

import pytest
from click.testing import CliRunner

from recollect.cli import main
from recollect.store.tiers.base import Facts
from recollect.store.tiers.disk import DiskTier


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def tier(folder):
    wall = iter(range(10**9, 2 * 10**9, 86400))
    tier = DiskTier(folder, 1 << 20, wall=lambda: next(wall))
    for number in range(6):
        tier.put(key(number), bytes(100 + number), Facts(("a", "b")[number % 2], 0.5, 256))
    return tier


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["store", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def run_json(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code))


def test_ls_shows_the_newest_first(folder, tier):
    rows = run_json("ls", folder)
    assert [row["key"] for row in rows] == [key(number).hex() for number in range(5, -1, -1)]
    assert {name: rows[0][name] for name in ("namespace", "nbytes", "tokens", "cost_seconds")} == {
        "namespace": "b",
        "nbytes": 105,
        "tokens": 256,
        "cost_seconds": 0.5,
    }
    assert len(run_json("ls", folder, "--namespace", "a")) == 3
    text = run("ls", folder, "--limit", 2)
    assert "105 B" in text
    assert "and 4 more" in text


def test_stat_counts_by_namespace(folder, tier):
    found = run_json("stat", folder)
    assert (found["entries"], found["bytes"], found["set_aside"]) == (6, 615, 0)
    assert found["namespaces"]["a"] == {"entries": 3, "bytes": 306, "tokens": 768}
    assert "615 B" in run("stat", folder)


def test_verify_sets_corrupt_entries_aside(folder, tier):
    assert run_json("verify", folder) == {"sound": 6, "corrupt": 0}
    with open(tier.path_of(key(3)), "r+b") as file:
        file.write(b"\xff")
    assert run_json("verify", folder, code=1) == {"sound": 5, "corrupt": 1}
    assert run_json("stat", folder)["set_aside"] == 1
    assert not tier.contains(key(3))
    assert "1 corrupt entries" in run("stat", folder)


def test_gc_removes_what_no_entry_needs(folder, tier):
    (folder / "entries" / "00" / ("ab" * 32)).write_bytes(bytes(20))
    (folder / "quarantine" / "bad").write_bytes(bytes(30))
    (folder / "entries" / key(0).hex()[:2] / key(0).hex()).unlink()
    found = run_json("gc", folder)
    assert found == {"deleted": 0, "freed_bytes": 50, "files": 2, "lost": 1, "nbytes": 50}
    assert set(tier.keys()) == {key(number) for number in range(1, 6)}
    assert run_json("verify", folder) == {"sound": 5, "corrupt": 0}


def test_gc_deletes_by_age_size_and_namespace(folder, tier):
    assert run_json("gc", folder, "--to", "450B")["deleted"] == 2
    assert set(tier.keys()) == {key(number) for number in range(2, 6)}
    assert run_json("gc", folder, "--namespace", "a", "--to", "200B")["deleted"] == 2
    assert set(tier.keys()) == {key(3), key(5)}
    tier.put(key(9), b"new", Facts("a"))
    assert run_json("gc", folder, "--namespace", "a")["deleted"] == 1
    assert run_json("gc", folder, "--older-than", 1)["deleted"] == 2
    assert not list(tier.keys())


def test_export_and_import_carry_everything(folder, tier, tmp_path):
    archive = tmp_path / "kv.tar"
    assert run_json("export", folder, archive)["exported"] == 6
    other = tmp_path / "other"
    assert run_json("import", other, archive) == {"imported": 6, "present": 0, "corrupt": 0}
    assert run_json("import", other, archive) == {"imported": 0, "present": 6, "corrupt": 0}
    strip = [{k: v for k, v in row.items() if k != "time"} for row in run_json("ls", other)]
    assert strip == [
        {k: v for k, v in row.items() if k != "time"} for row in run_json("ls", folder)
    ]
    copy = DiskTier(other, 1 << 20)
    for number in range(6):
        assert bytes(copy.get(key(number)).data) == bytes(100 + number)


def test_one_namespace_can_be_exported(folder, tier, tmp_path):
    assert run_json("export", folder, tmp_path / "a.tar", "--namespace", "a")["exported"] == 3


def test_damaged_and_foreign_members_of_an_archive_are_left_out(folder, tier, tmp_path):
    archive = tmp_path / "kv.tar"
    run("export", folder, archive)
    raw = bytearray(archive.read_bytes())
    with tarfile.open(archive) as tar:
        raw[tar.getmembers()[2].offset_data] ^= 1
    archive.write_bytes(raw)
    with tarfile.open(archive, "a") as tar:
        (tmp_path / "letter").write_text("hello")
        tar.add(tmp_path / "letter", "../../escape")
    assert run_json("import", tmp_path / "other", archive) == {
        "imported": 5,
        "present": 0,
        "corrupt": 2,
    }
    assert not (tmp_path.parent / "escape").exists()


def test_a_truncated_archive_is_an_error(folder, tier, tmp_path):
    archive = tmp_path / "kv.tar"
    run("export", folder, archive)
    archive.write_bytes(archive.read_bytes()[:3000])
    assert "archive" in run("import", tmp_path / "other", archive, code=2)


@pytest.mark.parametrize("command", ["ls", "stat", "verify", "gc"])
def test_a_folder_that_is_no_store_is_refused(tmp_path, command):
    assert "is no store" in run(command, tmp_path / "nothing", code=2)
    assert not (tmp_path / "nothing").exists()


def test_every_command_has_help_with_an_example():
    for command in ("ls", "stat", "verify", "gc", "export", "import"):
        assert "Example" in run(command, "--help")
