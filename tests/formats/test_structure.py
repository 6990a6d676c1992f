"""Whole, cut or unreadable: real artifacts are whole, no prefix of one is, and nothing makes a checker raise."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import random
import re
import signal
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.formats.structure import (
    MIB,
    CoreCheck,
    GoroutineProfileTextCheck,
    GoroutineTextCheck,
    HistogramCheck,
    HotspotThreadsCheck,
    HprofCheck,
    JsonCheck,
    PprofCheck,
    Shape,
    Structure,
    StructureCheck,
)
from tests import zoo
from tests.formats.elf_writer import ElfWriter, Segment

CHECKS: list[Callable[[], StructureCheck]] = [
    CoreCheck,
    HprofCheck,
    PprofCheck,
    HotspotThreadsCheck,
    HistogramCheck,
    JsonCheck,
    GoroutineTextCheck,
    GoroutineProfileTextCheck,
]
EVERY_CHECK = pytest.mark.parametrize("make", CHECKS, ids=lambda make: make.__name__)
JDKS = [pytest.param(jdk, marks=pytest.mark.needs(f"jdk{jdk}"), id=f"jdk{jdk}") for jdk in (17, 25)]


def judged(make: Callable[[], StructureCheck], data: bytes, chunk_bytes: int = MIB) -> Structure:
    check = make()
    for at in range(0, len(data), chunk_bytes):
        check.feed(memoryview(data)[at : at + chunk_bytes])
    return check.finish()


def some_cuts(data: bytes) -> list[int]:
    """Every length of a small artifact; of a large one its ends and a sample, the same in every run."""
    if len(data) <= 64 * 1024:
        return list(range(len(data)))
    sample = random.Random(len(data)).sample(range(len(data)), 3000)
    return sorted({*range(3000), *sample, *range(len(data) - 3000, len(data))})


def assert_whole_and_no_prefix_is(
    make: Callable[[], StructureCheck],
    data: bytes,
    cuts: Sequence[int] | None = None,
    slips_through: Callable[[int], bool] = lambda cut: False,
) -> Structure:
    """`slips_through` names the cuts that the format cannot show, as the checker's documentation says."""
    check = make()
    at = 0
    significant_bytes = len(data.rstrip())
    for cut in some_cuts(data) if cuts is None else cuts:
        check.feed(data[at:cut])
        at = cut
        verdict = check.finish()
        assert verdict.actual_bytes == cut
        if cut < significant_bytes and not slips_through(cut):
            assert verdict.shape is not Shape.WHOLE, f"cut at {cut} of {len(data)}: {verdict}"
        if verdict.shape is Shape.CUT and verdict.expected_bytes is not None:
            assert cut < verdict.expected_bytes <= len(data)
    check.feed(data[at:])
    verdict = check.finish()
    assert verdict.shape is Shape.WHOLE, verdict
    assert verdict == judged(make, data)
    return verdict


def run(*command: str | Path) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout


# ---- ELF core


