"""Classes are read by number and by name."""

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
def test_classes_are_given_by_number_or_name(text, expected):
    assert parse_classes(text, NAMED) == expected


def test_names_that_differ_only_in_capitals_are_different_classes():
    """ImageNet has two classes of this name: 264 is a dog, 474 a garment."""
    named = NAMED.model_copy(update={"class_names": ("Cardigan", "cardigan", "crane", "crane")})
    assert parse_classes("Cardigan, cardigan", named) == [0, 1]
    with pytest.raises(FractalError, match="'CARDIGAN' is the name of classes 0 and 1"):
        parse_classes("CARDIGAN", named)
    with pytest.raises(FractalError, match="'crane' is the name of classes 2 and 3: give a numb"):
        parse_classes("crane", named)


@pytest.mark.parametrize("text", ["4", "-1", "1.5", "", "tiger", "1,,2", "nan"])
def test_unknown_classes_are_refused_with_the_range(text):
    with pytest.raises(FractalError, match=r"0 … 3"):
        parse_classes(text, NAMED)


def test_the_nearest_name_is_suggested():
    with pytest.raises(FractalError, match="did you mean 'golden retriever'"):
        parse_classes("golden retreiver", NAMED)


def config_with(*names: str):
    """A configuration with classes of these names."""
    return tiny_config("ar").model_copy(
        update={"num_classes": len(names), "class_names": tuple(names)}
    )


BY_TEXT = ("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
FROM_ONE = tuple(str(number) for number in range(1, 13))
PADDED_FROM_ONE = tuple(f"{number:02d}" for number in range(1, 13))


@pytest.mark.parametrize(
    ("names", "text", "meanings"),
    [
        (BY_TEXT, "2", r"name of class 4 \('2'\) and the number of class 2 \('10'\)"),
        (BY_TEXT, "10", r"name of class 2 \('10'\) and the number of class 10 \('8'\)"),
        (("1", "0"), "0", r"name of class 1 \('0'\) and the number of class 0 \('1'\)"),
        (FROM_ONE, "2", r"name of class 1 \('2'\) and the number of class 2 \('3'\)"),
        (PADDED_FROM_ONE, "2", r"name of class 1 \('02'\) and the number of class 2 \('03'\)"),
    ],
)
def test_a_numeral_that_means_two_classes_is_refused_and_both_can_be_asked_for(
    names, text, meanings
):
    with pytest.raises(FractalError, match=f"class '{text}' .*{meanings}.* name:{text} or number:"):
        parse_classes(text, config_with(*names))
    by_name = next(number for number, name in enumerate(names) if int(name) == int(text))
    both = parse_classes(f"name:{text},number:{text}", config_with(*names))
    assert both == [by_name, int(text)]


def test_a_numeral_that_means_one_class_is_accepted():
    in_order = config_with(*map(str, range(12)))
    assert parse_classes(",".join(map(str, range(12))), in_order) == list(range(12))
    padded = config_with(*(f"{number:04d}" for number in range(12)))
    assert parse_classes("0011,11,2", padded) == [11, 11, 2]
    assert parse_classes("12", config_with(*FROM_ONE)) == [11], "there is no class number 12"
    assert parse_classes("02", config_with(*PADDED_FROM_ONE)) == [1], "numbers have no leading 0"


def test_names_with_commas_are_written_in_quotes():
    commas = config_with("a,b", "c", "d, e", "none")
    assert parse_classes('"a,b", c,"D, e"', commas) == [0, 1, 2]
    assert parse_classes("none,name:none,3", commas) == [NO_CLASS, 3, 3]
    with pytest.raises(FractalError, match="""class 'a' is unknown.*'a,b' write '"a,b"'"""):
        parse_classes("a,b", commas)
    for text in ('"a,b', '"a,b" c', "c\nc", "c" * 200_000):
        with pytest.raises(FractalError, match="cannot be read.*double quotes|is unknown"):
            parse_classes(text, commas)


@pytest.mark.parametrize("text", ["\n", "name:", "number:4", "number:x", "name:tiger", "9" * 5000])
def test_a_text_that_names_no_class_is_refused(text):
    with pytest.raises(FractalError, match=r"unknown: this model knows 0 … 3"):
        parse_classes(text, NAMED)


def test_an_unknown_class_is_answered_with_the_first_names():
    names = tuple(f"kind {number}" for number in range(12))
    many = NAMED.model_copy(update={"num_classes": 12, "class_names": names})
    with pytest.raises(
        FractalError, match=r"0 … 11 \('kind 0', 'kind 1', .*'kind 9', …\) and 'none'"
    ):
        parse_classes("lion", many)
