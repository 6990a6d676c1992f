"""Fields are those of javap; a jar is read with the jars in it, and no jar costs more than a jar may."""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
import tempfile
import tracemalloc
import zipfile
import zlib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats.classfile import (
    MIB,
    BrokenClassFile,
    ClassLayout,
    CompiledField,
    JarClass,
    JarLoss,
    JavaType,
    NotClassFile,
    NotJar,
    decode_modified_utf8,
    iter_jar_classes,
    read_class_layout,
)
from tests import zoo
from tests.formats.mutations import mutated

pytestmark = pytest.mark.needs("jdk")


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, encoding="utf-8").stdout


def home() -> Path:
    found = zoo.jdk()
    assert found is not None
    return found


@cache
def class_bytes(source: str, name: str = "C") -> dict[str, bytes]:
    """Class files by name, compiled from one source file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.java")
        path.write_text(source, "utf-8")
        run(home() / "bin" / "javac", "-encoding", "UTF-8", "-proc:none", "-d", folder, path)
        return {found.stem: found.read_bytes() for found in Path(folder).rglob("*.class")}


SOURCE = """
public class C extends Thread implements Runnable, java.io.Serializable {
    private static final long serialVersionUID = 0x1234567890L;
    static final double PI = 3.25;
    @Deprecated public volatile int[][] a; protected transient String s; boolean z; byte b; char c = 'x'; short h;
    int i; long j; float f = 1.5f; double d; java.util.Map<String, ? extends C> m; int größe\U0001d4b3;
    Runnable r = () -> System.out.println("text" + i);
    Object o() { return new Object() { int inner = i; }; }
    interface Empty {}
    record Point(int x, long y) {}
    enum Color { RED }
}
"""


def jar(entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file


def found(file: io.BytesIO) -> tuple[list[JarClass], list[JarLoss]]:
    classes: list[JarClass] = []
    losses: list[JarLoss] = []
    for it in iter_jar_classes(file):
        if isinstance(it, JarClass):
            classes.append(it)
        else:
            losses.append(it)
    return classes, losses


def paths(file: io.BytesIO) -> list[str]:
    classes, losses = found(file)
    assert losses == []
    return [it.path for it in classes]


# ---- class files


def javap(*files: Path) -> dict[str, tuple[str, list[CompiledField], int]]:
    """Superclass, fields and version of class files, in javap's words. One call, for it starts a JVM."""
    utf8 = ("-J-Dfile.encoding=UTF-8", "-J-Dstdout.encoding=UTF-8")
    listed = run(home() / "bin" / "javap", *utf8, "-p", "-v", *files)
    classes: dict[str, tuple[str, list[CompiledField], int]] = {}
    for text in re.split(r"^Classfile ", listed, flags=re.MULTILINE)[1:]:
        name = re.search(r"^  this_class: #\d+ +// \"?(.+?)\"?$", text, re.MULTILINE)
        above = re.search(r"^  super_class: #\d+(?: +// \"?(.+?)\"?)?$", text, re.MULTILINE)
        major = re.search(r"^  major version: (\d+)$", text, re.MULTILINE)
        assert name is not None
        assert above is not None
        assert major is not None
        member = r"^  .*?([^\s()={}]+);\n    descriptor: ([^\s(]+)\n    flags: \((0x\w+)\)"
        fields = [
            CompiledField(it[1], it[2], bool(int(it[3], 16) & 8)) for it in re.finditer(member, text, re.MULTILINE)
        ]
        # A field with a constant shows it: "static final double PI;" stays as it is without -constants.
        classes[name[1]] = above[1] or "", fields, int(major[1])
    return classes


def test_layouts_are_those_of_javap(tmp_path: Path) -> None:
    compiled = class_bytes(SOURCE)
    for name, data in compiled.items():
        (tmp_path / f"{name}.class").write_bytes(data)
    expected = javap(*sorted(tmp_path.iterdir()))
    assert set(expected) == {"C", "C$1", "C$Empty", "C$Point", "C$Color"}
    for name, (super_name, fields, major) in expected.items():
        assert read_class_layout(compiled[name]) == ClassLayout(name, super_name, tuple(fields), major)
    assert len(expected["C"][1]) == 15
    assert read_class_layout(compiled["C"]).super_name == "java/lang/Thread"


