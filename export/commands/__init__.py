"""The commands of `python -m export`.

They import what they need when they run, so that `--help` is quick.
"""
