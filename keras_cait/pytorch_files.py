"""Reads the `.pth` files of `torch.save`, without PyTorch.

Such a file holds the values of tensors and a pickle that describes them. A
pickle is a program for a small stack machine. The machine below knows only the
instructions and names that describe tensors, and it never imports or calls
anything: a file cannot run code. All sizes are checked against the file, so
that a file cannot make the reader allocate more than it holds.

PyTorch has two formats: a zip archive (the default since 1.6), and a sequence
of pickles followed by the values.
"""

import io
import math
import pickletools
import struct
import zipfile
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from keras_cait.file_tensors import (
    FileTensor,
    last_element,
    map_file,
    unwrapped,
)

STORAGE_DTYPES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
KNOWN_NAMES = {
    *STORAGE_DTYPES,
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "collections.OrderedDict",
    "argparse.Namespace",  # training scripts store their arguments in one
}
BYTE_ORDERS = {b"little": "<", b"big": ">"}
ZIP_MAGIC = b"PK\3\4"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# Bytes. The pickle of M48 with its optimizer's state has 0.3 MB.
PICKLE_LIMIT = 4_000_000
# Those of NumPy. The product of a million large sizes would take hours.
MAX_DIMENSIONS = 64


def read_pth(path: Path) -> dict[str, FileTensor]:
    """Reads the named tensors of a `.pth` file.

    The tensors are at the top level, or under "model" or "state_dict", as in
    the training checkpoints of DeiT and timm. The rest of a checkpoint, such as
    the state of the optimizer, is ignored.

    Args:
        path: path of the file.

    Returns:
        The tensors by name, without the prefixes of `DistributedDataParallel`
        and `torch.compile`. Their values stay in the file until `np.asarray`
        reads them.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is damaged, was not written by `torch.save`, or
            holds more than tensors and plain values, such as a whole model.

    Example:
    >>> read_pth(Path("S24_224.pth"))["cls_token"].shape  # doctest: +SKIP
    (1, 1, 384)
    """
    mapping = map_file(path)
    try:
        if mapping[: len(ZIP_MAGIC)] == ZIP_MAGIC:
            contents, records, order = _read_zip(path, mapping)
        else:
            contents, records, order = _read_legacy(mapping)
    except _Refused as error:
        raise ValueError(str(error)) from None
    # Damage surfaces as errors of zipfile, struct, pickletools or the stack.
    except Exception:
        raise ValueError(
            "torch.save did not write it, or it is damaged."
        ) from None

    if isinstance(contents, dict):
        contents = contents.get("model", contents.get("state_dict", contents))
    if not isinstance(contents, dict) or not all(
        isinstance(tensor, _Tensor) for tensor in contents.values()
    ):
        raise ValueError(
            "It does not hold named tensors, neither at the top level nor "
            'under "model" or "state_dict". '
            "torch.save(model.state_dict(), path) writes them."
        )
    return {
        unwrapped(str(name)): _locate(name, tensor, mapping, records, order)
        for name, tensor in contents.items()
    }


class _Refused(ValueError):
    """Says why a file is not read."""


class _Name(NamedTuple):
    """The name of a class or function, which is never imported."""

    name: str


