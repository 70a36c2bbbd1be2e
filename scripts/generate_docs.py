"""Regenerate the tables that are read off the code: recipes (README.md) and families (docs/).

python scripts/generate_docs.py            # writes
python scripts/generate_docs.py --check    # exits 1 where a table is out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "kv"))


def recipes_table() -> str:
    """One row per registered recipe."""
    from recollect.recipe import recipes

    rows = ["| recipe | decides | paper | status |", "| --- | --- | --- | --- |"]
    for recipe in recipes():
        kinds = ", ".join([*recipe.stages, *(f"({kind})" for kind in recipe.fallback)]) or "nothing"
        paper = f"[{recipe.title}](https://arxiv.org/abs/{recipe.arxiv}) ({recipe.authors})"
        rows.append(f"| `{recipe.name}` | {kinds}: {recipe.summary} | {paper} | {recipe.status} |")
    return "\n".join(rows)


def families_table() -> str:
    """One row per model family, from really running a tiny member of it."""
    import torch
    import transformers
    from families import FAMILIES, NOT_HOSTED, build
    from transformers import DynamicCache

    import recollect

    transformers.logging.set_verbosity_error()
    ids = torch.randint(2, 120, (2, 200), generator=torch.Generator().manual_seed(0))
    head = "| family | `keep=1.0` | `keep=0.5` holds | layers governed |"
    rows = [head, "| --- | --- | --- | --- |"]
    for family in FAMILIES:
        model = build(family)
        options = {"max_new_tokens": 6, "do_sample": False}
        try:
            if family in NOT_HOSTED:
                with recollect.kv_cache(model, "full") as cache:
                    model(input_ids=ids, past_key_values=cache)
            own = DynamicCache(config=model.config)
            expected = model.generate(ids, past_key_values=own, **options)
            with recollect.kv_cache(model, "snapkv", keep=1.0, kernel="host") as cache:
                same = torch.equal(model.generate(ids, past_key_values=cache, **options), expected)
            with recollect.kv_cache(model, "snapkv", keep=0.5, window=8) as cache:
                model(input_ids=ids, past_key_values=cache)
                held = sum(layer.nbytes for layer in cache.governed)
                dense = sum(layer.dense_nbytes for layer in cache.governed)
                governed = f"{len(cache.governed)} of {len(cache.layers)}"
            verdict = "identical tokens" if same else "**different tokens**"
            rows.append(f"| {family} | {verdict} | {held / dense:.0%} of the bytes | {governed} |")
        except recollect.HostError as error:
            rows.append(f"| {family} | refused: {error} | | |")
    return "\n".join(rows)


TABLES = {
    "README.md": ("recipes", recipes_table),
    "docs/architectures.md": ("families", families_table),
}


def main() -> int:
    """Write, or check, every table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    check, stale = parser.parse_args().check, []
    for name, (mark, make) in TABLES.items():
        path = ROOT / name
        text = path.read_text()
        block = re.compile(rf"(<!-- {mark}:begin[^>]*-->\n).*?(<!-- {mark}:end -->)", re.DOTALL)
        renewed = block.sub(lambda m, make=make: f"{m[1]}{make()}\n{m[2]}", text)
        if renewed != text:
            stale.append(name)
            if not check:
                path.write_text(renewed)
    verb = "out of date" if check else "written"
    print(f"{verb}: {', '.join(stale) or 'nothing'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
