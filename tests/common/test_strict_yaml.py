"""Strict YAML: wrong files are refused with the line, valid ones are read as usual."""

from __future__ import annotations

import pytest
import yaml

from fractal_model.common.strict_yaml import LARGEST_BYTES, NotYAMLError, parse_yaml, read_yaml
from tests.support.params import SHIPPED


def _merges(levels: int) -> str:
    """YAML with 10 ** `levels` keys: every level merges the one before ten times."""
    rows = (f"- &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, levels))
    return "\n".join(["- &m0 {x: 1}", *rows])


REFUSED = [
    ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice, in line 1 and in line 3"),
    ("a:\n  b:\n    - {c: 1,\n       'c': 2}", "the key 'c' occurs twice, in line 3 and in line 4"),
    ("1: a\n1: b", "the key '1' occurs twice, in line 1 and in line 2"),
    ("<<: {a: 1}\n<<: {b: 1}", "the key '<<' occurs twice"),
    ("a: " + "[" * 500 + "]" * 500, "line 1, .*more than 50 lists and mappings"),
    ("- " * 100_000, "more than 50 lists and mappings"),
    ("x: 1\na: &a [*a]", "line 2, column 8: .a contains itself"),
    (_merges(9), "line 6, .*all << together add more than 100,000 keys"),
    ('a: "x\\0y"', "line 1, column 4: .* has a control character"),
    ('"a\\eb": 1', "has a control character"),
    ('a: "\\ud800"', "has a control character"),
    ("a: " + "1" * 5000, "line 1, column 4: '1+' cannot be read as int"),
    ("a: 0b_", "'0b_' cannot be read as int"),
    ("a: 1\nb: 022", "line 2, column 4: '022' is ambiguous: write a decimal number, or a text in"),
    ("a: -08", "'-08' is ambiguous"),
    ("a: 1:30", "'1:30' is ambiguous"),
    ("a: 83:20.5", "'83:20.5' is ambiguous"),
    ("a: !!set {0.8, 0.95}", "could not determine a constructor"),
    ("a: !!binary ZGln", "could not determine a constructor"),
    ("a: !!bool x", "'x' cannot be read as bool"),
    ("a: !!timestamp x", "'x' cannot be read as timestamp"),
    ("a: !!python/name:os.system", "could not determine a constructor"),
    ("a: [", "line 1"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_wrong_text_is_refused_on_one_line(text, message):
    with pytest.raises(NotYAMLError, match=message) as raised:
        parse_yaml(text)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


def test_a_date_is_read_as_text():
    assert parse_yaml("a: 2024-99-99\nb: 2024-01-31") == {"a": "2024-99-99", "b": "2024-01-31"}


def test_a_merged_key_may_be_overridden():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")["b"] == {"x": 3, "y": 2}


def test_the_shipped_settings_are_read_as_by_pyyaml():
    assert parse_yaml(SHIPPED.read_text()) == yaml.safe_load(SHIPPED.read_text())


def test_a_large_or_binary_file_is_refused(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_bytes(b"#" * (LARGEST_BYTES + 1))
    with pytest.raises(NotYAMLError, match="more than 1,048,576 bytes"):
        read_yaml(file)
    file.write_bytes(b"a: \xff")
    with pytest.raises(NotYAMLError, match="utf-8"):
        read_yaml(file)
