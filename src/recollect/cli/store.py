"""`recollect store`: look into the folder of a disk tier, check it, tidy it, carry it elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from recollect.cli.common import Group, debug_option, err, json_option, out, print_json
from recollect.errors import StoreError

if TYPE_CHECKING:
    from recollect.store.tiers.disk import DiskTier

T = TypeVar("T")
FOLDER = click.argument("folder", type=click.Path(path_type=Path))


@click.group(cls=Group)
def store() -> None:
    """Look into a store on disk.

    \b
    Example:
      recollect store stat ~/.cache/recollect
      recollect store verify ~/.cache/recollect
      recollect store export ~/.cache/recollect kv.tar
    """


@store.command("ls")
@FOLDER
@click.option("--namespace", help="Only the entries of one namespace.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True,
              help="How many, the newest first; --json lists all.")  # fmt: skip
@json_option
@debug_option
def list_entries(folder: Path, namespace: str | None, limit: int, as_json: bool) -> None:
    """List entries, the newest first.

    \b
    Example:
      recollect store ls ~/.cache/recollect --limit 20
    """
    from recollect.store.sizes import show_bytes

    entries = [
        entry for entry in reversed(_open(folder).entries()) if namespace in (None, entry.namespace)
    ]
    if as_json:
        print_json([asdict(entry) | {"key": entry.key.hex()} for entry in entries])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("key", "namespace", "size", "tokens", "age"):
        table.add_column(heading, justify="left" if heading in ("key", "namespace") else "right")
    now = time.time()
    for entry in entries[:limit]:
        table.add_row(
            entry.key.hex()[:16],
            entry.namespace,
            show_bytes(entry.nbytes),
            str(entry.tokens),
            _age(now - entry.time),
        )
    out.print(table)
    if len(entries) > limit:
        out.print(f"… and {len(entries) - limit} more", style="dim")


@store.command()
@FOLDER
@json_option
@debug_option
def stat(folder: Path, as_json: bool) -> None:
    """Count entries and bytes, by namespace.

    \b
    Example:
      recollect store stat ~/.cache/recollect --json
    """
    from recollect.store.sizes import show_bytes

    found: dict[str, dict[str, int]] = {}
    for entry in _open(folder).entries():
        row = found.setdefault(entry.namespace, {"entries": 0, "bytes": 0, "tokens": 0})
        row["entries"] += 1
        row["bytes"] += entry.nbytes
        row["tokens"] += entry.tokens
    aside = sum(1 for _ in (folder.expanduser() / "quarantine").iterdir())
    total = {name: sum(row[name] for row in found.values()) for name in ("entries", "bytes")}
    if as_json:
        print_json({"folder": str(folder), **total, "set_aside": aside, "namespaces": found})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("namespace")
    for heading in ("entries", "size", "tokens"):
        table.add_column(heading, justify="right")
    for name, row in found.items():
        table.add_row(name, str(row["entries"]), show_bytes(row["bytes"]), str(row["tokens"]))
    table.add_row("all", str(total["entries"]), show_bytes(total["bytes"]), style="bold")
    out.print(table)
    if aside:
        out.print(f"{aside} corrupt entries were set aside; `recollect store gc` deletes them")


@store.command()
@FOLDER
@json_option
@debug_option
@click.pass_context
def verify(ctx: click.Context, folder: Path, as_json: bool) -> None:
    """Read every entry and set aside what is corrupt; exit code 1 if anything was.

    \b
    Example:
      recollect store verify ~/.cache/recollect
    """
    tier = _open(folder)
    sound = 0
    for key in _progress(list(tier.keys()), "verifying"):
        lease = tier.get(key)  # sets aside what fails its checksum
        sound += lease is not None
    corrupt = tier.stat().corrupt
    if as_json:
        print_json({"sound": sound, "corrupt": corrupt})
    else:
        out.print(f"{sound} entries are sound, {corrupt} were corrupt and are set aside")
    ctx.exit(1 if corrupt else 0)


@store.command()
@FOLDER
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Delete entries that are older.",
)
@click.option("--to", "size", metavar="SIZE",
              help="Delete the oldest until no more than this is left, e.g. 10GiB.")  # fmt: skip
@click.option("--namespace", help="Delete only entries of this one; all of them, given alone.")
@json_option
@debug_option
def gc(
    folder: Path, days: float | None, size: str | None, namespace: str | None, as_json: bool
) -> None:
    """Delete what crashes left, what was set aside, and what the options name.

    \b
    Example:
      recollect store gc ~/.cache/recollect --older-than 30 --to 50GiB
    """
    from recollect.store.sizes import read_bytes, show_bytes

    tier = _open(folder)
    entries = tier.entries()
    limit = read_bytes(size) if size is not None else None
    total = sum(entry.nbytes for entry in entries)
    deleted = freed = 0
    for entry in _progress(entries, "looking at entries"):  # the oldest first
        old = days is not None and time.time() - entry.time > days * 86400
        over = limit is not None and total > limit
        named = namespace is not None and days is None and limit is None
        if namespace in (None, entry.namespace) and (old or over or named):
            deleted += tier.delete(entry.key)
            freed += entry.nbytes
            total -= entry.nbytes
    swept = tier.sweep()
    if as_json:
        print_json({"deleted": deleted, "freed_bytes": freed + swept.nbytes, **asdict(swept)})
        return
    out.print(
        f"{deleted} entries deleted; {swept.files} abandoned or corrupt files removed, "
        f"{swept.lost} records without a file; {show_bytes(freed + swept.nbytes)} freed"
    )


@store.command("export")
@FOLDER
@click.argument("archive", type=click.Path(path_type=Path))
@click.option("--namespace", help="Only the entries of one namespace.")
@json_option
@debug_option
def export_entries(folder: Path, archive: Path, namespace: str | None, as_json: bool) -> None:
    """Copy entries into a tar archive, each with its facts and checksum.

    \b
    Example:
      recollect store export ~/.cache/recollect kv.tar --namespace team-a
    """
    from recollect.store.archive import write_archive

    tier = _open(folder)
    wanted = [entry for entry in tier.entries() if namespace in (None, entry.namespace)]
    count = write_archive(tier, _progress(wanted, "exporting"), archive)
    _say(as_json, f"{count} entries exported to {archive}", exported=count, archive=str(archive))


@store.command("import")
@FOLDER
@click.argument("archive", type=click.Path(path_type=Path))
@json_option
@debug_option
def import_entries(folder: Path, archive: Path, as_json: bool) -> None:
    """Put the entries of an archive into a store, which is made if it is missing.

    Entries that are there already stay; those whose bytes fail their checksum are left out.

    \b
    Example:
      recollect store import ~/.cache/recollect kv.tar
    """
    from recollect.store.archive import read_archive

    tier = _open(folder, make=True)
    with _bar("importing") as advance:
        counts = read_archive(tier, archive, advance)
    _say(
        as_json,
        f"{counts['imported']} entries imported, {counts['present']} were there, "
        f"{counts['corrupt']} were corrupt",
        **counts,
    )


def _open(folder: Path, make: bool = False) -> DiskTier:
    """The disk tier in a folder, without a limit, so that opening evicts nothing."""
    from recollect.store.tiers.disk import DiskTier

    if not make and not (folder.expanduser() / "journal").exists():
        raise StoreError(f"{folder} is no store; the folder of one holds a file named journal")
    return DiskTier(folder, 1 << 62)


def _progress(items: list[T], what: str) -> Iterator[T]:
    with _bar(what, len(items)) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def _bar(what: str, total: int | None = None) -> Iterator[Any]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _say(as_json: bool, text: str, **facts: Any) -> None:
    print_json(facts) if as_json else out.print(text, soft_wrap=True)


def _age(seconds: float) -> str:
    seconds = max(seconds, 0.0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
