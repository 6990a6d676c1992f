"""Where a Go process serves its profiles (net/http/pprof), and how one of them is fetched."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pmforensics.collect.base import Host
from pmforensics.collect.checked import checked, settlement_of
from pmforensics.collect.gaps import gap_of, reason_of
from pmforensics.errors import AnswerBroken, CollectError, DeadlinePassed, EndpointRefused, NotThere
from pmforensics.formats.argv import redact_url
from pmforensics.formats.proc import Listener, parse_net_tcp
from pmforensics.formats.structure import Shape, Structure, StructureCheck
from pmforensics.model.capture import KIB, MIB, Artifact, Gap, Json, Outcome, Pause, PauseBasis, Settlement
from pmforensics.model.process import Target

PROBE_S = 0.5  # a port that accepts and never speaks costs this much, as long as another one is the right one
SECOND_PROBE_S = 2.0  # where none was: a starved process answers late
ALL_PROBES_S = 4.0  # no probe begins later than this
MAX_PROBES = 16  # addresses asked; a process that listens on more is told to say --pprof
PAGE_BYTES = 64 * KIB  # Go's index is 3 kB
NET_LIMIT_BYTES = 4 * MIB
PIECE_S = 5.0  # the longest silence inside a body that the host bears
CONVENTIONAL_PORT = 6060  # the one in the documentation of net/http/pprof

NO_ENDPOINT_HINT = (
    'Let the service import _ "net/http/pprof" and serve it on a loopback listener, or give its address: --pprof URL. '
    "Never send SIGQUIT: it ends a Go process."
)

_CONNECTED = re.compile(rb"^\s*\d+: \S+ \S+ (?!0A )[0-9A-F]{2} ", re.MULTILINE)
_INDEX_ROW = re.compile(rb"<td>(\d{1,12})</td>\s*<td>\s*<a href=['\"]?goroutine\?")
_PROFILES_PATH = "/debug/pprof"
_SILENT = "says nothing"


# -- finding it ------------------------------------------------------------------------------------------------------


def find_pprof(target: Target, host: Host, given: str | None = None) -> str:
    """
    The base URL of the pprof handlers, without a slash at its end: http://127.0.0.1:6060/debug/pprof.

    `given` is taken at its word (a missing scheme or path is added). Else each TCP port that the process itself
    listens on is asked, 6060 first, then loopback listeners, then the rest by number: at most MAX_PROBES
    addresses, PROBE_S each. If none is right, those that were silent are asked again with more patience.

    Errors: NotThere (it listens on no TCP port), EndpointRefused (says what was tried), AccessDenied.
    """
    if given is not None:
        return _normal(given)
    listeners = _own_listeners(host)
    if not listeners:
        raise NotThere(f"process {target.pid} listens on no TCP port", hint=NO_ENDPOINT_HINT)
    places = _places(listeners)
    answers: dict[str, str] = {}
    give_up = time.monotonic() + ALL_PROBES_S
    for patience_s in (PROBE_S, SECOND_PROBE_S):
        for place in places[:MAX_PROBES]:
            if patience_s > PROBE_S and answers.get(place) != _SILENT:
                continue
            host.check_deadline()
            if time.monotonic() > give_up:
                break
            found, answers[place] = _probe(place, patience_s, host)
            if found is not None:
                return found
    tried = "; ".join(f"{place} {says}" for place, says in answers.items())
    left = len(places) - len(answers)
    raise EndpointRefused(
        f"no pprof where the process listens: {tried}{f'; {left} more not tried' if left else ''}",
        hint=NO_ENDPOINT_HINT,
    )


def goroutine_count(base: str, host: Host) -> int | None:
    """How many goroutines the index page of `base` speaks of: cheap, it stops nothing. None if it does not say."""
    try:
        row = _INDEX_ROW.search(_page(f"{base}/", SECOND_PROBE_S, host))
    except (EndpointRefused, DeadlinePassed):
        host.check_deadline()
        return None
    return int(row[1]) if row else None


def _normal(given: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
    except ValueError:  # half an IPv6 address
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise EndpointRefused(
            f"{redact_url(given)} is not an http address", hint="Give it as --pprof http://HOST:PORT/debug/pprof"
        )
    head, profiles, _ = parts.path.partition(_PROFILES_PATH)
    path = head + profiles if profiles else parts.path.rstrip("/") or _PROFILES_PATH
    return f"{parts.scheme}://{parts.netloc}{path}"


def _own_listeners(host: Host) -> list[Listener]:
    """Listening sockets of which this very process holds a descriptor; /proc/PID/net shows its whole namespace."""
    in_namespace: dict[str, Listener] = {}
    for name, ipv6 in (("net/tcp", False), ("net/tcp6", True)):
        for listener in parse_net_tcp(_listening_part(name, host), ipv6):
            in_namespace[f"socket:[{listener.inode}]"] = listener
    own: dict[str, Listener] = {}
    for at, fd in enumerate(host.list_proc("fd")):
        if len(own) == len(in_namespace):
            break
        if at % 1000 == 0:
            host.check_deadline()
        try:
            link = host.link_proc(f"fd/{fd}")
        except NotThere:
            continue  # closed in between
        if link in in_namespace:
            own[link] = in_namespace[link]
    return list(own.values())


def _listening_part(name: str, host: Host) -> str:
    """The kernel lists listening sockets first: the tens of thousands of connections after them are not read."""
    text = b""
    try:
        for chunk in host.iter_proc(name, 0, NET_LIMIT_BYTES):
            text += chunk
            if _CONNECTED.search(chunk):
                break
    except NotThere:
        return ""  # a kernel without IPv6
    return text.decode("ascii", "replace")


def _places(listeners: Sequence[Listener]) -> list[str]:
    """host:port to ask, best guess first. A private listener is the usual place for profiles, and bears a stray GET."""
    ipv4_ports = {listener.port for listener in listeners if ":" not in listener.address}

    def rank(listener: Listener) -> tuple[bool, bool, int]:
        return listener.port != CONVENTIONAL_PORT, not _is_loopback(listener.address), listener.port

    places: list[str] = []
    for listener in sorted(listeners, key=rank):
        address = listener.address.removeprefix("::ffff:")
        if address == "::":
            places.append(f"[::1]:{listener.port}")
            # Go's ":6060" is an IPv6 socket that serves IPv4 too, even where no interface has an IPv6 address.
            if listener.port not in ipv4_ports:
                places.append(f"127.0.0.1:{listener.port}")
        elif address == "0.0.0.0":  # noqa: S104 - what the target listens on, not what pmf binds to
            places.append(f"127.0.0.1:{listener.port}")
        else:
            places.append(f"[{address}]:{listener.port}" if ":" in address else f"{address}:{listener.port}")
    return list(dict.fromkeys(places))


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.removeprefix("::ffff:").startswith("127.")


def _probe(place: str, patience_s: float, host: Host) -> tuple[str | None, str]:
    """The base URL, or None and what came instead."""
    found, says = _ask(f"http://{place}{_PROFILES_PATH}", patience_s, host)
    # What Go's own server says to plain HTTP on a TLS port.
    if found is None and says == "answers 400":
        found, tls_says = _ask(f"https://{place}{_PROFILES_PATH}", patience_s, host)
        says = f"{says} ({tls_says} to https)"
    return found, says


def _ask(base: str, patience_s: float, host: Host) -> tuple[str | None, str]:
    try:
        if _looks_like_index(_page(f"{base}/", patience_s, host)):
            return base, ""
        says = "answers with another page"
    except DeadlinePassed:
        host.check_deadline()
        return None, _SILENT
    except EndpointRefused as error:
        if not error.status:
            return None, "does not speak HTTP"
        says = f"answers {error.status}"
        if error.status == 400:
            return None, says
    # The index may be hidden, or somebody else's, and the profiles still be there.
    try:
        page = _page(f"{base}/goroutine?debug=1", patience_s, host, KIB)
    except (EndpointRefused, DeadlinePassed):
        host.check_deadline()
        return None, says
    return (base if page.startswith(b"goroutine profile: total ") else None), says


def _looks_like_index(page: bytes) -> bool:
    return b"<html" in page[:1024].lower() and _PROFILES_PATH.encode() in page and b"goroutine?" in page


def _page(url: str, patience_s: float, host: Host, enough_bytes: int = PAGE_BYTES) -> bytes:
    """The beginning of a page, whatever becomes of the rest."""
    give_up = time.monotonic() + patience_s
    page = b""
    chunks = host.http_get(url, timeout_s=patience_s, limit_bytes=MIB).chunks
    try:
        for chunk in chunks:
            page += chunk
            if len(page) >= enough_bytes or time.monotonic() > give_up:
                break
    except (AnswerBroken, DeadlinePassed):
        host.check_deadline()
    return page


# -- fetching a profile ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """
    One profile to fetch.

    wanted       in the words of a gap ("goroutines, binary profile")
    timeout_s    the longest silence, before the first byte and between two pieces
    share_s      the longest time for all of it
    stops        the world stands still until the first byte: a pause is recorded
    """

    url: str
    path: str
    wanted: str
    check: StructureCheck
    timeout_s: float
    share_s: float
    limit_bytes: int
    media_type: str = "application/gzip"
    question: str = ""
    stops: bool = False
    bulk: bool = False
    facts: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fetched:
    """
    How it went.

    structure      the verdict, None when nothing came
    error          what ended it early
    first_byte_s   the time that the answer was waited for
    """

    structure: Structure | None
    error: CollectError | None
    first_byte_s: float

    @property
    def timed_out(self) -> bool:
        """The silence, or the whole, was too long."""
        return isinstance(self.error, DeadlinePassed)

    @property
    def whole(self) -> bool:
        """Nothing is missing."""
        return self.error is None and self.structure is not None and self.structure.shape is Shape.WHOLE

    def fact(self, name: str) -> int | None:
        """A number that the structure check counted on the way."""
        value = None if self.structure is None else self.structure.facts.get(name)
        return value if isinstance(value, int) else None


def _as_it_is(_fetched: Fetched, settlement: Settlement) -> Settlement:
    return settlement


def fetch(
    host: Host, item: Wanted, settled_by: Callable[[Fetched, Settlement], Settlement] = _as_it_is
) -> Generator[Artifact | Gap, None, Fetched]:
    """
    Yield the profile as an artifact, or the gap that it leaves; return how it went.

    `settled_by` has the last word on the artifact, given what would be said otherwise.

    A server that hangs, breaks off, lies about the length or never ends costs this profile its completeness and
    nothing else: what came is kept. Only the collector's own deadline and the target's death are raised.
    """
    started = time.monotonic()
    try:
        reply = host.http_get(item.url, timeout_s=item.timeout_s, limit_bytes=item.limit_bytes)
        first = next(reply.chunks, b"")
    except CollectError as error:
        _raise_if_ours(error, host, started, item.timeout_s)
        yield gap_of(error, item.wanted, item.question)
        return Fetched(None, error, time.monotonic() - started)
    first_byte_s = time.monotonic() - started
    # The runtime has every stack before it writes the first byte, so the world cannot have stood longer.
    pause = Pause(first_byte_s, PauseBasis.AT_MOST) if item.stops else None
    body = _Body(first, reply.chunks, item, host, started + item.share_s)

    def settle() -> Settlement:
        structure = item.check.finish()
        settlement = settlement_of(structure, item.facts, pause)
        if body.error is not None:
            settlement = Settlement(Outcome.PARTIAL, reason_of(body.error), settlement.facts, pause)
        return settled_by(Fetched(structure, body.error, first_byte_s), settlement)

    yield Artifact(
        item.path,
        body,
        redact_url(item.url),
        item.media_type,
        facts=item.facts,
        pause=pause,
        bulk=item.bulk,
        settle=settle,
    )
    return Fetched(item.check.finish(), body.error, first_byte_s)


class _Body:
    """The chunks of one answer; the error that ended it early is kept, not raised."""

    def __init__(self, first: bytes, rest: Iterable[bytes], item: Wanted, host: Host, give_up: float) -> None:
        self.error: CollectError | None = None
        self._first = first
        self._rest = rest
        self._item = item
        self._host = host
        self._give_up = give_up

    def __iter__(self) -> Iterator[bytes]:
        return checked(self._chunks(), self._item.check)

    def _chunks(self) -> Iterator[bytes]:
        if not self._first:
            return
        yield self._first
        rest = iter(self._rest)
        while True:
            asked = time.monotonic()
            if asked > self._give_up:
                self.error = DeadlinePassed(
                    f"it was still being sent after {self._item.share_s:.1f} s; cut there",
                    hint="Give more time: --budget",
                )
                return
            try:
                chunk = next(rest, b"")
            except CollectError as error:
                _raise_if_ours(error, self._host, asked, min(PIECE_S, self._item.timeout_s))
                self.error = error
                return
            if not chunk:
                return
            yield chunk


def _raise_if_ours(error: CollectError, host: Host, asked: float, timeout_s: float) -> None:
    """
    Raise again when it is the collector's own time that is up, not the server's.

    A server's silence has lasted as long as it was given; a DeadlinePassed that comes sooner is the capture's word
    that this collector must end. And a server that is silent because it is dead is the end of the target.
    """
    host.check_alive()
    if isinstance(error, DeadlinePassed):
        host.check_deadline()
        if time.monotonic() - asked < timeout_s * 0.9:
            raise error
