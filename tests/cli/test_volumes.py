"""Places that cannot, or should not, hold evidence: said before work starts, and survived when it comes later."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmforensics.bundle.recover import recover
from tests import captures, users, volumes

pytestmark = pytest.mark.needs("root", "mkfs.ext4")

MIB = 1 << 20
ROGUES = (sys.executable, "-m", "tests.collect.rogues")


@pytest.fixture
def target() -> Iterator[int]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


def refused(target: int, evidence: Path, code: str, *args: object) -> str:
    """The words of a capture that must not begin."""
    done = captures.pmf("capture", "--pid", target, "--evidence", evidence, *args)
    assert done.returncode == 4, done.stderr
    assert f"[{code}]" in done.stderr
    assert "hint: " in done.stderr
    assert done.stdout == ""
    return done.stderr


def files_under(place: Path) -> set[str]:
    """What is there, but for what a fresh ext4 has."""
    return {str(path.relative_to(place)) for path in place.rglob("*")} - {"lost+found"}


def test_tmpfs_needs_force_and_the_manifest_says_that_it_was_overruled(tmp_path: Path, target: int) -> None:
    with volumes.tmpfs(tmp_path / "memory", 64) as place:
        assert "memory" in refused(target, place / "e", "volume-not-persistent")
        assert files_under(place) == set()
        done = captures.pmf("capture", "--pid", target, "--evidence", place / "e", "--force")
        assert done.returncode in (0, 3)
        assert "will not survive" in done.stderr
        evidence = captures.judge(captures.only_bundle(place / "e"))
        assert evidence["capture"]["forced"] is True
        assert evidence["volume"]["persistent"] is False
        assert "tmpfs" in evidence["volume"]["fleeting_because"]


def test_overlay_needs_force(tmp_path: Path, target: int) -> None:
    with volumes.overlay(tmp_path / "layer") as place:
        assert "container" in refused(target, place, "volume-not-persistent")
        evidence = captures.judge(captures.capture(target, place))
        assert evidence["capture"]["forced"] is True
        assert evidence["volume"]["fs_type"] == "overlay"


def test_empty_dir_needs_force(tmp_path: Path, target: int) -> None:
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        inside = disk / "pods" / "0a1b" / "volumes" / "kubernetes.io~empty-dir" / "scratch"
        inside.mkdir(parents=True)
        with volumes.bind(inside, tmp_path / "evidence") as place:
            assert "emptyDir" in refused(target, place, "volume-not-persistent")
            assert captures.judge(captures.capture(target, place))["capture"]["forced"] is True


def test_force_on_a_persistent_volume_overrules_nothing(tmp_path: Path, target: int) -> None:
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        evidence = captures.judge(captures.capture(target, disk))
        assert evidence["capture"]["forced"] is False
        assert evidence["volume"]["persistent"] is True


def test_read_only_volume_is_refused_also_by_force(tmp_path: Path, target: int) -> None:
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for args in ((), ("--force",)):
            assert "read-only" in refused(target, disk / "e", "volume-unusable", *args)


def test_full_volume_is_refused_also_by_force(tmp_path: Path, target: int) -> None:
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        volumes.fill(disk, 20 * MIB)
        for args in ((), ("--force",)):
            assert "must stay free" in refused(target, disk / "e", "volume-full", *args)
        assert files_under(disk) == {"filler"}


@pytest.mark.parametrize("inside", ["file", "file/below/it"])
def test_file_in_place_of_the_folder_is_refused(tmp_path: Path, target: int, inside: str) -> None:
    (tmp_path / "file").write_text("precious")
    assert "not a folder" in refused(target, tmp_path / inside, "volume-unusable", "--force")
    assert (tmp_path / "file").read_text() == "precious"


def test_name_that_no_file_system_takes_is_refused(tmp_path: Path, target: int) -> None:
    refused(target, tmp_path / ("x" * 300), "volume-unusable", "--force")


@pytest.mark.needs("setpriv")
@pytest.mark.parametrize("place", ["closed", "closed/below", "read-only"])
def test_folder_without_permission_is_refused(tmp_path: Path, place: str) -> None:
    users.open_to(tmp_path / "open")
    closed = tmp_path / "open" / "closed"
    closed.mkdir(mode=0o700)
    (tmp_path / "open" / "read-only").mkdir(mode=0o755)
    with subprocess.Popen([*users.prefix(), "sleep", "1000"]) as theirs:
        done = users.pmf("capture", "--pid", theirs.pid, "--evidence", tmp_path / "open" / place, "--force")
        theirs.kill()
    assert done.returncode == 4, done.stderr
    assert "[volume-unusable]" in done.stderr
    assert "Permission denied" in done.stderr
    assert files_under(closed) == set()


def test_folder_that_is_made_is_private_whatever_the_umask(tmp_path: Path, target: int) -> None:
    done = captures.pmf(
        "capture", "--pid", target, "--evidence", tmp_path / "a" / "b" / "c", "--force", "--service", "svc",
        prefix=("sh", "-c", 'umask 000; exec "$@"', "sh"),
    )  # fmt: skip
    assert done.returncode in (0, 3)
    made = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    assert len(made) > 20
    for path in made:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_default_folder_is_the_one_in_the_environment(tmp_path: Path, target: int) -> None:
    done = captures.pmf("capture", "--pid", target, "--force", env={"PMF_EVIDENCE": str(tmp_path / "from-env")})
    assert done.returncode in (0, 3)
    captures.judge(captures.only_bundle(tmp_path / "from-env"))


# ---- it fails under way


def big_program(place: Path, size_mib: int) -> Path:
    """A program that sleeps, with this much noise behind its end."""
    program = place / "big"
    with program.open("wb") as file:
        file.write(Path("/bin/sleep").read_bytes())
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
    program.chmod(0o755)
    return program


def test_bulk_that_would_cross_the_floor_is_refused_before_it_is_written(tmp_path: Path) -> None:
    program = big_program(tmp_path, 60)
    with volumes.ext4(tmp_path / "disk", 96) as disk, subprocess.Popen([program, "1000"]) as target:
        try:
            folder = captures.capture(target.pid, disk, "--include", "executable", codes=(3,))
            evidence = captures.judge(folder)
            (gap,) = [gap for gap in evidence["gaps"] if gap["wanted"] == "executable"]
            assert (gap["outcome"], gap["reason"]["code"]) == ("refused", "would-harm")
            assert "kept free" in gap["reason"]["says"]
            assert volumes.free_bytes(disk) > evidence["volume"]["floor_bytes"]
        finally:
            target.kill()


def test_bulk_that_fits_is_kept_and_is_the_very_program(tmp_path: Path) -> None:
    program = big_program(tmp_path, 20)
    with volumes.ext4(tmp_path / "disk", 128) as disk, subprocess.Popen([program, "1000"]) as target:
        try:
            folder = captures.capture(target.pid, disk, "--include", "executable")
            captures.judge(folder)
            (copy,) = (folder / "data").glob("*-executable/executable")
            assert captures.sha256(copy) == captures.sha256(program)
            assert copy.stat().st_mode & 0o111 == 0
        finally:
            target.kill()


def test_neighbour_that_fills_the_volume_first_leaves_room_for_the_seal_of_everything_else(
    tmp_path: Path, target: int
) -> None:
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        done = subprocess.run(
            [*ROGUES, "Fine,FillsVolume+real", "capture", "--pid", str(target), "--evidence", disk],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        folder = captures.only_bundle(disk)
        evidence = captures.judge(folder)
        assert evidence["completeness"] == "incomplete"
        assert any(row["path"].endswith("fine.txt") for row in evidence["artifacts"])
        names = {row["name"] for row in evidence["collectors"]}
        assert {"process_state", "clock", "clock_again"} <= names, "the capture did not come to its end"


@pytest.mark.parametrize("rogue", ["Unmounts", "RemovesBundle"])
def test_volume_that_vanishes_ends_the_capture_with_a_reason_and_makes_nothing_elsewhere(
    tmp_path: Path, target: int, rogue: str
) -> None:
    with volumes.ext4(tmp_path / "disk", 64) as disk:
        process = captures.start_pmf(
            f"Fine,{rogue}+real", "capture", "--pid", target, "--evidence", disk, command=ROGUES
        )
        _, said = process.communicate(timeout=captures.TIMEOUT_S)
        assert process.returncode == 4, said.decode()
        assert b"[volume-unusable]" in said
        assert b"Traceback" not in said
        captures.assert_session_ends(process.pid)
        captures.assert_runs(target)
        if rogue == "Unmounts":
            assert files_under(disk) == set(), "something was made where the volume had been"
            volumes.mount_again(disk)
            sealed, _ = recover(captures.only_bundle(disk))
            evidence = captures.judge(sealed.folder)
            assert any(row["path"].endswith("fine.txt") for row in evidence["artifacts"])
        else:
            assert [path for path in files_under(disk) if "data" in path] == []
