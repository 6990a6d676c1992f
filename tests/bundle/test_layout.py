"""Names: whatever goes in, what comes out is one plain path component."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from pmforensics.bundle.layout import bundle_name, is_payload_path, safe_component


@given(st.text(st.characters()))
def test_component_is_plain_short_and_never_hidden(text: str) -> None:
    name = safe_component(text, "fallback")
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name)


@given(st.text(st.sampled_from("ab./\\-\n\0 é"), max_size=30))
def test_payload_path_never_leads_out(text: str) -> None:
    if is_payload_path(text):
        assert not text.startswith("/")
        assert all(part and not part.startswith(".") for part in text.split("/"))
        assert not set(text) & set("\\\n\0 é")


def test_payload_path_takes_what_collectors_name() -> None:
    for path in ("status", "net/tcp6", "goroutine.pb.gz", "core.1+2@3,4=5.zst", "a/b/c/d"):
        assert is_payload_path(path), path
    for path in ("", "/a", "a/", "a//b", "..", "a/..", "a/.b", "a b", "a\n", "a\r", "é", "a" * 401, "data\0"):
        assert not is_payload_path(path), path


def test_name_holds_host_time_in_utc_and_id() -> None:
    at = datetime(2026, 11, 20, 14, 15, 1, tzinfo=timezone(timedelta(hours=1)))
    assert bundle_name("web-1.example", at, "1f3a9c02") == "web-1.example-20261120T131501Z-1f3a9c02"
    assert bundle_name("web", at.astimezone(UTC), "x") == bundle_name("web", at, "x")
