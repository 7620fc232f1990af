"""What the README tells a newcomer to type works."""

import importlib
import re
import shlex
import shutil
import subprocess

import pytest

import export.__main__
import keras_cait.__main__
import training.train
from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.startswith(("make", "python -m"))
]


def test_the_code_runs(tmp_path, monkeypatch, capsys):
    (code,) = [block for language, block in BLOCKS if language == "python"]
    picture = REFERENCE / "preprocess/landscape_500x375.png"
    shutil.copy(picture, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace('weights="imagenet"', "weights=None"), names)
    assert names["maps"].shape == (1, 2, 8, 14, 14)
    assert re.search(r"'n\d{8}'", capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, monkeypatch):
    words = shlex.split(command)
    if words[0] == "make":
        subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True)
        return
    _, _, program, *arguments = words
    if program == "training.train":
        runs = []
        monkeypatch.setattr(
            training.train, "train", lambda *received: runs.append(received)
        )
        with pytest.raises(SystemExit) as end:
            training.train.main(arguments)
        assert end.value.code == 0
        assert len(runs) == 1
    elif program.startswith("benchmarks."):
        app = importlib.import_module(program).app
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    else:
        parsers = {
            "export": export.__main__,
            "keras_cait": keras_cait.__main__,
        }
        parsers[program].parser().parse_args(arguments)
