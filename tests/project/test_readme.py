"""The README's Python code runs, and its first block is the two commands."""

import re
import shutil

from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_two_commands_come_first():
    assert BLOCKS[0] == ("", "make quickstart\nmake test\n")


def test_every_run_folder_is_the_quickstarts():
    assert set(re.findall(r"\bruns/\w+", README)) == {"runs/quickstart"}


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    (code,) = [block for language, block in BLOCKS if language == "python"]
    image = REFERENCE / "preprocess/landscape_500x375.png"
    shutil.copy(image, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace('weights="imagenet"', "weights=None"), names)
    assert names["maps"].shape == (1, 2, 8, 14, 14)
    assert re.search(r"'n\d{8}'", capsys.readouterr().out)