@pytest.fixture(scope="module")
def gdb_core(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A core that gdb wrote of a live process, and how many threads that had."""
    prefix = tmp_path_factory.mktemp("core") / "core"
    with zoo.start("c", "threads", 5) as sick:
        threads = len(list(Path(f"/proc/{sick.pid}/task").iterdir()))
        run("gcore", "-o", prefix, str(sick.pid))
        sick.assert_alive()
        return Path(f"{prefix}.{sick.pid}").read_bytes(), threads


@pytest.mark.needs("gcc", "gcore", "readelf")
def test_core_that_gdb_wrote(gdb_core: tuple[bytes, int], tmp_path: Path) -> None:
    data, threads = gdb_core
    verdict = assert_whole_and_no_prefix_is(CoreCheck, data)
    path = tmp_path / "core"
    path.write_bytes(data)
    loads = re.findall(rb"^ +LOAD ", run("readelf", "-lW", path), re.MULTILINE)
    assert verdict.facts == {"elf_class": 64, "machine": data[18], "segments": len(loads), "threads": threads}
    assert verdict.expected_bytes == len(data)


EVERY_LAYOUT = pytest.mark.parametrize(("bits", "big_endian"), [(64, False), (64, True), (32, False), (32, True)])


def core(
    bits: int, big_endian: bool, *, loads: int = 3, threads: int = 4, notes_last: bool = False, extended: bool = False
) -> ElfWriter:
    """As the kernel lays it out, or with `notes_last` as gdb does."""
    writer = ElfWriter(bits=bits, big_endian=big_endian, elf_type=4, extended_count=extended)
    notes = b""
    for thread in range(threads):
        notes += writer.note(b"CORE\0", 1, bytes(336)) + writer.note(b"CORE\0", 2, bytes(512))
        notes += writer.note(b"LINUX\0", 1, b"another owner's type 1") + writer.note(b"", 1, b"")
        if thread == 0:
            notes += writer.note(b"CORE\0", 3, bytes(136)) + writer.note(b"CORE\0", 6, bytes(320))
    memory = [Segment(1, bytes([load % 256]) * 100, flags=6) for load in range(loads)]
    note_segment = Segment(4, notes)
    writer.segments = [*memory, note_segment] if notes_last else [note_segment, *memory]
    return writer


@pytest.mark.needs("readelf")
@EVERY_LAYOUT
@pytest.mark.parametrize("notes_last", [False, True])
def test_core_of_every_layout(tmp_path: Path, bits: int, big_endian: bool, notes_last: bool) -> None:
    data = core(bits, big_endian, notes_last=notes_last).render()
    path = tmp_path / "core"
    path.write_bytes(data)
    said = len(re.findall(rb"CORE\s+0x.*NT_PRSTATUS", run("readelf", "-nW", path)))
    verdict = assert_whole_and_no_prefix_is(CoreCheck, data)
    assert verdict.facts["threads"] == 4 == said
    assert verdict.facts["segments"] == 3
    for chunk_bytes in (1, 7, 13, 64):
        assert judged(CoreCheck, data, chunk_bytes) == verdict


@pytest.mark.parametrize("notes_last", [False, True])
def test_core_with_more_segments_than_the_header_can_count(notes_last: bool) -> None:
    data = core(64, False, loads=66_000, notes_last=notes_last, extended=True).render()
    verdict = assert_whole_and_no_prefix_is(CoreCheck, data)
    assert verdict.facts["segments"] == 66_000
    assert verdict.facts["threads"] == 4
    assert judged(CoreCheck, data, 997) == verdict


def test_core_that_declares_more_headers_than_its_table_holds_is_unreadable() -> None:
    writer = core(64, False, loads=50, extended=True)
    data = bytearray(writer.render())
    info_at = int.from_bytes(data[0x28:0x30], "little") + 44
    assert data[info_at] == 51
    data[info_at] = 60
    assert judged(CoreCheck, bytes(data)).shape is Shape.UNREADABLE


def test_bytes_behind_a_whole_core_do_no_harm() -> None:
    data = core(64, False).render() + bytes(4096)
    assert judged(CoreCheck, data).shape is Shape.WHOLE


@pytest.mark.parametrize(
    "data",
    [Path("/bin/true").read_bytes(), b"\x7fELF" + b"\xff" * 60, b"GARBAGE" * 20],
    ids=["executable", "header", "text"],
)
def test_what_is_no_core_is_unreadable(data: bytes) -> None:
    assert judged(CoreCheck, data).shape is Shape.UNREADABLE


def test_core_that_points_beyond_any_file_is_unreadable() -> None:
    writer = core(64, False)
    writer.segments[1].filesz = (1 << 64) - 1
    assert judged(CoreCheck, writer.render()).shape is Shape.UNREADABLE


# ---- JVM


def jcmd(jdk: int, pid: int, *command: str) -> bytes:
    home = zoo.jdk(jdk)
    assert home is not None
    return run(home / "bin" / "jcmd", str(pid), *command)


def sigquit_dump(sick: zoo.Sick) -> bytes:
    """What the JVM prints to its stdout on SIGQUIT, heap section included."""
    assert sick.popen.stdout is not None
    os.kill(sick.pid, signal.SIGQUIT)
    said = b""
    while not re.search(rb"^  class space .*\n\n", said, re.MULTILINE):
        piece = os.read(sick.popen.stdout.fileno(), 65536)
        assert piece, said
        said += piece
    return said


@pytest.fixture(scope="module", params=JDKS)
def jvm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Everything this test wants of one deadlocked and one healthy JVM of this version."""
    version: int = request.param
    folder = tmp_path_factory.mktemp("jvm")
    got: dict[str, bytes] = {}
    for way, arguments in (("idle", ()), ("lock-ring", (3,))):
        with zoo.start(f"java{version}", way, *arguments) as sick:
            got[f"threads {way}"] = jcmd(version, sick.pid, "Thread.print")
            got[f"locks {way}"] = jcmd(version, sick.pid, "Thread.print", "-l")
            got[f"histogram {way}"] = jcmd(version, sick.pid, "GC.class_histogram")
            if way == "idle":
                jcmd(version, sick.pid, "GC.heap_dump", str(folder / "heap.hprof"))
                got["hprof"] = (folder / "heap.hprof").read_bytes()
                if version >= 21:
                    jcmd(version, sick.pid, "Thread.dump_to_file", "-format=json", str(folder / "threads.json"))
                    got["json"] = (folder / "threads.json").read_bytes()
            got[f"sigquit {way}"] = sigquit_dump(sick)
    return got


def test_hotspot_thread_dumps(jvm: dict[str, bytes]) -> None:
    for kind in ("threads", "locks", "sigquit"):
        for way in ("idle", "lock-ring"):
            data = jvm[f"{kind} {way}"]
            # Behind these lines, and only there, another section may or may not follow.
            ends = re.finditer(rb"^(?:JNI global|Found \d)[^\n]*\n(\s*)", data, re.MULTILINE)
            slips = {cut for end in ends for cut in range(end.start(1), end.end() + 1)}
            verdict = assert_whole_and_no_prefix_is(HotspotThreadsCheck, data, slips_through=slips.__contains__)
            assert verdict.facts["threads"] == len(re.findall(rb'^"[^\n]* nid=', data, re.MULTILINE))
            assert verdict.facts["deadlocks"] == (way == "lock-ring")


# As JDK 8 prints it: hexadecimal nid, other words for the JNI counts, no SMR section.
JDK8_DUMP = b"""2024-02-03 04:05:06
Full thread dump OpenJDK 64-Bit Server VM (25.392-b08 mixed mode):

"Attach Listener" #9 daemon prio=9 os_prio=0 tid=0x00007f2a14001000 nid=0x1c4b waiting on condition [0x0000000000000000]
   java.lang.Thread.State: RUNNABLE

"main" #1 prio=5 os_prio=0 tid=0x00007f2a4000b800 nid=0x1c2e waiting on condition [0x00007f2a47d5b000]
   java.lang.Thread.State: TIMED_WAITING (sleeping)
\tat java.lang.Thread.sleep(Native Method)
\tat Main.main(Main.java:3)

"VM Thread" os_prio=0 tid=0x00007f2a4006e800 nid=0x1c33 runnable\x20

JNI global references: 271

"""


def test_hotspot_thread_dump_of_jdk_8() -> None:
    assert assert_whole_and_no_prefix_is(HotspotThreadsCheck, JDK8_DUMP).facts["threads"] == 3


def test_several_deadlocks_are_one_section() -> None:
    section = b'\nFound one Java-level deadlock:\n=====\n"a":\n  waiting to lock monitor\n'
    assert judged(HotspotThreadsCheck, JDK8_DUMP + section * 2).shape is Shape.CUT
    verdict = judged(HotspotThreadsCheck, JDK8_DUMP + section * 2 + b"\nFound 2 deadlocks.\n\n")
    assert verdict.shape is Shape.WHOLE
    assert verdict.facts["deadlocks"] == 2


def test_words_of_an_error_are_no_thread_dump() -> None:
    for text in (
        b"com.sun.tools.attach.AttachNotSupportedException: no\n",
        b"123:\nJNI global refs: 1, weak refs: 0\n",
    ):
        assert judged(HotspotThreadsCheck, text).shape is Shape.UNREADABLE
        assert judged(HistogramCheck, text).shape is Shape.UNREADABLE


def test_class_histograms(jvm: dict[str, bytes]) -> None:
    for way in ("idle", "lock-ring"):
        data = jvm[f"histogram {way}"]
        verdict = assert_whole_and_no_prefix_is(HistogramCheck, data)
        total = data.splitlines()[-1].split()
        assert verdict.facts["classes"] == len(data.splitlines()) - 4
        assert [verdict.facts["instances"], verdict.facts["bytes"]] == [int(total[1]), int(total[2])]


def test_histogram_without_a_row_is_unreadable(jvm: dict[str, bytes]) -> None:
    lines = jvm["histogram idle"].splitlines(keepends=True)
    for row in (3, 20, -2):
        assert judged(HistogramCheck, b"".join(line for line in lines if line != lines[row])).shape is Shape.UNREADABLE
    assert judged(HistogramCheck, b"".join([*lines, b"more\n"])).shape is Shape.UNREADABLE


def hprof_records(data: bytes) -> Iterator[tuple[int, int]]:
    """(tag, offset) of every record."""
    at = data.index(0) + 13
    while at < len(data):
        yield data[at], at
        at += 9 + int.from_bytes(data[at + 5 : at + 9], "big")


def test_heap_dumps(jvm: dict[str, bytes]) -> None:
    data = jvm["hprof"]
    records = list(hprof_records(data))
    borders = [at for _, at in random.Random(1).sample(records, 1000)]
    cuts = sorted({cut for at in borders for cut in (at, at + 1, at + 9)} | set(some_cuts(data)))
    verdict = assert_whole_and_no_prefix_is(HprofCheck, data, cuts=cuts)
    tags = [tag for tag, _ in records]
    assert verdict.facts == {
        "version": "JAVA PROFILE 1.0.2",
        "id_bytes": 8,
        "records": len(tags),
        "heap_segments": tags.count(0x1C),
        "strings": tags.count(1),
        "classes": tags.count(2),
    }
    assert judged(HprofCheck, data, 10_007) == verdict


def test_heap_dump_with_a_hole_or_a_tail_is_unreadable(jvm: dict[str, bytes]) -> None:
    data = jvm["hprof"]
    at = next(at for tag, at in hprof_records(data) if tag == 2)
    assert judged(HprofCheck, data[:at] + bytes(4096) + data[at + 4096 :]).shape is Shape.UNREADABLE
    assert judged(HprofCheck, data + b"\0").shape is Shape.UNREADABLE
    assert judged(HprofCheck, gzip.compress(data)).shape is Shape.UNREADABLE


def hprof(id_bytes: int, *records: tuple[int, bytes]) -> bytes:
    out = b"JAVA PROFILE 1.0.1\0" + id_bytes.to_bytes(4, "big") + bytes(8)
    for tag, body in records:
        out += bytes([tag]) + bytes(4) + len(body).to_bytes(4, "big") + body
    return out


def test_heap_dump_of_the_older_layout_has_no_end_record() -> None:
    data = hprof(4, (1, b"\0\0\0\1name"), (2, bytes(16)), (0x0C, bytes(100)))
    verdict = assert_whole_and_no_prefix_is(HprofCheck, data)
    assert verdict.facts["heap_segments"] == 1
    assert verdict.facts["id_bytes"] == 4


@pytest.mark.parametrize("id_bytes", [0, 2, 16])
def test_heap_dump_with_an_impossible_identifier_size_is_unreadable(id_bytes: int) -> None:
    assert judged(HprofCheck, hprof(id_bytes, (0x2C, b""))).shape is Shape.UNREADABLE


# ---- JSON


@pytest.mark.parametrize("jvm", JDKS[1:], indirect=True)
def test_json_thread_dump_of_the_jvm(jvm: dict[str, bytes]) -> None:
    assert_whole_and_no_prefix_is(JsonCheck, jvm["json"])


@pytest.mark.needs("node")
def test_json_report_of_node(tmp_path: Path) -> None:
    run("node", "-e", f"process.report.writeReport({json.dumps(str(tmp_path / 'report.json'))})")
    data = (tmp_path / "report.json").read_bytes()
    verdict = assert_whole_and_no_prefix_is(JsonCheck, data)
    nested = [value for value in json.loads(data).values() if isinstance(value, dict | list)]
    assert verdict.facts == {"top": "object", "items": len(nested)}


@pytest.mark.needs("py-spy", "root")
def test_json_stacks_of_py_spy() -> None:
    with zoo.start("python", "idle", 3) as sick:
        data = run(zoo.get_tool("py-spy"), "dump", "--json", "--pid", str(sick.pid))
    verdict = assert_whole_and_no_prefix_is(JsonCheck, data)
    assert verdict.facts == {"top": "array", "items": len(json.loads(data))}


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(json_values) | st.dictionaries(st.text(), json_values), st.booleans())
def test_any_json_document_is_whole_and_no_prefix_of_it(value: object, ascii_only: bool) -> None:
    assert_whole_and_no_prefix_is(JsonCheck, json.dumps(value, ensure_ascii=ascii_only, indent=1).encode())


