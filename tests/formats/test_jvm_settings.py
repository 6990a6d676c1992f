"""HotSpot's settings come through without the secrets in them."""

from __future__ import annotations

import pytest

from pmforensics.formats.jvm_settings import redact_command_line, redact_options, select_properties


@pytest.mark.parametrize(
    "option",
    [
        "-Ddb.password=hunter2",
        "-Dapi.token=two words hunter2",
        "-Djava.naming.security.credentials=hunter2",
        "-javaagent:/opt/apm.jar=licence:hunter2,host:x",
        "-agentpath:/opt/lib.so=pass hunter2",
        "-agentlib:jdwp=hunter2",
        "-XX:OnError=curl -u me:hunter2 http://x",
        "-XX:OnOutOfMemoryError=notify --with hunter2 -X POST -u me:hunter2 -D hunter2",
        "-Durl=https://me:hunter2@host/",
    ],
)
def test_secret_goes_and_its_neighbours_stay(option: str) -> None:
    redacted = redact_options(f"-Xmx1g {option} -XX:+UseG1GC -Dpool=7")
    assert "hunter2" not in redacted
    assert redacted.startswith("-Xmx1g ")
    assert redacted.endswith(" -XX:+UseG1GC -Dpool=7")


def test_every_kind_of_option_begins_a_new_one() -> None:
    options = (
        "-Da.secret=x -Xms1g -Xss512k -Xint -Xlog:gc -Xrs -XX:-UseG1GC -XX:MaxRAM=1 -verbose:gc -ea -server"
        " --add-opens=java.base/java.lang=ALL-UNNAMED --enable-native-access=ALL-UNNAMED -enableassertions -Db=2"
    )
    assert redact_options(options) == options.replace("-Da.secret=x", "-Da.secret=(redacted)")


def test_agent_itself_is_told() -> None:
    assert redact_options("-javaagent:/opt/apm.jar=key").startswith("-javaagent:/opt/apm.jar=")
    assert redact_options("-javaagent:/opt/apm.jar") == "-javaagent:/opt/apm.jar"


def test_arguments_of_the_program_and_strange_lines_are_withheld() -> None:
    text = (
        "VM Arguments:\njvm_args: -Xmx1g -Dline=a\nhunter2\njava_command: com.example.Main --login hunter2\n"
        "java_class_path (initial): /app/a.jar:/app/b.jar\nLauncher Type: SUN_STANDARD\n"
    )
    redacted = redact_command_line(text)
    assert "hunter2" not in redacted
    assert "java_command: com.example.Main (2 more words withheld)" in redacted
    assert "/app/a.jar:/app/b.jar" in redacted
    assert "(line withheld)" in redacted


def test_no_command_is_no_trouble() -> None:
    assert redact_command_line("java_command: \n") == "java_command: \n"


def test_only_listed_properties_stay() -> None:
    text = (
        "#Fri Nov 20 15:02:44 UTC 2026\njava.version=25.0.3\nos.name=Linux\njava.naming.security.credentials=hunter2\n"
        "user.timezone=UTC\nsun.java.command=Main hunter2\nuser.name=root\njava.vm.secret=hunter2\nline.separator=\\n\n"
    )
    kept, withheld = select_properties(text)
    assert kept == "java.version=25.0.3\nos.name=Linux\nuser.timezone=UTC\n"
    assert withheld == 5
