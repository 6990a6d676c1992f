"""Every image of a crash report is found with its UUID, in all dialects, and a cut report tells what is left."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.formats.apple_crash import MAX_REPORT_BYTES, BrokenReport, read_apple_crash
from pmforensics.model.image import DumpImage, DumpImages, Mapped, Unread
from tests.formats.mutations import mutated

APP, OTHER, SYSTEM = (
    "3f2a9c10-5d7e-3b41-9a60-c0ffee123456",
    "b1e5d0aa-0f3c-3a77-8c1d-5eed5eed5eed",
    "0d15ea5e-1234-3abc-9def-0123456789ab",
)
ZEROS = "00000000-0000-0000-0000-000000000000"


def digits(uuid: str) -> str:
    return uuid.replace("-", "").lower()


def ids(images: DumpImages) -> list[str | None]:
    return [one.readings[0].id.value if one.readings else None for one in images.images]


def main_of(images: DumpImages) -> DumpImage | None:
    found = [one for one in images.images if one.is_main]
    assert len(found) <= 1
    return found[0] if found else None


# ---- .ips

HEADER: dict[str, Any] = {
    "app_name": "Till Helper", "timestamp": "2026-11-20 09:14:07.00 +0100", "app_version": "4.2",
    "slice_uuid": APP, "build_version": "4210", "platform": 1, "bundleID": "org.example.till", "bug_type": "309",
    "os_version": "macOS 14.5 (23F79)", "name": "Till Helper", "incident_id": "7B1A", "roots_installed": 0,
}  # fmt: skip
BODY: dict[str, Any] = {
    "uptime": 5200, "procName": "Till Helper", "pid": 812, "cpuType": "ARM-64", "incident": "7B1A",
    "procPath": "/Applications/Till Helper.app/Contents/MacOS/Till Helper",
    "osVersion": {"train": "macOS 14.5", "build": "23F79", "releaseType": "User"},
    "asi": {"libsystem_c.dylib": ['a "usedImages" : [{"uuid": "no"}] in text, a \\ and a { of no meaning']},
    "threads": [{"id": 1, "frames": [{"imageOffset": 4080, "symbol": 'operator"" _s', "imageIndex": 0}]}],
    "usedImages": [
        {
            "source": "P", "arch": "arm64", "base": 4302995456, "size": 65536, "uuid": APP,
            "path": "/Applications/Till Helper.app/Contents/MacOS/Till Helper", "name": "Till Helper",
            "CFBundleShortVersionString": "4.2", "CFBundleVersion": "4210", "CFBundleIdentifier": "org.example.till",
        },
        {
            "source": "P", "arch": "arm64", "base": 4304052224, "size": 32768, "uuid": OTHER,
            "path": "/Applications/Till Helper.app/Contents/Frameworks/Scanner.framework/Versions/A/Scanner",
            "name": "Scanner", "CFBundleShortVersionString": "1.0",
        },
        {"source": "P", "arch": "arm64e", "base": 6532100096, "size": 245760, "uuid": SYSTEM,
         "path": "/usr/lib/system/libsystem_kernel.dylib", "name": "libsystem_kernel.dylib"},
        {"size": 0, "source": "A", "base": 0, "uuid": ZEROS},
    ],
    "sharedCache": {"base": 6500000000, "size": 4294967296, "uuid": OTHER},
    "vmSummary": "ReadOnly portion of Libraries: Total=1.2G",
}  # fmt: skip


def ips(header: dict[str, Any] | None = None, body: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """As ReportCrash writes it: slashes escaped, one line, then a document over many."""
    body = BODY | changes if body is None else body
    text = json.dumps(HEADER if header is None else header, separators=(",", ":")) + "\n" + json.dumps(body, indent=2)
    return text.replace("/", "\\/").encode() + b"\n"


def test_ips_has_every_image_that_json_says() -> None:
    data = ips()
    found = read_apple_crash(data)
    assert (found.format, found.lost, found.conflicts, found.actual_bytes) == ("ips", (), (), len(data))
    expected = json.loads(data.split(b"\n", 1)[1])["usedImages"][:3]
    assert [
        (one.name, one.base, one.machine, one.readings[0].id.value, one.readings[0].rule) for one in found.images
    ] == [(one["path"], one["base"], one["arch"], digits(one["uuid"]), "used-images") for one in expected]
    assert [one.mapped for one in found.images] == [
        (Mapped(one["base"], one["base"] + one["size"], 0),) for one in expected
    ]
    for one, entry in zip(found.images, expected, strict=True):
        offset = one.readings[0].offset
        assert data[offset : offset + 36].decode() == entry["uuid"]


def test_ips_tells_system_and_application() -> None:
    found = read_apple_crash(ips())
    assert found.facts == {
        "process": "Till Helper",
        "os_version": "macOS 14.5 (23F79)",
        "app_version": "4.2 (4210)",
        "cpu": "ARM-64",
        "incident": "7B1A",
        "bug_type": "309",
        "shared_cache_uuid": digits(OTHER),
    }
    main = main_of(found)
    assert main is not None
    assert main.name == BODY["procPath"]
    assert main.says == {"version": "4.2 (4210)", "bundle_id": "org.example.till"}
    assert found.images[1].says == {"version": "1.0"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"procPath": "/private/var/elsewhere"}, "by the header's UUID"),
        ({"procPath": ""}, "by the header's UUID"),
        ({}, "by the path"),
    ],
)
def test_executable_is_known(changes: dict[str, Any], why: str) -> None:
    main = main_of(read_apple_crash(ips(**changes)))
    assert main is not None, why
    assert main.readings[0].id.value == digits(APP)


def test_executable_is_known_by_its_name_where_only_one_has_it() -> None:
    header = {name: value for name, value in HEADER.items() if name != "slice_uuid"}
    renamed = BODY | {"procPath": "/private/tmp/Till Helper"}
    main = main_of(read_apple_crash(ips(header, renamed)))
    assert main is not None
    assert main.readings[0].id.value == digits(APP)
    twice = renamed | {"usedImages": [*BODY["usedImages"], BODY["usedImages"][1] | {"path": "/opt/Till Helper"}]}
    assert main_of(read_apple_crash(ips(header, twice))) is None


def test_header_that_names_another_executable_is_told() -> None:
    found = read_apple_crash(ips(HEADER | {"slice_uuid": OTHER}))
    assert digits(OTHER) in found.conflicts[0]
    assert digits(APP) in found.conflicts[0]


def test_one_document_and_one_over_many_lines_are_read_alike() -> None:
    plain = read_apple_crash(ips())
    spread = json.dumps(HEADER, indent=1) + "\n\n" + json.dumps(BODY)
    crlf = ips().replace(b"\n", b"\r\n")
    for data in (spread.encode(), crlf, b"\xef\xbb\xbf" + ips(), b"\n \n" + ips()):
        found = read_apple_crash(data)
        assert ([one.name for one in found.images], ids(found)) == ([one.name for one in plain.images], ids(plain))
    merged = read_apple_crash(json.dumps(HEADER | BODY).encode())
    assert ids(merged) == ids(plain)
    assert ids(read_apple_crash(json.dumps(BODY).encode())) == ids(plain)


def test_image_without_uuid_is_listed_and_addresses_outside_of_images_are_not() -> None:
    entries = [
        BODY["usedImages"][0],
        {"source": "P", "base": 4096, "path": "/opt/go", "name": "go"},
        BODY["usedImages"][3],
    ]
    found = read_apple_crash(ips(usedImages=entries))
    assert [(one.name, one.unread) for one in found.images] == [(BODY["procPath"], None), ("/opt/go", Unread.NO_ID)]


def test_zero_uuid_of_a_named_image_is_weak() -> None:
    (one,) = read_apple_crash(ips(usedImages=[{"base": 4096, "path": "/opt/x", "uuid": ZEROS}])).images
    assert "zeros" in one.readings[0].id.weak


@pytest.mark.parametrize("base", [-1, 1 << 64, 1.5, "0x1000", True, None, 10**400])
def test_address_that_is_none(base: Any) -> None:
    data = ips(usedImages=[{"base": base, "size": 1, "uuid": APP, "name": "x"}])
    (one,) = read_apple_crash(data).images
    assert (one.base, one.mapped) == (None, ())


def test_ips_cut_anywhere_tells_what_is_left() -> None:
    data = ips()
    header_bytes = data.index(b"\n")
    seen = set()
    for length in range(len(data.rstrip())):
        try:
            found = read_apple_crash(data[:length])
        except BrokenReport:
            assert length < header_bytes
            continue
        assert found.lost
        assert all("cut" in says for says in found.lost)
        assert set(ids(found)) <= {digits(APP), digits(OTHER), digits(SYSTEM)}
        main = main_of(found)
        assert main is not None
        assert main.readings[0].id.value == digits(APP)
        seen.add((len(found.images), found.images[0].base is not None))
    assert seen == {(1, False), (1, True), (2, True), (3, True)}


def test_executable_of_a_report_cut_before_its_images_is_told_by_the_header() -> None:
    data = ips()
    found = read_apple_crash(data[: data.index(b'"usedImages": [') - 2])
    (one,) = found.images
    assert (one.is_main, one.base, one.name) == (True, None, BODY["procPath"])
    (reading,) = one.readings
    assert reading.rule == "ips-header"
    assert data[reading.offset : reading.offset + 36].decode() == APP
    assert "cut before its list of images" in found.lost[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (ips(HEADER | {"bug_type": "298"}, {"processes": [], "largestProcess": "x"}), "bug type 298"),
        (b'{"hello": "world"}', "no crash report"),
        (b'{"hello": ["wor', "cut"),
        (b"{}", "no crash report"),
        (b"{]", "makes no sense from byte 1"),
        (b'{"a": 1} trailing', "no list of binary images"),
        (b"[1, 2]", "no list of binary images"),
        (b"", "no list of binary images"),
        (b"#!/bin/sh\necho hello\n", "no list of binary images"),
        (b'{"a": ' + b"[" * 200_000, "deeper than"),
        (b"{" + b'"x": 1, ' * 5000 + b"}", "more than 1000 members"),
    ],
)
def test_what_is_no_crash_report_is_said_in_a_sentence(data: bytes, says: str) -> None:
    with pytest.raises(BrokenReport, match=says):
        read_apple_crash(data)


def test_report_of_impossible_size_is_refused() -> None:
    with pytest.raises(BrokenReport, match="larger than"):
        read_apple_crash(bytes(MAX_REPORT_BYTES + 1))


def test_more_images_than_any_process_has() -> None:
    entries = [{"base": 4096 * index, "uuid": APP, "name": "x"} for index in range(25_000)]
    found = read_apple_crash(ips(usedImages=entries))
    assert len(found.images) == 20_000
    assert "more than 20000 images" in found.lost[0]


@pytest.mark.parametrize("piece", [b'"\\', b'\\"', b'"', b"{", b'{"', b'":', b"[]", b", ", b"\n"])
def test_repeated_pieces_end(piece: bytes) -> None:
    """Each of these once made some JSON reader take time in the square of its length."""
    for start in (b"{", b'{"usedImages": [', b'{"a": "', b'{"app_name": "x"}\n'):
        with contextlib.suppress(BrokenReport):
            read_apple_crash(start + piece * 100_000)


# ---- text

MACOS = f"""\
Process:               Till Helper [812]
Path:                  /Applications/Till Helper.app/Contents/MacOS/Till Helper
Identifier:            org.example.till
Version:               4.2 (4210)
Code Type:             X86-64 (Native)
Parent Process:        ??? [1]
Responsible:           Till Helper [812]
User ID:               501