@pytest.mark.parametrize("text", ["1", '"text"', "{]", "[}", "{}{}", "[] x", "<html>", "[\0]", "[" * 5000, "]"])
def test_what_is_no_json_document_is_unreadable(text: str) -> None:
    assert judged(JsonCheck, text.encode()).shape is Shape.UNREADABLE


# ---- Go


@pytest.fixture(scope="module")
def go_service() -> dict[str, bytes]:
    """Every kind of profile of one service with 300 stuck goroutines, over one connection."""
    got = {}
    with zoo.start("go", "producer-gone", 300) as sick:
        place = urlsplit(sick.ready["pprof"])
        connection = http.client.HTTPConnection(place.netloc)
        for query in ("goroutine", "goroutine?debug=1", "goroutine?debug=2", "heap", "allocs", "threadcreate"):
            connection.request("GET", f"{place.path}/{query}")
            got[query] = connection.getresponse().read()
        connection.close()
    return got


@pytest.mark.needs("go")
def test_goroutines_are_the_same_number_in_every_form(go_service: dict[str, bytes]) -> None:
    profile = assert_whole_and_no_prefix_is(PprofCheck, go_service["goroutine"])
    grouped = assert_whole_and_no_prefix_is(GoroutineProfileTextCheck, go_service["goroutine?debug=1"])
    text = judged(GoroutineTextCheck, go_service["goroutine?debug=2"])
    announced = int(go_service["goroutine?debug=1"].split(b"\n")[0].split()[-1])
    assert announced >= 300
    assert profile.facts["first_value_sum"] == announced
    assert grouped.facts["goroutines"] == grouped.facts["total"] == announced
    assert text.facts["goroutines"] == announced


