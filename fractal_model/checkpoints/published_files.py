"""Download of the published checkpoints into a cache of this machine.

Decided here:

- The authors publish no checksum. The server's length is compared with what the size's weights take
  before a byte is kept; the import then compares every record with its CRC-32.
- What has arrived stays in SIZE.pth.part. It is continued by a range request, also in a later run,
  and renamed to SIZE.pth when it is complete. A lock lets only one process write it.
- The cache's folder, served over HTTP, is a mirror: the file names are the same.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import httpx
from huggingface_hub import is_offline_mode

import fractal_model
from fractal_model.checkpoints.importing import require_archive
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.files import cache_folder, require_writable
from fractal_model.common.locks import wait_for_lock
from fractal_model.config.params import Size
from fractal_model.model.fractal import FractalModel

_DROPBOX = "https://www.dropbox.com/scl/fi/{}/checkpoint-last.pth?rlkey={}&st={}&dl=1"
ADDRESSES = {
    "ar-64": _DROPBOX.format("n25tbij7aqkwo1ypqhz72", "2czevgex3ocg2ae8zde3xpb3f", "mj0subup"),
    "mar-64": _DROPBOX.format("lh7fmv48pusujd6m4kcdn", "huihey61ok32h28o3tbbq6ek9", "fxtoawba"),
    "mar-b": _DROPBOX.format("zrdm7853ih4tcv98wmzhe", "htq9yuzovet7d6ioa64s1xxd0", "4c4d93vs"),
    "mar-l": _DROPBOX.format("y1k05xx7ry8521ckxkqgt", "wolq4krdq7z7eyjnaw5ndhq6k", "vjeu5uzo"),
    "mar-h": _DROPBOX.format("t2rru8xr6wm23yvxskpww", "dn9ss9zw4zsnckf6bat9hss6h", "y7w921zo"),
}
"""Address of each published checkpoint, from the download script of the authors' repository."""
MIRROR_VARIABLE = "FRACTAL_MIRROR"
"""Environment variable with the base address of a mirror."""
_WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt that follows one without progress."""
_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?P<total>\d+)")
_OTHER_WAYS = (
    "download the file by other means and import that file, or name a mirror, for example in "
    f"{MIRROR_VARIABLE}"
)


def expected_bytes(size: Size) -> tuple[int, int]:
    """Smallest and largest plausible length of a size's published file, in bytes: its weights in
    float32, and 1 % and 4 MiB more for the archive's own records."""
    weights = FractalModel.without_memory(size.model).state_dict()
    least = 4 * sum(tensor.numel() for tensor in weights.values())
    return least, least + least // 100 + (1 << 22)


def find_cached(size: Size) -> Path | None:
    """Return the file of a size in the cache; None if it is missing or not a whole checkpoint."""
    file, (least, most) = _cache_file(size), expected_bytes(size)
    if not file.is_file() or not least <= file.stat().st_size <= most:
        return None
    try:
        require_archive(file)
    except FractalError:
        return None
    return file


def download(size: Size, mirror: str | None, progress: Callable[[int], None]) -> Path:
    """Download the published checkpoint of a size into the cache and return its path there.

    `mirror`: base address of a server that has the file SIZE.pth. None: the one in FRACTAL_MIRROR,
    or the authors' address if the variable is not set.
    `progress` gets the number of bytes that are on this machine. Proxies are those of the
    environment. FractalError: HF_HUB_OFFLINE is set, the size was not published, the server does
    not answer or has no such file, or it sends something else than a checkpoint of the size.
    """
    address = _address(size.name, mirror or os.environ.get(MIRROR_VARIABLE) or None)
    file = _cache_file(size)
    if is_offline_mode():
        raise FractalError(
            f"{size.name} is not in the cache ({file}) and HF_HUB_OFFLINE forbids to download it: "
            f"unset HF_HUB_OFFLINE, or copy the file there"
        )
    require_writable(file.parent)
    lock = file.with_name(f"{file.name}.lock")
    with wait_for_lock(lock, lambda: say(f"waiting for another process that downloads {file}")):
        if find_cached(size) is None:
            part = file.with_name(f"{file.name}.part")
            _Download(address, part, expected_bytes(size), progress).run()
            part.replace(file)
    return file


def _cache_file(size: Size) -> Path:
    return cache_folder() / "published" / f"{size.name}.pth"


