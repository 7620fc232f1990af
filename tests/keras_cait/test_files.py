"""Outputs are whole or absent, never replaced, and written by one process."""

import os
import subprocess
import sys

import pytest

from keras_cait.files import (
    atomically,
    file_name,
    image_files,
    locked,
    new_output,
    write_text,
)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk"), new_output(tmp_path / "a") as a:
        a.mkdir()
        (a / "part").touch()
        raise OSError("The disk is full.")
    assert not list(tmp_path.iterdir())


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "private"
    path.touch(mode=0o600)
    write_text(path, "mine")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["a", "new/../a"])
def test_an_existing_output_is_never_replaced(name, tmp_path):
    (tmp_path / "a").write_text("mine")
    refused = pytest.raises(ValueError, match="already exists")
    with refused, new_output(tmp_path / name) as unfinished:
        unfinished.touch()
    assert (tmp_path / "a").read_text() == "mine"


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(
    tmp_path,
):
    path = tmp_path / "a"
    program = (
        "import sys; from filelock import SoftFileLock\n"
        "lock = SoftFileLock(sys.argv[1]); lock.acquire(); print('locked')\n"
        "sys.stdout.flush(); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / ".a.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"locked\n"
    refused = pytest.raises(ValueError, match=f"Process {other.pid} is writ")
    with refused, locked(path):
        pass
    other.kill()  # leaves its lock behind
    other.wait()
    with locked(path), atomically(path) as unfinished:
        unfinished.write_text("mine")
    assert os.listdir(tmp_path) == ["a"]


def test_a_lock_without_a_process_is_named(tmp_path):
    (tmp_path / ".a.lock").touch()  # as a power cut leaves it
    refused = pytest.raises(ValueError, match=r"Another process.*\.a\.lock")
    with refused, locked(tmp_path / "a"):
        pass


def test_long_texts_are_different_names_that_file_systems_take(tmp_path):
    paths = [f"runs/{letter}/{100 * '文'}" for letter in "ab"]
    names = {file_name(path) for path in paths}
    assert len(names) == 2
    for name in names:
        with new_output(tmp_path / f"{name}.unfinished.npz") as unfinished:
            unfinished.touch()


def test_image_files_ignores_what_is_no_image(tmp_path):
    hidden = (".DS_Store", "._a.png", ".thumbnails/a.png")
    for name in ("b.JPG", "a.png", "Thumbs.db", "sub/c.webp", *hidden):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = [file.name for file in image_files([tmp_path / "photos"])]
    assert names == ["a.png", "b.JPG", "c.webp"]
    with pytest.raises(ValueError, match="no file or folder"):
        image_files([tmp_path / "nothing"])