@pytest.mark.needs("go")
def test_heap_and_other_profiles(go_service: dict[str, bytes]) -> None:
    for query in ("heap", "allocs", "threadcreate"):
        verdict = assert_whole_and_no_prefix_is(PprofCheck, go_service[query])
        assert verdict.facts["unpacked_bytes"] == len(gzip.decompress(go_service[query]))


@pytest.mark.needs("go")
def test_goroutine_text_shows_every_cut_but_one_between_two_stacks(go_service: dict[str, bytes]) -> None:
    data = go_service["goroutine?debug=2"]
    borders = {found.start() for found in re.finditer(rb"\n(?=goroutine \d+ \[)", data)}
    assert len(borders) > 300
    assert_whole_and_no_prefix_is(GoroutineTextCheck, data, slips_through=borders.__contains__)
    for border in sorted(borders)[:20]:
        assert judged(GoroutineTextCheck, data[: border + 1]).shape is Shape.CUT, "the blank line announces more"


@pytest.mark.needs("go")
def test_goroutine_headers_are_counted_across_chunk_borders(go_service: dict[str, bytes]) -> None:
    data = go_service["goroutine?debug=2"]
    verdict = judged(GoroutineTextCheck, data)
    assert verdict.shape is Shape.WHOLE
    for chunk_bytes in (1, 5, 17, 1000, 4096):
        assert judged(GoroutineTextCheck, data, chunk_bytes) == verdict


