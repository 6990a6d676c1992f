"""
Fetch what is missing from debuginfod servers, only when asked to.

Build IDs leave this machine; nothing else does. What comes back is believed only when its own bytes have the ID that
was asked for: a server can hold the wrong file under the right key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pmforensics.errors import PmfError, VerifyError
from pmforensics.formats.argv import redact_url
from pmforensics.model.capture import GIB, MIB
from pmforensics.model.image import IdKind
from pmforensics.verify.candidates import Candidate, read_candidate
from pmforensics.verify.dumps import Dump

TIMEOUT_S = 30.0  # for a server to answer, and between two pieces of its answer
MAX_BYTES = 4 * GIB
MAX_FETCHES = 500
KINDS = ("executable", "debuginfo")


@dataclass(slots=True)
class Fetched:
    """
    What debuginfod brought.

    candidates   each with the ID that it was asked for under (`meant_for`), also those that have another one
    asked        build IDs that were sent out
    servers      their addresses, without credentials
    trouble      sentences: servers that failed, answers that are no binaries
    """

    candidates: list[Candidate] = field(default_factory=list)
    asked: int = 0
    servers: tuple[str, ...] = ()
    trouble: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """What left this machine, for the report."""
        answered = len({one.meant_for for one in self.candidates})
        return f"{', '.join(self.servers)}: asked for {self.asked} build IDs, {answered} answered (--debuginfod)"


def cache_folder() -> Path:
    """Where fetched files are kept: $DEBUGINFOD_CACHE_PATH, else the folder that elfutils uses too."""
    named = os.environ.get("DEBUGINFOD_CACHE_PATH")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "debuginfod_client"


def fetch_missing(dump: Dump, given: Sequence[Candidate]) -> Fetched:
    """
    Candidates for the images of the dump that have none.

    Errors: VerifyError when no server is named.
    """
    urls = [url for url in os.environ.get("DEBUGINFOD_URLS", "").split() if url.startswith(("http://", "https://"))]
    if not urls:
        raise VerifyError(
            "no debuginfod server is named", hint="export DEBUGINFOD_URLS=https://... (http and https only)"
        )
    have = {one.value for candidate in given for one in candidate.ids}
    wanted = dict.fromkeys(
        reading.id.value
        for image in dump.images.images
        for reading in image.readings
        if reading.id.kind is IdKind.GNU and not reading.id.weak and not image.is_vdso and reading.id.value not in have
    )
    client = _Client(urls)
    fetched = Fetched(asked=min(len(wanted), MAX_FETCHES), servers=tuple(map(redact_url, urls)), trouble=client.trouble)
    for build_id in list(wanted)[:MAX_FETCHES]:
        fetched.candidates += client.candidates(build_id)
    return fetched


class _Client:
    """Asks the servers in turn; one that cannot be reached is not asked again."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(dict.fromkeys(url.rstrip("/") for url in urls))
        self.trouble: list[str] = []

    def _complain(self, url: str, says: object) -> None:
        sentence = f"{redact_url(url)}: {says}"
        if sentence not in self.trouble:
            self.trouble.append(sentence)

    def candidates(self, build_id: str) -> Iterator[Candidate]:
        """The executable, else the debug file, of the first server that has it."""
        for kind in KINDS:
            path = self._fetch(build_id, kind)
            if path is None:
                continue
            try:
                found = [replace(one, meant_for=build_id) for one in read_candidate(path)]
            except PmfError as error:
                self.trouble.append(error.message)
                found = []
            if not any(own.value == build_id for one in found for own in one.ids):
                # gdb and elfutils read the same folder and do not look twice.
                path = path.rename(path.with_name(f"{kind}.not-{build_id[:8]}"))
                found = [replace(one, path=path) for one in found]
            if found:
                yield from found
                return

    def _fetch(self, build_id: str, kind: str) -> Path | None:
        place = cache_folder() / build_id / kind
        if place.is_file() and place.stat().st_size:
            return place
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VerifyError(
                f"{place.parent} cannot be made ({error.strerror})", hint="Set DEBUGINFOD_CACHE_PATH to another folder."
            ) from None
        return (
            place
            if any(self._download(url, f"buildid/{build_id}/{kind}", place) for url in tuple(self._urls))
            else None
        )

    def _download(self, server: str, what: str, place: Path) -> bool:
        """Whether the server has it. One that has not is no trouble."""
        import http.client
        import urllib.error
        import urllib.request

        partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
        try:
            request = urllib.request.Request(f"{server}/{what}", headers={"User-Agent": "pmf"})  # noqa: S310 - http(s)
            with (
                urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply,  # noqa: S310 - http(s) only
                partial.open("wb") as out,
            ):
                total = 0
                while total <= MAX_BYTES and (chunk := reply.read(MIB)):
                    total += len(chunk)
                    out.write(chunk)
                whole = total <= MAX_BYTES and not reply.length
            if whole:
                partial.rename(place)
                return True
            self._complain(server, f"{what} is cut, or larger than {MAX_BYTES >> 30} GiB")
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.NOT_FOUND:
                self._complain(server, f"HTTP {error.code}")
        except (OSError, ValueError, http.client.HTTPException) as error:
            self._complain(server, f"{getattr(error, 'reason', None) or error}; not asked again")
            self._urls.remove(server)
        finally:
            partial.unlink(missing_ok=True)
        return False