Date/Time:             2020-11-20 09:14:07.221 +0100
OS Version:            Mac OS X 10.15.7 (19H15)
Report Version:        12

Thread 0 Crashed:: Dispatch queue: com.apple.main-thread
0   libsystem_kernel.dylib        \t0x00007fff6e3a133a __pthread_kill + 10
1   org.example.till              \t0x000000010d3e7f21 main + 33

Binary Images:
       0x10d3e6000 -        0x10d3f5fff +org.example.till (4.2 - 4210) <{APP.upper()}> /Applications/Till Helper.app/Contents/MacOS/Till Helper
       0x10d410000 -        0x10d417ff7 +org.example.Scanner (1.0 - 1.0 (beta)) <{OTHER.upper()}> /Applications/Till Helper.app/Contents/Frameworks/Scanner.framework/Versions/A/Scanner
    0x7fff6e39a000 -     0x7fff6e3c8fff  libsystem_kernel.dylib (6153.141.12 - ???) <{SYSTEM.upper()}> /usr/lib/system/libsystem_kernel.dylib

External Modification Summary:
  Calls made by other processes targeting this process:
    task_for_pid: 0

VM Region Summary:
ReadOnly portion of Libraries: Total=521.5M resident=0K(0%)

Model: MacBookPro15,4, BootROM 1037.147.4.0.0, 4 processors
"""  # noqa: E501

IOS = f"""\
Incident Identifier: 7B1A44E0-0000-4000-8000-000000000001
CrashReporter Key:   0123456789abcdef0123456789abcdef01234567
Hardware Model:      iPhone12,1
Process:             Till [3021]
Path:                /private/var/containers/Bundle/Application/9C0FFEE0-1111-2222-3333-444455556666/Till.app/Till
Identifier:          org.example.till
Version:             4210 (4.2)
Code Type:           ARM-64 (Native)
OS Version:          iPhone OS 14.4 (18D52)