@pytest.mark.slow
@pytest.mark.needs("go")
def test_goroutine_text_at_the_limit_of_go_is_cut() -> None:
    check = GoroutineTextCheck()
    with zoo.start("go", "deep") as sick:
        place = urlsplit(sick.ready["pprof"])
        connection = http.client.HTTPConnection(place.netloc)
        connection.request("GET", f"{place.path}/goroutine?debug=2")
        response = connection.getresponse()
        while piece := response.read(MIB):
            check.feed(piece)
        connection.close()
    verdict = check.finish()
    assert verdict.actual_bytes == 64 * MIB
    assert verdict.shape is Shape.CUT
    assert "64 MiB" in verdict.says
    assert 0 < int(verdict.facts["goroutines"]) < sick.ready["goroutines"]


STACK = (
    b"goroutine 7 [chan receive, 5 minutes]:\nmain.wait(0x1)\n\t/src/main.go:3 +0x18\n"
    b"created by main.main\n\t/src/main.go:9 +0x25\n"
)


def test_exactly_64_mib_is_cut_even_if_the_last_stack_is_complete() -> None:
    padding = b"goroutine 8 [select]:\n" + b"x" * (64 * MIB - len(STACK) - 23) + b"\n"
    data = padding + STACK
    assert len(data) == 64 * MIB
    assert judged(GoroutineTextCheck, data).shape is Shape.CUT
    assert judged(GoroutineTextCheck, data[1:].replace(b"oroutine", b"goroutine", 1) + b"").shape is Shape.CUT
    assert judged(GoroutineTextCheck, padding.replace(b"xx", b"", 1) + STACK).shape is Shape.WHOLE


