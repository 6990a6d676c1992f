"""Fetching from debuginfod: only what is missing, believed only by its own bytes, and said in the report."""

from __future__ import annotations

import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmforensics.errors import VerifyError
from pmforensics.verify import debuginfod as debuginfod_module
from pmforensics.verify.candidates import read_candidates
from pmforensics.verify.debuginfod import Fetched, cache_folder, fetch_missing
from pmforensics.verify.dumps import open_dump
from pmforensics.verify.identity import verify_identity
from pmforensics.verify.symbols import SymbolStore
from pmforensics.verify.verdict import IdentityReport, Verdict
from tests.formats.core_writer import IDS, LIB, MAIN, NAMES, Process
from tests.formats.elf_writer import ElfWriter, Section, Segment
from tests.formats.test_core import readelf_build_id
from tests.verify.specimens import Rebuilt


class Server:
    """A web server over a folder that writes down what it was asked for; `answers` overrides by path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, bytes, int | None]] = {}  # status, body, declared length
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path not in server.answers:
                    super().do_GET()
                    return
                status, body, length = server.answers[self.path]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    running = Server(tmp_path / "served")
    monkeypatch.setenv("DEBUGINFOD_URLS", running.url)
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    yield running
    running.close()


@pytest.fixture
def core(tmp_path: Path) -> Path:
    path = tmp_path / "app.core"
    path.write_bytes(Process().render())
    return path


def library_with(build_id: bytes) -> bytes:
    writer = ElfWriter(elf_type=3)
    writer.segments = [Segment(1, b"code" * 8, flags=5), Segment(4, writer.note(b"GNU\0", 3, build_id))]
    writer.sections = [Section(".text", 1, b"code" * 8)]
    return writer.render()


def fetch(core: Path, *candidates: Path) -> tuple[Fetched, IdentityReport]:
    given, _ = read_candidates(candidates)
    with open_dump(core) as dump:
        fetched = fetch_missing(dump, given)
        return fetched, verify_identity(dump, [*given, *fetched.candidates])


@pytest.mark.needs("gcc", "gdb", "readelf")
def test_served_store_is_fetched_from_and_kept_where_elfutils_looks(
    server: Server, rebuilt: Rebuilt, tmp_path: Path
) -> None:
    store = SymbolStore(tmp_path / "store")
    store.add(rebuilt.then)
    store.serve_layout(server.folder)
    fetched, report = fetch(rebuilt.core, rebuilt.program)
    assert report.verdict is Verdict.MATCH
    build_id = readelf_build_id(rebuilt.then)
    assert (tmp_path / "cache" / str(build_id) / "executable").read_bytes() == rebuilt.then.read_bytes()
    # Of what was given nothing is asked, of the rest each ID twice at most, and once what answered.
    program_id = readelf_build_id(rebuilt.program)
    assert not any(str(program_id) in path for path in server.asked)
    assert server.asked.count(f"/buildid/{build_id}/executable") == 1
    assert f"/buildid/{build_id}/debuginfo" not in server.asked
    assert fetched.asked == 3
    assert fetched.sentence() == f"{server.url}: asked for 3 build IDs, 1 answered (--debuginfod)"
    assert fetched.trouble == []
    server.asked.clear()
    assert fetch(rebuilt.core, rebuilt.program)[1].verdict is Verdict.MATCH
    assert not any(str(build_id) in path for path in server.asked)


def test_wrong_file_under_the_right_key_is_a_mismatch_and_leaves_the_cache(
    server: Server, core: Path, tmp_path: Path
) -> None:
    wanted = IDS[LIB].hex()
    server.answers[f"/buildid/{wanted}/executable"] = (200, library_with(b"\x66" * 20), None)
    fetched, report = fetch(core)
    (row,) = (row for row in report.asked)
    assert (row.verdict, row.code) == (Verdict.MISMATCH, "other-id")
    assert row.image is not None
    assert row.image.name == NAMES[LIB]
    assert "66" * 20 in row.says
    # gdb reads the same folder and would believe it.
    assert not (tmp_path / "cache" / wanted / "executable").exists()
    assert (tmp_path / "cache" / wanted / f"executable.not-{wanted[:8]}").exists()
    assert fetched.sentence().endswith("asked for 3 build IDs, 1 answered (--debuginfod)")


def test_wrong_file_that_was_in_the_cache_already_is_caught_too(server: Server, core: Path, tmp_path: Path) -> None:
    wanted = IDS[MAIN].hex()
    cached = tmp_path / "cache" / wanted / "executable"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(library_with(b"\x67" * 20))
    _, report = fetch(core)
    assert report.verdict is Verdict.MISMATCH
    assert not any(wanted in path for path in server.asked)


def test_page_of_html_in_place_of_a_file_is_no_candidate(server: Server, core: Path) -> None:
    wanted = IDS[LIB].hex()
    server.answers[f"/buildid/{wanted}/executable"] = (200, b"<html>log in</html>", None)
    fetched, report = fetch(core)
    assert not report.asked
    assert any("is no executable" in sentence for sentence in fetched.trouble)


def test_cut_answer_is_not_kept(server: Server, core: Path, tmp_path: Path) -> None:
    wanted = IDS[LIB].hex()
    whole = library_with(IDS[LIB])
    server.answers[f"/buildid/{wanted}/executable"] = (200, whole[: len(whole) // 2], len(whole))
    fetched, report = fetch(core)
    assert not report.asked
    assert not (tmp_path / "cache" / wanted / "executable").exists()
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert fetched.trouble


def test_answer_that_never_ends_is_cut_off(
    server: Server, core: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debuginfod_module, "MAX_BYTES", 1000)
    wanted = IDS[LIB].hex()
    server.answers[f"/buildid/{wanted}/executable"] = (200, library_with(IDS[LIB]).ljust(5000, b"\0"), None)
    fetched, report = fetch(core)
    assert not report.asked
    assert any("cut, or larger" in sentence for sentence in fetched.trouble)


def test_server_in_trouble_is_told_once_and_one_that_is_away_is_not_asked_again(
    server: Server, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        away = f"http://user:hunter2@127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("DEBUGINFOD_URLS", f"{away} {server.url}/")
        for at in IDS:
            server.answers[f"/buildid/{IDS[at].hex()}/executable"] = (503, b"later", None)
        fetched, _ = fetch(core)
    assert len(fetched.trouble) == 2
    assert "not asked again" in fetched.trouble[0]
    assert fetched.trouble[1].endswith("HTTP 503")
    assert "hunter2" not in " ".join([*fetched.trouble, fetched.sentence()])


def test_only_web_servers_are_asked_and_without_one_there_is_a_hint(
    core: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for urls in ("", "file:///etc ftp://127.0.0.1/", "   "):
        monkeypatch.setenv("DEBUGINFOD_URLS", urls)
        with pytest.raises(VerifyError, match="no debuginfod server is named") as caught:
            fetch(core)
        assert "DEBUGINFOD_URLS" in caught.value.hint


def test_cache_that_cannot_be_written_is_a_sentence(
    server: Server, core: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(core))
    with pytest.raises(VerifyError, match="cannot be made") as caught:
        fetch(core)
    assert "DEBUGINFOD_CACHE_PATH" in caught.value.hint


def test_cache_lies_where_elfutils_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DEBUGINFOD_CACHE_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "debuginfod_client"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "debuginfod_client"


@pytest.mark.needs("debuginfod-find", "gcc", "gdb", "readelf")
def test_elfutils_and_pmf_read_each_others_cache(server: Server, rebuilt: Rebuilt, tmp_path: Path) -> None:
    from tests.formats.test_core import run

    store = SymbolStore(tmp_path / "store")
    store.add(rebuilt.then)
    store.serve_layout(server.folder)
    build_id = str(readelf_build_id(rebuilt.then))
    found = run("debuginfod-find", "executable", build_id).strip()
    assert Path(found) == cache_folder() / build_id / "executable"
    asked = len(server.asked)
    assert fetch(rebuilt.core, rebuilt.program)[1].verdict is Verdict.MATCH
    assert not any(build_id in path for path in server.asked[asked:])
    shutil.rmtree(tmp_path / "cache")
    fetch(rebuilt.core, rebuilt.program)
    asked = len(server.asked)
    assert run("debuginfod-find", "executable", build_id).strip() == found
    assert len(server.asked) == asked
