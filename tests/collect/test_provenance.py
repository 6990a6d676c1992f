"""Digests and versions, held against sha256sum, the package managers and the runtimes themselves."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pmforensics.collect.provenance import Executable, Provenance
from pmforensics.errors import WouldHarm
from pmforensics.model.capture import Outcome
from tests import captures, zoo
from tests.collect.harness import Collected, collect_one


def part(collected: Collected, name: str) -> Any:
    """One of the JSON files."""
    return json.loads(collected.artifacts[f"{name}.json"])


def sha256sum(path: Path | str) -> str:
    """By coreutils."""
    return (
        subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0].lstrip("\\")
    )


def test_digest_of_the_executable_is_that_of_sha256sum(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        value = part(collect_one(Provenance(), sick.pid, tmp_path), "executable")
    exe = os.path.realpath(sys.executable)
    assert value == {"path": exe, "deleted": False, "sha256": sha256sum(exe), "bytes": os.path.getsize(exe)}


@pytest.mark.needs("gcc")
def test_digest_of_a_deleted_executable_is_that_of_the_bytes_that_run(tmp_path: Path) -> None:
    wanted = sha256sum(zoo.build("c"))
    with zoo.start("c", "deleted") as sick:
        collected = collect_one(Provenance(), sick.pid, tmp_path)
    value = part(collected, "executable")
    assert (value["deleted"], value["sha256"]) == (True, wanted)


def test_python_distributions_are_those_of_the_interpreter(tmp_path: Path) -> None:
    with zoo.start("python", "idle") as sick:
        value = part(collect_one(Provenance(), sick.pid, tmp_path), "python")
    (ours,) = [folder for folder in value["distributions"] if folder.startswith(sys.prefix)]
    found = {
        name.lower().replace("-", "_").replace(".", "_"): version
        for name, version in value["distributions"][ours].items()
    }
    wanted = {
        distribution.metadata["Name"].lower().replace("-", "_").replace(".", "_"): distribution.version
        for distribution in importlib.metadata.distributions(path=[ours])
    }
    assert len(wanted) > 10
    assert found == wanted
    assert value["interpreter"] == os.path.realpath(sys.executable)


@pytest.mark.parametrize("program", ["java17", "java25"])
def test_jars_and_release_of_a_jvm_are_told(tmp_path: Path, needs: Any, program: str) -> None:
    needs(*zoo.tools(program))
    jar = zoo.build(program)
    with zoo.start(program, "idle") as sick:
        value = part(collect_one(Provenance(), sick.pid, tmp_path), "jvm")
        sick.assert_alive()
    (row,) = [row for row in value["jars"] if row["path"] == str(jar)]
    assert row["sha256"] == sha256sum(jar)
    with zipfile.ZipFile(jar) as archive:
        assert row["manifest"] == archive.read("META-INF/MANIFEST.MF").decode()
    home = zoo.jdk(int(program.removeprefix("java")))
    assert home is not None
    assert value["release"] == (home / "release").read_text()
    assert os.path.samefile(value["java_home"], home)


@pytest.mark.needs("jdk")
def test_broken_jars_are_told_with_their_digest_and_without_a_manifest(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.jar"
    with zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/MANIFEST.MF", b"A: b\n" * 50_000_000)  # 250 MB in a quarter of one
    cut = tmp_path / "cut.jar"
    cut.write_bytes(hostile.read_bytes()[:1000])
    source = tmp_path / "Hold.java"
    source.write_text(
        "import java.io.*; public class Hold { public static void main(String[] a) throws Exception {"
        " FileInputStream[] held = new FileInputStream[a.length];"
        " for (int i = 0; i < a.length; i++) held[i] = new FileInputStream(a[i]);"
        ' System.out.println("ready"); Thread.sleep(1000000); System.out.println(held.length); } }'
    )
    home = zoo.jdk()
    assert home is not None
    with subprocess.Popen([home / "bin" / "java", source, hostile, cut], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            collected = collect_one(Provenance(), process.pid, tmp_path)
        finally:
            process.kill()
    rows = {Path(row["path"]).name: row for row in part(collected, "jvm")["jars"]}
    assert rows["cut.jar"]["manifest"] is None
    assert rows["cut.jar"]["sha256"] == sha256sum(cut)
    assert rows["hostile.jar"]["manifest"] is not None
    assert len(rows["hostile.jar"]["manifest"]) <= 64 * 1024


@pytest.mark.needs("node")
def test_lock_files_of_a_node_program_are_told_with_their_digests(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "package.json").write_text('{"name": "checkout", "version": "1.2.3"}')
    (project / "package-lock.json").write_text('{"lockfileVersion": 3}')
    (project / "src" / "main.js").write_text("console.log('ready'); setInterval(() => {}, 1000)")
    with subprocess.Popen(["node", "src/main.js"], cwd=project, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            collected = collect_one(Provenance(), process.pid, tmp_path)
        finally:
            process.kill()
    told = part(collected, "node")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    assert told["version"] == said
    files = told["files"]
    for name in ("package.json", "package-lock.json"):
        assert files[str(project / name)]["sha256"] == sha256sum(project / name)


@pytest.mark.needs("gcc")
def test_native_program_has_no_files_of_other_runtimes(tmp_path: Path) -> None:
    with zoo.start("c", "threads", 1) as sick:
        assert list(collect_one(Provenance(), sick.pid, tmp_path).artifacts) == ["executable.json"]


# ---- the executable itself


@pytest.mark.needs("gcc")
def test_copy_of_a_deleted_executable_runs(tmp_path: Path) -> None:
    built = zoo.build("c")
    with zoo.start("c", "deleted") as sick:
        collected = collect_one(Executable(), sick.pid, tmp_path)
    (copy,) = collected.artifacts.values()
    assert hashlib.sha256(copy).hexdigest() == sha256sum(built)
    (settled,) = collected.settlements.values()
    assert settled.outcome is Outcome.COLLECTED
    again = tmp_path / "again"
    again.write_bytes(copy)
    again.chmod(0o755)
    assert "threads" in subprocess.run([again, "--list"], capture_output=True, text=True, check=True).stdout


def test_copy_that_does_not_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    with zoo.start("python", "idle") as sick:
        collected = collect_one(Executable(), sick.pid, tmp_path, floor_bytes=status.f_blocks * status.f_frsize)
    assert collected.artifacts == {}
    assert collected.gap(WouldHarm.code).outcome is Outcome.REFUSED


def test_executable_is_copied_only_when_asked_for(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            plain = captures.capture(process.pid, tmp_path / "plain")
            asked = captures.capture(process.pid, tmp_path / "asked", "--include", "executable")
        finally:
            process.kill()
    assert not list((plain / "data").glob("*-executable"))
    assert "executable" in captures.evidence_of(plain)["not_asked"]
    (copy,) = (asked / "data").glob("*-executable/*")
    assert captures.sha256(copy) == sha256sum(os.path.realpath("/bin/sleep"))
