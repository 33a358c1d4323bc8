"""Files behind http(s) URLs: fetched once, kept in a cache, and read as what their name says they are."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.parse
import urllib.request
from pathlib import Path

from gptlab.console import progress
from gptlab.data.sources import kinds
from gptlab.data.sources.base import Source
from gptlab.errors import DataError, option
from gptlab.files import check_place

PREFIXES = ("http://", "https://")


def open_input(given: str, *, cache: Path | None, block_bytes: int) -> list[Source]:
    """The file behind the URL. Raises DataError as `download` does."""
    return [kinds.open_file(download(given, cache), given, block_bytes)]


def cache_folder(cache: Path | None = None) -> Path:
    """Where downloads are kept: `cache`, else GPTLAB_CACHE, else `~/.cache/gptlab`."""
    return cache or Path(os.environ.get("GPTLAB_CACHE") or "~/.cache/gptlab").expanduser()


def download(url: str, cache: Path | None = None) -> Path:
    """The file behind an http(s) URL, fetched once and then kept in the cache.

    Raises DataError for what is no address, and where the network or the server refuses; nothing is left in the cache
    then.
    """
    name = re.sub(r"[^\w .+-]", "_", Path(urllib.parse.unquote(_checked(url).path)).name)[-100:] or "download"
    target = cache_folder(cache) / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if target.exists():
        return target
    check_place(target, "GPTLAB_CACHE")
    aside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "gptlab"})
        with (
            urllib.request.urlopen(request, timeout=60) as answer,
            open(aside, "wb") as file,
            progress() as bar,
        ):
            length = answer.headers.get("Content-Length")
            task = bar.add_task(f"downloading {name}", total=int(length) if length else None)
            while content := answer.read(1 << 18):
                file.write(content)
                bar.advance(task, len(content))
            if length and file.tell() != int(length):
                raise OSError(f"got {file.tell()} of {length} bytes")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError, HTTPError, timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{url}: cannot be downloaded ({reason}); check the address and the network, or give a local file with "
            f"{option('input')}"
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return target


def _checked(url: str) -> urllib.parse.SplitResult:
    """The parts of an address. Raises DataError where it is none."""
    problem = "an address holds no spaces and no control characters; write them as %20"
    if all("!" <= character != "\x7f" for character in url):
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port  # raises for one that is no number
            if parts.hostname and port != 0:
                return parts
            problem = "it names no host or no port"
        except ValueError as error:
            problem = str(error)
    raise DataError(f"{url!r}: is no address ({problem}); mend it, or give a local file with {option('input')}")