Thread 0 name:  Dispatch queue: com.apple.main-thread
Thread 0 Crashed:
0   Till                          \t0x0000000102a1c8f0 0x102a14000 + 35056

Thread 0 crashed with ARM Thread State (64-bit):
    x0: 0x0000000000000000   x1: 0x0000000000000001

Binary Images:
0x102a14000 - 0x102a23fff Till arm64  <{digits(APP)}> /var/containers/Bundle/Application/9C0FFEE0-1111-2222-3333-444455556666/Till.app/Till
0x102b00000 - 0x102b07fff Scanner Kit arm64  <{digits(OTHER)}> /private/var/containers/Bundle/Application/9C0FFEE0-1111-2222-3333-444455556666/Till.app/Frameworks/Scanner Kit.framework/Scanner Kit
0x1a2b3c000 - 0x1a2b65fff libsystem_kernel.dylib arm64e  <{digits(SYSTEM)}> /usr/lib/system/libsystem_kernel.dylib

EOF
"""  # noqa: E501


@pytest.mark.parametrize("text", [MACOS, IOS], ids=["macos", "ios"])
def test_text_report(text: str) -> None:
    data = text.encode()
    found = read_apple_crash(data)
    assert (found.format, found.lost, found.conflicts) == ("crash", (), ())
    assert ids(found) == [digits(APP), digits(OTHER), digits(SYSTEM)]
    main = main_of(found)
    assert main is found.images[0]
    for one in found.images:
        offset = one.readings[0].offset
        written = data[offset : data.index(b">", offset)].decode()
        assert (digits(written), one.readings[0].rule) == (one.readings[0].id.value, "binary-images")


def test_text_report_of_macos_in_detail() -> None:
    found = read_apple_crash(MACOS.encode())
    assert found.facts == {
        "process": "Till Helper",
        "os_version": "Mac OS X 10.15.7 (19H15)",
        "app_version": "4.2 (4210)",
        "cpu": "X86-64 (Native)",
    }
    app, scanner, system = found.images
    assert (app.name, app.base, app.mapped) == (
        "/Applications/Till Helper.app/Contents/MacOS/Till Helper", 0x10D3E6000, (Mapped(0x10D3E6000, 0x10D3F6000, 0),),
    )  # fmt: skip
    assert [one.says["version"] for one in (app, scanner, system)] == [
        "4.2 - 4210", "1.0 - 1.0 (beta)", "6153.141.12 - ???",
    ]  # fmt: skip
    assert [one.machine for one in found.images] == ["", "", ""]


def test_text_report_of_ios_in_detail() -> None:
    found = read_apple_crash(IOS.encode())
    assert found.facts["os_version"] == "iPhone OS 14.4 (18D52)"
    assert found.facts["incident"] == "7B1A44E0-0000-4000-8000-000000000001"
    assert [one.machine for one in found.images] == ["arm64", "arm64", "arm64e"]
    assert found.images[1].name.endswith("/Till.app/Frameworks/Scanner Kit.framework/Scanner Kit")


LINE = f"0x1000 - 0x1fff Till arm64 <{APP}> /opt/Till"


@pytest.mark.parametrize(
    ("line", "name", "end", "uuid", "version", "machine"),
    [
        (LINE, "/opt/Till", 0x2000, APP, "", "arm64"),
        (f"0x1000 - ??? com.example.Till (*) <{APP}> /opt/Till", "/opt/Till", None, APP, "", ""),
        (f"*0x1000 - 0x1fff kernel (21.6.0) <{APP.upper()}> /mach_kernel", "/mach_kernel", 0x2000, APP, "21.6.0", ""),
        (f"0x1000 - 0x1fff +My (odd) name (1.2 - 3) <{APP}> /opt/a b/c", "/opt/a b/c", 0x2000, APP, "1.2 - 3", ""),
        (f"0x1000 - 0x1fff +a.out ??? (???) <{digits(APP)}> /opt/a.out", "/opt/a.out", 0x2000, APP, "", ""),
        (f"0x1000 - 0x1fff com.apple.X 6.5.5 (476.17) <{APP}> /X", "/X", 0x2000, APP, "476.17", ""),
        (f"0x1000 - 0x1fff dyld (132.1 - ???) <{APP}> /usr/lib/dyld", "/usr/lib/dyld", 0x2000, APP, "132.1 - ???", ""),
        (f"0x1000 - 0x1fff Till armv7s <{digits(APP)}> /opt/Till", "/opt/Till", 0x2000, APP, "", "armv7s"),
        (f"0x1000 - 0x1fff Till x86_64h <{APP}> ???", "Till", 0x2000, APP, "", "x86_64h"),
        (f"0x1000 - 0x1fff ??? (*) <{APP}> ???", "image at 0x1000", 0x2000, APP, "", ""),
        (f"0x1000 - 0x1fff Till ??? <{APP}> /opt/Till", "/opt/Till", 0x2000, APP, "", ""),
        (
            "0x1000 - 0x1fff libGLU.dylib ??? (???) /System/Library/libGLU.dylib",
            "/System/Library/libGLU.dylib",
            0x2000,
            None,
            "",
            "",
        ),
        ("0x1000 - 0x1fff qsub\t/usr/bin/qsub", "/usr/bin/qsub", 0x2000, None, "", ""),
        ("0x1000 - 0x1fff Till arm64 <(null)> /opt/Till", "/opt/Till", 0x2000, None, "", "arm64"),
        ("0x1000 - 0x1fff Till", "Till", 0x2000, None, "", ""),
        (f"0x2000 - 0x1fff Till <{APP}> /opt/Till", "/opt/Till", None, APP, "", ""),
    ],
)
def test_line_of_any_dialect(
    line: str, name: str, end: int | None, uuid: str | None, version: str, machine: str
) -> None:
    (one,) = read_apple_crash(f"Binary Images:\n{line}\n".encode()).images
    assert (one.name, one.machine, one.says.get("version", "")) == (name, machine, version)
    assert [reading.id.value for reading in one.readings] == ([digits(uuid)] if uuid else [])
    assert one.unread is (None if uuid else Unread.NO_ID)
    assert [part.end for part in one.mapped] == ([end] if end else [])


def test_line_that_stands_for_no_image_is_left_out() -> None:
    lines = f"               0x0 - 0xffffffffffffffff ??? (*) <{ZEROS}> ???\n{LINE}\n"
    found = read_apple_crash(f"Binary Images:\n{lines}".encode())
    assert (ids(found), found.lost) == ([digits(APP)], ())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\n".join("    " + line for line in text.split("\n")),
        lambda text: text.replace(">", ">").replace("\n0x", "\n\n0x"),
        lambda text: text.replace("Binary Images:", "Binary Images Description:"),
        lambda text: "\n\n" + text,
    ],
    ids=["crlf", "indented", "blank-lines", "old-heading", "blank-start"],
)
def test_text_that_mail_and_tools_have_changed(change: Any) -> None:
    found = read_apple_crash(change(IOS).encode())
    assert (ids(found), found.lost) == ([digits(APP), digits(OTHER), digits(SYSTEM)], ())
    main = main_of(found)
    assert main is found.images[0]


def test_line_that_mail_has_wrapped_is_told() -> None:
    lines = f"0x1000 - 0x1fff Till (1) <{APP[:20]}\n{APP[20:]}> /opt/Till\n0x3000 - 0x3fff B <{OTHER}> /opt/B\nEOF\n"
    found = read_apple_crash(f"Binary Images:\n{lines}".encode())
    assert [(one.unread, len(one.readings)) for one in found.images] == [(Unread.BROKEN, 0), (None, 1)]
    assert "wrapped" in found.lost[0]


def test_json_behind_the_text_is_the_same_report() -> None:
    """Console copies a report as text, with the JSON behind it."""
    text = MACOS + "\n-----------\nFull Report\n-----------\n\n"
    found = read_apple_crash(text.encode() + ips())
    assert (ids(found), found.lost) == ([digits(APP), digits(OTHER), digits(SYSTEM)], ())


def test_text_behind_a_json_header() -> None:
    """As iOS wrote .ips before 15."""
    header = json.dumps({"bug_type": "109", "os_version": "iPhone OS 14.4 (18D52)", "slice_uuid": APP, "name": "Till"})
    found = read_apple_crash(header.encode() + b"\n" + IOS.encode())
    assert (found.format, found.lost, found.conflicts) == ("crash", (), ())
    assert ids(found) == [digits(APP), digits(OTHER), digits(SYSTEM)]
    assert found.facts["bug_type"] == "109"
    main = main_of(found)
    assert main is found.images[0]


def test_second_list_of_images_belongs_to_another_process() -> None:
    other = f"Binary Images:\n0x5000 - 0x5fff Other <{OTHER}> /opt/Other\n"
    found = read_apple_crash(f"Binary Images:\n{LINE}\n\nProcess: Other [2]\n{other}".encode())
    assert ids(found) == [digits(APP)]
    assert "another list of images" in found.lost[0]


@pytest.mark.parametrize("text", [MACOS, IOS], ids=["macos", "ios"])
def test_text_cut_anywhere_tells_what_is_left(text: str) -> None:
    data = text.encode()
    heading, end = data.index(b"Binary Images:"), data.index(b"libsystem_kernel.dylib\n", data.index(b"Binary Images:"))
    truth = [digits(APP), digits(OTHER), digits(SYSTEM)]
    seen = set()
    for length in range(len(data)):
        try:
            found = read_apple_crash(data[:length])
        except BrokenReport:
            assert length < heading
            continue
        told = [one for one in ids(found) if one]
        assert told == truth[: len(told)]
        assert len(found.images) - len(told) <= 1
        if length < heading + len("Binary Images:"):
            assert found.lost == ("The report is cut before its list of images.",)
        elif length < end:
            # At the end of a line, nothing tells that there were more of them.
            assert found.lost or (told and data[:length].endswith(b"\n"))
        seen.add(len(found.images))
    assert seen == {0, 1, 2, 3}


# ---- hostile


def survives(data: bytes) -> None:
    with contextlib.suppress(BrokenReport):
        found = read_apple_crash(data)
        assert found.images or found.lost or found.format == "crash" or b"usedImages" in data
        for one in found.images:
            assert one.name
            assert len(one.name) <= 4096
            assert bool(one.readings) == (one.unread is None)
            for reading in one.readings:
                assert data[reading.offset : reading.offset + 8].decode().lower() == reading.id.value[:8]


@settings(max_examples=500, deadline=None)
@given(mutated(ips()))
def test_mutated_ips_ends_in_images_or_a_format_error(data: bytes) -> None:
    survives(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([MACOS.encode(), IOS.encode()]).flatmap(mutated))
def test_mutated_text_ends_in_images_or_a_format_error(data: bytes) -> None:
    survives(data)


WORDS = st.sampled_from(
    [
        *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n"),
        *(b'"usedImages"', b'"uuid"', b'"slice_uuid"', b'"base"'),
        f'"{APP}"'.encode(),
        b"1",
        b"null",
        b" ",
        b"Binary Images:\n",
        b"0x1 - 0x2 ",
        f"<{APP}> ".encode(),
        b"/a",
        b"\xff",
    ]
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(WORDS, max_size=40).map(b"".join))
def test_any_mixture_of_words_ends_in_images_or_a_format_error(data: bytes) -> None:
    survives(data)
    survives(b'{"app_name":"x","slice_uuid":"' + APP.encode() + b'"}\n' + data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(JSON, st.dictionaries(st.sampled_from(["uuid", "base", "size", "path", "name", "arch"]), JSON), JSON)
def test_any_json_in_place_of_what_is_expected(value: Any, entry: dict[str, Any], other: Any) -> None:
    survives(ips(usedImages=value))
    data = ips(usedImages=[entry, BODY["usedImages"][0]], osVersion=other, sharedCache=value, procPath=other, asi=value)
    survives(data)
    assert digits(APP) in ids(read_apple_crash(data))
