"""What the commands print, where, and how they end."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pmforensics
from tests import captures
from tests.bundle import synthetic

COMMANDS_ON_BUNDLES = ("show", "check", "recover")


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    """A process that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a gap."""
    return synthetic.bundle(tmp_path_factory.mktemp("complete")).folder


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one."""
    return synthetic.bundle(tmp_path_factory.mktemp("incomplete"), synthetic.with_gap()).folder


@pytest.fixture
def altered(complete: Path, tmp_path: Path) -> Path:
    """A bundle that is not what was sealed."""
    copy = tmp_path / "altered"
    shutil.copytree(complete, copy)
    (copy / "data" / "01-first" / "status").write_text("other")
    return copy


# ---- exit codes


def test_check_ends_with_0_intact_3_incomplete_1_altered(complete: Path, incomplete: Path, altered: Path) -> None:
    for folder, code, word in (
        (complete, 0, "Intact"),
        (incomplete, 3, "Incomplete as recorded"),
        (altered, 1, "Altered"),
    ):
        done = captures.pmf("check", folder)
        assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (code, word, "")


def test_check_with_the_seal_of_another_bundle_ends_with_1(complete: Path, incomplete: Path) -> None:
    seal = json.loads(captures.pmf("check", incomplete, "--json").stdout)["seal"]
    assert captures.pmf("check", incomplete, "--seal", seal).returncode == 3
    done = captures.pmf("check", complete, "--seal", seal)
    assert done.returncode == 1
    assert seal in done.stdout


def test_recover_of_a_sealed_bundle_ends_as_its_completeness_says(complete: Path, incomplete: Path) -> None:
    assert captures.pmf("recover", complete).returncode == 0
    assert captures.pmf("recover", incomplete).returncode == 3


def test_show_ends_with_0_whatever_is_missing(complete: Path, incomplete: Path) -> None:
    assert captures.pmf("show", complete).returncode == 0
    assert captures.pmf("show", incomplete).returncode == 0