@pytest.mark.parametrize(
    "stack",
    [
        b"goroutine 1 [select]:\nmain.main()\n\t/src/main.go:3 +0x18\n",
        b"goroutine 1 [select]:\nmain.init.0()\n\t/src/main.go:3 +0x18\n",
        b"goroutine 1 gp=0xc000002380 m=0 mp=0x5b2 [running]:\nmain.main()\n\t/a.go:3 +0x1 fp=0x1 sp=0x2 pc=0x3\n",
        b"goroutine 17 [syscall, locked to thread]:\nmain.exported()\n\t/src/main.go:3 +0x18\n",
        b"goroutine 9 [running]:\n\tgoroutine running on other thread; stack unavailable\n"
        b"created by x\n\t/a.go:1 +0x1\n",
        b'goroutine 9 [select (leaked)] {"k": "v"}:\nmain.f()\n\t/src/main.go:3\n'
        b"created by x in goroutine 1\n\t/a b.go:1\n",
    ],
)
def test_stacks_that_end_in_their_own_ways_are_whole(stack: bytes) -> None:
    verdict = judged(GoroutineTextCheck, STACK + b"\n" + stack)
    assert verdict.shape is Shape.WHOLE, verdict
    assert verdict.facts == {"goroutines": 2}


def test_error_page_is_no_goroutine_dump() -> None:
    for text in (b"404 page not found\n", b"goroutine profile: total 3\n1 @ 0x1\n\n", b"<html>"):
        assert judged(GoroutineTextCheck, text).shape is Shape.UNREADABLE
    for text in (b"404 page not found\n", STACK, b"heap profile: 1: 2 [3: 4] @ heap/1048576\n"):
        assert judged(GoroutineProfileTextCheck, text).shape is Shape.UNREADABLE


def test_grouped_goroutines_beyond_their_total_are_unreadable() -> None:
    text = b"goroutine profile: total 3\n4 @ 0x1\n#\t0x1\tmain.f+0x1\t/src/main.go:1\n\n"
    assert judged(GoroutineProfileTextCheck, text).shape is Shape.UNREADABLE


# ---- pprof, by hand


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value % (1 << 64))


PROFILE_START = message(1, number_field(1, 1) + number_field(2, 2))
PROFILE_END = message(6, b"") + message(6, b"goroutine") + message(6, b"count") + number_field(12, 1)


def test_first_values_are_added_up_packed_or_not() -> None:
    unpacked = message(2, number_field(1, 300) + number_field(2, 5) + number_field(2, 1000))
    packed = message(2, message(1, varint(1) + varint(2)) + message(2, varint(7) + varint(1000)))
    negative = message(2, message(3, number_field(1, 3)) + number_field(2, -4))
    data = gzip.compress(PROFILE_START + unpacked + packed + negative + PROFILE_END)
    verdict = assert_whole_and_no_prefix_is(PprofCheck, data)
    assert verdict.facts["samples"] == 3
    assert verdict.facts["first_value_sum"] == 5 + 7 - 4
    assert judged(PprofCheck, data, 1) == verdict