def _address(size: str, mirror: str | None) -> httpx.URL:
    if mirror is None and size not in ADDRESSES:
        raise FractalError(
            f"no checkpoint of the size {size} was published: choose {' or '.join(ADDRESSES)}, "
            f"give a downloaded file and its size, or name a mirror in {MIRROR_VARIABLE}"
        )
    text = ADDRESSES[size] if mirror is None else f"{mirror.rstrip('/')}/{size}.pth"
    try:
        address = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise FractalError(f"the mirror {mirror} is no address ({one_line(error)})") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise FractalError(
            f"the mirror {mirror} is no web address: give one such as https://example.org/models",
            setting="mirror",
        )
    return address


class _Interrupted(Exception):
    """The server cannot serve the file now; a later attempt may succeed."""


class _Download:
    """One download into the file `part`. `limits`: smallest and largest length in bytes."""

    def __init__(
        self,
        address: httpx.URL,
        part: Path,
        limits: tuple[int, int],
        progress: Callable[[int], None],
    ) -> None:
        self._address, self._part, self._progress = address, part, progress
        self._least, self._most = limits

    def run(self) -> None:
        """Receive the whole file, in as many attempts as needed; give up after several attempts
        without progress."""
        longest, idle = self._received(), 0
        agent = f"fractal-model/{fractal_model.__version__}"
        # A compressed answer would have another length, and its ranges other positions.
        headers = {"Accept-Encoding": "identity", "User-Agent": agent}
        with httpx.Client(follow_redirects=True, timeout=30, headers=headers) as client:
            while True:
                try:
                    self._attempt(client)
                    break
                except (_Interrupted, httpx.TransportError) as error:
                    received = self._received()
                    idle = 0 if received > longest else idle + 1
                    longest = max(longest, received)
                    if idle > len(_WAITS):
                        self._give_up(error)
                    time.sleep(_WAITS[max(0, idle - 1)])
                except httpx.HTTPError as error:
                    self._refuse(f"cannot be fetched ({one_line(error)})")
        if not self._least <= self._received() <= self._most:
            self._discard(f"ended after {self._received():,} bytes")
        try:
            require_archive(self._part)
        except FractalError:
            self._part.unlink()
            raise

    def _received(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0

    def _attempt(self, client: httpx.Client) -> None:
        start = self._received()
        headers = {"Range": f"bytes={start}-"} if start else {}
        with client.stream("GET", self._address, headers=headers) as response:
            span = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if span is None or int(span["total"]) != start:
                    self._part.unlink()
                    raise _Interrupted("the part that was there is longer than the server's file")
                return  # An earlier run was stopped between the last byte and the renaming.
            self._require_file(response)
            is_continued = response.status_code == httpx.codes.PARTIAL_CONTENT
            if is_continued and (span is None or span["first"] != str(start)):
                self._refuse("answers with another part of the file than was asked for")
            total = (
                span["total"] if is_continued and span else response.headers.get("Content-Length")
            )
            if total is not None and not self._least <= int(total) <= self._most:
                self._refuse(f"has a file of {int(total):,} bytes, {self._expectation()}")
            self._write(response, start if is_continued else 0)

    def _require_file(self, response: httpx.Response) -> None:
        """Raise unless the answer is a file: FractalError, or _Interrupted if a later attempt may
        succeed."""
        code = response.status_code
        if code == httpx.codes.TOO_MANY_REQUESTS or code >= 500:
            raise _Interrupted(f"the server answers {code} {response.reason_phrase}")
        if code not in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
            self._refuse(f"is refused by the server: {code} {response.reason_phrase}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            self._refuse("is a web page, not a checkpoint: the server asks for something first")

    def _write(self, response: httpx.Response, start: int) -> None:
        with self._part.open("ab") as stream:
            stream.truncate(start)
            for chunk in response.iter_raw():
                stream.write(chunk)
                start += len(chunk)
                if start > self._most:
                    break
                self._progress(start)
        if start > self._most:
            self._discard(f"does not end after {start:,} bytes")

    def _expectation(self) -> str:
        return f"expected {self._least:,} to {self._most:,} for this size in params.yaml"

    def _discard(self, reason: str) -> NoReturn:
        self._part.unlink(missing_ok=True)
        self._refuse(f"{reason}, {self._expectation()}")

    def _refuse(self, reason: str) -> NoReturn:
        raise FractalError(f"{_shown(self._address)} {reason}; {_OTHER_WAYS}")

    def _give_up(self, error: Exception) -> NoReturn:
        raise FractalError(
            f"the download from {_shown(self._address)} stopped after {self._received():,} bytes "
            f"({one_line(error)}): run the same command again to continue, or {_OTHER_WAYS}"
        ) from error


def _shown(address: httpx.URL) -> str:
    """An address without its query, which has a key, and without a login."""
    port = "" if address.port is None else f":{address.port}"
    return f"{address.scheme}://{address.host}{port}{address.path}"
