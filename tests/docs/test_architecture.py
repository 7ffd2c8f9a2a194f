"""docs/architecture.md says of imports and files what is true."""

import re
from pathlib import Path

from tests.test_imports import MAY_IMPORT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_the_table_of_imports_is_the_rule() -> None:
    rows = re.findall(r"^\| `(ddcat\w*)`[^|]*\|[^|]*\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert {name: set(re.findall(r"`(\w+)`", cell)) | {name} for name, cell in rows} == MAY_IMPORT


def test_every_file_that_is_named_is_there() -> None:
    parts = [ROOT / name for name in ("ddcat", "train", "export", "serve", "bench", "tests", "docs", "examples")]
    there = [f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for part in parts for path in (part, *part.rglob("*"))]
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE):
        assert (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in there), name


def test_the_picture_has_the_modules_of_each_package() -> None:
    picture = (ROOT / "docs/pictures/architecture.svg").read_text(encoding="utf-8")
    parts = re.findall(r'<g id="(ddcat_\w+)">(.*?)</g>', picture, re.DOTALL)
    assert {package for package, _ in parts} == set(MAY_IMPORT) - {"ddcat"}
    for package, part in parts:
        folder = ROOT / package.removeprefix("ddcat_") / package
        modules = {path.stem if path.is_file() else f"{path.name}/" for path in folder.iterdir()}
        drawn = {name for names in re.findall(r'class="module">([^<]+)<', part) for name in names.split(", ")}
        assert drawn, package
        assert drawn <= modules, (package, drawn - modules)