def test_classes_of_the_jdk_are_those_of_javap(tmp_path: Path) -> None:
    pattern = "regex:/java.base/java/(lang|util/concurrent)/[^/]*"
    run(home() / "bin" / "jimage", "extract", "--dir", tmp_path, "--include", pattern, home() / "lib" / "modules")
    files = random.Random(1).sample(sorted(tmp_path.rglob("*.class")), 150)
    # java/lang/Object has no superclass.
    files.append(next(tmp_path.rglob("lang/Object.class")))
    expected = javap(*files)
    layouts = {layout.name: layout for layout in (read_class_layout(path.read_bytes()) for path in files)}
    assert len(layouts) == len(set(files))
    for name, (super_name, fields, major) in expected.items():
        assert layouts[name] == ClassLayout(name, super_name, tuple(fields), major)
    assert sum(len(layout.fields) for layout in layouts.values()) > 200


def test_types_of_fields() -> None:
    layout = read_class_layout(class_bytes(SOURCE)["C"])
    types = {field.name: field.type for field in layout.fields}
    assert types["a"] is types["s"] is types["m"] is JavaType.REFERENCE
    assert types["z"] is JavaType.BOOLEAN
    assert types["j"] is JavaType.LONG
    assert types["größe\U0001d4b3"] is JavaType.INT


def test_cut_class_file_is_broken_until_its_fields_end() -> None:
    data = class_bytes(SOURCE)["C"]
    whole = read_class_layout(data)
    cut_bytes = [cut for cut in range(len(data)) if isinstance(layout_or_error(data[:cut]), BrokenClassFile)]
    end = cut_bytes[-1] + 1
    assert cut_bytes == list(range(4, end))
    assert end > len(data) // 3
    assert all(layout_or_error(data[:cut]) == whole for cut in range(end, len(data)))
    assert all(isinstance(layout_or_error(data[:cut]), NotClassFile) for cut in range(4))


def layout_or_error(data: bytes) -> ClassLayout | FormatError:
    try:
        return read_class_layout(data)
    except FormatError as error:
        return error


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "do not begin"),
        (b"PK\x03\x04", "do not begin"),
        (b"\xca\xfe\xba\xbe\0\0\0\x02" + bytes(40), "version 2"),  # a fat Mach-O file
    ],
)
def test_what_is_no_class_file_has_its_sentence(data: bytes, says: str) -> None:
    with pytest.raises(NotClassFile, match=says):
        read_class_layout(data)


@settings(max_examples=400, deadline=None)
@given(draw=st.data())
def test_mutated_class_files_end_in_a_layout_or_a_format_error(draw: st.DataObject) -> None:
    data = draw.draw(mutated(class_bytes(SOURCE)["C"]))
    end = layout_or_error(data)
    assert end.message.endswith(".") if isinstance(end, FormatError) else end.name


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        (b"a\xc0\x80b", "a\0b"),
        (b"\xed\xa0\xb5\xed\xb2\xb3", "\U0001d4b3"),
        ("grün\N{SNOWMAN}".encode(), "grün\N{SNOWMAN}"),
        (b"half\xed\xa0\xb5", "half\\ud835"),
        (b"\xff\xfe", "\\xff\\xfe"),
    ],
)
def test_modified_utf8(data: bytes, text: str) -> None:
    assert decode_modified_utf8(data) == text


@given(st.binary())
def test_any_text_can_be_printed(data: bytes) -> None:
    decode_modified_utf8(data).encode()


# ---- jars


def a_class() -> bytes:
    return class_bytes("class A { int x; }", "A")["A"]


def test_jar_of_the_zoo() -> None:
    with zoo.build("java").open("rb") as file:
        classes = {it.layout.name: it for it in iter_jar_classes(file) if isinstance(it, JarClass)}
    assert {"Zoo", "Zoo$Way", "Zoo$CacheEntry"} <= classes.keys()
    assert classes["Zoo$Way"].path == "Zoo$Way.class"
    assert [field.name for field in classes["Zoo$Way"].layout.fields] == ["name", "describe", "fall", "defaults"]


