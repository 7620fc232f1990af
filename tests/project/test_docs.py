"""The site builds without a warning, and the code of its pages runs."""

import json
import re
import runpy

import keras
import pytest

import keras_cait
from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
SCRIPT = runpy.run_path(str(ROOT / "docs/site/build.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return SCRIPT["build"](tmp_path_factory.mktemp("site"))


def test_the_api_page_has_all_that_is_public(site):
    page = (site / "api/index.html").read_text()
    public = {name for name in vars(keras_cait) if name[0].isalpha()}
    modules = {path.stem for path in (ROOT / "keras_cait").glob("*.py")}
    missing = [name for name in public - modules if name not in page]
    assert not missing


def test_search_finds_every_page(site):
    items = json.loads((site / "search.json").read_text())["items"]
    found = {item["location"].partition("#")[0] for item in items}
    pages = {f"{page.stem}/" for page in (ROOT / "docs").glob("*.md")}
    cards = {
        f"models/{row.variant.lower()}-{row.image_size}/"
        for row in keras_cait.PRETRAINED.values()
    }
    assert {"", "models/"} | pages | cards <= found


def test_search_for_resume_finds_how_to_resume_a_run(site):
    items = json.loads((site / "search.json").read_text())["items"]
    titled = [
        item["location"]
        for item in items
        if re.search(r"\bresume\b", item["title"], re.IGNORECASE)
    ]
    assert [place.partition("#")[0] for place in titled] == ["training/"]


def test_pages_load_nothing_from_other_hosts(site):
    loaded = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]+)"
        r"|<link\b(?=[^>]*\brel=\"(?:stylesheet|preconnect|preload|icon)\")"
        r"[^>]*\bhref=\"([^\"]+)"
    )
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text()
        targets = [a or b for a, b in loaded.findall(text)]
        assert targets
        assert not [t for t in targets if t.startswith(("http", "//"))], page
        assert 'data-md-component="source"' not in text  # asks api.github.com


def test_every_page_names_version_repository_and_color_schemes(site):
    for page in site.rglob("index.html"):
        text = page.read_text()
        assert f"keras-cait {keras_cait.__version__}" in text
        assert f'href="{SCRIPT["repository_url"]()}"' in text
        assert re.findall(r'data-md-color-scheme="(\w+)"', text)[1:] == [
            "default",
            "default",
            "slate",
        ]


def test_a_model_card_shows_accuracy_size_and_latency(site):
    text = (site / "models/s24-224/index.html").read_text()
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", text))
    assert facts["Top-1"] == "83.5 %"
    assert facts["Size in float32"] == "188 MB"
    (latency,) = (v for name, v in facts.items() if name.startswith("Latency"))
    assert re.fullmatch(r"\d+ ms", latency)
    assert text.count('<g class="this">') == 1


def test_the_code_of_the_migration_guide_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs/migration.md").read_text()
    code = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace('weights="imagenet"', "weights=None"), names)
    assert names["logits"].shape == (1, 1000)
    assert isinstance(names["features"], keras.Model)
