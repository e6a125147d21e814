"""Which names are litter."""

import pytest

from fractal_model.common.litter import is_litter
from tests.support.litter import LITTER


@pytest.mark.parametrize("path", LITTER)
def test_litter(path):
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
def test_names_that_people_give(name):
    assert not is_litter(name)
