"""
Heap dumps: which JVM wrote it, by its own words, and whether a jar's classes have the shape that the heap has.

A heap dump carries no build ID. Its system properties tell the JVM and the command ("stated in the heap", which a
program can change); the field layout of its classes can prove that a jar is not the one that ran, and agreement in
every class proves nothing: most releases change no field of most classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pmforensics.errors import FormatError, VerifyError
from pmforensics.formats.classfile import JarClass, JarLoss, iter_jar_classes
from pmforensics.formats.hprof import DumpedClass, HprofSummary, LayoutVerdict, compare_layout, read_hprof
from pmforensics.model.capture import GIB, MIB
from pmforensics.verify.dumps import UNPACK_FREELY_BYTES, UNPACK_RATIO, open_stream
from pmforensics.verify.verdict import Verdict

MAX_UNPACKED_BYTES = 256 * GIB
MAX_LISTED = 50  # differing classes that a report names


@dataclass(frozen=True, slots=True)
class JarRow:
    """
    One jar held against the heap.

    in_heap    classes of the jar that the heap holds
    same       of those: with exactly the jar's fields
    differ     of those: "class: how", at most MAX_LISTED
    unknown    of those: whose fields the dump does not hold
    """

    jar: Path
    verdict: Verdict
    code: str
    says: str
    classes: int
    in_heap: int
    same: int
    unknown: int
    differ: tuple[str, ...]
    lost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeapReport:
    """What the heap says of its JVM, and every jar held against it."""

    dump: Path
    summary: HprofSummary
    rows: tuple[JarRow, ...]

    @property
    def verdict(self) -> Verdict:
        """MISMATCH when a jar contradicts the heap; otherwise UNVERIFIABLE: a heap dump has no identity."""
        return Verdict.MISMATCH if any(row.verdict is Verdict.MISMATCH for row in self.rows) else Verdict.UNVERIFIABLE


def verify_heap_dump(dump: Path, jars: Sequence[Path]) -> HeapReport:
    """
    Read an .hprof, plain or compressed, and hold jars against it.

    Errors: DumpUnreadable, FormatError, VerifyError when a candidate is no jar.
    """
    summary = read_hprof(lambda: _chunks(dump))
    dumped: dict[str, list[DumpedClass]] = {}
    for one in summary.classes:
        dumped.setdefault(one.name, []).append(one)
    return HeapReport(dump, summary, tuple(_hold(jar, dumped) for jar in _jars(jars)))


def _chunks(dump: Path) -> Iterator[bytes]:
    """The dump's bytes, unpacked within bounds; a plain file is never longer than its bound."""
    most_bytes = min(max(UNPACK_FREELY_BYTES, dump.stat().st_size * UNPACK_RATIO), MAX_UNPACKED_BYTES)
    total = 0
    with open_stream(dump) as stream:
        while chunk := stream.read(MIB):
            total += len(chunk)
            if total > most_bytes:
                raise VerifyError(
                    f"{dump} unpacks to more than {UNPACK_RATIO} times its size: pmf stops there",
                    hint="If you trust it, unpack it yourself and verify the file.",
                )
            yield chunk


def _jars(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(inside for inside in path.rglob("*.jar") if inside.is_file())
        else:
            yield path


def _hold(jar: Path, dumped: dict[str, list[DumpedClass]]) -> JarRow:
    classes = in_heap = same = unknown = 0
    differ: list[str] = []
    lost: list[str] = []
    seen: set[str] = set()
    try:
        with jar.open("rb") as file:
            for found in iter_jar_classes(file):
                if isinstance(found, JarLoss):
                    lost.append(f"{found.path}: {found.says}")
                    continue
                if found.release or found.layout.name in seen:
                    continue  # another release's variant of a class: the base one is compared
                seen.add(found.layout.name)
                classes += 1
                verdict, how = _compare(found, dumped.get(found.layout.name, []))
                in_heap += verdict is not None
                same += verdict is LayoutVerdict.SAME
                unknown += verdict is LayoutVerdict.UNKNOWN
                if verdict is LayoutVerdict.DIFFERS:
                    differ.append(f"{found.layout.name}: {how}")
    except OSError as error:
        raise VerifyError(f"{jar} cannot be read ({error.strerror})") from None
    except FormatError as error:
        raise VerifyError(f"{jar}: {error.message}", hint="Give the jar that was deployed.") from None
    if differ:
        return JarRow(jar, Verdict.MISMATCH, "other-fields",
                      f"{len(differ)} of {in_heap} classes have other fields in the heap: not the jar that ran",
                      classes, in_heap, same, unknown, tuple(differ[:MAX_LISTED]), tuple(lost))  # fmt: skip
    if not in_heap:
        code, says = "not-in-heap", f"none of its {classes} classes is in the heap"
    else:
        code, says = "consistent", f"{same} of {in_heap} classes agree in every field, which is no proof"
    return JarRow(jar, Verdict.UNVERIFIABLE, code, says, classes, in_heap, same, unknown, (), tuple(lost))


def _compare(found: JarClass, dumped: list[DumpedClass]) -> tuple[LayoutVerdict | None, str]:
    """The best of all classes of that name: several loaders may hold several versions. None: not in the heap."""
    best: tuple[LayoutVerdict | None, str] = (None, "")
    for one in dumped:
        comparison = compare_layout(one, found.layout)
        if comparison.verdict is LayoutVerdict.SAME:
            return LayoutVerdict.SAME, ""
        if best[0] is None or comparison.verdict is LayoutVerdict.DIFFERS:
            best = (comparison.verdict, comparison.says)
    return best
