"""What a heap dump says of its JVM is what jcmd says; its classes are those of the jar, or the difference is named."""

from __future__ import annotations

import gzip
import io
import random
import re
import subprocess
import tempfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.errors import FormatError
from pmforensics.formats import hprof, hprof_walk
from pmforensics.formats.classfile import ClassLayout, CompiledField, JarClass, JavaType, iter_jar_classes
from pmforensics.formats.hprof import (
    BrokenHprof,
    DumpedClass,
    DumpedField,
    Found,
    HprofSummary,
    LayoutVerdict,
    NotHprof,
    compare_layout,
    iter_chunks,
    read_hprof,
)
from pmforensics.formats.structure import MIB, Shape
from tests import zoo
from tests.formats.hprof_writer import BYTE, CHAR, INT, LONG, OBJECT, HprofWriter, Jdk, JvmWriter
from tests.formats.hprof_writer import JDKS as LAYOUTS
from tests.formats.mutations import mutated

JDKS = [pytest.param(jdk, marks=pytest.mark.needs(f"jdk{jdk}"), id=f"jdk{jdk}") for jdk in (17, 25)]
SECRET = "hunter2-is-secret"


def read(data: bytes, chunk_bytes: int = MIB) -> HprofSummary:
    return read_hprof(lambda: (data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)))


def outcome(data: bytes, chunk_bytes: int = MIB) -> HprofSummary | FormatError:
    """What reading comes to; every other exception is a failure."""
    try:
        return read(data, chunk_bytes)
    except FormatError as error:
        return error


def by_name(summary: HprofSummary) -> dict[str, DumpedClass]:
    return {declared.name: declared for declared in summary.classes}


# ---- real JVMs

MIXED = """
import java.util.HashMap;

public class Mixed extends Base {
    byte b1; Object o1; long l1; int i1; boolean z1; double d1; String s1; char c1; float f1; short h1; int[] a1;
    Mixed[][] a2; long l2; byte b2; int größe\U0001d4b3;
    static int si = 7; static String ss = "x"; static final long SL = 5; static boolean sz; static final Object SO = "";
    class Inner { int q; int outer() { return (int) i1 + q; } }
    interface Constants { int C = 3; Object O = new Object(); }
    enum Color { RED, GREEN }
    record Point(int x, String y, long z) {}

    public static void main(String[] args) throws Exception {
        System.setProperty("java.vm.name", "a name of its own");
        Object[] keep = {new Mixed(), new Mixed().new Inner(), Constants.O, Color.RED, new Point(1, "a", 2), null};
        Runnable hidden = () -> System.out.println(keep[0]);
        keep[5] = hidden;
        System.out.println("ready");
        Thread.sleep(Long.MAX_VALUE);
        System.out.println(keep);
    }
}

class Base { long bl; Object bo; byte bb; static int bs; }
"""


@dataclass
class Jvm:
    """What one JVM was made to leave behind: its dump, its jar, and its own words."""

    version: int
    dump: Path
    jar: Path
    properties: dict[str, str]
    histogram: set[str]

    @cached_property
    def data(self) -> bytes:
        return self.dump.read_bytes()

    @cached_property
    def summary(self) -> HprofSummary:
        return read(self.data)

    @cached_property
    def classes(self) -> dict[str, DumpedClass]:
        return by_name(self.summary)


def tool(version: int | None, name: str) -> Path:
    home = zoo.jdk(version)
    assert home is not None
    return home / "bin" / name


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, encoding="utf-8").stdout


