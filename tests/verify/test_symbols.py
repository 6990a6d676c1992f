"""The store: the layout that debuggers know, nothing replaced, everything findable by ID."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pmforensics.errors import CandidateUnreadable, VerifyError
from pmforensics.verify.dumps import open_dump
from pmforensics.verify.identity import verify_identity
from pmforensics.verify.lookup import from_local_paths, from_stores
from pmforensics.verify.symbols import SymbolStore, add_all
from pmforensics.verify.verdict import Verdict
from tests.formats.core_writer import IDS, LIB, Process
from tests.formats.elf_writer import ElfWriter, Section, Segment
from tests.formats.test_core import compiled, go, readelf_build_id, run
from tests.verify.specimens import CRASH, Crashed, Rebuilt, edited

pytestmark = pytest.mark.needs("gcc", "readelf", "objcopy", "strip")


@pytest.fixture
def store(tmp_path: Path) -> SymbolStore:
    return SymbolStore(tmp_path / "store")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return compiled(tmp_path, CRASH, "-g", "-Wl,--build-id")


def split(program: Path) -> tuple[Path, Path]:
    """The same stripped, and its debug file."""
    stripped, debug = program.with_name("stripped"), program.with_name("program.debug")
    run("objcopy", "--only-keep-debug", program, debug)
    run("strip", "-o", stripped, program)
    return stripped, debug


def place_of(store: SymbolStore, program: Path, suffix: str = "") -> Path:
    build_id = readelf_build_id(program)
    assert build_id is not None
    return store.root / ".build-id" / build_id[:2] / (build_id[2:] + suffix)


def test_executable_and_debug_file_lie_where_debuggers_look(store: SymbolStore, program: Path) -> None:
    stripped, debug = split(program)
    for path, suffix in ((stripped, ""), (debug, ".debug")):
        stored, is_new = store.add(path)
        assert is_new
        assert stored.path == place_of(store, program, suffix)
        assert stored.path.read_bytes() == path.read_bytes()
        record = json.loads(stored.path.with_name(stored.path.name + ".json").read_text())
        assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record["source"] == str(path)
        assert store.add(path)[1] is False
    found = store.find(readelf_build_id(program) or "")
    assert [(one.path, one.is_debug) for one in found] == [
        (place_of(store, program), False), (place_of(store, program, ".debug"), True),
    ]  # fmt: skip


def test_unstripped_executable_is_its_own_debug_file_until_there_is_one(store: SymbolStore, program: Path) -> None:
    store.add(program)
    link = place_of(store, program, ".debug")
    assert link.is_symlink()
    assert link.read_bytes() == program.read_bytes()
    assert [one.is_debug for one in store.iter_all()] == [False]
    _, debug = split(program)
    store.add(debug)
    assert not link.is_symlink()
    assert link.read_bytes() == debug.read_bytes()
    assert place_of(store, program).read_bytes() == program.read_bytes()


@pytest.mark.parametrize("order", ["stripped-first", "stripped-last"])
def test_build_that_is_added_stripped_and_not_is_one_build(store: SymbolStore, program: Path, order: str) -> None:
    stripped, _ = split(program)
    files = [stripped, program] if order == "stripped-first" else [program, stripped]
    assert [store.add(path)[1] for path in files] == [True, True]
    assert [store.add(path)[1] for path in files] == [False, False]
    assert place_of(store, program, ".debug").read_bytes() == program.read_bytes()
    assert place_of(store, program).read_bytes() == files[0].read_bytes()


def test_other_bytes_under_the_same_id_are_kept_beside_and_said(store: SymbolStore, program: Path) -> None:
    store.add(program)
    altered = edited(program, "altered", program.stat().st_size - 1, b"\xee")
    with pytest.raises(VerifyError, match="two files with one ID") as caught:
        store.add(altered)
    beside = place_of(store, program).with_name(
        f"{place_of(store, program).name}.{hashlib.sha256(altered.read_bytes()).hexdigest()[:8]}"
    )
    assert beside.name in caught.value.message
    assert beside.read_bytes() == altered.read_bytes()
    assert place_of(store, program).read_bytes() == program.read_bytes()
    assert store.add(altered)[1] is False


def test_nothing_half_written_stays_behind(store: SymbolStore, program: Path) -> None:
    stripped, debug = split(program)
    add_all(store, [program, stripped, debug, program])
    assert not [path for path in store.root.rglob("*") if "partial" in path.name]


@pytest.mark.needs("go")
def test_what_has_no_id_to_be_found_by_is_refused_with_the_way_out(store: SymbolStore, tmp_path: Path) -> None:
    no_id = compiled(tmp_path, CRASH, "-Wl,--build-id=none", name="no-id")
    with pytest.raises(CandidateUnreadable, match="no GNU build ID") as caught:
        store.add(no_id)
    # The way out works as it stands.
    assert "-ldflags=-B=gobuildid" in caught.value.hint
    (tmp_path / "main.go").write_text("package main\n\nfunc main() {}\n")
    (tmp_path / "go.mod").write_text("module example.org/x\n\ngo 1.21\n")
    go("build", "-buildvcs=false", "-ldflags=-B=gobuildid", "-o", "with-id", ".", cwd=tmp_path)
    assert store.add(tmp_path / "with-id")[1]
    short = compiled(tmp_path, CRASH, "-Wl,--build-id=0x0102", name="short")
    with pytest.raises(CandidateUnreadable, match="proves nothing"):
        store.add(short)
    assert sorted(one.name for one in store.iter_all()) == ["with-id"]


def test_folder_adds_its_elf_files_and_tells_what_it_could_not(store: SymbolStore, tmp_path: Path) -> None:
    folder = tmp_path / "release"
    (folder / "lib").mkdir(parents=True)
    compiled(folder, CRASH, "-Wl,--build-id", name="app")
    compiled(folder / "lib", "int held;\n", "-shared", "-fPIC", "-Wl,--build-id", name="libheld.so.1")
    (folder / "lib" / "libheld.so").symlink_to("libheld.so.1")
    compiled(folder, CRASH, "-Wl,--build-id=none", name="no-id")
    added, trouble = add_all(store, [folder])
    assert sorted(stored.name for stored, _ in added) == ["app", "libheld.so.1"]
    assert len(trouble) == 1
    assert "no-id" in trouble[0]


def test_ids_are_found_by_their_start_and_nothing_else_is_an_id(store: SymbolStore, program: Path) -> None:
    store.add(program)
    build_id = readelf_build_id(program) or ""
    for wanted in (build_id, build_id[:8], build_id[:4], build_id.upper(), f" {build_id}\n"):
        assert [one.build_id for one in store.find(wanted)] == [build_id]
    assert store.find(build_id[:2] + "0" * 38) == []
    assert store.find("ff" * 20) == []
    for wrong in ("", "12", "xyz", "../../etc", build_id[:3]):
        with pytest.raises(VerifyError, match="no build ID"):
            store.find(wrong)
        assert store.paths_for(wrong) == []


def test_missing_ids_are_those_under_which_nothing_lies(store: SymbolStore, program: Path) -> None:
    store.add(program)
    build_id = readelf_build_id(program) or ""
    assert store.missing([build_id, "ab" * 20, build_id[:8]]) == ["ab" * 20, build_id[:8]]


def test_store_that_is_not_there_is_empty(store: SymbolStore) -> None:
    assert list(store.iter_all()) == []
    assert store.find("ab" * 20) == []
    assert store.serve_layout(store.root.parent / "out") == 0


def test_served_layout_is_links_to_both_kinds_and_grows(store: SymbolStore, program: Path, tmp_path: Path) -> None:
    stripped, debug = split(program)
    out = tmp_path / "out"
    build_id = readelf_build_id(program) or ""
    store.add(stripped)
    assert store.serve_layout(out) == 1
    assert (out / "buildid" / build_id / "executable").read_bytes() == stripped.read_bytes()
    store.add(debug)
    assert store.serve_layout(out) == 1
    assert (out / "buildid" / build_id / "debuginfo").read_bytes() == debug.read_bytes()
    assert store.serve_layout(out) == 0


# ---- looked up


def test_store_is_looked_up_by_the_ids_in_the_dump(store: SymbolStore, rebuilt: Rebuilt) -> None:
    add_all(store, [rebuilt.folder / "release-1.0", rebuilt.now])
    with open_dump(rebuilt.core) as dump:
        found, trouble = from_stores(dump, [store.root])
        report = verify_identity(dump, found)
    assert trouble == []
    assert sorted(one.path for one in found) == sorted(
        (place_of(store, rebuilt.program), place_of(store, rebuilt.then))
    )
    assert report.verdict is Verdict.MATCH


def test_broken_file_in_the_store_is_a_sentence(store: SymbolStore, tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(Process().render())
    wanted = IDS[LIB].hex()
    broken = store.root / ".build-id" / wanted[:2] / wanted[2:]
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x7fELF cut")
    with open_dump(tmp_path / "core") as dump:
        found, trouble = from_stores(dump, [store.root])
    assert found == []
    assert trouble[0].startswith(f"{broken}: ")


def test_weak_ids_are_not_looked_up(store: SymbolStore, tmp_path: Path) -> None:
    process = Process()
    process.images[LIB] = process.image(bytes(20))
    (tmp_path / "core").write_bytes(process.render())
    writer = ElfWriter(elf_type=3)
    writer.segments = [Segment(1, b"code" * 8, flags=5), Segment(4, writer.note(b"GNU\0", 3, bytes(20)))]
    writer.sections = [Section(".text", 1, b"code" * 8)]
    place = store.root / ".build-id" / "00" / ("00" * 19)
    place.parent.mkdir(parents=True)
    place.write_bytes(writer.render())
    with open_dump(tmp_path / "core") as dump:
        assert from_stores(dump, [store.root]) == ([], [])


@pytest.mark.needs("dwz")
def test_shared_file_of_dwz_comes_along(store: SymbolStore, tmp_path: Path) -> None:
    source = '#include <stdio.h>\n#include <stdlib.h>\nint main(void) { printf("x"); abort(); }\n'
    programs = [compiled(tmp_path, source, "-g", "-Wl,--build-id", name=name) for name in ("one", "two")]
    run("dwz", "-m", tmp_path / "shared.dwz", *programs)
    add_all(store, [*programs, tmp_path / "shared.dwz"])
    with open_dump(programs[0]) as dump:
        found, _ = from_stores(dump, [store.root])
        report = verify_identity(dump, found)
    assert {row.code for row in report.asked} == {"same-id", "same-altlink"}


def test_local_paths_are_opened_when_asked_and_are_candidates_like_any_other(
    crashed: Crashed, rebuilt: Rebuilt
) -> None:
    with open_dump(rebuilt.core) as dump:
        found, says = from_local_paths(dump, [])
        report = verify_identity(dump, found)
    assert {one.path for one in found} >= {rebuilt.program, rebuilt.now}
    assert "--local-paths" in says
    assert {row.image.name for row in report.asked if row.verdict is Verdict.MISMATCH and row.image} == {
        str(rebuilt.now)
    }
    with open_dump(crashed.core) as dump:
        found, says = from_local_paths(dump, [])
    assert crashed.program in {one.path for one in found}
