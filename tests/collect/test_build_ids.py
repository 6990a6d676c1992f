"""Which build is mapped: held against readelf, eu-unstrip and go version -m, and against files that lie about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect.build_ids import BuildIds
from tests import captures, zoo
from tests.collect.harness import Collected, collect_one

pytestmark = pytest.mark.needs("root")  # map_files is for CAP_SYS_ADMIN

SLEEPER = """
#include <unistd.h>
int main(void) { for (;;) pause(); }
"""


def images(collected: Collected) -> dict[str, dict[str, Any]]:
    """Rows of images.json by path."""
    return {row["path"]: row for row in json.loads(collected.artifacts["images.json"])["images"]}


def build_id(path: Path | str) -> str | None:
    """As readelf tells it."""
    told = subprocess.run(["readelf", "-n", path], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Build ID: ([0-9a-f]+)", told)
    return found[1] if found else None


@contextmanager
def running(*command: Path | str) -> Iterator[int]:
    """A process, once it has become its program."""
    with subprocess.Popen(command) as process:
        try:
            name = Path(command[0]).name[:15]
            captures.wait_for("the exec", lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == name)
            yield process.pid
        finally:
            process.kill()


def compiled(folder: Path, name: str, *flags: str) -> Path:
    """A small program of its own build."""
    program = folder / name
    subprocess.run(["gcc", "-x", "c", "-", "-o", program, *flags], input=SLEEPER, text=True, check=True)
    return program


@pytest.mark.needs("readelf")
def test_build_id_of_every_mapped_image_is_that_of_readelf(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        collected = collect_one(BuildIds(), sick.pid, tmp_path)
        rows = images(collected)
        files = {path: row for path, row in rows.items() if path.startswith("/")}
        assert len(files) > 3
        for path, row in files.items():
            assert row["gnu_build_id"] == build_id(path), path
            assert row["read_by"] == "map_files"
            assert row["inode"] == os.stat(path).st_ino
            assert row["file_bytes"] == os.path.getsize(path)
        assert rows["[vdso]"]["read_by"] == "memory"
        assert rows["[vdso]"]["gnu_build_id"]
    assert not collected.gaps


@pytest.mark.needs("eu-unstrip", "gcc")
def test_list_of_images_is_that_of_elfutils(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 2) as sick:
        rows = images(collect_one(BuildIds(), sick.pid, tmp_path))
        told = subprocess.run(
            ["eu-unstrip", "-n", "-p", str(sick.pid)], capture_output=True, text=True, check=True
        ).stdout
    theirs = {line.split()[1].partition("@")[0] for line in told.splitlines()}
    ours = {row["gnu_build_id"] for row in rows.values()}
    assert theirs - {"-"} == ours - {None}
    assert len(ours) >= 4


@pytest.mark.needs("go")
def test_go_program_is_told_with_its_modules_as_go_itself_tells_them(tmp_path: Path) -> None:
    go = zoo.get_tool("go")
    with zoo.start("go", "idle") as sick:
        collected = collect_one(BuildIds(), sick.pid, tmp_path)
        exe = os.readlink(f"/proc/{sick.pid}/exe")
        told = subprocess.run([go, "version", "-m", exe], capture_output=True, text=True, check=True).stdout
        own_id = subprocess.run([go, "tool", "buildid", exe], capture_output=True, text=True, check=True).stdout.strip()
    info = json.loads(collected.artifacts["go.json"])
    assert info["go_version"] == told.splitlines()[0].split()[-1]
    assert images(collected)[exe]["go_build_id"] == own_id
    path = next(line.split("\t")[2] for line in told.splitlines() if line.startswith("\tpath"))
    assert path in json.dumps(info)
    settings = dict(re.findall(r"^\tbuild\t([^=]+)=(.*)$", told, re.MULTILINE))
    assert settings["GOARCH"] in json.dumps(info)
    assert not collected.gaps


@pytest.mark.needs("go")
def test_link_flags_of_a_go_program_are_withheld(tmp_path: Path) -> None:
    source = tmp_path / "main.go"
    source.write_text(
        'package main\nimport "time"\nvar secret string\nfunc main() { time.Sleep(time.Hour); println(secret) }\n'
    )
    program = tmp_path / "withflags"
    settings = {"GOCACHE": str(zoo.REPO / ".cache" / "go-build"), "GOFLAGS": "", "GO111MODULE": "off"}
    subprocess.run(
        [zoo.get_tool("go"), "build", "-ldflags", "-X main.secret=hunter2", "-o", program, source],
        env={**os.environ, **settings, "GOTOOLCHAIN": "local"},
        check=True,
        capture_output=True,
    )
    told = subprocess.run(
        [zoo.get_tool("go"), "version", "-m", program], capture_output=True, text=True, check=True
    ).stdout
    assert "hunter2" in told, "this Go records no link flags: nothing to withhold"
    with running(program) as pid:
        collected = collect_one(BuildIds(), pid, tmp_path / "c" if (tmp_path / "c").mkdir() is None else tmp_path)
    assert b"hunter2" not in b"".join(collected.artifacts.values())
    assert "go.json" in collected.artifacts


@pytest.mark.needs("gcc", "readelf")
def test_deleted_program_is_identified_from_what_is_still_mapped(tmp_path: Path) -> None:
    program = compiled(tmp_path, "doomed", "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567")
    with running(program) as pid:
        program.unlink()
        row = images(collect_one(BuildIds(), pid, tmp_path))[str(program)]
    assert (row["deleted"], row["gnu_build_id"]) == (True, "0123456789abcdef0123456789abcdef01234567")
    assert row["read_by"] in ("map_files", "memory")


@pytest.mark.needs("gcc", "readelf")
def test_program_replaced_on_disk_is_identified_as_it_runs_not_as_it_lies(tmp_path: Path) -> None:
    old = compiled(tmp_path, "service", "-Wl,--build-id=0x1111111111111111111111111111111111111111")
    new = compiled(tmp_path, "next", "-Wl,--build-id=0x2222222222222222222222222222222222222222")
    with running(old) as pid:
        os.rename(new, old)
        collected = collect_one(BuildIds(), pid, tmp_path)
        rows = images(collected)
    assert build_id(old) == "2" * 40
    assert rows[str(old)]["gnu_build_id"] == "1" * 40
    assert "2" * 40 not in collected.artifacts["images.json"].decode()


@pytest.mark.needs("root", "setpriv", "gcc")
def test_replaced_program_is_not_mistaken_where_only_paths_can_be_read(tmp_path: Path) -> None:
    # map_files needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE: an ordinary user's pmf goes by path and inode.
    from tests import users

    place = users.open_to(tmp_path / "open")
    old = compiled(place, "service", "-Wl,--build-id=0x1111111111111111111111111111111111111111")
    new = compiled(place, "next", "-Wl,--build-id=0x2222222222222222222222222222222222222222")
    with subprocess.Popen([*users.prefix(), old]) as process:
        try:
            captures.wait_for("the exec", lambda: Path(f"/proc/{process.pid}/comm").read_text() == "service\n")
            shutil.copy(old, place / "old")
            os.rename(new, old)
            evidence = place / "evidence"
            evidence.mkdir()
            os.chown(evidence, users.UID, users.UID)
            done = users.pmf("capture", "--pid", process.pid, "--evidence", evidence, "--force")
        finally:
            process.kill()
    assert done.returncode in (0, 3), done.stderr
    (path,) = (captures.only_bundle(evidence) / "data").glob("*-build_ids/images.json")
    rows = {row["path"]: row for row in json.loads(path.read_text())["images"]}
    row = rows[str(old)]
    assert row["gnu_build_id"] == "1" * 40
    assert row["read_by"] == "memory"
    assert any(other["read_by"] == "path" for other in rows.values())


@pytest.mark.needs("root", "unshare", "gcc")
def test_program_of_another_mount_namespace_is_read_there_not_here(tmp_path: Path) -> None:
    inside = compiled(tmp_path, "inside", "-static", "-Wl,--build-id=0x3333333333333333333333333333333333333333")
    place = tmp_path / "place"
    place.mkdir()
    outside = compiled(place, "service", "-static", "-Wl,--build-id=0x4444444444444444444444444444444444444444")
    script = f"mount -t tmpfs none {place} && cp {inside} {place}/service && exec {place}/service"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", script]) as process:
        try:
            captures.wait_for("the exec", lambda: Path(f"/proc/{process.pid}/comm").read_text() == "service\n")
            row = images(collect_one(BuildIds(), process.pid, tmp_path))[str(outside)]
        finally:
            process.kill()
    assert build_id(outside) == "4" * 40
    assert row["gnu_build_id"] == "3" * 40


@pytest.mark.needs("gcc")
def test_program_without_a_build_id_has_none_and_that_is_no_gap(tmp_path: Path) -> None:
    program = compiled(tmp_path, "nameless", "-Wl,--build-id=none")
    with running(program) as pid:
        collected = collect_one(BuildIds(), pid, tmp_path)
    row = images(collected)[str(program)]
    assert (row["gnu_build_id"], row["read_by"]) == (None, "map_files")
    assert not collected.gaps


@pytest.mark.needs("gcc")
def test_package_note_and_debug_link_are_kept(tmp_path: Path) -> None:
    program = compiled(tmp_path, "packaged", "-g")
    note = tmp_path / "note"
    text = b'{"type":"deb","name":"checkout","version":"1.2-3"}\0'
    padded = text + b"\0" * (-len(text) % 4)
    note.write_bytes(
        b"\x04\0\0\0" + len(text).to_bytes(4, "little") + (0xCAFE1A7E).to_bytes(4, "little") + b"FDO\0" + padded
    )
    added = ["--add-section", f".note.package={note}", "--set-section-flags", ".note.package=alloc,readonly"]
    subprocess.run(["objcopy", *added, program], check=True, capture_output=True)
    subprocess.run(["objcopy", "--only-keep-debug", program, tmp_path / "packaged.debug"], check=True)
    subprocess.run(
        ["objcopy", "--strip-debug", "--add-gnu-debuglink=packaged.debug", program], cwd=tmp_path, check=True
    )
    with running(program) as pid:
        row = images(collect_one(BuildIds(), pid, tmp_path))[str(program)]
    assert row["debuglink"]["name"] == "packaged.debug"
    told = subprocess.run(["readelf", "-n", program], capture_output=True, text=True, check=False).stdout
    if "1.2-3" in told or "FDO" in told:
        assert row["package_note"]


def test_mapped_file_that_is_no_program_is_left_out(tmp_path: Path) -> None:
    data = tmp_path / "data.bin"
    data.write_bytes(b"\x7fELF but not really" + bytes(4096))
    plain = tmp_path / "plain.bin"
    plain.write_bytes(bytes(8192))
    code = (
        "import mmap, sys, time\nfiles = [open(path, 'rb') for path in sys.argv[1:]]\n"
        "maps = [mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) for file in files]\n"
        "print('ready', flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code, data, plain], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            collected = collect_one(BuildIds(), process.pid, tmp_path)
        finally:
            process.kill()
    rows = images(collected)
    assert str(plain) not in rows
    assert rows[str(data)]["read_by"] is None, "an impossible ELF header is said, not skipped"
    assert rows[str(data)]["refused"]
    assert [gap.reason.code for gap in collected.gaps] == ["images-unread"]


def test_zombie_has_no_images_and_that_is_said(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        process.kill()
        captures.wait_for("the zombie", lambda: captures.states(process.pid) == {"Z"})
        collected = collect_one(BuildIds(), process.pid, tmp_path)
    finally:
        process.wait()
    assert collected.artifacts == {}
    assert [gap.outcome.value for gap in collected.gaps] == ["missing"]


@pytest.mark.parametrize("name", ["line\nbreak", "sp ace", "back\\slash", os.fsdecode(b"raw-\xff"), "x (deleted)"])
@pytest.mark.needs("gcc", "readelf")
def test_strange_file_names_are_read_by_what_is_mapped(tmp_path: Path, name: str) -> None:
    program = compiled(tmp_path, "plain", "-Wl,--build-id=0x5555555555555555555555555555555555555555")
    strange = tmp_path / name
    os.rename(program, strange)
    with subprocess.Popen([strange]) as process:
        try:
            link = f"/proc/{process.pid}/exe"
            captures.wait_for("the exec", lambda: os.path.samefile(link, strange))
            rows = images(collect_one(BuildIds(), process.pid, tmp_path))
        finally:
            process.kill()
    assert "5" * 40 in {row["gnu_build_id"] for row in rows.values()}
