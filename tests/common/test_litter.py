"""Names of files that programs leave are recognised."""

import pytest

from fractal_model.common.litter import is_litter
from tests.support.litter import LITTER


@pytest.mark.parametrize("path", LITTER)
def test_names_that_programs_give_are_litter(path):
    assert any(map(is_litter, path.split("/")))


@pytest.mark.parametrize(
    "name",
    [
        ".",
        "..",
        "",
        "1.jpg",
        "cat",
        "@home",
        "#1",
        "thumbs",
        "desktop",
        "recycle",
        "_1.png",
        "none",
    ],
)
def test_names_that_people_give_are_not_litter(name):
    assert not is_litter(name)
