"""What comes from outside (file names, class names, tags, errors of libraries), made safe to show.

Decided here: `safe_text` is the one way to a terminal, a page, a log or a tag. It hides secrets,
writes characters that control a terminal or turn the writing direction as escapes such as `\\x1b`,
and keeps both ends of what is too long, because a message ends with the way out.
"""

import os
import re
from urllib.parse import unquote

LONGEST, LONGEST_NAME = 2000, 120
"""Characters of a message, and of a name."""
HIDDEN = "***"

_JOINERS = "\u200c\u200d"  # invisible, but letters and emoji are written with them
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Repetitions have a bound, so that no text makes the search slow.
_PORT = r"\d{1,5}(?:[/?#\s'\",;)\]}>]|$)"
_USER = re.compile(
    rf"([a-z][a-z0-9+.-]{{0,40}}://+)[^\s/?#'\"<>@:\[]{{0,500}}:(?!{_PORT})\S{{0,500}}@", re.I
)
_USER_ALONE = re.compile(r"(https?://)[^\s/?#'\"<>@:\[]{1,500}@", re.I)
_WORDS = r"token|secret|passw(?:or)?d|passphrase|pwd|credential|signature"
_QUERY = re.compile(
    rf"([?&;#][\w.%-]{{0,80}}(?:{_WORDS}|key|sig|auth)[\w.-]{{0,40}}=)[^\s&;#'\"<>]+", re.I
)
_VALUE = r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"&;,)}\]]+)"
_VARIABLE = re.compile(
    r"\b([A-Z][A-Z0-9_]{0,80}(?<=[A-Z0-9_])(?:(?<=TOKEN)|(?<=SECRET)|(?<=PASSWORD)|(?<=PASSWD)"
    r"|(?<=KEY)|(?<=KEY_ID)|(?<=AUTH_STRING)|(?<=CREDENTIALS))"
    rf"(?:['\"]\s*[=:]\s*|\s?=\s?))({_VALUE})"
)
_FIELD = re.compile(
    rf"\b([\w-]{{0,80}}?(?:{_WORDS}|credentials|auth[_-]?string|(?:api|access|account)[_-]?key)"
    rf"(?:['\"]\s*[=:]\s*|=))({_VALUE})",
    re.I,
)
_HEADER = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:\w+\s+)?|\bbearer\s+(?=[^\s'\"]{16}))[^\s'\"]+", re.I
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW(OR)?D|KEY|AUTH_STRING|CREDENTIAL")
_PLACE = re.compile(r"_(PATH|FILE|DIR|MODE|URL|URI)$")
_ADDRESS = re.compile(rf"[a-z][a-z0-9+.-]*://[^/?#\s@:\[]*:(?!{_PORT})(\S+)@", re.I)
_LONG, _SHORTEST = 8, 6


def safe_text(text: object, longest: int = LONGEST) -> str:
    """A text on one line, without secrets and control characters, of at most so many characters."""
    return shorten("".join(map(_escaped, hide_secrets(str(text)))), longest)


def safe_lines(text: str) -> str:
    """A text of several lines, such as a traceback, without secrets and control characters; nothing
    is cut."""
    plain = _COLOUR.sub("", hide_secrets(text))
    return "".join(c if c in "\n\t" else _escaped(c) for c in plain)


def without_colours(text: str) -> str:
    """A text without the colours that a program has given it for a terminal."""
    return _COLOUR.sub("", text)


def shorten(text: str, longest: int) -> str:
    """A text's two ends, `…` between them, where it is too long."""
    if len(text) <= longest:
        return text
    begin = (longest - 1) * 2 // 3
    return f"{text[:begin]}…{text[len(text) - (longest - 1 - begin) :]}"


def hide_secrets(text: str) -> str:
    """A text with `***` for passwords and tokens: in addresses (before `@`, as parameters), beside
    their names (`AWS_SECRET_ACCESS_KEY=…`), and wherever the value of a variable of this process
    stands whose name says that it is secret."""
    for value in _secret_values():
        if len(value) < _LONG:
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", HIDDEN, text)
        else:
            text = text.replace(value, HIDDEN)
    text = _USER.sub(rf"\g<1>{HIDDEN}@", text)
    text = _USER_ALONE.sub(rf"\g<1>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<1>{HIDDEN}", text)
    for named in (_VARIABLE, _FIELD):
        text = named.sub(rf"\g<1>{HIDDEN}", text)
    return text


def without_user(address: str) -> str:
    """An address without the user and the password before its `@`."""
    return re.sub(r"(://)[^/?#]*@", r"\1", address, count=1)


def _escaped(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()


def _secret_values() -> list[str]:
    """What the environment keeps, the longest first. A short plain word is not searched for: it may
    stand anywhere."""
    values = set()
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and not _PLACE.search(name):
            values.add(value)
        if address := _ADDRESS.match(value):
            values |= {address[1], unquote(address[1])}
    searched = {v for v in values if len(v) >= (_LONG if v.isalpha() else _SHORTEST)}
    return sorted(searched, key=len, reverse=True)
