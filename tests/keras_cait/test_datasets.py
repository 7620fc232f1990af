"""Folders of images: their split, copies and classes."""

import json
import os
import shutil
from types import SimpleNamespace

import pytest

from keras_cait import datasets, folders
from keras_cait.datasets import SPLITS, open_dataset, split_of

SIZES = {"ant": 1, "bee": 2, "cat": 4, "dog": 7, "elk": 60}


def write(folder, sizes=SIZES):
    """Files that differ in their content, but not in their size."""
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        for i in range(size):
            (folder / name / f"{i}.jpg").write_text(f"{name}{i:04}")
    return folder


def split(folder, **part):
    """Names of the training and of the validation images, by class."""
    found = []
    for name in SPLITS:
        data = open_dataset(f"folder:{folder}", name, **part)
        classes = {name: set() for name in data.class_names}
        for file, label in zip(data.files, data.labels, strict=True):
            relative = file.relative_to(folder)
            assert data.class_names[label] in relative.parts
            classes[data.class_names[label]].add(relative.as_posix())
        found.append(classes)
    return found


def test_every_class_of_two_images_is_validated(tmp_path):
    train, validation = split(write(tmp_path))
    counts = {name: len(files) for name, files in validation.items()}
    assert counts == {"ant": 0, "bee": 1, "cat": 1, "dog": 1, "elk": 12}
    for name, size in SIZES.items():
        assert len(train[name] | validation[name]) == size
        assert not train[name] & validation[name]
    # More of them, and among these the first ones.
    _, larger = split(tmp_path, validation_fraction=0.5)
    assert {name: len(larger[name]) for name in ("bee", "cat", "elk")} == {
        "bee": 1,
        "cat": 2,
        "elk": 30,
    }
    assert all(validation[name] <= larger[name] for name in SIZES)
    _, most = split(tmp_path, validation_fraction=0.99)
    assert len(most["bee"]) == 1 and len(most["cat"]) == 3


def test_a_split_depends_on_nothing_but_the_names(tmp_path):
    folder = write(tmp_path / "here")
    before = split(folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert split(tmp_path / "elsewhere") == before
    # An added image moves at most one other, of its class.
    for i in range(20):
        (folder / "elk" / f"new{i}.jpg").write_text(f"new{i}")
        after = split(folder)
        moved = before[0]["elk"] ^ after[0]["elk"]
        assert len(moved - {f"elk/new{i}.jpg"}) <= 1
        assert all(before[1][n] == after[1][n] for n in ("bee", "cat", "dog"))
        before = after


def test_folds_validate_every_image_once(tmp_path):
    write(tmp_path)
    assert split(tmp_path, validation_fraction=0.2, fold=0) == split(tmp_path)
    for count in (2, 3, 7):
        folds = [
            split(tmp_path, validation_fraction=1 / count, fold=fold)
            for fold in range(count)
        ]
        for name, size in SIZES.items():
            validated = [f for _, fold in folds for f in fold[name]]
            assert len(validated) == len(set(validated))
            assert len(validated) == (size if size > 1 else 0)
            assert all(train[name] for train, _ in folds)


def test_a_fold_without_images_is_explained(tmp_path):
    write(tmp_path / "three", {"cat": 3, "dog": 1})
    (tmp_path / "three/cat/copy.jpg").write_text("cat0000")
    with pytest.raises(ValueError, match=r"class: 3\. .* --folds 3"):
        split(tmp_path / "three", validation_fraction=1 / 4, fold=2)
    write(tmp_path / "one", {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match=r"class: 1\. Expected two"):
        split(tmp_path / "one")


def test_copies_are_on_the_same_side(tmp_path, monkeypatch):
    write(tmp_path)
    for i in range(60):
        shutil.copy(tmp_path / f"elk/{i}.jpg", tmp_path / f"elk/copy{i}.jpg")
    # An image in two classes has no true label.
    for i in range(7):
        shutil.copy(tmp_path / f"dog/{i}.jpg", tmp_path / f"cat/dog{i}.jpg")
    train, validation = split(tmp_path)
    assert len(validation["elk"]) == 24 and len(train["dog"]) == 7
    for i in range(60):
        is_held_out = f"elk/{i}.jpg" in validation["elk"]
        assert is_held_out == (f"elk/copy{i}.jpg" in validation["elk"])
    assert len(validation["cat"]) == 1
    # Files of another size are not even read.
    (tmp_path / "elk/long.jpg").write_text("longer")
    read = []
    monkeypatch.setattr(datasets, "sha256", lambda f: read.append(f) or str(f))
    split(tmp_path)
    assert read and tmp_path / "elk/long.jpg" not in read


def test_broken_files_are_no_copies(tmp_path):
    write(tmp_path, {"cat": 5, "dog": 5})
    for i in range(5):
        (tmp_path / f"cat/{i}.jpg").write_bytes(b"")
        (tmp_path / f"dog/{i}.jpg").unlink()
        (tmp_path / f"dog/{i}.jpg").symlink_to(tmp_path / "nowhere")
    _, validation = split(tmp_path)
    assert [len(files) for files in validation.values()] == [1, 1]


def test_a_folder_may_have_its_own_split(tmp_path):
    write(tmp_path / "train", {"cat": 3, "dog": 3, "elk": 3})
    write(tmp_path / "val", {"cat": 2, "elk": 2})
    (tmp_path / "train/.ipynb_checkpoints").mkdir()
    (tmp_path / "train/cat/._0.jpg").touch()
    # The labels are those of training, whatever validation lacks.
    train, validation = split(tmp_path)
    assert [len(files) for files in train.values()] == [3, 3, 3]
    assert [len(files) for files in validation.values()] == [2, 0, 2]
    assert split_of("S24", f"folder:{tmp_path}") == {}
    (tmp_path / "val/fox").mkdir()
    with pytest.raises(ValueError, match=r"has classes that .* lacks: fox"):
        split(tmp_path)


def test_a_folder_in_the_home_is_found(tmp_path, monkeypatch):
    write(tmp_path / "home/photos")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = open_dataset("folder:~/photos", "train")
    assert found.files.folder == tmp_path / "home/photos"


@pytest.mark.parametrize("train", ["train", "training"])
@pytest.mark.parametrize("validation", ["validation", "valid", "val"])
def test_a_split_has_one_of_many_names(train, validation, tmp_path):
    write(tmp_path / train, {"cat": 3, "dog": 3})
    write(tmp_path / validation, {"cat": 2, "dog": 1})
    (tmp_path / "test").mkdir()
    found = split(tmp_path)
    assert [len(c["cat"]) for c in found] == [3, 2]
    assert [len(c["dog"]) for c in found] == [3, 1]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat/a", "dog/a", "val/cat", "val/dog"], "val, but no folder train"),
        (["valid/cat", "test/cat"], "valid, but no folder train"),
        (["Train/cat", "dev/cat", "Test/cat"], "would be Test and Train and d"),
    ],
)
def test_splits_are_no_classes(classes, message, tmp_path):
    write(tmp_path, dict.fromkeys(classes, 2))
    with pytest.raises(ValueError, match=message):
        split(tmp_path)


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"a\nb", "a\u2028".encode(), b"a\x1b"]
)
def test_a_class_is_a_line_of_text(name, tmp_path):
    write(tmp_path, {"cat": 2, os.fsdecode(name): 0})
    with pytest.raises(ValueError, match="not one line of UTF-8") as error:
        split(tmp_path)
    assert (
        str(error.value).isascii() and len(str(error.value).splitlines()) == 1
    )


