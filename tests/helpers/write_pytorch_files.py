"""Writes the files of tests/reference/pytorch with PyTorch.

    python -m tests.helpers.write_pytorch_files

They are small `.pth` files of every format and dtype that `torch.save` writes,
and `expected.npz` with the values of all their tensors: `file/name` for each.
"""

import argparse
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from tests.helpers.reference import REFERENCE

FOLDER = REFERENCE / "pytorch"


def main():
    import torch

    torch.manual_seed(0)
    matrix = torch.randn(6, 8)
    views = OrderedDict(
        matrix=matrix,
        transposed=matrix.t(),
        every_second=matrix[1:5, ::2],
        row=matrix[3],
        parameter=torch.nn.Parameter(torch.randn(4)),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 3),
    )
    views._metadata = OrderedDict({"": {"version": 1}})
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    training = {
        "model": {
            f"module.{name}": tensor
            for name, tensor in layer.state_dict().items()
        },
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": None,
        "args": argparse.Namespace(lr=5e-4, betas=[0.9, 0.99], eval=False),
    }
    integers = torch.arange(-5, 7)
    contents = {
        "zip": views,
        "legacy": views,
        "protocol_4": views,
        "training": training,
        "training_legacy": training,
        "state_dict": {"epoch": 1, "state_dict": layer.state_dict()},
        "half": {"a": matrix.half(), "b": matrix.half().t()},
        "bfloat16": {"a": matrix.bfloat16(), "b": matrix.bfloat16().t()},
        "bfloat16_legacy": {"a": matrix.bfloat16()},
        "dtypes": {
            "double": matrix.double(),
            "long": integers,
            "int": integers.int(),
            "short": integers.short(),
            "char": integers.char(),
            "byte": integers.abs().byte(),
            "bool": integers > 0,
        },
        "code": {"model": layer},
    }
    expected = {}
    for name, content in contents.items():
        path = FOLDER / f"{name}.pth"
        torch.save(
            content,
            path,
            _use_new_zipfile_serialization="legacy" not in name,
            pickle_protocol=4 if name == "protocol_4" else 2,
        )
        if name != "code":
            record(torch.load(path, weights_only=False), name, expected)
    swap_bytes(FOLDER / "zip.pth", FOLDER / "big_endian.pth")
    record(torch.load(FOLDER / "big_endian.pth"), "big_endian", expected)
    np.savez_compressed(FOLDER / "expected.npz", **expected)


def record(content, file, expected):
    """Adds the tensors of a file, float32 where NumPy has no such dtype."""
    content = content.get("model", content.get("state_dict", content))
    for name, tensor in content.items():
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        name = name.removeprefix("module.")
        expected[f"{file}/{name}"] = tensor.detach().numpy()


def swap_bytes(source: Path, target: Path):
    """What a big-endian machine would have written."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            folder, _, name = entry.filename.partition("/")
            if name == "byteorder":
                data = b"big"
            elif name.startswith("data/"):
                data = np.frombuffer(data, "<f4").byteswap().tobytes()
            new.writestr(f"{folder}/{name}", data)


if __name__ == "__main__":
    main()
