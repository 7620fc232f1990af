"""The site is built without a warning, and the code of its pages runs."""

import json
import re
import subprocess
import sys

import keras
import pytest

import keras_cait
from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    built = subprocess.run(
        [*command, "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not built.returncode, built.stderr
    return folder


def test_the_api_page_has_all_that_is_public(site):
    page = (site / "api/index.html").read_text()
    public = {name for name in vars(keras_cait) if name[0].isalpha()}
    modules = {path.stem for path in (ROOT / "keras_cait").glob("*.py")}
    missing = [name for name in public - modules if name not in page]
    assert not missing


def test_every_page_is_found_by_searching(site):
    index = json.loads((site / "search/search_index.json").read_text())
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    pages = {f"{page.stem}/" for page in (ROOT / "docs").glob("*.md")}
    cards = {
        f"models/{row.variant.lower()}-{row.image_size}/"
        for row in keras_cait.CHECKPOINTS.values()
    }
    assert {"", "models/"} | pages | cards <= found


def test_the_code_of_the_migration_guide_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs/migration.md").read_text()
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace('weights="imagenet"', "weights=None"), names)
    assert names["logits"].shape == (1, 1000)
    assert isinstance(names["features"], keras.Model)
