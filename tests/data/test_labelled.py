"""Pictures with a class each, from folders and from tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal.data.labelled import read_labelled
from xmodal.errors import BadSample, InputError

Written = Callable[..., Path]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two class folders with three pictures."""
    for name, n in {"sea_lion": 2, "cat": 1}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "set" / "cat" / ".hidden").write_text("")
    return tmp_path / "set"


def test_class_folders(classes: Path) -> None:
    (classes / "cat" / "1.png").write_text("no picture")
    found = read_labelled(classes)
    assert (found.classes, found.labels.tolist(), found.templates) == (["cat", "sea lion"], [0, 0, 1, 1], None)
    assert found.labels.dtype == np.int64
    assert len(set(found.image_id.tolist())) == len(found) == 4
    good, bad = found.images(np.array([3, 1]))
    assert np.shape(good) == (8, 8, 3)
    assert isinstance(bad, BadSample)
    assert bad.reason == "no image"


def test_names_and_templates_that_come_with_the_folders(classes: Path, written: Written) -> None:
    written("feline\npinniped\n", "set/classnames.txt")
    written("a photo of a {}.\n", "set/templates.txt")
    found = read_labelled(classes)
    assert (found.classes, found.templates) == (["feline", "pinniped"], ["a photo of a {}."])
    written("feline\n", "set/classnames.txt")
    with pytest.raises(InputError, match="1 names for 2 class folders"):
        read_labelled(classes)
    written("a\nb\n", "set/classnames.txt")
    written("a photo\n", "set/templates.txt")
    with pytest.raises(InputError, match="where the class's name goes"):
        read_labelled(classes)


@pytest.mark.parametrize("column", ["label", "class", "category", "target", "group"])
def test_a_table_of_classes(folder: Path, written: Written, column: str) -> None:
    path = written(f"image,{column},split,part\n0.png,cat,val,x\n1.png,dog,val,y\n2.png,ant,test,y\n3.png,,test,y\n")
    found = read_labelled(path)
    assert (found.classes, found.labels.tolist()) == (["ant", "cat", "dog"], [1, 2, 0])
    found = read_labelled(path, split="val")
    assert (found.classes, found.labels.tolist(), found.paths[0]) == (["cat", "dog"], [0, 1], folder / "0.png")
    assert len(read_labelled(path, split="y", split_column="part")) == 2
    with pytest.raises(InputError, match=r"val \(2\)"):
        read_labelled(path, split="train")


def test_what_is_said_of_no_classes(folder: Path, written: Written) -> None:
    (folder / "bare").mkdir()
    with pytest.raises(InputError, match="no class folders"):
        read_labelled(folder / "bare")
    with pytest.raises(InputError, match="--label-column"):
        read_labelled(written("image,words\n0.png,x\n"))
    for name in ("gone", "x" * 5000, "a\0b"):
        with pytest.raises(InputError, match="expected a folder"):
            read_labelled(folder / name)
    with pytest.raises(InputError, match="is there"):
        read_labelled(written("image,label\ngone.png,x\n"))
