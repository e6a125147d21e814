"""Make text from outside (file names, class names, tags, errors of libraries) safe to show.

Decided here: all such text passes `safe_text` before a terminal, a page, a log or a tag shows it.
It hides secrets. Characters that control a terminal or change the writing direction become escapes
such as `\\x1b`. A text that is too long keeps both ends, because a message ends with the way out.
"""

import os
import re
from urllib.parse import quote, unquote

LONGEST, LONGEST_NAME = 2000, 120
"""Largest number of characters of a message and of a name; a longer one loses its middle."""
HIDDEN = "***"

_JOINERS = "\u200c\u200d"  # invisible, but some letters and emoji need them
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# No text makes the search slow: every repetition has a bound, and none begins at every character.
_NAME = r"[^\s/?#'\"<>@:\[]{0,500}"
_PORT = r"\d{1,5}(?:[?#\s'\",;)\]}>]|$|/[^\s?#@]{0,500}(?:[\s?#]|$))"
_HOST = r"[\w.-]{0,250}(?:localhost|\.[\w-]{1,63}):\d{1,5}(?:/|$)"
_USER = re.compile(
    rf"(//)(?!{_HOST}){_NAME}:(?!{_PORT})"
    r"(?:\S{0,500}@|[^\s@]{1,200}(?: [^\s@]{1,200}){1,3}@)"
)
# After these schemes a name before an @ is no secret: a container of Azure, or the user `git`.
_USER_ALONE = re.compile(
    r"((?<!abfss)(?<!abfs)(?<!wasbs)(?<!wasb)(?<!ssh)://)[^\s/?#'\"<>@:\[]{1,500}@", re.I
)
_WEBHOOK = re.compile(r"(hooks\.slack\.com/\w{1,20}/)[^\s'\"<>]+", re.I)
_WORDS = r"token|secret|passw(?:or)?d|passphrase|pwd|credentials?|signature"
_SHORT = r"pass|pw|jwt"
_QUERY = re.compile(
    rf"([?&;#](?:[\w.%-]{{0,80}}(?:{_WORDS}|key|sig|auth)[\w.-]{{0,40}}"
    rf"|(?:[\w.%-]{{0,80}}[_.-])?(?:{_SHORT}|code))=)[^\s&;#'\"<>]+",
    re.I,
)
_VALUE = r"(?:'(?:[^'\\]|\\.){0,500}'|\"(?:[^\"\\]|\\.){0,500}\"|[^\s'\"&;,)}\]]+)"
_IS = r"\s{0,3}=\s{0,3}"
_IN_QUOTES = r"['\"]\s{0,3}[=:]\s{0,3}"
_VARIABLE = re.compile(
    rf"((?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|KEY_ID|AUTH_STRING|CREDENTIALS|_PASS|_PWD|_PW)"
    rf"(?:{_IN_QUOTES}|{_IS})){_VALUE}"
)
_KEYS = r"auth[_-]?string|(?:api|access|account|secret|private)[_-]?key"
_FIELD = re.compile(
    rf"((?:{_WORDS}|{_KEYS})(?:{_IN_QUOTES}|{_IS})"
    rf"|\b(?:{_SHORT}|auth){_IN_QUOTES}|\b(?:{_SHORT})="
    rf"|(?:passw(?:or)?d|passphrase|pwd|secret|token|{_KEYS}):\s{{0,3}}(?!/)"
    rf"|(?<![\w-])--[\w-]{{0,40}}?(?:{_WORDS}|{_KEYS})[ \t]{{1,3}}){_VALUE}",
    re.I,
)
_HEADER = re.compile(
    r"(\bauthorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?(?:\w{1,40}\s{1,3})?"
    r"|\bbearer\s{1,3}(?=[^\s'\"]{16}))[^\s'\"]+",
    re.I,
)
_SECRET_NAME = re.compile(
    r"TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|KEY|AUTH_STRING|CREDENTIAL|(^|_)(PASS|PW)$|_PWD$"
)
_PLACE = re.compile(r"_(PATH|FILE|DIR|MODE|URL|URI)$")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@:\[]*:(?!\d{1,5}(?:[/?#]|$))(\S+)@", re.I)
_LONG, _SHORTEST = 8, 6


def safe_text(text: object, longest: int = LONGEST) -> str:
    """A text on one line, without secrets and control characters, at most `longest` characters."""
    return shorten("".join(map(_escape, hide_secrets(str(text)))), longest)


def safe_lines(text: str) -> str:
    """All lines of a text, such as a traceback, without secrets and control characters."""
    plain = _COLOUR.sub("", hide_secrets(text))
    return "".join(c if c in "\n\t" else _escape(c) for c in plain)


def without_colours(text: str) -> str:
    """A text without the escape sequences that colour it in a terminal."""
    return _COLOUR.sub("", text)


def shorten(text: str, longest: int) -> str:
    """Replace the middle of a text by `…` if it has more than `longest` characters."""
    if len(text) <= longest:
        return text
    begin = (longest - 1) * 2 // 3
    return f"{text[:begin]}…{text[len(text) - (longest - 1 - begin) :]}"


def hide_secrets(text: str) -> str:
    """Replace passwords and tokens by `***`: in web addresses (before `@` and among the
    parameters), after a telling name (`AWS_SECRET_ACCESS_KEY=…`), and wherever the value of a
    secret environment variable occurs."""
    for value in _secret_values():
        if len(value) < _LONG:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
        else:
            text = text.replace(value, HIDDEN)
    for user in (_USER, _USER_ALONE) if "@" in text else ():
        text = user.sub(rf"\g<1>{HIDDEN}@", text)
    for secret in (_WEBHOOK, _QUERY, _HEADER, _VARIABLE, _FIELD):
        text = secret.sub(rf"\g<1>{HIDDEN}", text)
    return text


def without_user(address: str) -> str:
    """An address without the user and the password before its `@`."""
    return re.sub(r"(://)[^/?#]*@", r"\1", address, count=1)


def _escape(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def _secret_values() -> list[str]:
    """Return the secrets in the environment variables, the longest first. Short values are left
    out, because they occur in harmless texts too."""
    values = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not _PLACE.search(name):
            values.add(value)
        if address := _ADDRESS.match(value):
            values |= {address[1], unquote(address[1])}
    values |= {quote(value, safe="") for value in values}
    long_enough = {v for v in values if len(v) >= (_LONG if v.isalpha() else _SHORTEST)}
    return sorted(long_enough, key=len, reverse=True)
