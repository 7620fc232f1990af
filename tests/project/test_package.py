"""What `pip install` brings."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
BUILD = """
import setuptools.build_meta as build
build.build_wheel("dist")
build.build_sdist("dist")
"""


def test_wheel_and_sdist_hold_the_library_alone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("README.md", "LICENSE", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    for name in ("keras_cait", "training", "export", "tests/reference"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = source.glob("dist/*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    library = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "keras_cait").rglob("*")
        if path.suffix in (".py", ".txt", ".typed")
    }
    folder = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    extra = {path for path in files if path.startswith(f"{folder}/")}
    assert files - extra == library
    assert f"{folder}/licenses/LICENSE" in extra
    with zipfile.ZipFile(wheel) as archive:
        scripts = archive.read(f"{folder}/entry_points.txt").decode()
        metadata = archive.read(f"{folder}/METADATA").decode()
    assert "keras-cait = keras_cait.cli:main" in scripts
    for field in ("Author", "Keywords", "Project-URL"):
        assert f"\n{field}: " in metadata
    # Extras are for code in the wheel, not for programs of a checkout.
    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.M)) == {
        "datasets",
        "jax",
        "litert",
        "plots",
        "tensorflow",
    }

    (sdist,) = source.glob("dist/*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[-1] for name in archive.getnames()]
    assert library < set(names)
    assert not [name for name in names if name.startswith("tests")]


def test_export_installs_what_keras_numpy_backend_imports():
    """Decoders of batch prediction run on it, to start without TensorFlow."""
    requirements = (ROOT / "requirements/export.txt").read_text()
    (extras,) = re.findall(r"^-e \.\[(.*)\]$", requirements, re.M)
    assert "jax" in extras.split(",")