@cache
def build_jar(source: str, main: str = "Mixed") -> bytes:
    """Compiled by one javac for all JVMs: they differ in the synthetic fields that they add."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{main}.java").write_text(source, "utf-8")
        javac = ("-encoding", "UTF-8", "-proc:none", "--release", 17, "-d", folder / "classes")
        run(tool(None, "javac"), *javac, folder / f"{main}.java")
        jar = io.BytesIO()
        with zipfile.ZipFile(jar, "w") as archive:
            for path in sorted((folder / "classes").iterdir()):
                archive.write(path, path.name)
    return jar.getvalue()


def parse_properties(text: str) -> dict[str, str]:
    """What jcmd VM.system_properties prints, in the escapes of java.util.Properties."""
    escapes = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
    properties = {}
    for line in text.splitlines():
        found = re.fullmatch(r"((?:[^=\\]|\\.)+)=(.*)", line)
        if found:
            name, value = (re.sub(r"\\(.)", lambda it: escapes.get(it[1], it[1]), part) for part in found.groups())
            properties[name] = value
    return properties


def dump_of(version: int, pid: int, dump: Path, jar: Path) -> Jvm:
    jcmd = tool(version, "jcmd")
    run(jcmd, pid, "GC.heap_dump", dump)
    histogram = re.findall(r"^ *\d+: +\d+ +\d+ +([^\s\[]\S*)", run(jcmd, pid, "GC.class_histogram"), re.MULTILINE)
    properties = parse_properties(run(jcmd, pid, "VM.system_properties"))
    return Jvm(version, dump, jar, properties, {name.replace(".", "/") for name in histogram})


@pytest.fixture(scope="module")
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jvm]:
    """The program above, with a secret in a property, in an argument and in the class path."""
    version: int = request.param
    folder = tmp_path_factory.mktemp(f"mixed{version}")
    jar = folder / "mixed.jar"
    jar.write_bytes(build_jar(MIXED))
    command: list[str | Path] = [
        tool(version, "java"), "-Xmx64m", f"-Dapp.password={SECRET}", "-cp", f"{jar}:/x/?token={SECRET}",
        "Mixed", "login", "--password", SECRET, SECRET,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield dump_of(version, process.pid, folder / "heap.hprof", jar)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def zoo_dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Jvm:
    version: int = request.param
    folder = tmp_path_factory.mktemp(f"zoo{version}")
    with zoo.start(f"java{version}", "heap", 4) as sick:
        return dump_of(version, sick.pid, folder / "heap.hprof", zoo.build(f"java{version}"))


mixed_jvm = pytest.mark.parametrize("mixed", JDKS, indirect=True)
zoo_jvm = pytest.mark.parametrize("zoo_dump", JDKS, indirect=True)


@mixed_jvm
def test_jvm_is_what_jcmd_says(mixed: Jvm) -> None:
    summary = mixed.summary
    assert summary.structure.shape is Shape.WHOLE
    assert summary.lost == ()
    assert {"java.version", "java.vm.version", "java.vm.vendor", "java.vm.name", "java.runtime.version"} <= {
        *summary.says
    }
    assert {"os.name", "os.arch", "os.version", "sun.java.command", "java.class.path"} <= {*summary.says}
    changed = {"java.vm.name", "java.class.path", "sun.java.command"}
    for statement in summary.jvm:
        assert statement.found is Found.SAVED_PROPERTIES
        if statement.name not in changed:
            assert statement.value == mixed.properties[statement.name]
            assert mixed.data[statement.offset :].startswith(statement.value.encode())
    assert summary.dumped_at is not None
    assert abs(summary.dumped_at.timestamp() - mixed.dump.stat().st_mtime) < 3600
    assert (summary.version, summary.id_bytes) == ("JAVA PROFILE 1.0.2", 8)


@mixed_jvm
def test_what_the_program_changed_is_a_conflict(mixed: Jvm) -> None:
    summary = mixed.summary
    assert mixed.properties["java.vm.name"] == "a name of its own"
    assert summary.says["java.vm.name"] == "OpenJDK 64-Bit Server VM"
    (conflict,) = summary.conflicts
    assert "java.vm.name" in conflict
    assert "a name of its own" in conflict


@mixed_jvm
def test_secrets_stay_in_the_dump(mixed: Jvm) -> None:
    data = mixed.data
    assert data.count(SECRET.encode()) >= 3
    summary = mixed.summary
    assert SECRET not in repr(summary)
    assert summary.says["sun.java.command"] == "Mixed (4 more words withheld)"
    assert summary.says["java.class.path"].startswith(str(mixed.jar))


@mixed_jvm
def test_classes_are_those_of_the_histogram(mixed: Jvm) -> None:
    classes = {declared.name for declared in mixed.summary.classes if not declared.is_hidden}
    histogram = {name for name in mixed.histogram if "0x" not in name}
    assert len(histogram) > 100
    assert histogram <= classes
    assert not any(name.startswith("[") for name in classes)


JAVA_WORDS = {kind.value: kind for kind in JavaType}


def javap_fields(version: int, jar: Path, name: str) -> list[DumpedField]:
    utf8 = ("-J-Dfile.encoding=UTF-8", "-J-Dstdout.encoding=UTF-8")
    listed = run(tool(version, "javap"), *utf8, "-p", "-cp", jar, name)
    fields = []
    for line in listed.splitlines():
        found = re.fullmatch(r"  ((?:\w+ )*)(\S+) ([^\s(){}]+);", line)
        if found:
            fields.append(
                DumpedField(found[3], JAVA_WORDS.get(found[2], JavaType.REFERENCE), "static" in found[1].split())
            )
    return fields


@mixed_jvm
def test_fields_are_those_of_javap_in_declared_order_or_backwards(mixed: Jvm) -> None:
    classes = mixed.classes
    for name in ("Mixed", "Base", "Mixed$Inner", "Mixed$Constants", "Mixed$Color", "Mixed$Point"):
        declared = javap_fields(mixed.version, mixed.jar, name)
        assert declared
        dumped = list(classes[name].fields or ())
        for is_static in (False, True):
            expected = [field for field in declared if field.is_static is is_static]
            order = [field for field in dumped if field.is_static is is_static]
            assert order == (expected[::-1] if mixed.version == 17 else expected)
    assert classes["Mixed"].super_name == "Base"
    assert classes["Mixed"].loader_id == classes["Base"].loader_id != 0
    assert classes["java/lang/String"].loader_id == 0
    assert classes["java/lang/Object"].super_name == ""
    assert classes["Mixed$Point"].instance_bytes > 0
    assert any(declared.is_hidden for declared in classes.values() if declared.name.startswith("Mixed$$Lambda"))


def verdicts(jvm: Jvm, jar: bytes) -> dict[str, hprof.LayoutComparison]:
    compiled = [it.layout for it in iter_jar_classes(io.BytesIO(jar)) if isinstance(it, JarClass)]
    return {it.name: compare_layout(jvm.classes[it.name], it) for it in compiled if it.name in jvm.classes}


@mixed_jvm
def test_unchanged_jar_has_the_same_classes(mixed: Jvm) -> None:
    compared = verdicts(mixed, mixed.jar.read_bytes())
    assert len(compared) >= 6
    assert {it.verdict for it in compared.values()} == {LayoutVerdict.SAME}
    assert not any(it.is_reordered for it in compared.values())


@mixed_jvm
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("byte b1;", "byte b1; int added;", "only in the class file: int added"),
        (" long l2;", "", "only in the dump: long l2"),
        ("short h1;", "short h9;", "only in the dump: short h1; only in the class file: short h9"),
        ("float f1;", "double f1;", "f1: float in the dump, double in the class file"),
        ("int i1;", "long i1;", "i1: int in the dump, long in the class file"),
        ("a1;", "a1 = {}; static int extra;", "only in the class file: static int extra"),
        (
            "boolean z1;",
            "static boolean z1;",
            "only in the dump: boolean z1; only in the class file: static boolean z1",
        ),
        ("static int si = 7;", "", "only in the dump: static int si. An agent"),
        ("extends Base", "", "extends Base in the dump, java/lang/Object in the class file"),
    ],
)
def test_changed_class_differs_and_the_others_do_not(mixed: Jvm, old: str, new: str, says: str) -> None:
    assert old in MIXED
    compared = verdicts(mixed, build_jar(MIXED.replace(old, new, 1)))
    differing = {name for name, it in compared.items() if it.verdict is LayoutVerdict.DIFFERS}
    assert differing == {"Mixed"}
    assert says in compared["Mixed"].says
    assert len(compared) >= 6


@mixed_jvm
def test_other_order_is_said_and_another_class_type_is_not_seen(mixed: Jvm) -> None:
    moved = MIXED.replace("byte b1; Object o1;", "Object o1; byte b1;").replace("String s1;", "Integer s1;")
    compared = verdicts(mixed, build_jar(moved))["Mixed"]
    assert compared.verdict is LayoutVerdict.SAME
    assert compared.is_reordered
    assert "another order" in compared.says


@zoo_jvm
@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("", "", ""),
        ("private final String name;", "private final String name; private int added;", "Zoo$Account"),
        ("private static final int BEAT_EVERY_MS", "private static final long BEAT_EVERY_MS", "Zoo"),
        (
            "record Way(String name, String describe, Fall fall",
            "record Way(String name, String told, Fall fall",
            "Zoo$Way",
        ),
    ],
    ids=["unchanged", "added", "retyped", "renamed"],
)
def test_rebuilt_zoo(zoo_dump: Jvm, old: str, new: str, changed: str) -> None:
    source = (zoo.ZOO / "java" / "Zoo.java").read_text()
    assert source.count(old) == 1 or not changed
    if changed == "Zoo$Way":
        source = re.sub(r"\bdescribe\b", "told", source)
    compared = verdicts(zoo_dump, build_jar(source.replace(old, new), "Zoo"))
    assert {"Zoo", "Zoo$Way", "Zoo$CacheEntry"} <= compared.keys()
    differing = {name for name, it in compared.items() if it.verdict is not LayoutVerdict.SAME}
    # Account is not loaded in this way of being sick: no verdict on what the dump does not hold.
    assert differing == {changed} & compared.keys()


@zoo_jvm
def test_every_class_of_the_jdk_has_the_layout_of_its_own_image(zoo_dump: Jvm, tmp_path: Path) -> None:
    home = zoo.jdk(zoo_dump.version)
    assert home is not None
    pattern = "regex:/java.base/java/(lang|util|io|net|security)/.*"
    run(home / "bin" / "jimage", "extract", "--dir", tmp_path, "--include", pattern, home / "lib" / "modules")
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w") as archive:
        for path in tmp_path.rglob("*.class"):
            archive.write(path, str(path.relative_to(tmp_path)))
    classes = zoo_dump.classes
    same = 0
    for it in iter_jar_classes(jar):
        assert isinstance(it, JarClass)
        if it.layout.name in classes:
            compared = compare_layout(classes[it.layout.name], it.layout)
            assert compared.verdict is LayoutVerdict.SAME, compared.says
            assert not compared.is_reordered, compared.says
            same += 1
    assert same > 300


@zoo_jvm
def test_zoo_jvm_is_what_jcmd_says(zoo_dump: Jvm) -> None:
    summary = zoo_dump.summary
    assert summary.conflicts == ()
    assert {name: zoo_dump.properties[name] for name in summary.says if name != "sun.java.command"} == {
        name: value for name, value in summary.says.items() if name != "sun.java.command"
    }
    assert summary.says["sun.java.command"] == f"{zoo_dump.jar} (2 more words withheld)"


@mixed_jvm
@pytest.mark.parametrize("chunk_bytes", [4097, 65_536, 1 << 30])
def test_size_of_chunks_does_not_matter(mixed: Jvm, chunk_bytes: int) -> None:
    assert read(mixed.data, chunk_bytes) == mixed.summary


@mixed_jvm
def test_unpacked_gzip_stream_reads_the_same(mixed: Jvm) -> None:
    packed = gzip.compress(mixed.data, 1)

    def unpacked() -> Iterator[bytes]:
        with gzip.open(io.BytesIO(packed)) as stream:
            while chunk := stream.read(MIB):
                yield chunk

    assert read_hprof(unpacked) == mixed.summary
    with pytest.raises(NotHprof, match="gzip"):
        read(packed)


@mixed_jvm
def test_reading_by_offset_is_the_same(mixed: Jvm) -> None:
    data = mixed.data
    whole = read_hprof(lambda: iter_chunks(lambda at, length: data[at : at + length], len(data)))
    assert whole == mixed.summary


@mixed_jvm
def test_cut_dump_says_so_and_invents_nothing(mixed: Jvm) -> None:
    data, whole = mixed.data, mixed.summary
    layouts = {declared.id: declared for declared in whole.classes}
    heap_at = data.index(b"\x1c", len(data) // 4)
    chosen = random.Random(mixed.version)
    for cut in [5, 20, 31, 100, *sorted(chosen.choices(range(heap_at, len(data)), k=8)), len(data) - 1]:
        part = outcome(data[:cut])
        if isinstance(part, FormatError):
            assert cut < 31
            assert "cut" in part.message
            continue
        assert part.structure.shape is Shape.CUT
        assert part.lost[0] == part.structure.says
        assert part.says.items() <= whole.says.items() | {("java.vm.name", "a name of its own")}
        for declared in part.classes:
            assert declared.fields in (None, layouts[declared.id].fields)


@mixed_jvm
@settings(max_examples=25, deadline=None)
@given(draw=st.data())
def test_mutated_real_dumps_end_in_a_result_or_a_format_error(mixed: Jvm, draw: st.DataObject) -> None:
    assert_ends(outcome(draw.draw(mutated(mixed.data))))


def assert_ends(end: HprofSummary | FormatError) -> None:
    if isinstance(end, FormatError):
        assert end.message.endswith(".")
    else:
        assert all(says.endswith(".") for says in (end.structure.says, *end.lost, *end.conflicts))


# ---- other JVMs

STATED = {
    "java.version": "1.8.0_999",
    "java.vm.version": "25.1-b2",
    "java.vm.name": "Ünïcode VM \N{SNOWMAN}",
    "java.runtime.version": "1.8.0_999-b1",
    "os.name": "Linux",
    "os.arch": "aarch64",
}
OTHERS = {f"app.property.{number}": f"value {number}" for number in range(60)}
layouts = pytest.mark.parametrize("jdk", LAYOUTS, ids=lambda jdk: jdk.name)


def jvm_dump(jdk: Jdk, out: HprofWriter | None = None, *, saved: bool = True) -> HprofWriter:
    out = out or HprofWriter()
    jvm = JvmWriter(out, jdk)
    out.add_roots()
    jvm.add_system(jvm.add_properties(OTHERS | STATED))
    if saved and jdk.saved:
        jvm.add_vm(jvm.add_saved(STATED))
    return out


@layouts
@pytest.mark.parametrize("id_bytes", [4, 8])
@pytest.mark.parametrize("order", [0, -1, 5])
def test_properties_are_followed_as_each_jdk_keeps_them(jdk: Jdk, id_bytes: int, order: int) -> None:
    out = jvm_dump(jdk, HprofWriter(id_bytes))
    summary = read(out.render(order=order), 1000)
    assert summary.says == STATED
    best = Found.SAVED_PROPERTIES if jdk.saved else Found.SYSTEM_PROPERTIES
    assert {statement.found for statement in summary.jvm} == {best}
    assert summary.conflicts == ()
    assert summary.lost == ()
    assert summary.id_bytes == id_bytes
    assert summary.dumped_at == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)


@layouts
def test_every_layout_of_the_file_is_read(jdk: Jdk) -> None:
    expected = read(jvm_dump(jdk).render())
    for changes in (
        {"segmented": False},
        {"dotted": True},
        {"classes_last": True},
        {"records_last": True},
        {"classes_last": True, "records_last": True},
    ):
        out = jvm_dump(jdk)
        shaped = jvm_dump(jdk, HprofWriter(**changes))  # type: ignore[arg-type]
        assert out.heap == shaped.heap
        summary = read(shaped.render(order=3))
        assert summary.says == STATED, changes
        assert {*summary.classes} == {*expected.classes}, changes


def test_system_properties_stand_in_where_nothing_was_saved() -> None:
    summary = read(jvm_dump(LAYOUTS[3], saved=False).render())
    assert summary.says == STATED
    assert {statement.found for statement in summary.jvm} == {Found.SYSTEM_PROPERTIES}


def test_offset_points_at_the_characters() -> None:
    for jdk in LAYOUTS:
        data = jvm_dump(jdk).render()
        for statement in read(data).jvm:
            encodings = ["utf-16-be"] if jdk.char_arrays else ["latin-1", "utf-16-le"]
            expected = [statement.value.encode(encoding, "ignore") for encoding in encodings]
            assert any(data[statement.offset :].startswith(text) for text in expected), statement


def test_constants_of_the_version_class_speak_where_properties_do_not() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3])
    jvm.add_constants(java_version="17.0.1", java_runtime_version="17.0.1+12", VENDOR="A Vendor", launcher_name="x")
    summary = read(out.render(order=-1))
    assert summary.says == {
        "java.version": "17.0.1",
        "java.runtime.version": "17.0.1+12",
        "java.vendor": "A Vendor",
    }
    assert {statement.found for statement in summary.jvm} == {Found.CONSTANT}
    assert summary.lost == ()


def test_defaults_count_last() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3])
    defaults = jvm.add_properties(STATED | {"os.name": "from the defaults"})
    jvm.add_system(jvm.add_properties({"os.name": "from the map"}, defaults=defaults))
    assert read(out.render()).says == STATED | {"os.name": "from the map"}


def test_subclass_with_fields_of_the_same_names_does_not_lead_astray() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3])
    own = out.add_class("app/Settings", [("map", INT), ("table", LONG), ("value", CHAR)], extends=jvm.properties)
    jvm.add_system(jvm.add_properties(STATED, class_id=own))
    assert read(out.render()).says == STATED


def test_crowded_bucket_is_followed() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3], buckets=1)
    chain = jvm.add_hash_table(STATED | OTHERS, jvm.concurrent_node)
    head = int.from_bytes(out.heap[-1][-8:], "big")
    tree = out.add_objects([out.add(jvm.tree_bin, hash=-2, first=head, root=head)])
    assert chain != tree
    jvm.add_system(out.add(jvm.properties, map=out.add(jvm.concurrent_map, table=tree)))
    assert read(out.render()).says == STATED


def test_bytes_that_look_like_a_wanted_object_are_not_one() -> None:
    out = jvm_dump(LAYOUTS[3], saved=False)
    data = out.render()
    (version,) = (it for it in read(data).jvm if it.name == "java.version")
    place = next(at for at, record in enumerate(out.heap) if record.endswith(version.value.encode()))
    forged = out.heap[place].replace(version.value.encode(), b"6.6.6_666")
    assert len(forged) == len(out.heap[place])
    for length in (len(forged), 200, 5000):  # inside an array that is stepped over, and one that is not
        bait = forged * (length // len(forged))
        out.heap.insert(0, b"\x23" + out.i(0x55) + bytes(4) + len(bait).to_bytes(4, "big") + bytes([BYTE]) + bait)
    assert read(out.render()).says == STATED


# ---- entries of any map


def entries_dump(*maps: dict[str, str]) -> bytes:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3])
    for number, values in enumerate(maps):
        jvm.add_hash_table(values, (jvm.hash_node, jvm.concurrent_node, jvm.entry)[number % 3])
    return out.render(order=-1)


def test_entries_of_some_map_are_the_last_resort_and_called_so() -> None:
    summary = read(entries_dump(STATED, STATED, STATED))
    assert summary.says == STATED
    assert {statement.found for statement in summary.jvm} == {Found.MAP_ENTRY}


def test_maps_that_differ_state_nothing() -> None:
    summary = read(entries_dump(STATED, STATED | {"java.version": "17.0.1"}))
    assert "java.version" not in summary.says
    assert summary.says["os.name"] == "Linux"
    assert any("2 maps" in says and "java.version" in says for says in summary.lost)


def test_hash_alone_is_not_a_key() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3])
    # "Aa" and "BB" have one hash: so have these two names.
    colliding = "java.versinP"
    table = jvm.add_hash_table({colliding: "17"}, jvm.hash_node)
    assert table
    summary = read(out.render())
    assert summary.jvm == ()
    assert any("does not state which JVM" in says for says in summary.lost)


def test_dump_without_properties_says_so() -> None:
    summary = read(HprofWriter().render())
    assert summary.classes == ()
    assert summary.lost == (
        "The heap does not state which JVM wrote it: no static field leads to the system properties.",
    )


# ---- classes


def test_static_fields_with_angle_brackets_are_the_jvms_own() -> None:
    out = HprofWriter()
    out.add_class("a/B", [("x", INT)], statics=[("<resolved_references>", OBJECT, 5), ("y", LONG, 6)], constants=3)
    (declared,) = read(out.render()).classes
    assert declared.fields == (DumpedField("x", JavaType.INT), DumpedField("y", JavaType.LONG, True))


def test_class_without_its_layout_is_unknown() -> None:
    out = HprofWriter()
    out.add_class("a/B", [("x", INT)], dumped=False)
    (declared,) = read(out.render()).classes
    assert declared.fields is None
    compared = compare_layout(declared, ClassLayout("a/B", "java/lang/Object", (), 61))
    assert compared.verdict is LayoutVerdict.UNKNOWN
    assert compared.says == "The dump names a/B and does not hold its fields."


def test_two_loaders_may_have_classes_of_one_name() -> None:
    out = HprofWriter()
    out.add_class("a/B", [("x", INT)], loader=0x10)
    out.add_class("a/B", [("x", LONG)], loader=0x20)
    assert [(it.loader_id, it.fields) for it in read(out.render()).classes] == [
        (0x10, (DumpedField("x", JavaType.INT),)),
        (0x20, (DumpedField("x", JavaType.LONG),)),
    ]


def test_names_that_are_not_ascii() -> None:
    out = HprofWriter()
    out.add_class("a/\N{SNOWMAN}\U0001d4b3", [("nul\0", INT), ("half\ud800", INT)])
    (declared,) = read(out.render()).classes
    assert declared.name == "a/\N{SNOWMAN}\U0001d4b3"
    assert declared.fields == (DumpedField("nul\0", JavaType.INT), DumpedField("half\\ud800", JavaType.INT))


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("A$$Lambda+0x00007f1200", True),
        ("A$$Lambda$1/0x00000008000", True),
        ("A.0x12ab", True),
        ("A$$Lambda$1/764977973", True),
        ("A$B", False),
    ],
)
def test_hidden_classes_are_known_by_their_address(name: str, hidden: bool) -> None:
    out = HprofWriter()
    out.add_class(name)
    (declared,) = read(out.render()).classes
    assert (declared.name, declared.is_hidden) == (name, hidden)


# ---- comparison


def dumped(*fields: tuple[str, JavaType], static: tuple[tuple[str, JavaType], ...] = ()) -> DumpedClass:
    own = [DumpedField(name, kind) for name, kind in fields]
    return DumpedClass("C", "S", 1, 2, (*own, *(DumpedField(name, kind, True) for name, kind in static)))


def compiled(*fields: str, extends: str = "S", name: str = "C") -> ClassLayout:
    """Fields as "int x" or "static int x", in descriptors: "I x"."""
    declared = []
    for field in fields:
        *flags, descriptor, field_name = field.split()
        declared.append(CompiledField(field_name, descriptor, bool(flags)))
    return ClassLayout(name, extends, tuple(declared), 61)


def test_types_of_descriptors() -> None:
    words = ["boolean", "byte", "char", "short", "int", "long", "float", "double"]
    for descriptor, word in zip("ZBCSIJFD", words, strict=True):
        assert compare_layout(dumped(("x", JavaType(word))), compiled(f"{descriptor} x")).verdict is LayoutVerdict.SAME
    for descriptor in ("Ljava/lang/String;", "[I", "[[Lx/Y;"):
        same = compare_layout(dumped(("x", JavaType.REFERENCE)), compiled(f"{descriptor} x"))
        assert same.verdict is LayoutVerdict.SAME


def test_fields_of_one_name_are_told_apart_by_type() -> None:
    both = dumped(("a", JavaType.INT), ("a", JavaType.LONG))
    assert compare_layout(both, compiled("J a", "I a")).verdict is LayoutVerdict.SAME
    one = compare_layout(both, compiled("I a"))
    assert one.only_dumped == ("long a",)
    assert one.retyped == ()
    other = compare_layout(both, compiled("I a", "F a", "D b"))
    assert other.retyped == ("a: long in the dump, float in the class file",)
    assert other.only_compiled == ("double b",)


def test_each_half_may_be_backwards() -> None:
    here = dumped(("a", JavaType.INT), ("b", JavaType.LONG), static=(("y", JavaType.INT), ("x", JavaType.INT)))
    assert not compare_layout(here, compiled("I a", "static I x", "J b", "static I y")).is_reordered
    three = dumped(("a", JavaType.INT), ("b", JavaType.INT), ("c", JavaType.INT))
    assert compare_layout(three, compiled("I b", "I a", "I c")).is_reordered


def test_another_name_is_no_verdict() -> None:
    assert compare_layout(dumped(), compiled(name="D")).verdict is LayoutVerdict.UNKNOWN


def test_superclass_is_not_judged_where_the_dump_does_not_know_it() -> None:
    unknown = replace(dumped(("a", JavaType.INT)), super_name="")
    assert compare_layout(unknown, compiled("I a", extends="Other")).verdict is LayoutVerdict.SAME
    differs = compare_layout(dumped(("a", JavaType.INT)), compiled("I a", extends="Other"))
    assert differs.verdict is LayoutVerdict.DIFFERS


def test_long_lists_are_cut_in_the_sentence_only() -> None:
    compared = compare_layout(dumped(), compiled(*(f"I f{number}" for number in range(500))))
    assert len(compared.only_compiled) == 500
    assert "and 480 more" in compared.says


# ---- hostile files


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", NotHprof, "do not begin"),
        (b"\x7fELF" + bytes(60), NotHprof, "do not begin"),
        (b"JAVA PROF", BrokenHprof, "cut after 9"),
        (b"JAVA PROFILE 1.0.2", BrokenHprof, "cut after 18"),
        (b"JAVA PROFILE 1.0.2\0\0\0\0\x08", BrokenHprof, "cut after 23"),
        (b"JAVA PROFILE 1.0." + b"2" * 100, NotHprof, "no end"),
        (b"JAVA PROFILE 1.0.2\0\0\0\0\x05" + bytes(8), BrokenHprof, "5 bytes"),
        (gzip.compress(b"JAVA PROFILE 1.0.2\0"), NotHprof, "unpacked"),
    ],
)
def test_what_is_no_heap_dump_has_its_sentence(data: bytes, error: type[FormatError], says: str) -> None:
    with pytest.raises(error, match=says):
        read(data)


def test_time_that_no_calendar_has() -> None:
    out = HprofWriter(time_ms=2**64 - 1)
    assert read(out.render()).dumped_at is None


def test_every_cut_of_a_small_dump_is_cut() -> None:
    data = jvm_dump(LAYOUTS[3]).render()
    whole = read(data)
    known = {declared.id: declared for declared in whole.classes}
    for cut in range(31, len(data), 29):
        part = read(data[:cut], 500)
        assert part.structure.shape is Shape.CUT
        assert part.says.items() <= whole.says.items()
        for declared in part.classes:
            assert declared.fields in (None, known[declared.id].fields)


@pytest.mark.parametrize("jdk", [LAYOUTS[0], LAYOUTS[3]], ids=lambda jdk: jdk.name)
@settings(max_examples=150, deadline=None)
@given(draw=st.data())
def test_mutated_dumps_end_in_a_result_or_a_format_error(jdk: Jdk, draw: st.DataObject) -> None:
    data = jvm_dump(jdk).render()
    data = draw.draw(mutated(data, head_bytes=len(data)))
    assert_ends(outcome(data, draw.draw(st.sampled_from([1, 100, 4096, MIB]))))


def test_rings_of_objects_and_classes_end() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3])
    node, table, holder, mapping = (out.new_id() for _ in range(4))
    out.add(jvm.concurrent_node, node, hash=1, next=node)
    out.add_objects([node, node, table, 0], table)
    out.add(jvm.concurrent_map, mapping, table=table)
    out.add(jvm.properties, holder, map=mapping, defaults=holder)
    jvm.add_system(holder)
    looped = out.add_class("a/Loop", [("map", OBJECT)])
    ring = out.class_dumps[-1]
    out.class_dumps[-1] = ring.replace(out.i(0), out.i(looped), 1)
    jvm.add_vm(out.add(looped, map=holder))
    summary = read(out.render(order=-1))
    assert summary.jvm == ()
    assert any("does not state" in says for says in summary.lost)


def test_chain_that_goes_backwards_for_ever_is_given_up() -> None:
    out = HprofWriter()
    jvm = JvmWriter(out, LAYOUTS[3], buckets=1)
    jvm.add_system(jvm.add_properties({f"app.{number}": "x" for number in range(3000)} | STATED))
    passes = 0

    def chunks() -> Iterator[bytes]:
        nonlocal passes
        passes += 1
        return (data[at : at + 4096] for at in range(0, len(data), 4096))

    data = out.render(order=-1, in_a_segment=2)
    summary = read_hprof(chunks)
    assert passes <= 19
    assert summary.lost


def test_one_broken_segment_does_not_hide_the_others() -> None:
    out = jvm_dump(LAYOUTS[3])
    whole = read(out.render())
    summary = read(out.render(in_a_segment=10, before_heap=[out.record(0x1C, b"\xfe" + bytes(50))] * 30))
    assert summary.says == whole.says
    assert summary.classes == whole.classes
    assert len([says for says in summary.lost if "tag 0xfe" in says]) == 20
    assert "10 more heap segments make no sense somewhere." in summary.lost


@pytest.mark.parametrize("size_at", [13, 21])
def test_record_over_the_end_of_its_segment_is_said(size_at: int) -> None:
    out = jvm_dump(LAYOUTS[3])
    tag = b"\x21" if size_at == 21 else b"\x23"
    record = bytearray(tag + bytes(60))
    record[size_at : size_at + 4] = b"\x7f\xff\xff\xff"
    record[17] = BYTE if size_at == 13 else record[17]
    out.heap.append(bytes(record))
    assert any("reaches over its end" in says for says in read(out.render()).lost)


def test_very_large_class_is_read() -> None:
    out = HprofWriter()
    statics: list[tuple[str, int, float]] = [("s", LONG, 1)] * 65_535
    out.add_class("a/B", [("f", INT)] * 65_535, statics=statics, constants=65_535)
    (declared,) = read(out.render(), 10_000).classes
    assert declared.fields is not None
    assert len(declared.fields) == 2 * 65_535


def test_too_many_classes_are_bounded_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hprof_walk, "_MAX_CLASSES", 5)
    out = HprofWriter()
    for number in range(9):
        out.add_class(f"C{number}", [("x", INT)])
    summary = read(out.render())
    assert [declared.name for declared in summary.classes] == [f"C{number}" for number in range(5)]
    assert any("left out" in says for says in summary.lost)


def test_names_that_are_missing_are_counted() -> None:
    out = HprofWriter()
    out.add_class("C", [("x", INT)])
    out.records = [record for record in out.records if not record.endswith(b"x")]
    summary = read(out.render())
    assert summary.classes[0].fields is None
    assert summary.lost[0] == "Names of classes and fields that are not in the dump, or too many or too long: 1."


def test_dump_that_unpacks_559_fold_takes_no_memory() -> None:
    array_bytes = 300 * MIB
    out = jvm_dump(LAYOUTS[3])
    array = b"\x23" + out.i(0x55) + bytes(4) + array_bytes.to_bytes(4, "big") + bytes([BYTE])
    segment = b"\x1c" + bytes(4) + (len(array) + array_bytes).to_bytes(4, "big")
    data = out.render()
    head, end = data[:-9] + segment + array, data[-9:]
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6) as stream:
        stream.write(head)
        for _ in range(array_bytes // MIB):
            stream.write(bytes(MIB))
        stream.write(end)
    assert array_bytes > 559 * len(packed.getvalue())

    def unpacked() -> Iterator[bytes]:
        packed.seek(0)
        stream = gzip.GzipFile(fileobj=packed)
        while chunk := stream.read(MIB):
            yield chunk

    tracemalloc.start()
    try:
        summary = read_hprof(unpacked)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summary.says == STATED
    assert summary.structure.shape is Shape.WHOLE
    assert summary.structure.actual_bytes == len(head) + array_bytes + len(end)
    assert peak < 16 * MIB


def test_memory_does_not_grow_with_the_number_of_objects() -> None:
    out = jvm_dump(LAYOUTS[3])
    filler = HprofWriter(next_id=0x900000)
    for number in range(2000):
        filler.add_numbers(BYTE, bytes(number % 140))
        filler.add_objects([1] * (number % 20))
    segment = out.record(0x1C, b"".join(filler.heap))
    mark = b"here the segments go"
    start, end = out.render(before_heap=[mark]).split(mark)

    def chunks(times: int) -> Iterator[bytes]:
        yield start
        for _ in range(times):
            yield segment
        yield end

    peaks = []
    for times in (1, 40):
        tracemalloc.start()
        try:
            summary = read_hprof(lambda times=times: chunks(times))  # type: ignore[misc]
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert summary.says == STATED
    assert 40 * len(segment) > 10 * MIB
    assert peaks[1] < peaks[0] + 8 * MIB


def test_reading_again_finds_the_same() -> None:
    data = jvm_dump(LAYOUTS[1]).render(order=7)
    assert read(data) == read(data)


def test_dump_that_changes_between_passes_does_no_harm() -> None:
    first, second = jvm_dump(LAYOUTS[3]).render(order=-1), jvm_dump(LAYOUTS[0]).render(order=5)
    turn = iter([first, first, second, second[: len(second) // 2], *[b""] * 20])
    assert read_hprof(lambda: [next(turn)]).structure.shape is Shape.WHOLE
