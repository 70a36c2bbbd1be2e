"""Reports of a run: one HTML page that opens offline, and one still picture."""

from __future__ import annotations

from pathlib import Path

from recollect.evaluate import results
from recollect.evaluate.report.page import page
from recollect.evaluate.report.still import still

__all__ = ["page", "still", "write_page", "write_still"]


def write_page(run: Path, out: Path | None = None) -> Path:
    """Write ``report.html`` of a run folder (or `out`) and return its path. Raises StoreError."""
    about, records = results.read(run)
    path = out or run / "report.html"
    results.write_text(path, page(about, records))
    return path


def write_still(run: Path, out: Path, *, mode: str = "agnostic", metric: str = "tokens") -> Path:
    """Write the still picture of a run folder and return its path."""
    about, records = results.read(run)
    title = f"Quality against bytes: {about['model']['name']}"
    results.write_text(out, still(records, title=title, mode=mode, metric=metric))
    return out
