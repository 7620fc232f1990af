"""`.pth` files: those of PyTorch are read, all others are refused."""

import os
import pickle
import random
import resource
import time
import zipfile

import numpy as np
import pytest

from keras_cait import pytorch_files
from keras_cait.pytorch_files import PICKLE_LIMIT, read_pth
from tests.helpers import pth
from tests.helpers.pth import (
    PROTOCOL,
    dictionary,
    integer,
    integers,
    tensor,
    text,
)
from tests.helpers.reference import REFERENCE

# Written by PyTorch 2.13 and 2.14: see tests/helpers/write_pytorch_files.py.
FOLDER = REFERENCE / "pytorch"
EXPECTED = dict(np.load(FOLDER / "expected.npz"))
FILES = sorted({name.partition("/")[0] for name in EXPECTED})


@pytest.mark.parametrize("file", FILES)
def test_files_of_pytorch(file):
    tensors = read_pth(FOLDER / f"{file}.pth")
    expected = {
        name.partition("/")[2]: array
        for name, array in EXPECTED.items()
        if name.startswith(f"{file}/")
    }
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        found = np.asarray(tensors[name])
        assert tensors[name].shape == array.shape
        if "bfloat16" in file:
            assert found.dtype.name == "bfloat16"
            found = found.astype("float32")
        assert found.dtype.newbyteorder("=") == array.dtype
        np.testing.assert_array_equal(found, array, name)


def test_tensors_stay_in_the_file_and_share_it():
    tensors = read_pth(FOLDER / "zip.pth")
    assert tensors["matrix"].mapping is tensors["row"].mapping
    assert tensors["row"].start == tensors["matrix"].start + 3 * 8 * 4
    assert not np.asarray(tensors["transposed"]).flags.writeable


def test_the_writer_of_the_tests_writes_what_is_read(tmp_path):
    array = np.arange(6, dtype="float32").reshape(2, 3)
    pth.write_pth(tmp_path / "file.pth", {"a": array, "b": array[0]})
    tensors = read_pth(tmp_path / "file.pth")
    np.testing.assert_array_equal(tensors["a"], array)
    np.testing.assert_array_equal(tensors["b"], array[0])


class Reduces:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize(
    "function, arguments",
    [
        (os.system, ("echo harm > harm",)),
        (eval, ("open('harm', 'w')",)),
        (getattr, (os, "system")),
        (bytearray, (2**40,)),
        (np.zeros, (2**40,)),
    ],
)
def test_code_is_never_run(
    tmp_path, monkeypatch, protocol, in_zip, function, arguments
):
    monkeypatch.chdir(tmp_path)
    if function is getattr:
        arguments = ("text", "upper")
    code = pickle.dumps(Reduces(function, *arguments), protocol=protocol)
    nested = pickle.dumps(
        {"model": {"a": [Reduces(function, *arguments)]}}, protocol=protocol
    )
    for data in (code, nested):
        path = tmp_path / "file.pth"
        if in_zip:
            pth.write_zip(path, data)
        else:
            path.write_bytes(data)
        assert_refused(path, "Refused: ")
    assert [file.name for file in tmp_path.iterdir()] == ["file.pth"]


def test_whole_models_are_refused_by_name():
    assert_refused(FOLDER / "code.pth", "torch.nn.modules.linear.Linear")


NAME = b"ctorch._utils\n_rebuild_tensor_v2\n"
SOUND = tensor("0", "float32", 6, (2, 3), (3, 1))
VAST = b"\x8a\xff" + 254 * b"\xff" + b"\x7f"  # the largest integer


