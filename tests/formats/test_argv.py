"""Secrets do not survive redaction, and the rest of a command line does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.formats.argv import REDACTED, is_secret_name, parse_cmdline, redact_argv, redact_url

SECRET = "hunter2"

# ---- /proc/PID/cmdline


def cmdline_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("arguments", [["a", "b c", "", "d"], ["--x=\u00fc", "new\nline", ""], []])
def test_arguments_of_a_real_process(arguments: list[str]) -> None:
    command = ["sh", "-c", "echo ready; read x; :", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        data = cmdline_of(process)
        process.kill()
    assert parse_cmdline(data) == command


@pytest.mark.needs("perl")
@pytest.mark.parametrize("title", ["x", "shop: worker 3 (idle)", "shop: a much longer title " * 20])
def test_title_that_a_process_gave_itself(title: str) -> None:
    code = "$| = 1; $0 = $ARGV[0]; print qq(ready\\n); <STDIN>"
    with subprocess.Popen(
        ["perl", "-e", code, title, "more", "arguments"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        data = cmdline_of(process)
        process.kill()
    parsed = parse_cmdline(data)
    assert len(parsed) == 1
    assert parsed[0]
    assert title.strip().startswith(parsed[0])


@pytest.mark.parametrize(
    ("data", "argv"),
    [
        (b"", []),
        (b"\0\0", []),
        (b"nginx: worker process\0\0\0\0\0", ["nginx: worker process"]),
        (b"sendmail: accepting connections      ", ["sendmail: accepting connections"]),
        (b"postgres: user db [local] idle", ["postgres: user db [local] idle"]),
        (b"a\0\0b\0", ["a", "", "b"]),
        (b"a\0b\0\0", ["a", "b", ""]),
        (b"a\0b", ["a", "b"]),
        (b"\xff\xfe\0x\0", ["\\xff\\xfe", "x"]),
    ],
)
def test_command_lines(data: bytes, argv: list[str]) -> None:
    parsed = parse_cmdline(data)
    assert parsed == argv
    assert json.dumps(parsed, ensure_ascii=False).encode()


# ---- what is hidden


@pytest.mark.parametrize(
    ("given_argv", "expected"),
    [
        (["--password", SECRET, "--port", "80"], ["--password", REDACTED, "--port", "80"]),
        (["--password=hunter2", "x"], [f"--password={REDACTED}", "x"]),
        (["-token=hunter2 and more"], [f"-token={REDACTED}"]),
        (["-Dspring.datasource.password=hunter2"], [f"-Dspring.datasource.password={REDACTED}"]),
        (["-Dpwd=hunter2"], [f"-Dpwd={REDACTED}"]),
        (["-J-Dpass=hunter2"], [f"-J-Dpass={REDACTED}"]),
        (["-Password=hunter2"], [f"-Password={REDACTED}"]),
        (["AWS_SECRET_ACCESS_KEY=hunter2"], [f"AWS_SECRET_ACCESS_KEY={REDACTED}"]),
        (["--apiKey=hunter2", "--api_key", SECRET], [f"--apiKey={REDACTED}", "--api_key", REDACTED]),
        (["--private-key=hunter2"], [f"--private-key={REDACTED}"]),
        (["--auth=hunter2", "--proxy.auth", SECRET], [f"--auth={REDACTED}", "--proxy.auth", REDACTED]),
        (["--connection-string", "Server=h;Pwd=hunter2"], ["--connection-string", REDACTED]),
        (["SENTRY_DSN=https://hunter2@sentry/1"], [f"SENTRY_DSN={REDACTED}"]),
        (["--requirepass", SECRET], ["--requirepass", REDACTED]),
        (["--env=TOKEN=hunter2"], [f"--env=TOKEN={REDACTED}"]),
        (["-javaagent:/a.jar=token=hunter2"], [f"-javaagent:/a.jar=token={REDACTED}"]),
        (["--header=X-Auth-Token:hunter2"], [f"--header=X-Auth-Token:{REDACTED}"]),
        (["X-Api-Key: hunter2"], [f"X-Api-Key: {REDACTED}"]),
        (["Authorization: Bearer hunter2"], [f"Authorization: {REDACTED}"]),
        (["authorization=Basic aHVudGVyMg== hunter2"], [f"authorization={REDACTED}"]),
        (["Authorization:", "Bearer", SECRET, "x"], ["Authorization:", "Bearer", REDACTED, "x"]),
        (["bearer", SECRET], ["bearer", REDACTED]),
        (["host=h password=hunter2 dbname=d"], [f"host=h password={REDACTED} dbname=d"]),
        (["host=h password='hunter2 x' dbname=d"], [f"host=h password={REDACTED} dbname=d"]),
        (['{"user":"bob","password":"hun\\"hunter2","n":1}'], [f'{{"user":"bob","password":{REDACTED},"n":1}}']),
        (["sh", "-c", "run --token hunter2 --port 80"], ["sh", "-c", f"run --token {REDACTED} --port 80"]),
        (["shop --password hunter2 --port 80"], [f"shop --password {REDACTED} --port 80"]),
        (["postgres://bob:hunter2@db:5432/shop"], [f"postgres://{REDACTED}@db:5432/shop"]),
        (["--url=https://hunter2@host/x"], [f"--url=https://{REDACTED}@host/x"]),
        (["amqp://a:hunter2@h1,amqp://b:hunter2@h2"], [f"amqp://{REDACTED}@h1,amqp://{REDACTED}@h2"]),
        (["redis://:p@hunter2@h:6379/0"], [f"redis://{REDACTED}@h:6379/0"]),
        (["postgres://bob:hunter2/x#y@db/shop"], [f"postgres://{REDACTED}@db/shop"]),
        (
            ["jdbc:sqlserver://h;user=sa;password=hunter2;database=d"],
            [f"jdbc:sqlserver://h;user=sa;password={REDACTED};database=d"],
        ),
        (["https://h/x?a=1&access_token=hunter2&b=2#sig=hunter2"], None),
        (["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.hunter2"], [REDACTED]),
        (["x=AKIAIOSFODNN7EXAMPLE;"], [f"x={REDACTED};"]),
        (["ghp_" + "hunter2" * 6], [REDACTED]),
        (["xoxb-123456789012-hunter2"], [REDACTED]),
        (["https://hooks.slack.com/services/T0/B0/hunter2"], [f"https://hooks.slack.com/services/{REDACTED}"]),
        (["-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----"], [REDACTED]),
    ],
)
def test_secrets_are_hidden(given_argv: list[str], expected: list[str] | None) -> None:
    redacted, count = redact_argv(["/usr/bin/shop", *given_argv])
    assert SECRET not in " ".join(redacted)
    assert count == " ".join(redacted).count(REDACTED) >= 1
    if expected is not None:
        assert redacted == ["/usr/bin/shop", *expected]
    assert redact_argv(redacted)[0] == redacted


@pytest.mark.parametrize(
    "argv",
    [
        ["java", "-Xmx4g", "-XX:+UseG1GC", "-cp", "/opt/token-lib.jar:/opt/x.jar", "-Dhttp.port=80", "Main"],
        ["java", "-Djava.security.auth.login.config=/etc/jaas.conf", "-Djavax.net.ssl.trustStore=/etc/store"],
        ["shop", "--password-file=/run/secrets/db", "--token-file", "/run/token", "--tokenPath=/x"],
        ["serve", "--max-num-batched-tokens", "8192", "--tokenizer=/models/x", "--max-tokens=5"],
        ["kube-apiserver", "--authorization-mode=RBAC", "--token-auth-file=/x", "--service-account-key-file=/y"],
        ["docker", "run", "-v", "/run/secrets:/run/secrets", "image:tag", "-p", "80:8080"],
        ["http://h:8080/a@b", "https://example.org/?q=1&page=2#top", "git@github.com:org/repo.git", "a@b.c"],
        ["--auth=true", "--require-auth", "--token="],
        ["nginx: master process /usr/sbin/nginx -g daemon off;"],
        ["--keystore=/etc/keys.jks", "--ssl-key=/etc/key.pem", "--author=Bob", "--compass=north", "--passive=1"],
        ["", " ", "=", ":", "--", "-", "--=", "://", "@"],
    ],
)
def test_what_is_no_secret_stays(argv: list[str]) -> None:
    assert redact_argv(argv) == (argv, 0)


@pytest.mark.parametrize(
    "name",
    [
        *("password", "DB_PASSWD", "my.pwd", "client-secret", "authToken", "API_KEY", "api-key", "x-api-key"),
        *("aws_credentials", "privateKey", "private_key", "auth", "proxy-auth", "bearer", "sentryDsn", "DSN"),
        *("connectionString", "connection_string", "AccessKey", "--token", "-Dpass", "SAS", "passphrase"),
    ],
)
def test_names_that_look_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["", "port", "key", "author", "authority", "pass-file", "token_ttl", "path", "max_tokens", "bypass", "word"]
)
def test_names_that_do_not_look_secret(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:6060/debug/pprof", "http://127.0.0.1:6060/debug/pprof"),
        ("http://bob:hunter2@h:1/x?y=1", "http://(redacted)@h:1/x?y=1"),
        ("http://h/x?token=hunter2&y=1", "http://h/x?token=(redacted)&y=1"),
        ("http://h/x?y=1&X-Amz-Signature=hunter2", "http://h/x?y=1&X-Amz-Signature=(redacted)"),
        ("http://h/x#access_token=hunter2&y=1", "http://h/x#access_token=(redacted)&y=1"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://bob@[::1]:80/x", "http://(redacted)@[::1]:80/x"),
    ],
)
def test_urls(url: str, expected: str) -> None:
    assert redact_url(url) == expected
    assert redact_url(expected) == expected


# A secret that no word around it could contain by chance.
secrets = st.text(st.sampled_from("abcdefXYZ0189+/=_-.!$%^*~"), min_size=6, max_size=30).map(lambda s: f"Qz7{s}7zQ")
names = st.sampled_from(["password", "DB_PASSWORD", "client_secret", "apiKey", "x-token", "app.auth", "pgpass.pwd"])


@settings(max_examples=400, deadline=None)
@given(secrets, names, st.sampled_from(["", "-", "--", "-D", "--env="]), st.text(max_size=10))
def test_no_form_lets_a_secret_through(secret: str, name: str, dashes: str, noise: str) -> None:
    for argv in (
        [f"{dashes}{name}={secret}"],
        ["x", f"--{name}", secret],
        [noise, f"-{name}", secret, noise],
        [f"run --{name} {secret} --port 80"],
        [f"run --{name}={secret} --port 80"],
        [f"a=b; {name}={secret} c"],
        [json.dumps({"a": noise, name: secret})],
        [json.dumps({"a": [1, {name: secret}]}, indent=1)],
        [f"{name}: {secret}"],
        [f"Authorization: Bearer {secret}"],
        [f"https://h/p?x=1&{name}={secret.replace('#', '').replace('&', '')}&y=2"],
    ):
        redacted, count = redact_argv(argv)
        assert secret not in " ".join(redacted), argv
        assert count >= 1


@settings(max_examples=300, deadline=None)
@given(st.from_regex(r"[A-Za-z0-9._~!$&'()*+,;=:%-]{1,30}", fullmatch=True), st.sampled_from(["h", "h:80", "[::1]:80"]))
def test_no_user_info_of_a_url_survives(user_info: str, host: str) -> None:
    url = f"postgres://{user_info}@{host}/db"
    assert redact_url(url) == f"postgres://{REDACTED}@{host}/db"
    assert redact_argv(["x", url])[0] == ["x", f"postgres://{REDACTED}@{host}/db"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_any_arguments_are_redacted_without_an_error(argv: list[str]) -> None:
    redacted, count = redact_argv(argv)
    assert len(redacted) == len(argv)
    assert count or redacted == argv


# Each would take hours with a pattern that backtracks; the longest argument Linux allows has 128 KiB.
@pytest.mark.parametrize(
    "piece",
    [
        *("a", "-", "=", "a=", "?a", "a:", "a://b:", "a@", "://", "eyJ-", "eyJaaaaaaaa.", "--token ", 'token="'),
        *("token='", "ghp_", "bearer ", "sk-", "authorization", "-----BEGIN PRIVATE KEY-----", " ", "\\"),
        "hooks.slack.com/services/",
    ],
)
def test_hostile_arguments_take_linear_time(piece: str) -> None:
    text = piece * (256 * 1024 // len(piece))
    redacted, _ = redact_argv([text, f"{text}x", f"x://{text}", f'token="{text}'])
    assert len(redacted) == 4
    assert isinstance(redact_url(f"x://{text}?{text}"), str)
