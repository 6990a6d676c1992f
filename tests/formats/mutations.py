"""Broken copies of a real file, for fuzzing readers: cut anywhere, and with bytes overwritten."""

from __future__ import annotations

from hypothesis import strategies as st

_TELLING = (b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\1\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80")


def mutated(data: bytes, *, head_bytes: int = 4096) -> st.SearchStrategy[bytes]:
    """Copies of `data` with a few places overwritten, most of them in the first `head_bytes`, and cut now and then."""
    head = st.integers(0, min(head_bytes, len(data)) - 1)
    place = st.one_of(head, head, st.integers(0, len(data) - 1))
    patch = st.tuples(place, st.one_of(st.sampled_from(_TELLING), st.binary(min_size=1, max_size=8)))
    cut = st.one_of(st.none(), st.none(), head, st.integers(0, len(data)))

    def broken(patches: list[tuple[int, bytes]], length: int | None) -> bytes:
        out = bytearray(data)
        for at, new in patches:
            out[at : at + len(new)] = new[: len(out) - at]
        return bytes(out[:length])

    return st.builds(broken, st.lists(patch, max_size=6), cut)
