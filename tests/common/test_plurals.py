"""A number has its noun in the singular or plural."""

import pytest

from fractal_model.common.plurals import count_of


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 classes"), (1, "1 class"), (1500, "1,500 classes")]
)
def test_only_the_number_1_has_the_singular(number, text):
    assert count_of(number, "class", "classes") == text


def test_the_default_plural_ends_in_s():
    assert count_of(2, "image") == "2 images"
