"""`pmf verify`, as it is typed: verdicts, exit codes, sentences, and what it does not touch."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pmforensics.verify.symbols import SymbolStore
from tests import captures, volumes, zoo
from tests.formats.core_writer import LIB, PAGE, Load, Process
from tests.formats.test_core import GO_ENV, compiled, kernel_core, readelf_build_id, run
from tests.verify.specimens import CRASH, Crashed, Rebuilt, edited, symbol

pytestmark = pytest.mark.needs("gcc", "gdb")


def verify(*arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    done = captures.pmf("verify", *arguments, env=env, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def report_of(*arguments: object, env: dict[str, str] | None = None) -> dict[str, object]:
    _, out, err = verify(*arguments, "--json", env=env)
    assert err == ""
    read: dict[str, object] = json.loads(out)
    return read


def flat(text: str) -> str:
    """Without the line breaks of a terminal."""
    return " ".join(text.split())


# ---- the answer


def test_match_ends_with_0_mismatch_with_1_and_unproven_with_3(rebuilt: Rebuilt) -> None:
    for candidates, code, word in (
        ([rebuilt.program, rebuilt.then], 0, "MATCH"),
        ([rebuilt.program, rebuilt.now], 1, "MISMATCH"),
        ([rebuilt.program, "--strict"], 3, "UNVERIFIABLE"),
        ([], 3, "NOTHING ASKED"),
    ):
        returned, out, err = verify(rebuilt.core, *candidates)
        assert (returned, out.splitlines()[0], err) == (code, word, "")


def test_mismatch_shows_both_ids_where_one_was_read_and_what_to_do(rebuilt: Rebuilt) -> None:
    _, out, _ = verify(rebuilt.core, "srv/libprice.so", cwd=rebuilt.folder)
    then, now = readelf_build_id(rebuilt.then), readelf_build_id(rebuilt.now)
    head = out.split("IMAGE  ")[0]
    assert "DO NOT TRUST ANY FRAME" in head
    assert re.search(
        rf"^  dump  {then}\n        {re.escape(str(rebuilt.now))}\n        nt-file, byte 0x[0-9a-f]+\n"
        rf"  file  {now}\n        srv/libprice\.so$",
        head,
        re.M,
    )
    assert f"\n    pmf symbols find STORE {then}\n" in head
    place = int(re.findall(r"nt-file, byte (0x[0-9a-f]+)", head)[0], 16)
    with rebuilt.core.open("rb") as core:
        core.seek(place)
        assert core.read(20).hex() == then


@pytest.mark.parametrize("what", ["match", "mismatch", "strict", "nothing", "altered", "binary", "cut"])
def test_every_line_fits_80_columns(rebuilt: Rebuilt, crashed: Crashed, tmp_path: Path, what: str) -> None:
    altered = edited(crashed.program, "altered", symbol(crashed.program, "T main") + 4, b"\x90\x90")
    cut = tmp_path / "cut.core"
    cut.write_bytes(rebuilt.core.read_bytes()[:90_000])
    arguments = {
        "match": [rebuilt.core, "srv/checkout"],
        "mismatch": [rebuilt.core, "srv/libprice.so"],
        "strict": [rebuilt.core, "srv/checkout", "--strict"],
        "nothing": [rebuilt.core],
        "altered": [crashed.core, altered],
        "binary": ["srv/checkout", "srv/libprice.so"],
        "cut": [cut, "srv/checkout"],
    }[what]
    _, out, _ = verify(*arguments, cwd=rebuilt.folder)
    # A path or an ID is never broken, so that it can be copied.
    long = [line for line in out.splitlines() if len(line) > 80 and " " in line.strip() and "/tmp" not in line]
    assert not long
    assert len(out.splitlines()) > 3


def test_table_names_every_image_its_id_and_the_place_where_it_was_read(rebuilt: Rebuilt) -> None:
    _, out, _ = verify(rebuilt.core, rebuilt.program)
    rows = {
        line.split()[0]: line.split() for line in out.splitlines() if re.match(r"\S+ +[0-9a-f]{8,} +[0-9a-f]{12}", line)
    }
    report = report_of(rebuilt.core, rebuilt.program)
    for image in report["images"]:  # type: ignore[attr-defined]
        shown = next(row for name, row in rows.items() if "~" in name or name == Path(image["name"]).name)
        shown = rows.get(Path(image["name"]).name, shown)
        assert shown[1] == image["start"][2:] or "~" in shown[0]
    program = rows["checkout"]
    assert program[2] == (readelf_build_id(rebuilt.program) or "")[:12]
    assert program[-1] == "MATCH"


def test_json_is_the_same_each_time_and_says_it_all(rebuilt: Rebuilt) -> None:
    arguments = (rebuilt.core, rebuilt.program, rebuilt.now, "--json")
    texts = {verify(*arguments, env={"PYTHONHASHSEED": seed})[1] for seed in ("1", "2", "77")}
    assert len(texts) == 1
    report = json.loads(texts.pop())
    assert (report["verdict"], report["trustworthy"], report["format"]) == ("MISMATCH", False, "elf-core")
    row = next(row for row in report["images"] if row["verdict"] == "MISMATCH")
    assert row["code"] == "other-id"
    assert row["id"] == readelf_build_id(rebuilt.then)
    assert row["candidate_ids"] == [readelf_build_id(rebuilt.now)]
    assert row["asked"] is True
    assert {"nt-file", "segment-sniff"} <= {reading[3] for reading in row["readings"]}
    assert report["coverage"].startswith("1 of 4 images verified, 4 of 4 have an ID")


def test_folders_of_candidates_debug_files_and_stripped_files_match(crashed: Crashed, tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    run("objcopy", "--only-keep-debug", crashed.program, release / "program.debug")
    run("strip", "-o", release / "program", crashed.program)
    code, out, _ = verify(crashed.core, release)
    assert code == 0
    assert "program.debug: the debug file of the same build." in flat(out)
    assert "stripped: its debug file has the lines and names" in flat(out)


def test_same_id_altered_file_is_said_in_these_words(crashed: Crashed) -> None:
    place = symbol(crashed.program, "T main") + 4
    altered = edited(crashed.program, "altered", place, b"\x90\x90")
    code, out, _ = verify(crashed.core, altered)
    assert code == 1
    assert "program: same ID, altered file" in flat(out)
    assert f"byte {place:#x} of the file is another than the core holds" in flat(out)


def test_program_without_id_is_consistent_or_contradicted(needs: Callable[..., None], tmp_path: Path) -> None:
    program = compiled(tmp_path, CRASH, "-Wl,--build-id=none")
    other = compiled(tmp_path, "int main(int n) { return n; }\n", "-Wl,--build-id=none", name="other")
    core = kernel_core(needs, program)
    code, out, _ = verify(core, program)
    assert (code, out.splitlines()[0]) == (3, "UNVERIFIABLE")
    assert "Consistent, which is no proof" in flat(out)
    code, out, _ = verify(core, other)
    assert (code, out.splitlines()[0]) == (1, "MISMATCH")
    assert "not this file" in flat(out)


def test_wrong_program_with_the_right_name_and_an_old_date_is_a_mismatch(crashed: Crashed, tmp_path: Path) -> None:
    other = compiled(tmp_path, CRASH, "-Wl,--build-id")
    os.utime(other, (1, 1))
    assert other.name == crashed.program.name
    assert verify(crashed.core, other)[0] == 1


def test_binary_against_its_own_debug_file_needs_no_dump(crashed: Crashed, rebuilt: Rebuilt, tmp_path: Path) -> None:
    debug = tmp_path / "program.debug"
    run("objcopy", "--only-keep-debug", crashed.program, debug)
    code, out, _ = verify(crashed.program, debug)
    assert (code, out.splitlines()[:2]) == (0, ["MATCH", "The files belong together."])
    code, out, _ = verify(rebuilt.now, rebuilt.then)
    assert (code, out.splitlines()[0]) == (1, "MISMATCH")
    assert "THE FILES DO NOT BELONG TOGETHER" in out
    assert "core" not in out


@pytest.mark.needs("git", "go")
def test_builds_are_told_by_their_revision(needs: Callable[..., None], tmp_path: Path) -> None:
    """Which build each is, where it says so: Go writes the commit into the program."""
    source = "package main\n\nfunc main() { var p *int; *p = 1 }\n"
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    repository = tmp_path / "checkout"
    repository.mkdir()
    (repository / "go.mod").write_text("module example.org/checkout\n\ngo 1.21\n")
    run(*git, "init", "-q", cwd=repository)
    revisions = []
    for number in (1, 2):
        (repository / "main.go").write_text(source + f"\nvar release = {number}\n")
        run(*git, "add", "-A", cwd=repository)
        run(*git, "commit", "-q", "-m", f"release {number}", cwd=repository)
        revisions.append(run(*git, "rev-parse", "HEAD", cwd=repository).strip())
        flags = ("-buildvcs=true", f"-ldflags=-X main.unused={number}")
        run(
            str(zoo.get_tool("go")),
            "build",
            *flags,
            "-o",
            str(tmp_path / f"checkout-{number}"),
            ".",
            cwd=repository,
            **GO_ENV,
        )
    core = kernel_core(needs, tmp_path / "checkout-1", GOTRACEBACK="crash")
    code, out, _ = verify(core, tmp_path / "checkout-2")
    assert code == 1
    before_file, after_file = flat(out).split(" file ", 1)
    assert revisions[0] in before_file
    assert revisions[1] in after_file


def test_many_images_are_counted_and_listed_when_wanted(tmp_path: Path) -> None:
    process = Process()
    for number in range(20):
        at = 0xF600_0000 + number * 0x10_0000
        process.images[at] = process.image(bytes([number]) * 20)
        process.dynamic[at] = process.core.word(0, 0)
        process.rows += process.rows_of(at, f"/usr/lib/libmany{number}.so")
    (tmp_path / "core").write_bytes(process.render())
    (tmp_path / "libwork.so.1.2").write_bytes(process.images[LIB].render())
    arguments = (tmp_path / "core", tmp_path / "libwork.so.1.2")
    code, out, _ = verify(*arguments)
    assert code == 0
    assert "23 more images were not asked about" in out
    assert "libmany7.so" not in out
    assert "libmany7.so" in verify(*arguments, "--all")[1]
    assert "libmany7.so" in verify(tmp_path / "core")[1]
    code, out, _ = verify(*arguments, "--strict")
    assert code == 3
    assert "libmany7.so" in out


def test_names_out_of_a_dump_reach_no_terminal_as_control_characters(tmp_path: Path) -> None:
    process = Process()
    process.rows = [
        (start, end, offset, name.replace("libwork", "l\x1bi\rb")) for start, end, offset, name in process.rows
    ]
    (tmp_path / "core").write_bytes(process.render())
    (tmp_path / "work").write_bytes(process.images[LIB].render())
    code, out, _ = verify(tmp_path / "core", tmp_path / "work")
    assert code == 0
    assert "\x1b" not in out
    assert "\r" not in out
    assert "l?i?b.so.1.2" in out


def test_path_that_is_not_utf_8_is_no_obstacle(crashed: Crashed, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/pro\xffgram"))
    shutil.copy(crashed.program, odd)
    assert verify(crashed.core, odd)[0] == 0
    assert json.loads(verify(crashed.core, odd, "--json")[1])["verdict"] == "MATCH"


# ---- packed, cut, and no dump at all


def test_packed_and_cut_cores(rebuilt: Rebuilt, tmp_path: Path) -> None:
    packed, cut, bomb = tmp_path / "core.gz", tmp_path / "cut.gz", tmp_path / "core.zst"
    packed.write_bytes(gzip.compress(rebuilt.core.read_bytes(), 1))
    cut.write_bytes(packed.read_bytes()[: packed.stat().st_size // 3])
    run("zstd", "-q", rebuilt.core, "-o", bomb)
    assert verify(packed, rebuilt.program, rebuilt.then)[0] == 0
    assert verify(bomb, rebuilt.program, rebuilt.then)[0] == 0
    code, out, _ = verify(cut, rebuilt.program, rebuilt.then)
    assert code in (0, 3)
    assert "cut or damaged" in flat(out)
    assert "the dump is cut at" in flat(out)


SENTENCES = {
    "folder": ("is a folder and no bundle", "Give the dump file, or a bundle of pmf."),
    "pipe": ("is a pipe or a device", "Write the dump to a file first"),
    "text.dmp": ("is text and no crash report", "Fetch it again."),
    "empty": ("is empty", "ask what ended it"),
    "core.zip": ("is a zip archive", "Unpack it first."),
    "nowhere": ("cannot be opened (No such file or directory)", None),
    "bytes": ("is no dump that pmf can read", "minidumps"),
    "broken": ("The ELF header is cut", None),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_is_no_dump_has_its_sentence_and_exit_4(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    contents = {
        "text.dmp": b"<html>not found</html>\n", "empty": b"", "core.zip": b"PK\x03\x04" + bytes(40),
        "bytes": bytes(range(256)), "broken": b"\x7fELF\x02\x01\x01",
    }  # fmt: skip
    if name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name in contents:
        path.write_bytes(contents[name])
    code, out, err = verify(path)
    says, hint = SENTENCES[name]
    assert (code, out) == (4, "")
    assert err.startswith(f"pmf: {path}")
    assert says in err
    assert hint is None or hint in err


def test_core_that_is_still_being_written_is_refused(tmp_path: Path) -> None:
    process = Process()
    process.more = [Load(0x1_0000_0000 + number * 2 * PAGE, b"x" * 16) for number in range(20_000)]
    (tmp_path / "core").write_bytes(process.render())
    writer = subprocess.Popen(["sh", "-c", 'while printf x >>"$0"; do :; done', tmp_path / "core"])
    try:
        code, _, err = verify(tmp_path / "core")
    finally:
        writer.kill()
        writer.wait()
    assert code == 4
    assert "is still being written" in err


def test_core_among_the_candidates_is_told_to_come_first(crashed: Crashed) -> None:
    code, _, err = verify(crashed.program, crashed.core)
    assert code == 4
    assert "is a core, not a binary" in err
    assert "hint: The dump comes first: pmf verify CORE BINARY" in err


def test_candidate_that_is_not_there_is_a_usage_error(crashed: Crashed, tmp_path: Path) -> None:
    assert verify(crashed.core, tmp_path / "nothing")[0] == 2


# ---- nothing else is touched


def opened_and_connected(tmp_path: Path, *arguments: object, env: dict[str, str]) -> tuple[set[str], list[str]]:
    """Paths that `pmf verify` opened, or looked at, and the network calls that it made, by strace."""
    log = tmp_path / "strace.log"
    trace = ("strace", "-f", "-qq", "-s", "4096", "-e", "trace=%file,%network", "-o", str(log))
    captures.pmf("verify", *arguments, prefix=trace, env=env)
    text = log.read_text(errors="replace")
    paths = set(
        re.findall(r'\b(?:open|openat|stat|lstat|newfstatat|statx|access|readlink|execve)\([^"]*"([^"]+)"', text)
    )
    network = [
        line
        for line in text.splitlines()
        if re.search(r"\b(?:connect|sendto|sendmsg)\(", line) and "AF_UNIX" not in line
    ]
    return paths, network


@pytest.mark.needs("strace")
def test_no_path_of_the_dump_is_opened_and_nobody_is_called_without_a_flag(rebuilt: Rebuilt, tmp_path: Path) -> None:
    env = {"DEBUGINFOD_URLS": "http://127.0.0.1:9/", "DEBUGINFOD_CACHE_PATH": str(tmp_path / "cache")}
    then = rebuilt.folder / "release-1.0" / "checkout"
    paths, network = opened_and_connected(tmp_path, rebuilt.core, then, env=env)
    assert str(then) in paths
    named = {str(rebuilt.program), str(rebuilt.now)}
    assert not named & paths
    assert network == []
    # What the flags do shows that the trace would have shown it.
    paths, network = opened_and_connected(tmp_path, rebuilt.core, then, "--local-paths", env=env)
    assert named <= paths
    assert network == []
    paths, network = opened_and_connected(tmp_path, rebuilt.core, then, "--debuginfod", env=env)
    assert not named & paths
    assert network


def test_local_paths_are_said_in_the_report(rebuilt: Rebuilt) -> None:
    code, out, _ = verify(rebuilt.core, "--local-paths")
    assert code == 1
    assert "opened at the paths that the dump names, on this machine (--local-paths)" in flat(out)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder behind a web server, and the environment in which debuginfod clients find it."""
    (tmp_path / "served").mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        cache = str(tmp_path / "cache")
        yield (
            tmp_path / "served",
            {"DEBUGINFOD_URLS": f"http://127.0.0.1:{server.server_port}", "DEBUGINFOD_CACHE_PATH": cache},
        )
        server.shutdown()


