"""
What HotSpot says of its own settings (VM.command_line, VM.flags, VM.system_properties), without the secrets in it.

HotSpot joins the options with blanks and quotes nothing, so that an option's end cannot be told for certain. An
option is taken to reach up to the next word that begins as options do; what follows the main class is withheld:
the arguments of the process are evidence elsewhere, word by word.
"""

from __future__ import annotations

import re

from pmforensics.formats.argv import REDACTED, is_secret_name, redact_argv

# As narrow as can be: "curl -X POST --user me:pw" inside an option must not pass for three more options.
_NEXT_OPTION = re.compile(
    r"\s+(?=-(?:D[\w.]+=|XX:[+-]?\w|X(?:m[nsx]|ss)\d|X(?:batch|bootclasspath|check|comp|debug|future|int|log|mixed"
    r"|noclassgc|rs|run|share|verify)|javaagent:|agentlib:|agentpath:|verbose|ea\b|da\b|esa\b|dsa\b|server\b|client\b"
    r"|enable\w*assertions|disable\w*assertions"
    r"|-(?:add|enable|illegal|limit|module|patch|sun-misc|upgrade)-[\w-]+[= ]))"
)
# Their values are free text for an agent, or a command line for a shell.
_WITHHELD = re.compile(r"(-(?:javaagent|agentlib|agentpath):[^=]*=|-XX:(?:OnError|OnOutOfMemoryError)=).*", re.DOTALL)

# Exact names or prefixes ending in "."; java.* as a whole would let java.naming.security.credentials through.
_PROPERTIES = frozenset((
    "file.encoding", "java.awt.headless", "java.class.path", "java.class.version", "java.home",
    "java.io.tmpdir", "java.library.path", "java.net.preferIPv4Stack", "java.net.preferIPv6Addresses",
    "java.vendor", "java.vendor.version", "java.version", "java.version.date", "jdk.debug",
    "jdk.module.main", "jdk.module.path", "native.encoding", "os.arch", "os.name", "os.version",
    "stderr.encoding", "stdout.encoding", "sun.arch.data.model", "sun.boot.library.path", "sun.cpu.endian",
    "sun.cpu.isalist", "sun.java.launcher", "sun.jnu.encoding", "sun.management.compiler",
    "sun.net.inetaddr.ttl", "user.country", "user.language", "user.timezone",
))  # fmt: skip
_PROPERTY_FAMILIES = (
    "java.runtime.",
    "java.specification.",
    "java.util.concurrent.ForkJoinPool.common.",
    "java.vm.",
    "jdk.virtualThreadScheduler.",
)


def redact_options(text: str) -> str:
    """JVM options as HotSpot prints them, joined with blanks."""
    options = [_WITHHELD.sub(rf"\1{REDACTED}", option) for option in _NEXT_OPTION.split(text.strip())]
    return " ".join(redact_argv(options)[0])


def redact_command_line(text: str) -> str:
    """
    The answer to VM.command_line: options redacted, the main class or jar kept, its arguments counted.

    A line that is none of the known ones (a newline inside an option) is withheld.
    """
    lines: list[str] = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in ("jvm_args", "jvm_flags"):
            lines.append(f"{name}: {redact_options(value)}")
        elif name == "java_command":
            words = value.split()
            withheld = f" ({len(words) - 1} more words withheld)" if len(words) > 1 else ""
            lines.append(f"{name}: {''.join(words[:1])}{withheld}")
        elif name in ("VM Arguments", "java_class_path (initial)", "Launcher Type"):
            lines.append(line)
        elif line.strip():
            lines.append("(line withheld)")
    return "\n".join(lines) + "\n"


def select_properties(text: str) -> tuple[str, int]:
    """The answer to VM.system_properties: those on the allow-list, and how many were withheld."""
    kept: list[str] = []
    withheld = 0
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        # The format of java.util.Properties: one line each, "=" and ":" in names escaped.
        name = line.partition("=")[0]
        if (name in _PROPERTIES or name.startswith(_PROPERTY_FAMILIES)) and not is_secret_name(name):
            kept.append(line)
        else:
            withheld += 1
    return "\n".join(kept) + "\n", withheld
