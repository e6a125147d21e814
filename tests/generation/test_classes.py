"""Classes by number and by name."""

import pytest

from fractal_model.common.errors import FractalError
from fractal_model.generation.classes import parse_classes
from fractal_model.model.fractal import NO_CLASS
from tests.support import tiny_config

NAMED = tiny_config("ar").model_copy(
    update={"class_names": ("tabby", "golden retriever", "ice bear", "7")}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        ("0, 2,1", [0, 2, 1]),
        ("Golden Retriever,tabby", [1, 0]),
        ("none", [NO_CLASS]),
        ("7", [3]),  # a name that is a numeral
    ],
)
def test_numbers_and_names(text, expected):
    assert parse_classes(text, NAMED) == expected


def test_names_that_differ_in_their_capitals_only():
    """Of ImageNet's, 264 is a dog and 474 a garment."""
    named = NAMED.model_copy(update={"class_names": ("Cardigan", "cardigan", "crane", "crane")})
    assert parse_classes("Cardigan, cardigan", named) == [0, 1]
    with pytest.raises(FractalError, match="'CARDIGAN' is the name of classes 0 and 1"):
        parse_classes("CARDIGAN", named)
    with pytest.raises(FractalError, match="'crane' is the name of classes 2 and 3: give the num"):
        parse_classes("crane", named)


@pytest.mark.parametrize("text", ["4", "-1", "1.5", "", "tiger", "1,,2", "nan"])
def test_unknown_classes_are_refused_with_the_range(text):
    with pytest.raises(FractalError, match=r"0 … 3"):
        parse_classes(text, NAMED)


def test_the_nearest_name_is_suggested():
    with pytest.raises(FractalError, match="did you mean 'golden retriever'"):
        parse_classes("golden retreiver", NAMED)
