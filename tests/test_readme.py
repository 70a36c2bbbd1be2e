"""Every Python block of the README and the docs runs, in order, as a reader would run it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/store.md",
    "docs/answers.md",
    "docs/gateway.md",
    "docs/kv.md",
    "docs/diffusion.md",
]


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a block writes is not left in the repository
    found = blocks(page)
    assert len(found) >= (5 if page == "README.md" else 1)
    namespace: dict = {}
    for number, block in enumerate(found, 1):
        try:
            exec(compile(block, f"{page}, block {number}", "exec"), namespace)
        except Exception as error:
            raise AssertionError(f"{page}, block {number}: {error}\n{block}") from error


def test_files_the_readme_points_to_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_recipe_table_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import generate_docs

    assert generate_docs.recipes_table() in (ROOT / "README.md").read_text()
