from __future__ import annotations

import http.server
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pmforensics.collect.base import Host
from pmforensics.collect.goroutines import Goroutines, StackCount, memory_left_bytes, predict
from pmforensics.collect.pprof_endpoint import Fetched, find_pprof
from pmforensics.collect.worker import Stop
from pmforensics.errors import CollectError, DeadlinePassed, NotThere, WouldHarm
from pmforensics.formats.structure import Shape, Structure
from pmforensics.model.capture import GIB, MIB, Artifact, Outcome, PauseBasis
from pmforensics.model.process import Target
from tests import zoo
from tests.collect import pprof_oracle
from tests.collect.harness import Collected, collect_one

FORMS = ["goroutine.pb.gz", "goroutine-1.txt", "goroutine-2.txt"]
PATIENT = 60.0  # seconds of pause allowed where the test is not about the gate: the machine may be slow
HEADERS = re.compile(rb"^goroutine \d+ .*\[.*\]:$", re.MULTILINE)


def asked(collected: Collected) -> list[str]:
    return [touch.what for touch in collected.touches if touch.verb == "get"]


# -- whole -----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("go")
def test_three_forms_are_taken_and_hold_the_same_goroutines(tmp_path: Path) -> None:
    with zoo.start("go", "producer-gone", 2000) as sick:
        got = collect_one(Goroutines(allow_pause_s=PATIENT), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == FORMS
    assert got.gaps == []
    assert {s.outcome for s in got.settlements.values()} == {Outcome.COLLECTED}
    counts = (
        got.settlements[FORMS[0]].facts["goroutines"],
        got.settlements[FORMS[1]].facts["goroutines"],
        got.settlements[FORMS[2]].facts["goroutines"],
    )
    # Between two forms a goroutine of the server comes or goes.
    assert all(2000 < int(str(count)) < 2020 for count in counts), counts
    assert len(HEADERS.findall(got.artifacts[FORMS[2]])) == counts[2]
    assert len(set(HEADERS.findall(got.artifacts[FORMS[2]]))) == counts[2]
    assert got.runs_again is True


@pytest.mark.needs("go")
def test_pprof_reads_the_binary_profile_and_finds_the_waiting_goroutines(tmp_path: Path) -> None:
    with zoo.start("go", "producer-gone", 2000) as sick:
        got = collect_one(Goroutines(), sick.pid, tmp_path)
    profile = got.artifacts["goroutine.pb.gz"]
    assert max(pprof_oracle.samples(profile))[0] == 2000
    assert (
        sum(value for value, _ in pprof_oracle.samples(profile)) == got.settlements[FORMS[0]].facts["first_value_sum"]
    )
    assert "zoo/notify.(*Consumer).receive" in pprof_oracle.raw(profile)


@pytest.mark.needs("go")
def test_each_form_says_that_the_pause_was_at_most_the_wait_for_its_first_byte(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick:
        got = collect_one(Goroutines(allow_pause_s=PATIENT), sick.pid, tmp_path)
    pauses = [got.settlements[form].pause for form in FORMS]
    assert all(pause is not None and pause.basis is PauseBasis.AT_MOST and pause.seconds > 0 for pause in pauses)


# -- the gate on debug=2 ---------------------------------------------------------------------------------------------


@pytest.mark.needs("go")
def test_47000_goroutines_are_refused_one_by_one_and_kept_in_both_other_forms(tmp_path: Path) -> None:
    with zoo.start("go", "producer-gone", 47000) as sick:
        got = collect_one(Goroutines(), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == FORMS[:2]
    gap = got.gap("would-harm")
    assert gap.outcome is Outcome.REFUSED
    assert re.search(r"47,0\d\d goroutines would stand still for about \d+\.\d s", gap.reason.says)
    assert re.match(r"--allow-pause \d+ ", gap.reason.next_step)
    assert "goroutine.pb.gz and goroutine-1.txt" in gap.reason.next_step
    assert not any("debug=2" in url for url in asked(got))
    assert max(pprof_oracle.samples(got.artifacts[FORMS[0]]))[0] == 47000
    assert b"\n47000 @ " in got.artifacts[FORMS[1]]


@pytest.mark.needs("go")
def test_allowed_pause_prints_47000_goroutines_whole(tmp_path: Path) -> None:
    with zoo.start("go", "producer-gone", 47000) as sick:
        got = collect_one(Goroutines(allow_pause_s=PATIENT), sick.pid, tmp_path, limit_s=120)
        sick.assert_alive()
    assert got.settlements[FORMS[2]].outcome is Outcome.COLLECTED
    text = got.artifacts[FORMS[2]]
    assert text.count(b"\nzoo/notify.(*Consumer).receive(") == 47000
    assert b"(*Producer)" not in text


@pytest.mark.slow
@pytest.mark.needs("go")
def test_silent_cut_at_64_mib_is_partial_and_does_not_prove_the_producer_absent(tmp_path: Path) -> None:
    with zoo.start("go", "deep") as sick:
        got = collect_one(Goroutines(allow_pause_s=600), sick.pid, tmp_path, limit_s=300)
        sick.assert_alive()
    text, settled = got.artifacts[FORMS[2]], got.settlements[FORMS[2]]
    assert len(text) == 64 * MIB
    assert settled.outcome is Outcome.PARTIAL
    assert settled.reason is not None
    assert settled.reason.code == "cut"
    printed, total = int(str(settled.facts["goroutines"])), int(str(settled.facts["goroutines_in_debug1"]))
    assert printed == len(HEADERS.findall(text)) < 47002 < total
    assert f"{printed:,} of {total:,}" in settled.reason.says
    assert "goroutine-1.txt" in settled.reason.next_step
    # The producer lives: the cut hides it, the other forms show it.
    assert b"(*Producer).Run" not in text
    assert b"(*Producer).Run" in got.artifacts[FORMS[1]]
    assert "(*Producer).Run" in pprof_oracle.raw(got.artifacts[FORMS[0]])


def _grouped(goroutines: int, depth: int, first_byte_s: float = 0.0) -> Fetched:
    facts: dict[str, int | str] = {"goroutines": goroutines, "frames": goroutines * depth}
    return Fetched(Structure(Shape.WHOLE, 1, None, "", facts), None, first_byte_s)


def test_deeper_stacks_are_predicted_to_take_longer() -> None:
    assert predict(47000, _grouped(47000, 36)).pause_s > 3 * predict(47000, _grouped(47000, 7)).pause_s


def test_printing_is_never_predicted_to_take_more_than_seven_passes_and_127_mib() -> None:
    printing = predict(1_000_000, _grouped(1_000_000, 36))
    assert (printing.passes, printing.memory_bytes) == (7, 127 * MIB)
    # Frames whose text no longer fits are unwound all the same.
    assert predict(2_000_000, _grouped(2_000_000, 36)).pause_s == pytest.approx(2 * printing.pause_s)


def test_slow_debug1_raises_the_prediction() -> None:
    assert predict(47000, _grouped(47000, 7, first_byte_s=5.0)).pause_s > 10
    # Of a small process it only says that the machine was busy.
    assert predict(6, _grouped(6, 8, first_byte_s=5.0)).pause_s < 0.01


def test_unknown_depth_is_taken_to_be_deep() -> None:
    assert predict(47000, Fetched(None, None, 0.0)).pause_s > predict(47000, _grouped(47000, 20)).pause_s


def test_frames_are_counted_alike_however_the_text_is_cut_into_chunks() -> None:
    groups = [(3, 4), (1, 0), (47000, 128), (20, 1)]
    text = b"goroutine profile: total 47024\n" + b"".join(
        b"%d @%s\n#\t0x1\tmain.f+0x1\t/x.go:1\n\n" % (n, b" 0x4936c1" * depth) for n, depth in groups
    )
    for step in (1, 7, 100, len(text)):
        count = StackCount()
        for at in range(0, len(text), step):
            count.feed(text[at : at + step])
        structure = count.finish()
        assert structure.shape is Shape.WHOLE
        assert structure.facts["frames"] == sum(n * depth for n, depth in groups)


@dataclass
class _Files:
    """A door behind which there are only these files."""

    files: dict[str, str]

    def read(self, path: str, limit_bytes: int = 0) -> bytes:
        if path not in self.files:
            raise NotThere(path)
        return self.files[path].encode()

    def read_proc(self, name: str, limit_bytes: int = 0) -> bytes:
        return self.read(f"/proc/PID/{name}")

    def remaining_s(self) -> float:
        return 20.0


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, None),
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}, 2 * MIB),
        (
            {
                "/proc/meminfo": "MemAvailable: 99999999 kB\n",
                "/proc/PID/cgroup": "0::/pod/box\n",
                "/sys/fs/cgroup/pod/box/memory.max": "max\n",
                "/sys/fs/cgroup/pod/box/memory.current": "1\n",
                "/sys/fs/cgroup/pod/memory.max": f"{GIB}\n",
                "/sys/fs/cgroup/pod/memory.current": f"{GIB - 3 * MIB}\n",
                "/sys/fs/cgroup/pod/memory.stat": f"anon 5\ninactive_file {MIB}\n",
            },
            4 * MIB,
        ),
        (
            {
                "/proc/PID/cgroup": "4:cpu,memory:/box\n0::/\n",
                "/sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
                "/sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{2 * GIB}\n",
            },
            0,
        ),
    ],
    ids=["unknown", "machine", "cgroup-v2-parent", "cgroup-v1-over-its-limit"],
)
def test_memory_left_is_that_of_the_tightest_limit(files: dict[str, str], left: int | None) -> None:
    assert memory_left_bytes(_Files(files)) == left  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "free_kb", "error"),
    [
        (None, 500_000, WouldHarm),
        (1000, 5_000, WouldHarm),  # 20,000 frames: 2 MB of text, buffers of 1 and 2 MiB, and as much again
        (2_000_000, 500_000_000, DeadlinePassed),
    ],
    ids=["unknown-number", "short-of-memory", "short-of-time"],
)
def test_printing_waits_for_number_memory_and_time(count: int | None, free_kb: int, error: type[CollectError]) -> None:
    host: Any = _Files({"/proc/meminfo": f"MemAvailable: {free_kb} kB\n"})
    goroutines = Goroutines(allow_pause_s=1e9)
    assert goroutines._check_harmless(1000, _grouped(1000, 5), host).passes == 1
    with pytest.raises(error):
        goroutines._check_harmless(count, _grouped(count or 1, 20), host)


