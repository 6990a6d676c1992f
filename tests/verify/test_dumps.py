"""Dumps of every kind and packing open; everything else ends in a sentence, within bounds."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmforensics.errors import DumpUnreadable, FormatError, PmfError
from pmforensics.verify import dumps as dumps_module
from pmforensics.verify.dumps import is_heap_dump, open_dump, open_stream
from pmforensics.verify.verdict import Verdict
from tests.formats.core_writer import LIB, MAIN, PAGE, RW, STACK, Load, Process
from tests.formats.macho_writer import CoreWriter, MachWriter
from tests.formats.minidump_writer import LINUX, MinidumpWriter, Module, bpel
from tests.formats.mutations import mutated
from tests.verify.specimens import judge, row_for

try:
    from compression import zstd
except ImportError:
    from backports import zstd


@pytest.fixture
def core(tmp_path: Path) -> Path:
    path = tmp_path / "app.core"
    path.write_bytes(Process().render())
    return path


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "libwork.so.1.2"
    path.write_bytes(Process().images[LIB].render())
    return path


def refused(path: Path) -> DumpUnreadable:
    with pytest.raises(DumpUnreadable) as caught, open_dump(path):
        pass
    assert caught.value.message.startswith(f"{path} ")
    return caught.value


# ---- packed


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gz", "zst"])
def test_packed_core_gives_what_the_plain_one_gives(core: Path, library: Path, tmp_path: Path, pack: object) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(pack(core.read_bytes()))  # type: ignore[operator]
    plain, unpacked = judge(core, library), judge(packed, library)
    assert unpacked.rows == plain.rows
    assert unpacked.actual_bytes == core.stat().st_size
    assert unpacked.warnings == ()


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gz", "zst"])
def test_cut_stream_gives_what_is_there_and_says_so(core: Path, tmp_path: Path, pack: object) -> None:
    noise = os.urandom(1 << 20)
    process = Process()
    process.more = [Load(STACK + 0x10_0000, noise, flags=RW)]
    whole = pack(process.render())  # type: ignore[operator]
    packed = tmp_path / "packed"
    packed.write_bytes(whole[: len(whole) * 3 // 4])
    with open_dump(packed) as dump:
        (warning,) = dump.warnings
        assert "cut or damaged" in warning
        assert dump.images.images
        assert any("The core is cut" in sentence for sentence in dump.images.lost)


def test_damaged_gzip_is_a_warning_where_it_unpacks_and_a_sentence_where_not(core: Path, tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(core.read_bytes()))
    whole[-6] ^= 0xFF  # of the checksum
    packed = tmp_path / "packed"
    packed.write_bytes(whole)
    with open_dump(packed) as dump:
        assert "cut or damaged" in dump.warnings[0]
        assert len(dump.images.images) == 4
    packed.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 40)
    assert not _quietly_heap(packed)
    refused(packed)
    packed.write_bytes(b"\x28\xb5\x2f\xfd" + b"\xff" * 40)
    assert not _quietly_heap(packed)
    refused(packed)


def _quietly_heap(path: Path) -> bool:
    try:
        return is_heap_dump(path)
    except DumpUnreadable:
        return False


def test_bomb_is_stopped_at_its_ratio_and_a_sparse_core_is_not(
    core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dumps_module, "UNPACK_FREELY_BYTES", 1 << 20)
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(core.read_bytes() + bytes(64 << 20)))
    error = refused(bomb)
    assert "200 times" in error.message
    assert "unpack it yourself" in error.hint
    # 20 times is what cores pack to.
    honest = tmp_path / "honest.gz"
    noise = os.urandom(1 << 18)
    process = Process()
    process.more = [Load(STACK + 0x10_0000, noise + bytes(len(noise) * 20), flags=RW)]
    honest.write_bytes(gzip.compress(process.render()))
    with open_dump(honest) as dump:
        assert len(dump.images.images) == 4


def test_zeros_are_unpacked_to_holes(tmp_path: Path) -> None:
    process = Process()
    process.more = [Load(STACK + 0x10_0000, bytes(32 << 20), flags=RW)]
    packed = tmp_path / "sparse.zst"
    packed.write_bytes(zstd.compress(process.render()))
    with open_dump(packed) as dump:
        status = os.fstat(dump.file.fd)
        assert status.st_size > 32 << 20
        assert status.st_blocks * 512 < 4 << 20


def test_nested_packing_and_a_packed_text_have_their_sentences(core: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.gz"
    twice.write_bytes(gzip.compress(gzip.compress(core.read_bytes())))
    refused(twice)
    text = tmp_path / "text.gz"
    text.write_bytes(gzip.compress(b"404 not found\n"))
    assert "is text" in refused(text).message


# ---- what is no dump


def archives() -> dict[str, bytes]:
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("core", b"x")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("core"))
    return {
        "a zip archive": packed.getvalue(),
        "a tar archive": tarred.getvalue(),
        "xz-compressed": lzma.compress(b"core"),
        "bzip2-compressed": bz2.compress(b"core"),
    }


@pytest.mark.parametrize("what", archives())
def test_archives_are_named_for_what_they_are(tmp_path: Path, what: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(archives()[what])
    error = refused(path)
    assert error.message == f"{path} is {what}"
    assert error.hint == "Unpack it first."


def test_folder_pipe_device_empty_file_and_missing_file_each_have_their_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    says = {
        tmp_path: "is a folder and no bundle",
        tmp_path / "pipe": "is a pipe or a device",
        Path("/dev/zero"): "is a pipe or a device",
        tmp_path / "empty": "is empty",
        tmp_path / "nothing": "cannot be opened (No such file or directory)",
    }
    for path, sentence in says.items():
        assert refused(path).message == f"{path} {sentence}"
        assert not _quietly_heap(path)


@pytest.mark.parametrize("text", [b"<html>404</html>\n", b"segfault at 0\n" * 1000, b"{}\n", b'{"a": 1}\n{}\n'])
def test_text_named_as_a_dump_is_told_for_text(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "service.dmp"
    path.write_bytes(text)
    assert "is text and no crash report" in refused(path).message


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"\x01\x02\x03\x04" * 10, b"PAGEDU64" + bytes(100), b"\xca\xfe\xba\xbe\0\0\0\x3d"]
)
def test_other_bytes_are_no_dump_and_what_can_be_verified_is_listed(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "service.dmp"
    path.write_bytes(data)
    error = refused(path)
    assert "is no dump that pmf can read" in error.message
    assert "minidumps" in error.hint


def test_broken_dump_names_its_file(tmp_path: Path) -> None:
    for data in (b"\x7fELF\x02\x01", b"MDMP\x93\xa7" + bytes(10), b"\xcf\xfa\xed\xfe" + bytes(4)):
        path = tmp_path / "dump"
        path.write_bytes(data)
        with pytest.raises(FormatError) as caught, open_dump(path):
            pass
        assert caught.value.message.startswith(f"{path}: ")


# ---- a dump that changes


def test_core_that_grows_while_it_is_read_is_still_being_written(core: Path) -> None:
    with (
        pytest.raises(DumpUnreadable, match="is still being written") as caught,
        open_dump(core),
        core.open("ab") as file,
    ):
        file.write(b"more")
    assert "Wait until its size" in caught.value.hint


def test_packed_core_that_grows_is_still_being_written(core: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(core.read_bytes()))
    with pytest.raises(DumpUnreadable, match="is still being written"), open_dump(packed), packed.open("ab") as file:
        file.write(b"more")


# ---- every kind of dump


def test_minidump_mach_core_and_crash_reports_open(tmp_path: Path) -> None:
    uuid = "0a" * 16
    dashed = "0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a"
    ips = {"usedImages": [{"base": 0x1000, "size": 4096, "uuid": dashed, "path": "/bin/agent", "name": "agent"}]}
    crash = (
        "Process:               agent [1]\nPath:                  /bin/agent\n\nBinary Images:\n"
        f"       0x1000 -        0x1fff agent arm64 (0) <{uuid}> /bin/agent\n"
    )
    image = MachWriter().uuid(bytes.fromhex(uuid)).segment("__TEXT", 0x1000, 0x1000, 0, 0x1000).render()
    mach = CoreWriter().all_image_infos(("/bin/agent", bytes.fromhex(uuid), 0x1000))
    from tests.formats.macho_writer import Memory

    mach.memory = [Memory(0x1000, image.ljust(0x1000, b"\0"))]
    contents = {
        "a.dmp": MinidumpWriter().system(LINUX).modules(Module(0x1000, "/bin/agent", bpel(b"\x0a" * 20))).render(),
        "a.ips": f'{{"app_name": "agent"}}\n{json.dumps(ips)}\n'.encode(),
        "a.crash": crash.encode(),
        "a.core": mach.render(),
    }
    formats = {}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with open_dump(tmp_path / name) as dump:
            formats[name] = dump.images.format
            values = {reading.id.value for one in dump.images.images for reading in one.readings}
            assert {"0a" * 16, "0a" * 20} & values, name
    assert formats == {"a.dmp": "minidump", "a.ips": "ips", "a.crash": "crash", "a.core": "macho-core"}


def test_binary_in_a_dumps_place_is_its_own_image(library: Path) -> None:
    with open_dump(library) as dump:
        assert dump.images.format == "binary"
        (image,) = dump.images.images
        (candidate,) = dump.binaries
        assert [reading.id for reading in image.readings] == list(candidate.ids)


def test_heap_dumps_are_known_plain_and_packed(tmp_path: Path) -> None:
    head = b"JAVA PROFILE 1.0.2\0" + bytes(12)
    for name, data in {"a": head, "a.gz": gzip.compress(head), "a.zst": zstd.compress(head)}.items():
        (tmp_path / name).write_bytes(data)
        assert is_heap_dump(tmp_path / name)
        with open_stream(tmp_path / name) as stream:
            assert stream.read(100) == head
    (tmp_path / "b").write_bytes(b"JAVA")
    assert not is_heap_dump(tmp_path / "b")


# ---- whatever the bytes are


SMALL_CORE = Process().render()
SMALL_FILE = Process().images[MAIN].render()
SMALL_MINIDUMP = MinidumpWriter().system(LINUX).modules(Module(0x1000, "/bin/agent", bpel(b"\x0a" * 20))).render()


def ends_well(folder: Path, dump: bytes, candidate: bytes) -> None:
    """In a verdict or in a sentence."""
    (folder / "dump").write_bytes(dump)
    (folder / "app").write_bytes(candidate)
    try:
        report = judge(folder / "dump", folder / "app")
    except PmfError as error:
        says = error.message
    else:
        says = report.verdict.value
    assert says.strip()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dump=mutated(SMALL_CORE), candidate=mutated(SMALL_FILE))
def test_damaged_core_and_damaged_candidate_end_in_a_verdict_or_a_sentence(
    tmp_path: Path, dump: bytes, candidate: bytes
) -> None:
    ends_well(tmp_path, dump, candidate)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.sampled_from([b"", b"\x7fELF\x02\x01\x01", b"MZ", b"MDMP", b"MODULE ", b"BSJB", b"\xcf\xfa\xed\xfe", b"{"]),
    rest=st.binary(max_size=400),
)
def test_any_bytes_end_in_a_verdict_or_a_sentence(tmp_path: Path, head: bytes, rest: bytes) -> None:
    ends_well(tmp_path, head + rest, SMALL_FILE)
    ends_well(tmp_path, SMALL_CORE, head + rest)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(dump=mutated(SMALL_MINIDUMP))
def test_damaged_minidump_ends_in_a_verdict_or_a_sentence(tmp_path: Path, dump: bytes) -> None:
    ends_well(tmp_path, dump, SMALL_FILE)


@pytest.mark.parametrize("cut", [*range(1, 600, 23), PAGE, PAGE + 1, 5 * PAGE])
def test_small_core_cut_anywhere_never_matches_without_the_bytes_of_its_id(tmp_path: Path, cut: int) -> None:
    (tmp_path / "dump").write_bytes(SMALL_CORE[:cut])
    (tmp_path / "app").write_bytes(SMALL_FILE)
    try:
        report = judge(tmp_path / "dump", tmp_path / "app")
    except PmfError:
        return
    row = row_for(report, tmp_path / "app")
    if row.verdict is Verdict.MATCH:
        assert row.reading is not None
        assert bytes.fromhex(row.reading.id.value) in SMALL_CORE[:cut]