@pytest.mark.parametrize(
    "described, reason",
    [
        # More than the storage holds.
        (tensor("0", "float32", 6, (2, 4), (4, 1)), "damaged"),
        (tensor("0", "float32", 6, (10**12,), (0,)), "damaged"),
        (tensor("0", "float32", 6, (10**9, 10**9), (0, 0)), "damaged"),
        (tensor("0", "float32", 6, (2, 3), (4, 1)), "damaged"),
        (tensor("0", "float32", 6, (2, 3), (3, 1), offset=1), "damaged"),
        (tensor("0", "float32", 6, (2,), (2**62,)), "damaged"),
        # More than the file holds.
        (tensor("0", "float32", 7, (7,), (1,)), "damaged"),
        (tensor("0", "float64", 6, (6,), (1,)), "damaged"),
        (tensor("0", "float32", 2**62, (2**62,), (1,)), "damaged"),
        (tensor("1", "float32", 6, (6,), (1,)), "damaged"),
        (tensor("../0", "float32", 6, (6,), (1,)), "damaged"),
        # Before it.
        (tensor("0", "float32", 6, (2, 3), (-3, 1), offset=3), "damaged"),
        (tensor("0", "float32", 6, (2, 3), (3, 1), offset=-1), "damaged"),
        (tensor("0", "float32", 6, (-2, -3), (3, 1)), "damaged"),
        (tensor("0", "float32", -6, (0,), (1,)), "damaged"),
        # Sizes that are no sizes.
        (SOUND.replace(integers((2, 3)), b"(" + text("a") + b"t"), "damaged"),
        (SOUND.replace(integers((3, 1)), b"(NNt"), "damaged"),
        (
            SOUND.replace(
                integers((2, 3)), b"(" + VAST + b"q\0" + 9999 * b"h\0" + b"t"
            ),
            "damaged",
        ),
        # Not tensors.
        (tensor("0", "float32", 6, (2, 3), (3,)), "damaged"),
        (integer(3), "named tensors"),
        (NAME, "named tensors"),
        (NAME + b"(tR", "damaged"),
        (NAME + b"]R", "damaged"),
        (SOUND.removesuffix(b"tR") + b"}tR", "damaged"),  # a view of -1 times
        (b"ccollections\nOrderedDict\n((lt(ltR", "instruction LIST"),
        (b"ctorch\nFloatStorage\n(tR", "damaged"),
        (text("storage") + b"Q", "damaged"),
        (b"(tQ", "damaged"),
        # Not a program for the machine.
        (b"", "damaged"),
        (b"0", "instruction POP"),
        (b"h\x00", "damaged"),
        (b"tttt", "damaged"),
        (b"\x85\x85\x85\x87", "damaged"),
        (b"}(]NN", "damaged"),
        (b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged"),
        (b"r\xff\xff\xff\xff", "damaged"),
        (b"Nr\xff\xff\xff\xff", "named tensors"),
    ],
)
def test_what_pytorch_does_not_write(tmp_path, described, reason):
    path = tmp_path / "file.pth"
    pickle = PROTOCOL + dictionary({"a": SOUND, "b": described}) + b"."
    pth.write_zip(path, pickle, {"0": bytes(24)})
    assert_refused(path, reason)


def test_nested_keys_are_not_hashed(tmp_path):
    """The hash of 60 nested pairs would take years."""
    nested = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    pickle = PROTOCOL + b"}" + nested + b"Ns."
    pth.write_zip(tmp_path / "file.pth", pickle)
    assert_refused(tmp_path / "file.pth", "damaged")


def test_pickles_of_absurd_length_are_cut(tmp_path, monkeypatch):
    """A tenth of the limit takes less than a tenth of a minute."""
    limit = PICKLE_LIMIT // 10
    monkeypatch.setattr(pytorch_files, "PICKLE_LIMIT", limit)
    pickle = PROTOCOL + b"]" * (4 * limit) + b"."
    pth.write_zip(tmp_path / "file.pth", pickle)
    start = time.process_time()
    assert_refused(tmp_path / "file.pth", "damaged")
    assert time.process_time() - start < 6


@pytest.mark.parametrize(
    "pickles, reason",
    [
        ([], "did not write it"),
        ([5], "did not write it"),
        ([0x1950A86A20F9469CFC6C], "damaged"),
        ([0x1950A86A20F9469CFC6C, 1001, {}, {}, ["0"]], "damaged"),
        ([0x1950A86A20F9469CFC6C, 1001, {}, {}, 7], "damaged"),
    ],
)
def test_legacy_files_of_others(tmp_path, pickles, reason):
    path = tmp_path / "file.pth"
    path.write_bytes(
        b"".join(pickle.dumps(part, protocol=2) for part in pickles) or b"PK"
    )
    assert_refused(path, reason)


def test_legacy_storages_lie_in_the_file(tmp_path):
    sound = (FOLDER / "bfloat16_legacy.pth").read_bytes()
    start = sound.index((48).to_bytes(8, "little"))
    for count in (2**62, -1, -(2**62), 49, 47):
        data = count.to_bytes(8, "little", signed=True)
        path = tmp_path / "file.pth"
        path.write_bytes(sound[:start] + data + sound[start + 8 :])
        assert_refused(path, "damaged")


def test_other_zips(tmp_path):
    path = tmp_path / "file.pth"
    pickle = PROTOCOL + dictionary({"a": SOUND}) + b"."
    pth.write_zip(path, pickle, {"0": bytes(24)}, zipfile.ZIP_DEFLATED)
    assert_refused(path, "compressed")
    pth.write_zip(path, pickle)
    assert_refused(path, "damaged")  # no storage
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keras.json", "{}")
    assert_refused(path, "did not write it")
    path.write_bytes(b"")
    assert_refused(path, "empty")


@pytest.mark.parametrize("file", ["zip", "legacy", "training"])
def test_mutations_are_refused_or_change_nothing_but_values(file, tmp_path):
    """Flipped, cut, zeroed and swapped bytes: one ValueError, no allocation."""
    sound = (FOLDER / f"{file}.pth").read_bytes()
    shapes = {
        name: tensor.shape
        for name, tensor in read_pth(FOLDER / f"{file}.pth").items()
    }
    generator = random.Random(0)
    path = tmp_path / "file.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unchanged = 0
    for _ in range(300):
        data = bytearray(sound)
        at, other = sorted(generator.sample(range(len(data)), 2))
        match generator.choice(["flip", "cut", "zero", "swap", "extend"]):
            case "flip":
                data[at] ^= 1 << generator.randrange(8)
            case "cut":
                del data[at:other]
            case "zero":
                data[at : at + 16] = bytes(16)
            case "swap":
                data[at], data[other] = data[other], data[at]
            case "extend":
                data[at:at] = data[at:other]
        path.write_bytes(data)
        try:
            found = read_pth(path)
            for name, value in found.items():
                array = np.asarray(value)
                if file != "legacy" and shapes.get(name) == array.shape:
                    np.testing.assert_array_equal(
                        array, EXPECTED[f"{file}/{name}"]
                    )
                    unchanged += 1
        except ValueError as error:
            assert "\n" not in str(error)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 50_000  # KB
    assert file == "legacy" or unchanged


def assert_refused(path, reason):
    with pytest.raises(ValueError, match=reason) as error:
        read_pth(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    assert error.value.__suppress_context__ or not error.value.__context__