# -- sick endpoints --------------------------------------------------------------------------------------------------


@pytest.mark.needs("go")
def test_form_that_hangs_is_late_and_the_next_one_is_still_asked_for(tmp_path: Path) -> None:
    with zoo.start("go", "pprof-hangs") as sick:
        got = collect_one(Goroutines(), sick.pid, tmp_path, limit_s=10)
        sick.assert_alive()
    assert got.artifacts == {}
    assert [gap.outcome for gap in got.gaps] == [Outcome.LATE] * 3
    assert len({gap.wanted for gap in got.gaps}) == 3
    assert [url[-7:] for url in asked(got) if "goroutine?" in url] == ["debug=0", "debug=1", "debug=2"]


@pytest.mark.needs("go")
def test_declared_length_that_lies_is_partial_and_what_came_is_kept(tmp_path: Path) -> None:
    with zoo.start("go", "pprof-lies") as sick:
        got = collect_one(Goroutines(allow_pause_s=PATIENT), sick.pid, tmp_path)
    assert got.order == FORMS
    for form in FORMS:
        settled = got.settlements[form]
        assert settled.outcome is Outcome.PARTIAL
        assert settled.reason is not None
        assert "promised 7,168 bytes and sent 3,584" in settled.reason.says
        assert len(got.artifacts[form]) == 3584