@pytest.mark.needs("go")
def test_profile_with_a_damaged_trailer_is_unreadable(go_service: dict[str, bytes]) -> None:
    data = go_service["goroutine"]
    for at in range(len(data) - 8, len(data)):
        damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert judged(PprofCheck, damaged).shape is Shape.UNREADABLE
    assert judged(PprofCheck, data + b"more").shape is Shape.UNREADABLE


@pytest.mark.parametrize(
    "inside", [b"", b"plain text", b"\x0f", bytes(10), b"\xff" * 20, PROFILE_START, number_field(6, 1) + PROFILE_START]
)
def test_gzip_around_something_else_is_not_whole(inside: bytes) -> None:
    assert judged(PprofCheck, gzip.compress(inside)).shape is not Shape.WHOLE


def test_profile_that_ends_within_a_field_is_cut_although_its_gzip_is_whole() -> None:
    profile = PROFILE_START + message(2, number_field(2, 5)) + PROFILE_END
    for length in range(len(profile) - len(number_field(12, 1)), len(profile) - 1):
        verdict = judged(PprofCheck, gzip.compress(profile[: length + 1]))
        assert verdict.shape is Shape.CUT, length
    assert judged(PprofCheck, profile).shape is Shape.UNREADABLE  # pprof allows it plain, Go never writes it so


def test_unpacking_stops_at_the_limit_and_at_the_ratio_of_a_bomb() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(PROFILE_START + varint(5 << 3 | 2) + varint(200 * MIB))
    for _ in range(200):
        bomb += packer.compress(bytes(MIB))
    bomb += packer.compress(PROFILE_END) + packer.flush()
    check = PprofCheck()
    tracemalloc.start()
    check.feed(bomb)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    verdict = check.finish()
    assert verdict.shape is Shape.UNREADABLE
    assert int(verdict.facts["unpacked_bytes"]) < 100 * MIB
    assert peak_bytes < 16 * MIB
    whole = gzip.compress(PROFILE_START + PROFILE_END)
    limited = PprofCheck(max_unpacked_bytes=10)
    limited.feed(whole)
    assert limited.finish().shape is Shape.UNREADABLE


# ---- every checker


@EVERY_CHECK
def test_nothing_is_cut(make: Callable[[], StructureCheck]) -> None:
    assert make().finish() == Structure(Shape.CUT, 0, None, "Nothing was written: 0 bytes.")


BEGINNINGS = [
    b"",
    b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x04\0",
    b"JAVA PROFILE 1.0.2\0\0\0\0\x08" + bytes(8),
    b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
    b"Full thread dump \n",
    b" num     #instances         #bytes  class name\n",
    b'{"',
    b"goroutine 1 [running]:\n",
    b"goroutine profile: total 1\n",
]


@EVERY_CHECK
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(BEGINNINGS), st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_never_raise_and_chunks_do_not_matter(
    make: Callable[[], StructureCheck], beginning: bytes, pieces: list[bytes]
) -> None:
    check = make()
    for piece in [beginning, *pieces]:
        check.feed(piece)
    verdict = check.finish()
    data = b"".join([beginning, *pieces])
    assert verdict.actual_bytes == len(data)
    assert verdict.says.endswith(".")
    assert judged(make, data).shape is verdict.shape


SMALL_ARTIFACTS: list[tuple[Callable[[], StructureCheck], bytes]] = [
    (CoreCheck, core(64, False).render()),
    (CoreCheck, core(32, True, notes_last=True, extended=True).render()),
    (HprofCheck, hprof(8, (1, bytes(12)), (2, bytes(24)), (0x1C, bytes(50)), (0x2C, b""))),
    (PprofCheck, gzip.compress(PROFILE_START + message(2, number_field(2, 5)) + PROFILE_END, mtime=0)),
    (HotspotThreadsCheck, JDK8_DUMP),
    (JsonCheck, b'{"a": ["b\\"", {}], "c": 1}'),
    (GoroutineTextCheck, STACK + b"\n" + STACK),
    (GoroutineProfileTextCheck, b"goroutine profile: total 3\n3 @ 0x1\n#\t0x1\tmain.f+0x1\t/src/main.go:1\n\n"),
]