def test_debuginfod_fetches_what_is_missing_and_the_report_says_so(
    rebuilt: Rebuilt, served: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, env = served
    store = SymbolStore(tmp_path / "store")
    store.add(rebuilt.then)
    store.serve_layout(folder)
    assert verify(rebuilt.core, rebuilt.program, env=env)[0] == 0
    code, out, _ = verify(rebuilt.core, rebuilt.program, "--debuginfod", env=env)
    assert code == 0
    assert f"{env['DEBUGINFOD_URLS']}: asked for 3 build IDs, 1 answered (--debuginfod)" in flat(out)
    assert "2 of 4 images verified" in out


def test_wrong_file_from_a_server_is_a_mismatch(rebuilt: Rebuilt, served: tuple[Path, dict[str, str]]) -> None:
    folder, env = served
    wanted = readelf_build_id(rebuilt.then)
    key = folder / "buildid" / str(wanted)
    key.mkdir(parents=True)
    shutil.copy(rebuilt.now, key / "executable")
    code, out, _ = verify(rebuilt.core, rebuilt.program, "--debuginfod", env=env)
    assert code == 1
    assert f"which lies in the store under {wanted}" in flat(out)


def test_store_is_looked_up_and_a_wrong_file_in_it_is_a_mismatch(rebuilt: Rebuilt, tmp_path: Path) -> None:
    store = SymbolStore(tmp_path / "store")
    store.add(rebuilt.program)
    stored, _ = store.add(rebuilt.then)
    assert verify(rebuilt.core, "--symbols", store.root)[0] == 0
    shutil.copy(rebuilt.now, stored.path)
    code, out, _ = verify(rebuilt.core, "--symbols", store.root)
    assert code == 1
    assert "DO NOT TRUST" in out


def test_debuginfod_without_a_server_says_how_to_name_one(rebuilt: Rebuilt) -> None:
    code, _, err = verify(rebuilt.core, "--debuginfod", env={"DEBUGINFOD_URLS": ""})
    assert code == 4
    assert "hint: export DEBUGINFOD_URLS=" in err


# ---- crash reports


def test_crash_report_of_a_mac_is_held_against_the_right_slice(tmp_path: Path) -> None:
    from tests.formats import macho_writer
    from tests.formats.macho_writer import ARM64, X86_64
    from tests.verify.test_pitfalls import UUIDS, crash_report, mach

    (tmp_path / "Agent.ips").write_bytes(crash_report("Agent", "arm64", UUIDS[ARM64]))
    (tmp_path / "Agent").write_bytes(macho_writer.fat((X86_64, mach(X86_64)), (ARM64, mach(ARM64))))
    code, out, _ = verify(tmp_path / "Agent.ips", tmp_path / "Agent")
    assert (code, out.splitlines()[0]) == (0, "MATCH")
    (tmp_path / "thin").write_bytes(mach(X86_64))
    code, out, _ = verify(tmp_path / "Agent.ips", tmp_path / "thin")
    assert code == 1
    assert "the dump used the arm64 part of it, and the file has x86_64" in flat(out)


# ---- bundles


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a real process; never written to."""
    with zoo.start("c", "threads", "3") as sick:
        return captures.capture(sick.pid, tmp_path_factory.mktemp("evidence"), "--allow-pause", "60")


@pytest.fixture
def bundle(captured: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(captured, tmp_path / "bundle"))


def other_build(tmp_path: Path) -> Path:
    other = tmp_path / "zoo"
    run("gcc", "-pthread", "-Wl,--build-id=md5", "-o", other, zoo.ZOO / "c" / "zoo.c")
    return other


def test_bundle_matches_the_binary_that_ran_and_keeps_the_verdict(bundle: Path) -> None:
    before = captures.pmf("check", bundle)
    code, out, err = verify(bundle, zoo.build("c"))
    assert (code, err) == (0, "")
    assert out.count("\nMATCH\n") == 2  # the core of its stacks, and the list of its images
    assert "Kept as derived/0001-verify.json." in out
    kept = json.loads((bundle / "derived" / "0001-verify.json").read_text())
    assert kept["verdict"] == "MATCH"
    assert [cite["path"].split("/", 1)[1].split("-", 1)[1] for cite in kept["cites"]] == [
        "threads_native/stacks.core", "build_ids/images.json",
    ]  # fmt: skip
    for cite in kept["cites"]:
        assert cite["sha256"] == captures.sha256(bundle / cite["path"])
    after = captures.pmf("check", bundle)
    assert (after.returncode, after.stdout.splitlines()[0]) == (before.returncode, before.stdout.splitlines()[0])
    assert verify(bundle, zoo.build("c"))[0] == 0
    assert sorted(path.name for path in (bundle / "derived").iterdir()) == ["0001-verify.json", "0002-verify.json"]


def test_bundle_against_another_build_is_a_mismatch_that_is_kept(bundle: Path, tmp_path: Path) -> None:
    other = other_build(tmp_path)
    code, out, _ = verify(bundle, other)
    assert code == 1
    assert "DO NOT TRUST" in out
    assert json.loads((bundle / "derived" / "0001-verify.json").read_text())["verdict"] == "MISMATCH"
    assert captures.pmf("check", bundle).returncode in (0, 3)


def test_bundle_as_json_has_a_report_for_each_dump(bundle: Path) -> None:
    report = report_of(bundle, zoo.build("c"))
    assert (report["verdict"], report["kept_as"]) == ("MATCH", "derived/0001-verify.json")
    reports = report["reports"]
    assert isinstance(reports, dict)
    assert {one["format"] for one in reports.values()} == {"elf-core", "captured images"}


def test_changed_verdict_in_a_bundle_is_found(bundle: Path, tmp_path: Path) -> None:
    verify(bundle, other_build(tmp_path))
    kept = bundle / "derived" / "0001-verify.json"
    kept.write_text(kept.read_text().replace("MISMATCH", "MATCH"))
    checked = captures.pmf("check", bundle)
    assert checked.returncode == 1
    assert "derived/0001-verify.json is missing or changed" in flat(checked.stdout)
    # Identities from altered evidence prove nothing.
    code, out, err = verify(bundle, zoo.build("c"))
    assert (code, out) == (1, "")
    assert "was altered after sealing" in err


def test_altered_evidence_is_not_verified(bundle: Path) -> None:
    (core,) = bundle.glob("data/*-threads_native/stacks.core")
    data = bytearray(core.read_bytes())
    data[-1] ^= 1
    core.write_bytes(data)
    code, out, err = verify(bundle, zoo.build("c"))
    assert (code, out) == (1, "")
    assert "[bundle-altered]" in err


@pytest.mark.needs("root")
def test_read_only_copy_of_a_bundle_is_verified_all_the_same(captured: Path, tmp_path: Path) -> None:
    with volumes.bind(captured, tmp_path / "read-only") as place:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        code, out, _ = verify(place, zoo.build("c"))
        assert code == 0
        assert "Not kept: the bundle cannot be written." in out
    assert not (captured / "derived").exists()


def test_candidate_that_cannot_be_read_is_an_error_and_not_a_verdict(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no binary\n")
    code, out, err = verify(bundle, tmp_path / "notes.txt")
    assert (code, out) == (4, "")
    assert "notes.txt is no executable" in err
    assert not (bundle / "derived").exists()


def test_bundle_that_was_not_sealed_is_refused(bundle: Path) -> None:
    (bundle / "tagmanifest-sha256.txt").unlink()
    code, _, err = verify(bundle, zoo.build("c"))
    assert code == 4
    assert "pmf recover" in err