class _Storage(NamedTuple):
    """A flat array of `count` values; a record of the file has its key."""

    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    """A view of a storage. `offset` and `strides` count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Record(NamedTuple):
    """The bytes of a storage in the file."""

    start: int
    size: int


def _read_zip(path: Path, mapping: mmap) -> tuple[Any, dict[str, _Record], str]:
    """Returns the contents, the records by key, and their byte order."""
    with zipfile.ZipFile(path) as archive:
        if any(file.compress_type for file in archive.infolist()):
            raise _Refused(
                "It is a compressed zip archive. torch.save does not compress."
            )
        damaged = archive.testzip()
        if damaged is not None:
            raise _Refused(f"It is damaged: {damaged!r} has a wrong checksum.")
        (pickle,) = (
            name for name in archive.namelist() if name.endswith("/data.pkl")
        )
        with archive.open(pickle) as stream:
            contents, _ = _unpickle(io.BytesIO(stream.read(PICKLE_LIMIT)))
        folder = pickle.removesuffix("data.pkl")
        order = "<"
        if f"{folder}byteorder" in archive.namelist():
            order = BYTE_ORDERS[archive.read(f"{folder}byteorder")]
        records = {}
        for file in archive.infolist():
            # A header of 30 bytes, the name and a padding precede the values.
            lengths = file.header_offset + 26
            name, padding = struct.unpack("<HH", mapping[lengths : lengths + 4])
            start = file.header_offset + 30 + name + padding
            key = file.filename.removeprefix(f"{folder}data/")
            records[key] = _Record(start, file.file_size)
    return contents, records, order


def _read_legacy(mapping: mmap) -> tuple[Any, dict[str, _Record], str]:
    """Returns the contents, the records by key, and their byte order."""
    stream = io.BytesIO(mapping[:PICKLE_LIMIT])
    magic, _ = _unpickle(stream)
    if magic != LEGACY_MAGIC:
        raise _Refused("torch.save did not write it.")
    for _ in ("protocol", "system"):
        _unpickle(stream)
    contents, storages = _unpickle(stream)
    keys, _ = _unpickle(stream)
    records = {}
    start = stream.tell()
    for key in keys:
        (count,) = struct.unpack("<q", mapping[start : start + 8])
        size = count * np.dtype(storages[key].dtype).itemsize
        if not 0 <= size <= len(mapping) - start - 8:
            raise _Refused("It is damaged: values are missing at its end.")
        records[key] = _Record(start + 8, size)
        start += 8 + size
    return contents, records, "<"  # on every machine


def _unpickle(stream: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """Runs the next pickle; returns its result and the storages in it."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, _Storage] = {}

    def pop(count: int) -> tuple[Any, ...]:
        if not 0 <= count <= len(stack):
            raise ValueError("The stack of the pickle is too short.")
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        return items

    def pop_to_mark() -> tuple[Any, ...]:
        return pop(len(stack) - marks.pop())

    argument: Any
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                stack.append(argument)
            case "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(pop(int(opcode.name[-1])))
            case "TUPLE":
                stack.append(pop_to_mark())
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                items = pop(1) if opcode.name == "APPEND" else pop_to_mark()
                _append(stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                items = pop(2) if opcode.name == "SETITEM" else pop_to_mark()
                _set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(_known(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(_known(".".join(pop(2))))
            case "BINPERSID":
                storage = _storage(*pop(1))
                storages[storage.key] = storage
                stack.append(storage)
            case "REDUCE" | "NEWOBJ":
                stack.append(_make(*pop(2)))
            case "BUILD":  # attributes of a namespace or of an OrderedDict
                pop(1)
            case name:
                raise _Refused(
                    f"Refused: its pickle has the instruction {name}, which no "
                    "tensor needs. "
                    "torch.save(model.state_dict(), path) writes only tensors."
                )
    (result,) = stack
    return result, storages


def _known(name: str) -> _Name:
    if name not in KNOWN_NAMES:
        raise _Refused(
            f"Refused: its pickle names {name[:80]!r}, which could run code. "
            "torch.save(model.state_dict(), path) writes only tensors."
        )
    return _Name(name)


def _storage(description: Any) -> _Storage:
    match description:
        # A legacy file adds a view of the storage, always None since 0.4.
        case ("storage", _Name(name), str(key), _, int(count)) | (
            "storage",
            _Name(name),
            str(key),
            _,
            int(count),
            None,
        ):
            return _Storage(key, STORAGE_DTYPES[name], count)
    raise ValueError("The pickle describes a storage that is not one.")


def _make(function: Any, arguments: Any) -> Any:
    """What PyTorch makes by calling `function`, without calling it."""
    match function, arguments:
        case _Name("collections.OrderedDict" | "argparse.Namespace"), ():
            return {}
        case _Name("torch._utils._rebuild_parameter"), (_Tensor() as data, *_):
            return data
        case _Name("torch._utils._rebuild_tensor_v2"), (
            _Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            _,  # whether it has a gradient
            _,  # its hooks; what would follow turns the sign of its values
        ):
            return _Tensor(storage, offset, shape, strides)
    raise ValueError("The pickle makes something other than a tensor.")


def _append(target: Any, items: tuple[Any, ...]) -> None:
    if not isinstance(target, list):
        raise ValueError("The pickle appends to something other than a list.")
    target.extend(items)


def _set_items(target: Any, items: tuple[Any, ...]) -> None:
    # Hashing a nested tuple could take forever.
    if not isinstance(target, dict) or not all(
        isinstance(key, str | int) for key in items[::2]
    ):
        raise ValueError("The pickle has a dict with keys of another kind.")
    target.update(zip(items[::2], items[1::2], strict=True))


def _locate(
    name: str,
    tensor: _Tensor,
    mapping: mmap,
    records: dict[str, _Record],
    order: str,
) -> FileTensor:
    """Checks that a tensor lies in its storage, and this in the file."""
    storage, offset, shape, strides = tensor
    dtype = storage.dtype
    if dtype != "bfloat16":
        dtype = order + dtype
    elif order != "<":
        raise ValueError("It holds big-endian bfloat16. Save it as float32.")
    item_size = np.dtype(dtype).itemsize
    start, size = records.get(storage.key, _Record(0, -1))
    numbers = (storage.count, offset, *shape, *strides)
    if (
        not len(shape) == len(strides) <= MAX_DIMENSIONS
        or not all(type(n) is int and n >= 0 for n in numbers)
        or math.prod(shape) > storage.count
        or storage.count * item_size > size
        or start + size > len(mapping)
        or (
            0 not in shape
            and offset + last_element(shape, strides) >= storage.count
        )
    ):
        raise ValueError(
            f"It is damaged: the values of {name!r} are not where they should "
            "be."
        )
    return FileTensor(
        mapping, start + offset * item_size, shape, dtype, strides
    )