def test_classes_may_be_named_as_splits_are(tmp_path):
    write(tmp_path, {"valid": 5, "invalid": 5, "train": 5})
    train, validation = split(tmp_path)
    assert [*train] == [*validation] == ["invalid", "train", "valid"]


def test_a_run_is_measured_on_its_own_split(tmp_path, monkeypatch):
    recipe = {"validation_fraction": 0.25, "fold": 3, "epochs": 2}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    (tmp_path / "model.keras").touch()
    exported = tmp_path / "models/photos/1"
    exported.mkdir(parents=True)
    for model in (tmp_path, tmp_path / "model.keras", exported):
        part = split_of(model, "folder:photos")
        assert part == {"validation_fraction": 0.25, "fold": 3}
        assert split_of(model, "digits") == {}
    monkeypatch.chdir(exported)
    part = split_of("S24", "folder:photos")
    assert part == {"validation_fraction": 0.2, "fold": 0}


@pytest.fixture
def listed(monkeypatch):
    """The folders that are listed, of a set large enough for an index."""
    monkeypatch.setattr(folders, "MIN_INDEXED", 1)
    found = []

    def scandir(path):
        found.append(str(path))
        return os.scandir(path)

    module = SimpleNamespace(**{**vars(os), "scandir": scandir})
    monkeypatch.setattr(folders, "os", module)
    return found


def settle(folder):
    """Makes a folder and its subfolders old, so that an index is kept."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            changed = path.stat().st_mtime_ns - 3600 * 10**9
            os.utime(path, ns=(changed, changed))


def test_a_large_folder_is_listed_once(tmp_path, listed):
    write(tmp_path)
    (tmp_path / "elk/young").mkdir()
    (tmp_path / "elk/young/0.JPG").write_text("young")
    (tmp_path / "elk/.hidden.jpg").touch()
    new = split(tmp_path)
    assert not (tmp_path / folders.INDEX).exists()  # they have just changed
    settle(tmp_path)
    assert split(tmp_path) == new
    listed.clear()
    assert split(tmp_path) == new
    assert not listed
    # Whatever changes the set of files changes a folder.
    for change in (
        lambda: (tmp_path / "elk/young/1.jpg").write_text("second"),
        lambda: (tmp_path / "cat/0.jpg").rename(tmp_path / "cat/new.jpg"),
        lambda: (tmp_path / "bee/0.jpg").unlink(),
        lambda: write(tmp_path, {"fox": 2}),
        lambda: shutil.rmtree(tmp_path / "dog"),
    ):
        before = split(tmp_path)
        change()
        after = split(tmp_path)
        assert after != before
        settle(tmp_path)
        assert split(tmp_path) == after


def test_an_incomplete_index_is_written_again(tmp_path, listed):
    write(tmp_path)
    settle(tmp_path)
    whole = split(tmp_path)
    index = tmp_path / folders.INDEX
    content = index.read_bytes()
    older = content.replace(b'".jfif", ', b"")
    for part in (b"", b"[]\n", b"{}\n", content[:200], content[:-2], older):
        index.write_bytes(part)
        assert split(tmp_path) == whole
        assert index.read_bytes() == content


def test_the_index_of_a_read_only_folder_is_cached(
    tmp_path, listed, monkeypatch
):
    data = write(tmp_path / "data")
    (data / folders.INDEX / "in the way").mkdir(parents=True)
    settle(data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = split(data)
    listed.clear()
    assert split(data) == first
    assert not listed
    # Where there is no cache, either, it works without.
    monkeypatch.setenv("XDG_CACHE_HOME", str(data / "elk/0.jpg"))
    assert split(data) == first
    assert listed
