"""Secrets that the target carries in its arguments and environment, or that a person types, go into no record."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import captures, zoo

# Each in a shape of its own; the word says where it was planted.
PLANTED = {
    "option": "hunter2-option-9f3a",
    "option-value": "hunter2-value-1b7c",
    "property": "hunter2-property-77d0",
    "url": "hunter2-url-52ee",
    "query": "hunter2-query-8c1f",
    "bearer": "hunter2-bearer-4d2b",
    "environment": "hunter2-environ-0a9d",
    "allowed-name": "hunter2-javaopts-3e8f",
    "pprof-user": "hunter2-pprofuser-6aa1",
    "pprof-query": "hunter2-pprofquery-d00f",
}
ARGUMENTS = [
    f"--password={PLANTED['option']}",
    "--api-token", PLANTED["option-value"],
    f"-Dapp.secret={PLANTED['property']}",
    f"postgres://app:{PLANTED['url']}@db.internal/orders",
    f"https://hooks.internal/in?access_token={PLANTED['query']}&x=1",
    f"Authorization: Bearer {PLANTED['bearer']}",
]  # fmt: skip
ENVIRONMENT = {
    "DB_PASSWORD": PLANTED["environment"],
    "JAVA_OPTS": f"-Xmx1g -Djavax.net.ssl.keyStorePassword={PLANTED['allowed-name']}",
}
RECORDS = ("evidence.json", "journal.jsonl", "custody.jsonl", "bag-info.txt", "manifest-sha256.txt")
# Memory is memory; that is said in the manifest, and such files are 0600.
MEMORY = (".core", ".core.zst", ".hprof", ".heapsnapshot")


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A bundle of a process that carries all of them, and all that pmf printed on the way."""
    evidence = tmp_path_factory.mktemp("secrets")
    code = "import time\nwhile True: time.sleep(1)"
    target = subprocess.Popen([sys.executable, "-c", code, *ARGUMENTS], env={**os.environ, **ENVIRONMENT})
    try:
        captures.wait_for("the exec", lambda: b"hunter2" in Path(f"/proc/{target.pid}/cmdline").read_bytes())
        pprof = f"http://operator:{PLANTED['pprof-user']}@127.0.0.1:9/debug/pprof?token={PLANTED['pprof-query']}"
        done = captures.pmf("capture", "--pid", target.pid, "--evidence", evidence, "--force", "--pprof", pprof)
    finally:
        target.kill()
        target.wait()
    assert done.returncode in (0, 3), done.stderr
    folder = captures.only_bundle(evidence)
    said = [done.stdout, done.stderr]
    for command in ("show", "check", "recover"):
        for args in ((), ("--json",)):
            ran = captures.pmf(command, folder, *args)
            said += [ran.stdout, ran.stderr]
    return folder, "\n".join(said)


def test_planted_secrets_were_really_there(captured: tuple[Path, str]) -> None:
    folder, _ = captured
    shown = captures.evidence_of(folder)["target"]["argv"]
    assert len(shown) == 3 + len(ARGUMENTS)
    assert sum("(redacted)" in word for word in shown) == len(ARGUMENTS) - 1  # "--api-token" itself is no secret
    assert "--api-token" in shown


@pytest.mark.parametrize("place", PLANTED)
@pytest.mark.parametrize("name", RECORDS)
def test_record_holds_no_planted_secret(captured: tuple[Path, str], name: str, place: str) -> None:
    text = (captured[0] / name).read_bytes()
    assert text
    assert PLANTED[place].encode() not in text


@pytest.mark.parametrize("place", PLANTED)
def test_pmf_prints_no_planted_secret(captured: tuple[Path, str], place: str) -> None:
    assert len(captured[1]) > 1000
    assert PLANTED[place] not in captured[1]


@pytest.mark.parametrize("place", PLANTED)
def test_evidence_holds_a_planted_secret_in_images_of_memory_only(captured: tuple[Path, str], place: str) -> None:
    data = captured[0] / "data"
    holding = [
        str(path.relative_to(data))
        for path in data.rglob("*")
        if path.is_file() and not path.name.endswith(MEMORY) and PLANTED[place].encode() in path.read_bytes()
    ]
    assert holding == []


def test_redacted_arguments_are_counted(captured: tuple[Path, str]) -> None:
    rows = {row["path"]: row for row in captures.evidence_of(captured[0])["artifacts"]}
    command = next(row for path, row in rows.items() if path.endswith("cmdline.json"))
    assert command["facts"]["redacted"] == len(ARGUMENTS) - 1
    environment = next(row for path, row in rows.items() if path.endswith("environ.json"))
    assert environment["facts"]["withheld"] >= 1


@pytest.mark.needs("go")
def test_credentials_of_a_pprof_address_that_answers_are_in_no_record(tmp_path: Path) -> None:
    with zoo.start("go", "idle") as sick:
        url = sick.ready["pprof"].replace("http://", f"http://operator:{PLANTED['pprof-user']}@")
        done = captures.pmf("capture", "--pid", sick.pid, "--evidence", tmp_path, "--force", "--pprof", url)
        sick.assert_alive()
    assert done.returncode in (0, 3), done.stderr
    folder = captures.only_bundle(tmp_path)
    captures.judge(folder)
    for name in RECORDS:
        assert PLANTED["pprof-user"].encode() not in (folder / name).read_bytes()
    assert PLANTED["pprof-user"] not in done.stdout + done.stderr
    assert any("goroutine" in row["path"] for row in captures.evidence_of(folder)["artifacts"])


def test_secret_in_a_refused_command_line_is_not_echoed_into_a_bundle(tmp_path: Path) -> None:
    done = captures.pmf("capture", "--pid", os.getpid(), "--evidence", tmp_path / "e", "--include", "nonsense")
    assert done.returncode == 2
    assert not (tmp_path / "e").exists()
