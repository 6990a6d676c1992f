"""
Runs the real `pmf`, finds what it left behind, and asks the independent judges about its bundles.

    bundle = captures.capture(pid, tmp_path)
    captures.judge(bundle)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bagit
import jsonschema

PMF = (sys.executable, "-m", "pmforensics")
TIMEOUT_S = 300.0  # a hanging pmf is a failure, a slow machine is not


def pmf(
    *args: object, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `pmf` to its end; the texts of stdout and stderr, whatever they hold."""
    return subprocess.run(
        [*prefix, *PMF, *map(str, args)],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=TIMEOUT_S,
    )


def start_pmf(*args: object, command: Sequence[str] = PMF) -> subprocess.Popen[bytes]:
    """Starts `pmf` in a session of its own, so that all it starts can be found by it: see `session`."""
    return subprocess.Popen(
        [*command, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def capture(pid: int, evidence: Path, *args: object, prefix: Sequence[str] = (), codes: Sequence[int] = (0, 3)) -> Path:
    """The folder of a sealed bundle. `--force`: where the tests run need not survive a restart."""
    done = pmf("capture", "--pid", pid, "--evidence", evidence, "--force", "--json", *args, prefix=prefix)
    assert done.returncode in codes, f"exit {done.returncode}\n{done.stderr}"
    return Path(json.loads(done.stdout)["bundle"])


def bundles(evidence: Path) -> list[Path]:
    """Every bundle under an evidence folder, sealed or not."""
    return sorted(path for path in evidence.glob("*/*") if path.is_dir())


def only_bundle(evidence: Path) -> Path:
    """The one bundle there."""
    (folder,) = bundles(evidence)
    return folder


def evidence_of(folder: Path) -> dict[str, Any]:
    """evidence.json, unchecked."""
    read: dict[str, Any] = json.loads((folder / "evidence.json").read_text())
    return read


def journal_of(folder: Path) -> list[dict[str, Any]]:
    """The readable lines of journal.jsonl; the last one may be torn."""
    records = []
    for line in (folder / "journal.jsonl").read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def gap_codes(folder: Path) -> set[str]:
    """The codes of all recorded gaps."""
    return {gap["reason"]["code"] for gap in evidence_of(folder)["gaps"]}


# ---- judges that share no code with pmf


def judge(folder: Path, *, coreutils: bool = True) -> dict[str, Any]:
    """
    Asks bagit, sha256sum and jsonschema, and looks at what a sealed bundle may hold; returns evidence.json.

    `coreutils=False` leaves out the two programs, where many bundles are judged.
    """
    bagit.Bag(str(folder)).validate()
    if coreutils:
        for manifest in ("manifest-sha256.txt", "tagmanifest-sha256.txt"):
            if (folder / manifest).read_bytes():  # sha256sum calls an empty list an error
                sha256sum(folder, manifest)
    evidence = evidence_of(folder)
    _validator((folder / "schema" / "evidence-1.schema.json").read_text()).validate(evidence)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "bagit.txt", "bag-info.txt", "manifest-sha256.txt", "tagmanifest-sha256.txt", "evidence.json",
        "journal.jsonl", "custody.jsonl", "schema", "data",
    }, names  # fmt: skip
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    return evidence


@functools.cache
def _validator(schema_text: str) -> jsonschema.Draft202012Validator:
    schema = json.loads(schema_text)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def sha256sum(folder: Path, manifest: str) -> None:
    """`sha256sum --strict -c`, from inside the bundle."""
    checked = subprocess.run(
        ["sha256sum", "--strict", "--check", "--quiet", manifest], cwd=folder, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def sha256(path: Path) -> str:
    """The digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- processes


def session(sid: int) -> list[int]:
    """The living processes of a session (field 6 of stat): what a `start_pmf` has started and not ended."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == sid and fields[0] not in "ZX":
            members.append(int(entry.name))
    return members


def assert_session_ends(sid: int, within_s: float = 30.0) -> None:
    """Nothing that pmf started outlives it; the kernel and the guard get a moment."""
    give_up = time.monotonic() + within_s
    while left := session(sid):
        if time.monotonic() > give_up:
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left]
            raise AssertionError(f"left behind by pmf: {dict(zip(left, commands, strict=True))}")
        time.sleep(0.005)


def states(pid: int) -> set[str]:
    """State letters of the threads of a process; empty when it is gone."""
    letters = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            letters.add(stat.read_text(errors="replace").rpartition(")")[2].split()[0])
        except OSError:
            continue
    return letters


def assert_runs(pid: int, within_s: float = 30.0) -> None:
    """No thread is stopped or traced any more, and the process is there."""
    give_up = time.monotonic() + within_s
    while held := states(pid) & {"T", "t"}:
        assert time.monotonic() < give_up, f"threads of {pid} are still in state {held}"
        time.sleep(0.005)
    assert states(pid) - {"Z", "X"}, f"process {pid} is gone"


def wait_for(what: str, condition: Any, within_s: float = 60.0) -> Any:
    """The first true value of `condition()`."""
    give_up = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < give_up, f"waited in vain for {what}"
        time.sleep(0.002)
    return value
