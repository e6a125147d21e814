"""Text from outside is shown without secrets and without control characters."""

from __future__ import annotations

import time

import pytest

from fractal_model.common.errors import FractalError, last_line, one_line
from fractal_model.common.safe_text import hide_secrets, safe_lines, safe_text
from tests.support.outside_texts import NAMES, controls


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host:5000/api", "http://***@host:5000/api"),
        ("https://ghp_s3cret@github.com/x", "https://***@github.com/x"),
        ("postgresql+psycopg2://me:s3%2Fcret@db/x", "postgresql+psycopg2://***@db/x"),
        ("postgresql://me:s3/cr@et@db/x", "postgresql://***@db/x"),
        ("mysql://me:it's3cret@db/x", "mysql://***@db/x"),
        ("redis://:s3cret@cache:6379/0", "redis://***@cache:6379/0"),
        ("s3://KEY:s3cret@bucket/k, then", "s3://***@bucket/k, then"),
        ("http://h/x?a=1&token=s3cret&b=2", "http://h/x?a=1&token=***&b=2"),
        ("http://h/x?X-Amz-Credential=s3cret&X-Amz-Signature=s3cret#f", None),
        ("https://h/x?sig=s3cret", "https://h/x?sig=***"),
        ("AWS_SECRET_ACCESS_KEY=s3cret, next", "AWS_SECRET_ACCESS_KEY=***, next"),
        ("{'PREFECT_API_AUTH_STRING': 'admin s3cret', 'x': 1}", None),
        ('{"password": "s3 s3cret", "x": 1}', None),
        ("host=db password=s3cret dbname=x", "host=db password=*** dbname=x"),
        ("Authorization: Basic s3cret==", "Authorization: Basic ***"),
        ("postgresql://me:s3 c cret@db/x", "postgresql://***@db/x"),
        ("//me:s3cret@host/x", "//***@host/x"),
        ("redis://s3cret@cache/0", "redis://***@cache/0"),
        ("http://me:123/s3cret@host", "http://***@host"),
        ("http://h/?pass=s3cret&code=s3cret&user_pw=s3cret", None),
        ("http://h/?jwt=s3cret", "http://h/?jwt=***"),
        ("password: s3cret, next", "password: ***, next"),
        ("password = s3cret", "password = ***"),
        ("run --db-password s3cret --x", "run --db-password *** --x"),
        ("X-Api-Key: s3cret", "X-Api-Key: ***"),
        ("x-auth-token: s3cret", "x-auth-token: ***"),
        ('{"secret_key":"s3cret", "auth": "s3cret", "pass": "s3cret"}', None),
        (r"password='it\'s s3cret', next", "password=***, next"),
        ("https://hooks.slack.com/services/T0/B0/s3cret", "https://hooks.slack.com/services/***"),
    ],
)
def test_secrets_in_addresses_and_after_their_names_are_hidden(text, shown):
    hidden = hide_secrets(text)
    values = hidden.replace("s3://", "").replace("secret_key", "")
    assert "s3" not in values and "cret" not in values
    assert shown is None or hidden == shown
    assert hide_secrets(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1",
        "http://[::1]:5000/a@b",
        "http://host:80/x?mail=a@b.c",
        "models:/fractal-digits@champion",
        "abfss://container@account.dfs.core.windows.net/x",
        "sqlite:////a/b:c@d/mlflow.db",
        "tokens=16, key=lambda x: x",
        "RAY_AUTH_TOKEN_PATH=/run/token",
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD here",
        "unknown key 'token', known are password, key",
        "see http://host:80/x and mail a@b.c",
        "http://localhost:80/a@b",
        "ray is up (token: /outputs/services/ray-token)",
        "ssh://git@host/x",
    ],
)
def test_text_without_secrets_is_unchanged(text):
    assert hide_secrets(text) == text


def test_values_of_secret_variables_are_hidden_anywhere(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_AbCdEf0123")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2%21@host")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/the-token")
    shown = hide_secrets("signed hf_AbCdEf0123 by hunter2! of hunter2%21, see /run/the-token")
    assert shown == "signed *** by *** of ***, see /run/the-token"


@pytest.mark.parametrize(
    "name", ["DB_PASS", "MYSQL_PWD", "PW", "SMTP_PASSPHRASE", "API_TOKEN", "AWS_SECRET_ACCESS_KEY"]
)
def test_a_secret_variable_is_hidden_by_its_name(monkeypatch, name):
    monkeypatch.setenv(name, "s3cr+t/==")
    assert hide_secrets("by s3cr+t/== or s3cr%2Bt%2F%3D%3D") == "by *** or ***"


def test_the_working_folder_is_no_secret(monkeypatch):
    for name in ("PWD", "OLDPWD", "GIT_ASKPASS"):
        monkeypatch.setenv(name, "/home/me/work")
    assert hide_secrets("in /home/me/work") == "in /home/me/work"


@pytest.mark.parametrize(
    "part",
    ["a", "a-", "--a", "A_", "//a:", "://a:b c ", "//a.b:1/", "?key", "token=", "password: ", "' "],
)
def test_a_long_text_is_searched_quickly(part):
    text = part * (200_000 // len(part))
    begin = time.process_time()
    hide_secrets(text)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("name", NAMES)
def test_shown_names_are_short_and_have_no_control_characters(name):
    shown = safe_text(name, 120)
    assert controls(shown) == [] and "\n" not in shown
    assert len(shown) <= 120
    assert shown.startswith(name[:3])
    assert safe_text(shown, 120) == shown


def test_an_escape_gives_the_code_of_the_character():
    assert safe_text("a\x1b[2Jb\x07\u202ec\nd\udcff") == r"a\x1b[2Jb\x07\u202ec\nd\udcff"
    for usual in ("Zürich, 東京, عربى, 👨‍👩‍👧", "C:\\new", "[bold]", "a  b"):
        assert safe_text(usual) == usual


def test_a_long_message_keeps_both_ends():
    shown = safe_text(f"the class {'x' * 10_000} is unknown: choose another")
    assert len(shown) == 2000
    assert shown.startswith("the class xxx") and shown.endswith("xxx is unknown: choose another")


def test_error_texts_are_safe_to_show():
    error = FractalError(f"{NAMES[0]} of http://me:s3cret@host is damaged", setting="out")
    assert str(error) == r"cat\x1b[2J of http://***@host is damaged"
    assert one_line(OSError("no\n\x1b[2Jroute to redis://:s3cret@h")) == (
        r"no \x1b[2Jroute to redis://***@h"
    )
    assert last_line("Traceback\nValueError: \x07 http://me:s3cret@h") == (
        r"ValueError: \x07 http://***@h"
    )


def test_safe_lines_keeps_line_breaks_and_tabs():
    assert safe_lines("\x1b[31ma\x1b[0m\n\tb\x07\n") == "a\n\tb\\x07\n"
