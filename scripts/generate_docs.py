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
sys.path[:0] = [str(ROOT / "tests" / room) for room in ("kv", "diffusion")]


def recipes_table() -> str:
    """One table per room, one row per registered recipe."""
    from recollect.recipe import CATALOGUES, recipes

    lines: list[str] = []
    for area in CATALOGUES:
        lines += [f"**{area}**", "", "| recipe | decides | source | status |"]
        lines.append("| --- | --- | --- | --- |")
        for recipe in recipes(area):
            kinds = [*recipe.stages, *(f"({kind})" for kind in recipe.fallback)]
            source = f"{recipe.title} ({recipe.authors})"
            if recipe.arxiv:
                link = f"https://arxiv.org/abs/{recipe.arxiv}"
                source = f"[{recipe.title}]({link}) ({recipe.authors})"
            decides = f"{', '.join(kinds) or 'nothing'}: {recipe.summary}"
            lines.append(f"| `{recipe.name}` | {decides} | {source} | {recipe.status} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def denoisers_table() -> str:
    """One row per family of diffusers, from really running a tiny member of it."""
    import torch
    from denoisers import DENOISERS, counted, sample

    from recollect.diffusion import accelerated
    from recollect.errors import HostError

    def verdict(family, model, plain, off, on) -> str:  # type: ignore[no-untyped-def]
        try:
            with accelerated(model, off[0], **off[1]):
                same = torch.equal(sample(family, model, 5), plain)
            with counted(model) as everything:
                sample(family, model, 5)
            with accelerated(model, on[0], **on[1]):
                sample(family, model, 5)
                with counted(model) as ran:
                    sample(family, model, 5)
        except HostError as error:
            return "refused: " + str(error).split(";")[0]
        layers = f"{len(ran) / len(everything):.0%} of the layers run"
        return f"{'identical' if same else '**different**'}; {layers}"

    settings = [
        (("taylorseer", {"every": 1}), ("taylorseer", {"every": 5, "warmup": 1})),
        (("fbcache", {"threshold": 0.0}), ("fbcache", {"threshold": 1e9})),
        (("fora", {"every": 1}), ("fora", {"every": 5})),
    ]
    heads = ("whole model", "spans of blocks", "attention and feed-forward")
    rows = [f"| family | {' | '.join(heads)} |", "| --- | --- | --- | --- |"]
    for family in DENOISERS:
        model = family.build()
        plain = sample(family, model, 5)
        cells = [verdict(family, model, plain, off, on) for off, on in settings]
        rows.append(f"| {family.name} | {' | '.join(cells)} |")
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
    "docs/diffusion.md": ("denoisers", denoisers_table),
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