@pytest.mark.parametrize("command", COMMANDS_ON_BUNDLES)
def test_what_is_no_bundle_ends_with_4_and_a_hint(tmp_path: Path, command: str) -> None:
    for place in (tmp_path, tmp_path / "nowhere", Path("/dev/null")):
        done = captures.pmf(command, place)
        assert (done.returncode, done.stdout) == (4, "")
        assert "[not-a-bundle]\nhint: " in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("capture",), ("capture", "--pid", "1", "--budget", "soon"), ("capture", "--pid", "1", "--core", "half"),
        ("capture", "--pid", "1", "--include", "no-such"), ("capture", "--pid", "1", "--budget", "0.5s"),
        ("capture", "--pid", "1", "--nonsense"), ("nonsense",), ("show",), ("check", "a", "b"), ("--nonsense",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_says_why(args: tuple[str, ...]) -> None:
    done = captures.pmf(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_reader_that_goes_away_is_no_bug(complete: Path) -> None:
    script = f"{captures.sys.executable} -m pmforensics show --json '{complete}' | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1][-1] in "04"  # either it was faster than the reader's end, or not


def test_full_device_in_place_of_stdout_is_said_without_a_traceback(complete: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*captures.PMF, "show", str(complete)], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 4
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_bug_ends_with_70_and_shows_where(tmp_path: Path) -> None:
    code = (
        "import click, sys\n"
        "from pmforensics.cli.errors import guarded\n"
        "@click.command()\n"
        "def broken(): raise ZeroDivisionError('here')\n"
        "sys.exit(guarded(broken))\n"
    )
    done = subprocess.run([captures.sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError: here" in done.stderr
    assert "[bug]" in done.stderr


# ---- JSON


@pytest.mark.parametrize("command", COMMANDS_ON_BUNDLES)
@pytest.mark.parametrize("which", ["complete", "incomplete"])
def test_json_is_the_same_in_two_calls_and_the_only_thing_on_stdout(
    request: pytest.FixtureRequest, command: str, which: str
) -> None:
    folder = request.getfixturevalue(which)
    one, two = captures.pmf(command, folder, "--json"), captures.pmf(command, folder, "--json")
    assert one.stdout == two.stdout
    assert one.stderr == ""
    value = json.loads(one.stdout)
    assert value["bundle"] == str(folder)
    assert value["seal"] == f"sha256:{captures.sha256(folder / 'tagmanifest-sha256.txt')}"


def test_json_of_check_tells_what_the_words_tell(altered: Path) -> None:
    value = json.loads(captures.pmf("check", altered, "--json").stdout)
    assert value["verdict"] == "altered"
    assert any("data/01-first/status" in sentence for sentence in value["alterations"])
    words = captures.pmf("check", altered).stdout
    assert all(sentence in words for sentence in value["alterations"])


def test_json_of_capture_is_the_manifest_that_was_sealed(tmp_path: Path, target: int) -> None:
    done = captures.pmf("capture", "--pid", target, "--evidence", tmp_path, "--force", "--json", "--incident", "INC-7")
    value = json.loads(done.stdout)
    folder = Path(value["bundle"])
    assert value["evidence"] == captures.evidence_of(folder)
    assert value["evidence"]["capture"]["incident"] == "INC-7"
    assert value["seal"] == f"sha256:{captures.sha256(folder / 'tagmanifest-sha256.txt')}"
    assert done.returncode == (0 if value["evidence"]["completeness"] == "complete" else 3)


@pytest.mark.parametrize("args", [(), ("--pid",)], ids=["machine", "process"])
def test_json_of_doctor_is_valid_and_the_same_in_two_calls(tmp_path: Path, target: int, args: tuple[str, ...]) -> None:
    more = (*args, str(target)) if args else ()
    one = captures.pmf("doctor", *more, "--evidence", tmp_path, "--json")
    two = captures.pmf("doctor", *more, "--evidence", tmp_path, "--json")
    assert one.returncode in (0, 1, 3)

    def names(text: str) -> dict[str, list[str]]:
        # Free space is a number that others change; which questions are asked, and in which order, is ours.
        return {title: [check["name"] for check in section] for title, section in json.loads(text).items()}

    assert names(one.stdout) == names(two.stdout)
    assert names(one.stdout)


# ---- words


def test_capture_prints_path_table_gaps_and_seal(tmp_path: Path, target: int) -> None:
    done = captures.pmf("capture", "--pid", target, "--evidence", tmp_path, "--force", "--service", "check out")
    folder = captures.only_bundle(tmp_path)
    evidence = captures.judge(folder)
    lines = done.stdout.splitlines()
    assert f"  {folder}" in lines
    assert folder.parent.name == "check-out"
    assert next(line for line in lines if line.startswith("ARTIFACT")).split() == [
        "ARTIFACT", "OUTCOME", "SIZE", "TIME", "PAUSE",
    ]  # fmt: skip
    assert lines[-1] == f"Seal sha256:{captures.sha256(folder / 'tagmanifest-sha256.txt')}"
    for gap in evidence["gaps"]:
        assert any(gap["wanted"] in line and f"[{gap['reason']['code']}]" in line for line in lines)
    assert "\x1b" not in done.stdout
    assert f"Process {target} runs on" in done.stdout


def test_show_names_every_folder_or_with_all_every_file(tmp_path: Path, target: int) -> None:
    folder = captures.capture(target, tmp_path)
    rows = captures.evidence_of(folder)["artifacts"]
    short = captures.pmf("show", folder).stdout
    for name in {row["path"].split("/")[1] for row in rows}:
        assert name in short
    every = captures.pmf("show", folder, "--all").stdout
    for row in rows:
        assert row["path"].rsplit("/", maxsplit=1)[1] in every
    assert every.count("\n") > short.count("\n")


def test_no_line_is_wider_than_80_columns_off_a_terminal(tmp_path: Path, target: int, incomplete: Path) -> None:
    folder = captures.capture(target, tmp_path)
    for command in ("show", "check"):
        for line in captures.pmf(command, folder).stdout.splitlines():
            assert len(line) <= 80 or "sha256:" in line or "/" in line, line


def test_version_and_help_import_no_command() -> None:
    for args, needle in ((("--version",), pmforensics.__version__), (("--help",), "pmf capture --pid N")):
        done = captures.pmf(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert needle in done.stdout


def test_every_command_has_help_that_fits() -> None:
    listed = captures.pmf("--help").stdout.split("Commands:")[1]
    commands = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert {"capture", "show", "check", "recover", "doctor"} <= set(commands)
    for command in commands:
        done = captures.pmf(command, "--help")
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("25s", 25.0), ("25", 25.0), ("1.5m", 90.0), ("2h", 7200.0), ("500ms", 0.5), ("1d", 86400.0), (" 3 s ", 3.0)],
)
def test_time_spans_are_read_as_people_write_them(text: str, seconds: float) -> None:
    from pmforensics.cli.capture import SECONDS

    assert SECONDS.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e9", "nan", "inf", "1 week", "9" * 30, "1s1s", "\u0661s"])
def test_what_is_no_time_span_is_refused(text: str) -> None:
    import click

    from pmforensics.cli.capture import SECONDS

    with pytest.raises(click.BadParameter):
        SECONDS.convert(text, None, None)
