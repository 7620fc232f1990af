"""Writes `.pth` files without PyTorch, intact and damaged ones."""

import struct
import zipfile

PROTOCOL = b"\x80\x02"
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def integers(values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def tensor(key, dtype, count, shape, strides, offset=0):
    """The part of a pickle that describes a tensor."""
    storage = (
        *(b"(", text("storage"), b"ctorch\n", STORAGES[dtype].encode(), b"\n"),
        *(text(key), text("cpu"), integer(count), b"tQ"),
    )
    return b"".join(
        (
            *(b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage),
            *(integer(offset), integers(shape), integers(strides), b"\x89"),
            *(b"ccollections\nOrderedDict\n)R", b"tR"),
        )
    )


def dictionary(items):
    """The part of a pickle that describes a dict, from parts of its values."""
    parts = [text(name) + value for name, value in items.items()]
    return b"}(" + b"".join(parts) + b"u"


def write_zip(path, pickle, records=(), compression=zipfile.ZIP_STORED):
    """Writes a `.pth` file of a pickle and the bytes of its storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, data in dict(records).items():
            archive.writestr(f"archive/data/{key}", data)


def write_pth(path, arrays):
    """Writes arrays by name, as `torch.save` does."""
    tensors = {
        name: tensor(
            str(i),
            array.dtype.name,
            array.size,
            array.shape,
            [stride // array.itemsize for stride in array.strides],
        )
        for i, (name, array) in enumerate(arrays.items())
    }
    records = {
        str(i): array.tobytes() for i, array in enumerate(arrays.values())
    }
    write_zip(path, PROTOCOL + dictionary(tensors) + b".", records)