@pytest.mark.needs("go")
def test_body_without_end_is_cut_at_the_limit(tmp_path: Path) -> None:
    with zoo.start("go", "pprof-flood") as sick:
        got = collect_one(Goroutines(allow_pause_s=PATIENT, limit_bytes=3 * MIB), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.order == FORMS
    for form in FORMS:
        assert MIB < len(got.artifacts[form]) <= 3 * MIB
        assert got.settlements[form].outcome is Outcome.PARTIAL


@contextmanager
def _server(first: bytes) -> Iterator[str]:
    """Answers every request with `first`, and then never again until the end."""
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(first)
            self.wfile.flush()
            over.wait()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            over.set()
            server.shutdown()


@pytest.mark.needs("go")
def test_silence_inside_a_body_keeps_what_came_and_does_not_block_the_next_form(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick, _server(b"goroutine profile: total 9\n") as url:
        got = collect_one(Goroutines(pprof_url=url), sick.pid, tmp_path, limit_s=40)
    assert got.order == FORMS
    for form in FORMS[:2]:
        settled = got.settlements[form]
        assert settled.outcome is Outcome.PARTIAL
        assert settled.reason is not None
        assert settled.reason.code == "deadline-passed"
    assert got.artifacts[FORMS[1]] == b"goroutine profile: total 9\n"


@pytest.mark.needs("go")
def test_stop_from_outside_ends_the_collector_in_the_form_at_hand(tmp_path: Path) -> None:
    stop = Stop()
    with zoo.start("go", "idle") as sick, _server(b"") as url:
        timer = threading.Timer(1.0, stop.ask, ["SIGTERM"])
        timer.start()
        got = collect_one(Goroutines(pprof_url=url), sick.pid, tmp_path, stop=stop)
        timer.join()
    assert [gap.outcome for gap in got.gaps] == [Outcome.LATE]
    assert not any("debug=1" in url for url in asked(got))


@pytest.mark.needs("go")
def test_target_that_exits_ends_the_collector_and_is_not_called_silent(tmp_path: Path) -> None:
    with _server(b"") as url, zoo.start("go", "goes-away", 1000) as sick:
        got = collect_one(Goroutines(pprof_url=url), sick.pid, tmp_path, limit_s=8)
    assert "goroutines" in [gap.wanted for gap in got.gaps if gap.reason.code == "target-gone"]
    assert not any(gap.reason.code == "deadline-passed" for gap in got.gaps)


# -- finding the endpoint --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finds:
    """find_pprof as a collector, so that it runs behind the real door."""

    name: ClassVar[str] = "finds"
    question: ClassVar[str] = ""
    limit_s: ClassVar[float] = 20.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    given: str | None = None

    def applies_to(self, target: Target) -> bool:
        return True

    def collect(self, target: Target, host: Host) -> Iterator[Artifact]:
        yield Artifact("url", find_pprof(target, host, self.given).encode(), "")


@pytest.mark.needs("go")
def test_service_without_pprof_leaves_a_gap_that_says_what_was_tried_and_what_helps(tmp_path: Path) -> None:
    with zoo.start("go", "no-pprof") as sick:
        got = collect_one(Goroutines(), sick.pid, tmp_path)
        sick.assert_alive()
        gap = got.gap("endpoint-refused")
        assert f"127.0.0.1:{sick.ready['port']} answers 404" in gap.reason.says
    assert got.artifacts == {}
    for remedy in ('import _ "net/http/pprof"', "--pprof", "Never send SIGQUIT", "core"):
        assert remedy in gap.reason.next_step


@pytest.mark.needs("go")
def test_pprof_is_found_beside_a_port_that_does_not_speak_http(tmp_path: Path) -> None:
    with zoo.start("go", "pprof-elsewhere") as sick:
        got = collect_one(Finds(), sick.pid, tmp_path)
        assert got.artifacts["url"].decode() == sick.ready["pprof"]


@pytest.mark.needs("go")
def test_endpoint_given_is_taken_at_its_word(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick:
        port = sick.ready["port"]
        for given in (
            f"127.0.0.1:{port}",
            f"http://127.0.0.1:{port}/",
            f"http://127.0.0.1:{port}/debug/pprof/goroutine?debug=2",
        ):
            got = collect_one(Finds(given), sick.pid, tmp_path)
            assert got.artifacts["url"].decode() == f"http://127.0.0.1:{port}/debug/pprof"
            assert asked(got) == []
        got = collect_one(Finds("https://box/internal/profiles/"), sick.pid, tmp_path)
        assert got.artifacts["url"] == b"https://box/internal/profiles"


@pytest.mark.parametrize(
    "given", ["", "http://", "http://[::1/debug/pprof", "ftp://box/debug/pprof", "unix:///run/pprof"]
)
def test_endpoint_given_that_is_no_http_address_is_refused_with_an_example(given: str, tmp_path: Path) -> None:
    with _listening() as (pid, _):
        got = collect_one(Finds(given), pid, tmp_path)
    assert "--pprof http://" in got.gap("endpoint-refused").reason.next_step


@pytest.mark.needs("go")
def test_credentials_of_the_endpoint_are_written_down_nowhere(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick:
        url = f"http://admin:hunter2@127.0.0.1:{sick.ready['port']}/debug/pprof"
        got = collect_one(Goroutines(pprof_url=url), sick.pid, tmp_path)
        assert got.order
        gone = collect_one(Goroutines(pprof_url="http://admin:hunter2@127.0.0.1:1"), sick.pid, tmp_path)
        assert gone.gaps
    assert "hunter2" not in repr((got.sources, got.touches, got.gaps, gone.touches, gone.gaps))


LISTENS = """
import socket, sys, time
held = []
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    held.append(socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::"))
print(*(sock.getsockname()[1] for sock in held), flush=True)
time.sleep(600)
"""


@contextmanager
def _listening(*addresses: str) -> Iterator[tuple[int, list[int]]]:
    """A process that listens there, never accepts, and never speaks: its pid and ports."""
    with subprocess.Popen([sys.executable, "-c", LISTENS, *addresses], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.pid, [int(port) for port in process.stdout.readline().split()]
        finally:
            process.kill()


def test_silent_ports_are_asked_loopback_first_and_once_more_when_none_was_right(tmp_path: Path) -> None:
    with _listening("0.0.0.0", "127.0.0.1") as (pid, (public, loopback)):
        got = collect_one(Finds(), pid, tmp_path)
    assert got.gap("endpoint-refused").reason.says.count("says nothing") == 2
    ports = [int(re.findall(r":(\d+)/", url)[0]) for url in asked(got)]
    assert ports == [loopback, public, loopback, public]


SERVES = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        {do}
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
ANSWER = "self.send_response({status}); self.end_headers(); self.wfile.write({body})"
INDEX = """b"<html><title>/debug/pprof/</title><a href='goroutine?debug=1'>goroutine</a></html>\""""


@pytest.mark.parametrize(
    "do",
    [
        "time.sleep(1); " + ANSWER.format(status=200, body=INDEX),
        'hidden = self.path.endswith("/"); self.send_response(403 if hidden else 200); self.end_headers(); '
        'hidden or self.wfile.write(b"goroutine profile: total 9\\n" + b"#" * 2_000_000)',
    ],
    ids=["slow", "index-hidden"],
)
def test_endpoint_that_is_slow_or_hides_its_index_is_found_all_the_same(do: str, tmp_path: Path) -> None:
    with _serving(SERVES.format(do=do)) as (pid, port):
        got = collect_one(Finds(), pid, tmp_path)
    assert got.artifacts["url"].decode() == f"http://127.0.0.1:{port}/debug/pprof"


@pytest.mark.parametrize(
    "body",
    [INDEX.replace("goroutine", "routine"), 'b"<html>goroutine profile: total 9</html>"', 'b""'],
    ids=["another-index", "any-page", "empty"],
)
def test_server_that_answers_200_to_everything_is_not_taken_for_pprof(body: str, tmp_path: Path) -> None:
    with _serving(SERVES.format(do=ANSWER.format(status=200, body=body))) as (pid, port):
        got = collect_one(Finds(), pid, tmp_path)
    assert f"127.0.0.1:{port} answers with another page" in got.gap("endpoint-refused").reason.says


@contextmanager
def _serving(program: str) -> Iterator[tuple[int, int]]:
    """A process that prints the port it serves on: its pid, and the port."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


def test_port_of_another_process_is_never_asked(tmp_path: Path) -> None:
    with _listening("127.0.0.1") as (_, (theirs,)), _listening("127.0.0.1") as (pid, (own,)):
        got = collect_one(Finds(), pid, tmp_path)
    assert got.gaps
    assert any(f":{own}/" in url for url in asked(got))
    assert not any(f":{theirs}/" in url for url in asked(got))


def test_process_that_listens_nowhere_is_missing_an_endpoint_not_refusing_one(tmp_path: Path) -> None:
    with _listening() as (pid, _):
        got = collect_one(Finds(), pid, tmp_path)
    assert got.gap("not-there").outcome is Outcome.MISSING
    assert asked(got) == []


def test_sixteen_addresses_are_the_most_that_are_asked(tmp_path: Path) -> None:
    with _listening(*["127.0.0.1"] * 40) as (pid, _):
        got = collect_one(Finds(), pid, tmp_path)
    assert 1 <= len(asked(got)) <= 16
    assert re.search(r"; \d+ more not tried$", got.gap("endpoint-refused").reason.says)


GO_TLS = """
package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	_ "net/http/pprof"
	"net"
)

func main() {
	server := httptest.NewUnstartedServer(http.DefaultServeMux)
	server.Listener, _ = net.Listen("tcp", ":0")
	server.StartTLS()
	fmt.Println(server.Listener.Addr().(*net.TCPAddr).Port)
	select {}
}
"""


@pytest.mark.needs("go")
def test_pprof_behind_tls_on_a_wildcard_address_is_found_and_taken(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO_TLS)
    pprof_oracle.go_build(["main.go"], tmp_path / "served", tmp_path)
    with subprocess.Popen([tmp_path / "served"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            got = collect_one(Goroutines(allow_pause_s=PATIENT), process.pid, tmp_path)
        finally:
            process.kill()
    assert got.order == FORMS
    hosts = ("[::1]", "127.0.0.1")
    assert got.sources[FORMS[0]] in [f"https://{host}:{port}/debug/pprof/goroutine?debug=0" for host in hosts]
    assert pprof_oracle.samples(got.artifacts[FORMS[0]])


@pytest.mark.needs("go", "root", "unshare", "ip")
def test_target_in_another_network_namespace_is_asked_inside_it(tmp_path: Path) -> None:
    inside = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    with zoo.start("go", "idle", prefix=inside) as sick:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", sick.ready["port"]), timeout=5).close()
        got = collect_one(Goroutines(allow_pause_s=PATIENT), sick.pid, tmp_path)
        sick.assert_alive()
    assert got.target is not None
    assert not got.target.same_net_ns
    assert got.order == FORMS
    assert {s.outcome for s in got.settlements.values()} == {Outcome.COLLECTED}