@pytest.mark.parametrize(("make", "data"), SMALL_ARTIFACTS, ids=lambda value: getattr(value, "__name__", ""))
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_artifacts_never_raise(make: Callable[[], StructureCheck], data: bytes, draw: st.DataObject) -> None:
    assert judged(make, data).shape is Shape.WHOLE
    mutated = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 5))):
        at = draw.draw(st.integers(0, len(data) - 1))
        change = draw.draw(st.binary(min_size=1, max_size=8))
        mutated[at : at + len(change)] = change
    chunk_bytes = draw.draw(st.integers(1, 200))
    verdict = judged(make, bytes(mutated), chunk_bytes)
    assert verdict.shape is judged(make, bytes(mutated)).shape


def long_heap_dump() -> Iterator[bytes]:
    yield b"JAVA PROFILE 1.0.2\0" + (8).to_bytes(4, "big") + bytes(8)
    for _ in range(4):
        yield b"\x1c" + bytes(4) + (64 * MIB).to_bytes(4, "big")
        yield from [bytes(MIB)] * 64
    yield b"\x2c" + bytes(8)


def long_core() -> Iterator[bytes]:
    writer = core(64, False, loads=1)
    writer.segments[1].filesz = 256 * MIB
    yield writer.render()
    yield from [bytes(MIB)] * 256


def long_text_line(start: bytes) -> Iterator[bytes]:
    yield start
    yield from [b"x" * MIB] * 256


def long_goroutines() -> Iterator[bytes]:
    yield STACK
    for _ in range(20):
        yield (b"\n" + STACK) * 10_000


def long_threads() -> Iterator[bytes]:
    yield JDK8_DUMP
    yield from [JDK8_DUMP * 4000] * 4


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (HprofCheck, long_heap_dump),
        (CoreCheck, long_core),
        (GoroutineTextCheck, long_goroutines),
        (GoroutineTextCheck, lambda: long_text_line(b"goroutine 1 [")),
        (GoroutineProfileTextCheck, lambda: long_text_line(b"goroutine profile: total 3\n")),
        (HotspotThreadsCheck, long_threads),
        (HotspotThreadsCheck, lambda: long_text_line(b"Full thread dump \n")),
        (HistogramCheck, lambda: long_text_line(b" num     #instances         #bytes  class name\n")),
        (JsonCheck, lambda: long_text_line(b'{"')),
        (HprofCheck, lambda: long_text_line(b"JAVA PROFILE 1.0.")),
        (PprofCheck, lambda: long_text_line(b"\x1f\x8b\x08\x08")),
    ],
)
def test_memory_does_not_grow_with_the_artifact(
    make: Callable[[], StructureCheck], stream: Callable[[], Iterator[bytes]]
) -> None:
    check = make()
    tracemalloc.start()
    try:
        for chunk in stream():
            check.feed(chunk)
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert check.finish().actual_bytes > 1_000_000
    assert held_bytes < 4 * MIB


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (HotspotThreadsCheck, b"Full thread dump \n  class space    used 1" + b"1" * 300_000 + b"\n"),
        (HotspotThreadsCheck, b"Full thread dump \n" + b" tid=0x1" * 40_000 + b"\n"),
        (HistogramCheck, b" num     #instances         #bytes  class name\n" + b" " * 300_000 + b"1\n"),
        (HistogramCheck, b" num     #instances         #bytes  class name\n1: 1 1" + b" " * 300_000 + b"\n"),
        (GoroutineTextCheck, b"goroutine 1 [x]:\nf.init" + b".1" * 8000 + b"\n\t" + b":1" * 8000 + b"x\n"),
        (GoroutineTextCheck, b"goroutine 1" + b"1" * 300_000 + b"\n"),
        (JsonCheck, b"[" + b'"\\' * 150_000),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_hostile_lines_take_linear_time(make: Callable[[], StructureCheck], line: bytes) -> None:
    assert judged(make, line).shape is not Shape.WHOLE
