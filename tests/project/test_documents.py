"""Commands, messages, tables and addresses in the documents are true."""

import ast
import configparser
import importlib
import itertools
import json
import re
import shlex
import subprocess

import cyclopts
import pytest

from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "docs/site/card.md",
]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
PACKAGES = ("keras_cait", "training", "export", "benchmarks")
# Messages of other programs that the documents quote.
OTHERS = {"neither a custom op nor a flex op"}


def page_commands(text):
    """Commands in code blocks, one per line, and whether they are complete.

    Those within a line of text may leave out what is required.
    """
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            yield line.partition(" #")[0].strip(), True
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        yield " ".join(code.split()), False


def notebook_commands(path):
    """Commands of a notebook, with every text that its names stand for."""
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    values = {}
    for source in sources:
        for name, value in re.findall(
            r"^\s*(\w+) \+?= f?\"([^\"]*)\"$", source, re.MULTILINE
        ):
            values.setdefault(name, []).append(value)
    for source in sources:
        for command in re.findall(r"^\s*!(.*)$", source, re.MULTILINE):
            names = sorted(set(re.findall(r"{(\w+)}", command)) & {*values})
            for chosen in itertools.product(*(values[n] for n in names)):
                text = command
                for name, value in zip(names, chosen, strict=True):
                    text = text.replace(f"{{{name}}}", value)
                yield text, True
        for code in re.findall(r"`!?(python -m [^`]+)`", source):
            yield code, False


def commands():
    found = {}
    for path in PAGES:
        if path.name == "CHANGELOG.md":  # names former commands
            continue
        for command, complete in page_commands(path.read_text()):
            found.setdefault((command, complete), path.name)
    for path in NOTEBOOKS:
        for command, complete in notebook_commands(path):
            found.setdefault((command, complete), path.name)
    for (command, complete), place in found.items():
        words = program_and_arguments(command)
        if words:
            yield pytest.param(*words, complete, id=f"{place}: {command}")


def program_and_arguments(command):
    """The module and the arguments, if it is a program of the project."""
    try:
        words = shlex.split(command)
    except ValueError:  # prose
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[:1] == ["keras-cait"]:
        return "keras_cait", words[1:]
    if words[:2] == ["python", "-m"] and len(words) > 2:
        package = words[2].partition(".")[0]
        return (words[2], words[3:]) if package in PACKAGES else None
    if words[:1] == ["make"] and len(words) == 2:
        return "make", words[1:]
    return None


@pytest.mark.parametrize("program, arguments, complete", [*commands()])
def test_a_command_parses(program, arguments, complete):
    if program == "make":
        subprocess.run(
            ["make", *arguments, "--dry-run"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        return
    if {"--help", "NAME"} & {*arguments, *program.split(".")}:
        return
    if arguments[:1] == ["runs/photos/recipe.json"]:
        # A recipe in a file has the options of all recipes.
        arguments = ["finetune", *arguments[1:]]
    modules = {"keras_cait": "keras_cait.cli", "export": "export.__main__"}
    module = importlib.import_module(modules.get(program, program))
    app = module.make_app() if hasattr(module, "make_app") else module.app
    try:
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    except cyclopts.MissingArgumentError:
        assert not complete


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_quoted_message_is_one_of_ours(path):
    prose = re.sub(r"```.*?```|`[^`]+`", "", path.read_text(), flags=re.DOTALL)
    quotes = re.findall(r'\*\*[^*|]*?"([^"]+)"', prose)
    ours = [quote for quote in quotes if quote not in OTHERS]
    for quote in ours:
        for part in quote.split("…"):
            assert any(part.strip() in text for text in messages()), quote


def messages():
    """All texts in the code; what an f-string fills in is three dots."""
    if not hasattr(messages, "found"):
        messages.found = []
        for package in PACKAGES:
            for path in (ROOT / package).rglob("*.py"):
                tree = ast.parse(path.read_text())
                for node in ast.walk(tree):
                    if isinstance(node, ast.JoinedStr):
                        messages.found.append(
                            "".join(
                                str(part.value)
                                if isinstance(part, ast.Constant)
                                else "..."
                                for part in node.values
                            )
                        )
                    elif isinstance(node, ast.Constant):
                        messages.found.append(str(node.value))
    return messages.found


# A figure with a decimal point, or one with a unit of measurement.
FIGURE = re.compile(r"^[~<>]?\d[\d,]*(\.\d+)?( ?(%|ms|s|MB|GB|dB|M))?( .*)?$")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_figures_in_tables_are_generated(path):
    text = re.sub(
        r"<!-- generated: .+? -->.*?<!-- end -->",
        "",
        path.read_text(),
        flags=re.DOTALL,
    )
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            numbers = [c for c in cells[1:] if FIGURE.match(c)]
            assert not [n for n in numbers if "." in n or "%" in n], line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_table_has_an_empty_header(path):
    lines = path.read_text().splitlines()
    for header, below in itertools.pairwise(lines):
        if re.fullmatch(r"\|( ?-+ ?\|)+", below):
            assert "" not in [c.strip() for c in header.strip("|").split("|")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_lead_to_one(path):
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)[)#]", prose):
        assert (path.parent / target).exists(), target


def test_addresses_are_those_of_the_repository():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    url = setup["metadata"]["url"]
    owner, name = url.removeprefix("https://github.com/").split("/")
    files = [
        *PAGES,
        *NOTEBOOKS,
        *(ROOT / "CITATION.cff", ROOT / "setup.cfg"),
    ]
    for path in files:
        text = path.read_text()
        assert "OWNER" not in text, path
        for found in re.findall(rf"github(?:\.com)?/(\w[\w-]*/{name})", text):
            assert found == f"{owner}/{name}", path
        for found in re.findall(r"https://([\w-]+)\.github\.io", text):
            assert found == owner, path
