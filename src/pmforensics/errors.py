"""
Every error that pmf raises on purpose.

    PmfError                      code, message, hint; exit code 4 ("could not")
    +-- TargetError               the process itself
    |   +-- NoSuchProcess         no process has this pid
    |   +-- NotAProcess           a thread id, pmf itself, or nothing that can be captured
    |   +-- TargetGone            it exited while it was being examined
    +-- VolumeError               the place where evidence is to be kept
    |   +-- VolumeUnusable        read-only, missing, not a folder, no permission
    |   +-- VolumeFull            no room above the floor
    |   +-- VolumeNotPersistent   memory or container layer: gone with the restart
    +-- CollectError              one collector could not bring one thing; becomes a Gap, never ends a capture
    |   +-- NotThere              looked, and there is nothing                      -> missing
    |   +-- NotSupported          this kind of target or machine has no such thing  -> missing
    |   +-- ToolMissing           the program that does it is not installed         -> missing
    |   +-- AccessDenied          the kernel or the target said no                  -> denied
    |   +-- EndpointRefused       nobody answers at the address                     -> denied
    |   +-- DeadlinePassed        the collector's share of the budget is spent      -> late
    |   +-- WouldHarm             pmf itself declined: signal, pause, space         -> refused
    |   +-- ToolFailed            the program ran and failed                        -> failed
    |   +-- AnswerBroken          the answer is not what it claims to be            -> failed
    +-- BundleError               a bundle on disk
    |   +-- NotABundle            no journal and no seal here
    |   +-- NotSealed             the capture is running or was killed
    |   +-- BundleBusy            another pmf holds it
    |   +-- BundleBroken          its own records cannot be read
    +-- VerifyError               dump and candidates
    |   +-- DumpUnreadable        this is no dump that pmf can read, or it cannot be opened
    |   +-- CandidateUnreadable   this is no binary or symbol file that pmf can read
    +-- FormatError               bytes that are not what they should be (a ValueError too)
        +-- NotElf                no ELF magic
        +-- BrokenElf             ELF magic, impossible contents
        +-- NotMachO              no Mach-O magic
        +-- BrokenMachO           Mach-O magic, impossible contents

Messages say what happened; hints say what to do next. Neither may hold a secret: callers redact first.
"""

from __future__ import annotations

from typing import ClassVar


class PmfError(Exception):
    """
    Base of the tree.

    `code` is stable and searchable, `exit_code` is what `pmf` ends with when this error is the last word,
    `hint` is the next step for a person or "".
    """

    code: ClassVar[str] = "pmf-error"
    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class TargetError(PmfError):
    """Something about the process to be captured."""

    code = "target-error"


class NoSuchProcess(TargetError):
    """No process has this pid."""

    code = "no-such-process"


class NotAProcess(TargetError):
    """The number names a thread, pmf itself, or something else that cannot be a target."""

    code = "not-a-process"


class TargetGone(TargetError):
    """The target exited while it was being examined."""

    code = "target-gone"


class VolumeError(PmfError):
    """Something about the place where evidence is kept."""

    code = "volume-error"


class VolumeUnusable(VolumeError):
    """Nothing can be written there: read-only, missing, not a folder, no permission."""

    code = "volume-unusable"


class VolumeFull(VolumeError):
    """There is no room above the floor that pmf keeps free."""

    code = "volume-full"


class VolumeNotPersistent(VolumeError):
    """What is written there is gone after the restart."""

    code = "volume-not-persistent"


class CollectError(PmfError):
    """One thing could not be collected. Recorded as a gap; the capture goes on."""

    code = "collect-error"


class NotThere(CollectError):
    """pmf looked, and there is no such thing."""

    code = "not-there"


class NotSupported(CollectError):
    """This kind of target, kernel or machine has no such thing."""

    code = "not-supported"


class ToolMissing(CollectError):
    """The program that would do it is not installed."""

    code = "tool-missing"


class AccessDenied(CollectError):
    """The kernel or the target refused."""

    code = "access-denied"


class EndpointRefused(CollectError):
    """Nobody answers at the address, or the answer is no; `status` is the HTTP status, 0 when there was no answer."""

    code = "endpoint-refused"

    def __init__(self, message: str, *, hint: str = "", status: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class DeadlinePassed(CollectError):
    """The collector's share of the budget is spent."""

    code = "deadline-passed"


class WouldHarm(CollectError):
    """pmf declined: the target, the volume or the budget would have suffered."""

    code = "would-harm"


class ToolFailed(CollectError):
    """A program ran and did not succeed."""

    code = "tool-failed"


class AnswerBroken(CollectError):
    """What came back is not what it claims to be."""

    code = "answer-broken"


class BundleError(PmfError):
    """Something about a bundle on disk."""

    code = "bundle-error"


class NotABundle(BundleError):
    """The folder holds neither a journal nor a seal."""

    code = "not-a-bundle"


class NotSealed(BundleError):
    """The bundle has no seal: its capture is running or was killed."""

    code = "not-sealed"


class BundleBusy(BundleError):
    """Another pmf is writing to the bundle."""

    code = "bundle-busy"


class BundleBroken(BundleError):
    """The bundle's own records cannot be read."""

    code = "bundle-broken"


class VerifyError(PmfError):
    """Something about a dump or a file that is held against it."""

    code = "verify-error"


class DumpUnreadable(VerifyError):
    """This is no dump that pmf can read, or it cannot be opened."""

    code = "dump-unreadable"


class CandidateUnreadable(VerifyError):
    """This is no binary, debug file or symbol file that pmf can read."""

    code = "candidate-unreadable"


class FormatError(PmfError, ValueError):
    """Bytes that are not what they should be."""

    code = "format-error"


class NotElf(FormatError):
    """The bytes do not begin with the ELF magic."""

    code = "not-elf"


class BrokenElf(FormatError):
    """An ELF header whose contents are impossible."""

    code = "broken-elf"


class NotMachO(FormatError):
    """The bytes do not begin with a Mach-O magic."""

    code = "not-macho"


class BrokenMachO(FormatError):
    """A Mach-O header whose contents are impossible."""

    code = "broken-macho"
