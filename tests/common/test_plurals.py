"""Numbers with their nouns."""

import pytest

from fractal_model.common.plurals import count_of


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 classes"), (1, "1 class"), (1500, "1,500 classes")]
)
def test_one_has_the_noun_without_an_s(number, text):
    assert count_of(number, "class", "classes") == text


def test_the_plural_has_an_s_unless_it_is_given():
    assert count_of(2, "image") == "2 images"
