"""
Command lines, and what in them must not be written down.

`redact_argv` errs on the side of hiding: it goes by names that look secret, by URLs with credentials in
them, and by values whose shape gives them away. A secret in a plain position (`login hunter2`) has no mark
and passes. All patterns are linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

REDACTED = "(redacted)"


def parse_cmdline(data: bytes) -> list[str]:
    """
    /proc/PID/cmdline as arguments; bytes that are not UTF-8 appear as \\xNN.

    A process that wrote over its arguments (setproctitle) leaves one text, perhaps padded with NULs or
    blanks and perhaps without the NUL that ends it: that is one argument, since its blanks separate nothing
    for sure. Kernel threads and zombies have none: [].
    """
    text = data.rstrip(b"\0")
    if b"\0" not in text:
        title = text.rstrip(b" ")
        return [_decode(title)] if title else []
    # One NUL ends the last argument; more of them are empty arguments.
    return [_decode(argument) for argument in data.removesuffix(b"\0").split(b"\0")]


def _decode(argument: bytes) -> str:
    return argument.decode("utf-8", "backslashreplace")


# --------------------------------------------------------------------------------------------- secret names

# Found anywhere in a name once case and separators are gone: apiKey, api-key, API_KEY.
_SECRET_PARTS = re.compile(
    "password|passwd|passphrase|passcode|secret|credential|bearer|apikey|accesskey|privatekey"
    "|accountkey|sharedkey|signingkey|encryptionkey|masterkey|sessionkey|connectionstring|connstr|authkey"
    "|requirepass|storepass|keypass|userpass|masterauth|token(?!iz)"
)
# Too short or too common to be looked for inside other words.
_SECRET_WORDS = frozenset({"pwd", "pass", "pw", "otp", "dsn", "cred", "creds", "jwt", "cookie", "sas", "pat"})
# Secret only at the end of a name: --auth=..., proxy.auth, but not auth.login.config.
_SECRET_LAST_WORDS = frozenset({"auth", "authorization", "sig", "signature"})
# The name of a place to find the secret, or of its lifetime, is no secret.
_HARMLESS_LAST_WORDS = frozenset({"file", "path", "dir", "directory", "ttl", "timeout", "expiry", "lifetime"})
# --max-num-batched-tokens counts them.
_COUNTING_WORDS = frozenset({"max", "min", "num", "count", "limit"})

_WORD_BORDER = re.compile(r"[\W_]+|(?<=[a-z0-9])(?=[A-Z])")
_PROPERTY = re.compile(r"\A-(?:J-)?[DP]")
_MAX_NAME_CHARS = 256


def is_secret_name(name: str) -> bool:
    """Whether the name of an option, property, variable or query field promises a secret value."""
    name = name[-_MAX_NAME_CHARS:]
    # -Dpwd is the property pwd, but -Password is no property "assword".
    return _promises_secret(name) or _promises_secret(_PROPERTY.sub("", name))


def _promises_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD_BORDER.split(name) if word]
    if not words or words[-1] in _HARMLESS_LAST_WORDS:
        return False
    if words[-1] == "tokens" and not _COUNTING_WORDS.isdisjoint(words):
        return False
    return (
        words[-1] in _SECRET_LAST_WORDS
        or not _SECRET_WORDS.isdisjoint(words)
        or _SECRET_PARTS.search("".join(words)) is not None
    )


# ---------------------------------------------------------------------------------------------------- values

# Values that give themselves away: JWT, AWS key ids, keys of GitHub, GitLab, Slack, Google, Stripe, OpenAI
# and Anthropic, private keys as PEM, Slack's incoming web hooks.
_SHAPES = re.compile(
    r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"
    r"|(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}"
    r"|github_pat_[A-Za-z0-9_]{22,255}"
    r"|glpat-[\w-]{20,255}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}"
    r"|AIza[\w-]{35}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,255}|sk-(?:proj-|ant-)[\w-]{20,255}"
    r"|(?<![A-Za-z0-9])sk-[A-Za-z0-9]{32,255}"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|(?<=hooks\.slack\.com/services/)\S+",
    re.DOTALL,
)
_AUTHORIZATION = re.compile(r"(authorization[\"']?\s{0,4}[:=]\s{0,4})(?=\S).*", re.IGNORECASE | re.DOTALL)
_BEARER = re.compile(r"(?<![\w.-])(bearer\s{1,4})(\S+)", re.IGNORECASE)

# After "://": everything up to the last "@" of the authority; or, where a password holds a raw "/", "?" or
# "#", up to the last "@" of all, provided that what follows the colon is no port.
_USERINFO = re.compile(r"[^\s/?#]+@|[^\s/?#:@]*:(?!\d*(?:[/?#,;\s\"']|\Z))\S*@")
_QUERY_FIELD = re.compile(r"[?&;#]([\w.%~+\[\] -]{1,256})=")
_QUERY_VALUE = re.compile(r"\"[^\"]*\"?|'[^']*'?|\{[^}]*\}?|[^&;#\s\"']+")

_OPTION = re.compile(r"([\w.-]+)=")
_NAMED = re.compile(r"(?<![\w.-])([\w.-]++)[\"']?\s{0,4}([=:])\s{0,4}")
_FLAG = re.compile(r"(?<![\w.-])(--?[\w.-]++)\s{1,8}(?!--[A-Za-z])")
_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*+\"?|'(?:[^'\\]|\\.)*+'?|\S+", re.DOTALL)
_VALUE_TAIL = re.compile(r"[^\s,;&)}\]]\S*")
_HARMLESS_VALUES = frozenset({"", "true", "false", "yes", "no", "on", "off", "none", "null"})


class _Redactor:
    """Replaces secrets in texts and counts them."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def _hide(self) -> str:
        self.count += 1
        return REDACTED

    def argument(self, text: str) -> str:
        """One argument without its secrets."""
        option = _OPTION.match(text)
        if option and is_secret_name(option[1]):
            if text[option.end() :].lower() in _HARMLESS_VALUES:
                return text
            return option[0] + self._hide()
        text = _AUTHORIZATION.sub(lambda found: found[1] + self._hide(), text)
        text = _BEARER.sub(lambda found: found[1] + self._hide(), text)
        text = self.url(text)
        text = self._after(_NAMED, text, self._is_secret_pair)
        return self._after(_FLAG, text, lambda flag, _: is_secret_name(flag[1]))

    def url(self, text: str) -> str:
        """Text without the credentials of the URLs in it, and without values that give themselves away."""
        text = _SHAPES.sub(lambda _: self._hide(), text)
        head, *rest = text.split("://")
        text = "://".join([head, *(self._userinfo(part) for part in rest)])
        return self._after(_QUERY_FIELD, text, lambda field, _: is_secret_name(field[1]), _QUERY_VALUE)

    def _userinfo(self, after_scheme: str) -> str:
        found = _USERINFO.match(after_scheme)
        if found is None or found[0] == REDACTED + "@":
            return after_scheme
        return self._hide() + "@" + after_scheme[found.end() :]

    def _is_secret_pair(self, name: re.Match[str], text: str) -> bool:
        if name[2] == "=" or name[0][-1] in " \t" or name[0][-2] in "\"'":
            return is_secret_name(name[1])
        # name:value without a blank may be a class path, a mount, an image tag or a host and its port.
        last_words = "-".join(_WORD_BORDER.split(name[1])[-2:])
        return is_secret_name(last_words) and text[name.end() : name.end() + 1] not in "/\\"

    def _after(
        self,
        mark: re.Pattern[str],
        text: str,
        is_secret: Callable[[re.Match[str], str], bool],
        value_pattern: re.Pattern[str] = _VALUE,
    ) -> str:
        """Hides the value behind every mark that announces a secret."""
        pieces: list[str] = []
        done = at = 0
        while found := mark.search(text, at):
            at = found.end()
            if text.startswith(REDACTED, at) or not is_secret(found, text):
                continue
            value = value_pattern.match(text, at)
            if value is None or value[0].lower() in _HARMLESS_VALUES:
                continue
            pieces += [text[done:at], self._hide()]
            done = at = value.end()
            if value[0][0] in "\"'" and (tail := _VALUE_TAIL.match(text, at)):
                done = at = tail.end()
        return "".join([*pieces, text[done:]])


