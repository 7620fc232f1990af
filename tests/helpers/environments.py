"""Python environments with packages that do not fit into this one."""

import subprocess
import sys


def make_environment(folder, *installs):
    """Makes an environment, and returns the folder of its programs.

    Args:
        folder: Path, which is created.
        installs: lists of arguments of `pip install`, one after the other.
    """
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    programs = folder / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet"]
    for packages in installs:
        subprocess.run([*install, *packages], check=True)
    return programs
