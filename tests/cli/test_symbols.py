"""`pmf symbols`: gdb and debuginfod find what it keeps, and lists say what is missing."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from tests import captures
from tests.formats.test_core import compiled, readelf_build_id, run
from tests.verify.specimens import CRASH, Crashed, Rebuilt

pytestmark = pytest.mark.needs("gcc", "gdb", "objcopy", "strip")


def symbols(*arguments: object, code: int = 0) -> str:
    done = captures.pmf("symbols", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture
def split(crashed: Crashed, tmp_path: Path) -> tuple[Path, Path]:
    """The crashed program, stripped, under its own name; and its debug file."""
    stripped, debug = tmp_path / "bin" / "program", tmp_path / "program.debug"
    stripped.parent.mkdir()
    run("strip", "-o", stripped, crashed.program)
    run("objcopy", "--only-keep-debug", crashed.program, debug)
    return stripped, debug


def gdb(store: Path, *arguments: str | Path) -> str:
    settings = ("-iex", "set debuginfod enabled off", "-iex", f"set debug-file-directory {store}")
    return run("gdb", "--nx", "-q", "-batch", *settings, "-ex", "bt", *arguments)


# ---- debuggers


def test_gdb_finds_the_executable_of_a_core_by_its_id(crashed: Crashed, tmp_path: Path) -> None:
    moved = tmp_path / "moved.core"
    shutil.copy(crashed.core, moved)
    hidden = crashed.program.rename(crashed.program.with_name("hidden"))
    try:
        assert "main (" not in gdb(tmp_path / "store", "-c", moved)
        symbols("add", tmp_path / "store", hidden)
        assert re.search(r"in main \(.*\) at program\.c:\d", gdb(tmp_path / "store", "-c", moved))
    finally:
        hidden.rename(crashed.program)


@pytest.mark.parametrize("kept", ["debug file", "unstripped executable"])
def test_gdb_finds_lines_for_a_stripped_program(
    crashed: Crashed, split: tuple[Path, Path], tmp_path: Path, kept: str
) -> None:
    stripped, debug = split
    assert "program.c" not in gdb(tmp_path / "store", stripped, crashed.core)
    symbols("add", tmp_path / "store", debug if kept == "debug file" else crashed.program)
    assert re.search(r"in main \(.*\) at program\.c:\d", gdb(tmp_path / "store", stripped, crashed.core))


@pytest.mark.needs("debuginfod-find")
def test_debuginfod_client_finds_what_a_web_server_serves_from_the_layout(
    crashed: Crashed, split: tuple[Path, Path], tmp_path: Path
) -> None:
    stripped, debug = split
    symbols("add", tmp_path / "store", stripped, debug)
    out = symbols("serve-layout", tmp_path / "store", tmp_path / "out")
    assert f"2 new links under {tmp_path}/out/buildid." in out
    assert f"python3 -m http.server --directory {tmp_path}/out 8002" in out
    assert json.loads(symbols("serve-layout", tmp_path / "store", tmp_path / "out", "--json"))["new_links"] == 0
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "out"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    build_id = str(readelf_build_id(crashed.program))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        env = {
            "DEBUGINFOD_URLS": f"http://127.0.0.1:{server.server_port}",
            "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache"),
        }
        for kind, wanted in (("executable", stripped), ("debuginfo", debug)):
            found = Path(run("debuginfod-find", kind, build_id, **env).strip())
            assert found.read_bytes() == wanted.read_bytes()
        asked = subprocess.run(
            ["debuginfod-find", "executable", "ab" * 20], env={**env, "HOME": str(tmp_path)}, capture_output=True
        )
        assert asked.returncode != 0
        server.shutdown()


# ---- the store as it is typed


def test_add_says_what_is_new_what_was_there_and_what_was_refused(crashed: Crashed, tmp_path: Path) -> None:
    no_id = compiled(tmp_path, CRASH, "-Wl,--build-id=none", name="no-id")
    out = symbols("add", tmp_path / "store", crashed.program)
    assert out == f"1 added, 0 already there, 0 refused.\n  new  {readelf_build_id(crashed.program)}  program\n"
    out = symbols("add", tmp_path / "store", crashed.program, no_id, code=3)
    assert out.startswith("0 added, 1 already there, 1 refused.\n  had  ")
    assert "no GNU build ID to file it under. Link with -Wl,--build-id" in " ".join(out.split())
    report = json.loads(symbols("add", tmp_path / "store", crashed.program, no_id, "--json", code=3))
    assert [row["new"] for row in report["stored"]] == [False]
    assert len(report["refused"]) == 1


def test_find_prints_paths_and_ends_with_1_for_nothing(crashed: Crashed, tmp_path: Path) -> None:
    symbols("add", tmp_path / "store", crashed.program)
    build_id = str(readelf_build_id(crashed.program))
    expected = tmp_path / "store" / ".build-id" / build_id[:2] / build_id[2:]
    assert symbols("find", tmp_path / "store", build_id) == f"{expected}\n"
    assert symbols("find", tmp_path / "store", build_id[:6]) == f"{expected}\n"
    assert json.loads(symbols("find", tmp_path / "store", build_id, "--json"))[0]["path"] == str(expected)
    assert symbols("find", tmp_path / "store", "ab" * 20, code=1) == ""
    done = captures.pmf("symbols", "find", tmp_path / "store", "not-an-id")
    assert (done.returncode, done.stdout) == (4, "")
    assert "is no build ID" in done.stderr


def test_list_is_an_inventory_that_fits_80_columns(crashed: Crashed, split: tuple[Path, Path], tmp_path: Path) -> None:
    assert symbols("list", tmp_path / "store") == "The store is empty.\n"
    symbols("add", tmp_path / "store", *split)
    out = symbols("list", tmp_path / "store")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["NAME", "KIND", "SIZE", "BUILD", "ID"]
    assert [(row[0], row[1], row[-1]) for row in rows[1:]] == [
        ("program", kind, readelf_build_id(crashed.program)) for kind in ("program", "debug")
    ]
    assert max(map(len, out.splitlines())) <= 80
    assert [row["is_debug"] for row in json.loads(symbols("list", tmp_path / "store", "--json"))] == [False, True]


def test_missing_ids_against_a_report_on_a_core_and_against_a_list(rebuilt: Rebuilt, tmp_path: Path) -> None:
    report, ids = tmp_path / "report.json", tmp_path / "ids.txt"
    report.write_text(captures.pmf("verify", rebuilt.core, "--json").stdout)
    symbols("add", tmp_path / "store", rebuilt.program)
    out = symbols("list", tmp_path / "store", "--missing-from", report, code=1)
    # Two libraries of the system, and the one that was rebuilt; nobody keeps a file of the kernel's own image.
    assert out.splitlines()[0] == "3 of 4 IDs are not stored."
    assert f"  {readelf_build_id(rebuilt.then)}\n" in out
    symbols("add", tmp_path / "store", rebuilt.then)
    wanted = [str(readelf_build_id(one)) for one in (rebuilt.program, rebuilt.then)]
    ids.write_text(f"# of release 1.0\n{wanted[0]}  checkout\n\n{wanted[1].upper()}\n")
    assert symbols("list", tmp_path / "store", "--missing-from", ids) == "0 of 2 IDs are not stored.\n"
    answer = json.loads(symbols("list", tmp_path / "store", "--missing-from", report, "--json", code=1))
    assert set(answer["missing"]) < set(answer["wanted"])


def test_missing_ids_against_the_images_of_a_bundle(tmp_path: Path) -> None:
    images = [
        {"path": "/srv/app", "gnu_build_id": "ab" * 20},
        {"path": "[vdso]", "gnu_build_id": "cd" * 20},
        {"path": "/srv/lib.so", "gnu_build_id": None},
    ]
    listed, report = tmp_path / "images.json", tmp_path / "report.json"
    listed.write_text(json.dumps({"images": images}))
    row = {"id": "ab" * 20, "id_kind": "gnu", "id_weak": "", "code": "no-candidate"}
    weak = {"id": "00" * 20, "id_kind": "gnu", "id_weak": "all zeros", "code": "no-candidate"}
    report.write_text(json.dumps({"reports": {"a": {"images": [row, weak]}, "b": {"images": [row]}}}))
    for path in (listed, report):
        out = symbols("list", tmp_path / "store", "--missing-from", path, code=1)
        assert out == f"1 of 1 IDs are not stored.\n  {'ab' * 20}\n"


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "{}", "[]", '{"images": []}', "hello world\n", '{"images": [1, null]}', "12"]
)
def test_list_without_ids_is_an_error_and_not_an_answer(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids").write_text(text)
    done = captures.pmf("symbols", "list", tmp_path / "store", "--missing-from", tmp_path / "ids")
    assert (done.returncode, done.stdout) == (4, "")
    assert "Traceback" not in done.stderr
    assert "hint: One ID in hex per line" in done.stderr