_SECRET_FLAG = re.compile(r"--?[\w.-]+|[\w.-]+:")
_NEXT_FLAG = re.compile(r"--[A-Za-z]")
_SCHEMES = frozenset({"bearer", "basic", "token", "digest", "negotiate"})


def redact_argv(argv: list[str]) -> tuple[list[str], int]:
    """
    The arguments with every secret replaced by "(redacted)", and how many were.

    Hidden are: the value of a name that looks secret (--token=x, --token x, -Dapp.secret=x, TOKEN=x,
    "token": x, also inside a longer argument such as the text for sh -c), credentials in URLs,
    Authorization headers, and values shaped like well-known keys.
    """
    redactor = _Redactor()
    redacted: list[str] = []
    hide_next = False
    for argument in argv:
        is_scheme = argument.lower() in _SCHEMES
        if hide_next and argument and not _NEXT_FLAG.match(argument) and not is_scheme:
            redacted.append(REDACTED)
            redactor.count += 1
        else:
            redacted.append(redactor.argument(argument))
        names_secret = _SECRET_FLAG.fullmatch(argument) is not None and is_secret_name(argument)
        hide_next = names_secret or (is_scheme and (hide_next or argument.lower() == "bearer"))
    return redacted, redactor.count


def redact_url(url: str) -> str:
    """The URL without user info, and without the values of query fields whose names look secret."""
    return _Redactor().url(url)
