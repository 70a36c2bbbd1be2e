"""The dashboard: one page with everything in it, that asks `/recollect/figures` every two seconds.

The page itself holds no figures; those need the admin key, which the browser keeps for its tab.
"""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def page() -> str:
    """The page as HTML."""
    here = resources.files(__name__)
    html, style, script = (
        here.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    return html.replace("/*style*/", style).replace("/*script*/", script)