def test_jmod_is_a_jar_behind_four_bytes() -> None:
    entries = {"classes/A.class": a_class(), "lib/in.jar": jar({"A.class": a_class()}).getvalue()}
    jmod = io.BytesIO(b"JM\1\0" + jar(entries, zipfile.ZIP_STORED).getvalue())
    assert paths(jmod) == ["classes/A.class", "lib/in.jar!/A.class"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_jars_inside_are_opened_one_level_deep(compression: int) -> None:
    inmost = jar({"D.class": a_class()}).getvalue()
    inner = jar({"lib/A.class": a_class(), "deeper.jar": inmost}).getvalue()
    outer = jar({"BOOT-INF/classes/A.class": a_class(), "BOOT-INF/lib/in.jar": inner, "x.war": inner}, compression)
    classes, losses = found(outer)
    assert [it.path for it in classes] == [
        "BOOT-INF/classes/A.class",
        "BOOT-INF/lib/in.jar!/lib/A.class",
        "x.war!/lib/A.class",
    ]
    assert {it.layout.name for it in classes} == {"A"}
    assert [it.path for it in losses] == ["BOOT-INF/lib/in.jar!/deeper.jar", "x.war!/deeper.jar"]


def test_release_of_a_multi_release_jar() -> None:
    entries = {"META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\r\nmulti-release: TRUE\r\n\r\n", "A.class": a_class()}
    entries["META-INF/versions/17/A.class"] = a_class()
    entries["META-INF/versions/9/module-info.class"] = class_bytes("module m {}", "module-info")["module-info"]
    classes, losses = found(jar(entries))
    assert [(it.path, it.release) for it in classes] == [("A.class", 0), ("META-INF/versions/17/A.class", 17)]
    assert losses == []


@pytest.mark.parametrize("manifest", [b"Multi-Release: false\n", b"X: y\n\nName: z\nMulti-Release: true\n", None])
def test_versions_without_multi_release_are_loaded_by_no_jvm(manifest: bytes | None) -> None:
    entries = {"A.class": a_class(), "META-INF/versions/17/A.class": a_class()}
    if manifest is not None:
        entries["META-INF/MANIFEST.MF"] = manifest
    classes, losses = found(jar(entries))
    assert [it.path for it in classes] == ["A.class"]
    assert [it.path for it in losses] == [""]
    assert "1 classes under META-INF/versions" in losses[0].says


def test_entries_that_cannot_be_read_are_named_and_the_others_are_read() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first/A.class", a_class())
        archive.writestr("packed.class", a_class(), zipfile.ZIP_LZMA)
        archive.writestr("text.class", b"no class")
        archive.writestr("bad-crc.class", a_class())
        archive.writestr("locked.class", a_class())
        archive.writestr("bad.jar", b"no jar")
        archive.writestr("last/A.class", a_class())
    data = bytearray(file.getvalue())
    for name, offset, value in ((b"bad-crc.class", 16, 0x55), (b"locked.class", 8, 1)):
        entry = data.rindex(name) - 46
        assert data[entry : entry + 4] == b"PK\1\2"
        data[entry + offset] ^= value
    classes, losses = found(io.BytesIO(data))
    assert [it.path for it in classes] == ["first/A.class", "last/A.class"]
    says = {it.path: it.says for it in losses}
    assert "method 14" in says["packed.class"]
    assert "do not begin" in says["text.class"]
    assert "CRC" in says["bad-crc.class"]
    assert "encrypted" in says["locked.class"]
    assert "no readable zip" in says["bad.jar"]
    assert len(says) == 5


def test_many_losses_are_counted() -> None:
    classes, losses = found(jar({f"{number}.class": b"x" for number in range(250)}))
    assert classes == []
    assert len(losses) == 101
    assert losses[-1].says == "150 more entries of the jar could not be read."


@pytest.mark.parametrize("data", [b"", b"PK", b"x" * 1000, b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_jar(data: bytes) -> None:
    with pytest.raises(NotJar, match="zip"):
        list(iter_jar_classes(io.BytesIO(data)))


# ---- hostile jars


def peak_of(file: io.BytesIO) -> tuple[list[JarClass], list[JarLoss], int]:
    tracemalloc.start()
    try:
        classes, losses = found(file)
        return classes, losses, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_entry_that_is_no_class_of_any_size_is_not_unpacked_whole() -> None:
    classes, losses, peak = peak_of(jar({"A.class": b"\xca\xfe\xba\xbe" + bytes(60 * MIB), "B.class": a_class()}))
    assert [it.path for it in classes] == ["B.class"]
    assert "more than 16777216 bytes" in losses[0].says
    assert peak < 64 * MIB


def test_bomb_of_many_entries_is_stopped() -> None:
    zeros = a_class() + bytes(10 * MIB)
    classes, losses = found(jar({f"{number}.class": zeros for number in range(100)}))
    assert 0 < len(classes) < 15
    assert len(losses) == 1
    assert "no real one does that" in losses[0].says


def overlapping(entry: bytes, name: bytes, times: int) -> io.BytesIO:
    """A zip whose directory names one stored entry many times."""
    sizes = struct.pack("<III", zlib.crc32(entry), len(entry), len(entry))
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 0, 0, 33) + sizes + struct.pack("<HH", len(name), 0) + name + entry
    central = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, 0, 0, 33) + sizes
    central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    directory = central * times
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, times % 65_536, times % 65_536, len(directory), len(local), 0)
    return io.BytesIO(local + directory + end)


def test_jars_that_overlap_are_stopped() -> None:
    inner = overlapping(a_class(), b"A.class", 2000).getvalue()
    classes, losses = found(overlapping(inner, b"in.jar", 5000))
    assert 2000 <= len(classes) < 200_000
    assert "no real one does that" in losses[-1].says


def test_directory_with_too_many_entries_is_refused_before_it_is_built() -> None:
    with pytest.raises(NotJar, match="more than 200000 entries"):
        list(iter_jar_classes(overlapping(b"", b"", 200_001)))


def test_directory_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(NotJar, match="directory of the jar has"):
        list(iter_jar_classes(overlapping(b"", b"n" * 60_000, 600)))


def test_stored_jar_that_lies_outside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(overlapping(jar({"A.class": a_class()}).getvalue(), b"in.jar", 1).getvalue())
    at = data.rindex(b"PK\1\2")
    data[at + 20 : at + 28] = b"\xff\xff\xff\x7f" * 2
    classes, losses = found(io.BytesIO(data))
    assert classes == []
    assert "does not lie where" in losses[0].says


def test_cut_jar_ends_in_an_error_or_losses() -> None:
    data = jar({"A.class": a_class(), "in.jar": jar({"A.class": a_class()}).getvalue()}).getvalue()
    assert len(paths(io.BytesIO(data))) == 2
    for cut in range(len(data)):
        with pytest.raises(NotJar, match="zip"):
            list(iter_jar_classes(io.BytesIO(data[:cut])))


@settings(max_examples=300, deadline=None)
@given(draw=st.data())
def test_mutated_jars_end_in_classes_losses_or_a_format_error(draw: st.DataObject) -> None:
    inner = jar({"A.class": a_class(), "META-INF/MANIFEST.MF": b"Multi-Release: true\n"}).getvalue()
    entries = {"A.class": a_class(), "in.jar": inner, "META-INF/versions/9/A.class": a_class()}
    data = jar(entries, draw.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))).getvalue()
    broken = io.BytesIO(draw.draw(mutated(data, head_bytes=len(data))))
    items: list[JarClass | JarLoss] = []
    error: FormatError | None = None
    try:
        items += iter_jar_classes(broken)
    except FormatError as it:
        error = it
    assert error is None or error.message.endswith(".")
    assert all(it.says.endswith(".") for it in items if isinstance(it, JarLoss))
