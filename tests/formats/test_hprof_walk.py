"""Every object that is wanted is found where it is, and nothing that only looks like it; nothing is walked for ever."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmforensics.formats import hprof_walk
from pmforensics.formats.hprof_walk import Heap, HeapObject, HeapWalk, Instance, Primitives, References, Stream
from tests.formats.hprof_writer import BOOLEAN, BYTE, CHAR, DOUBLE, FLOAT, INT, LONG, OBJECT, SHORT, HprofWriter

HEADER_BYTES = 31
WIDTHS = {BOOLEAN: 1, BYTE: 1, CHAR: 2, SHORT: 2, INT: 4, FLOAT: 4, LONG: 8, DOUBLE: 8}


def chunks_of(data: bytes, chunk_bytes: int) -> Iterator[bytes]:
    return (data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes))


def walk_for(id_bytes: int, wanted: set[bytes]) -> HeapWalk:
    """A walk whose first pass is over, and which wants these objects."""
    walk = HeapWalk(
        id_bytes,
        HEADER_BYTES,
        texts={"none"},
        statics={},
        follow=lambda heap: wanted - heap.absent - heap.objects.keys(),
    )
    walk.go([])
    walk.wanted = set(wanted)
    return walk


def a_heap(id_bytes: int, seed: int, records: int) -> tuple[bytes, dict[bytes, HeapObject]]:
    """A dump with objects of all kinds, and what each holds; arrays full of bytes that look like records."""
    chosen = random.Random(seed)
    out = HprofWriter(id_bytes)
    objects: dict[bytes, HeapObject] = {}
    classes = [
        out.add_class(f"C{number}", [(f"f{at}", OBJECT) for at in range(number)]) for number in (0, 1, 3, 15, 16, 40)
    ]
    for _ in range(records):
        kind = chosen.choice("iiinnroob")
        if kind == "i":
            class_id = chosen.choice(classes)
            values = {name: chosen.randrange(1 << 30) for name, _ in out.layouts[class_id]}
            object_id = out.i(out.add(class_id, **values))
            data = b"".join(out.i(value) for value in values.values())
            objects[object_id] = Instance(out.i(class_id), data)
        elif kind in "nb":
            element, width = chosen.choice(list(WIDTHS.items()))
            count = chosen.choice([0, 1, 2, 7, 126, 127, 128, 129, 255, 256, 300, chosen.randrange(2000)])
            data = chosen.randbytes(count * width)
            if kind == "b":  # a record of an object that is there, inside an array
                data = chosen.choice(out.heap or [b"\x21"]) * 9
                data = data[: min(count, len(data) // width) * width]
            object_id = out.i(out.add_numbers(element, data))
            objects[object_id] = Primitives(element, data, 0)
        elif kind == "o":
            elements = [chosen.randrange(1 << 30) for _ in range(chosen.choice([0, 1, 100, 127, 128, 140, 260]))]
            object_id = out.i(out.add_objects(elements))
            objects[object_id] = References(b"".join(map(out.i, elements)))
        else:
            out.add_roots()
    return out.render(in_a_segment=chosen.choice([1, 7, 10_000])), objects


@pytest.mark.parametrize("id_bytes", [4, 8])
@pytest.mark.parametrize("chunk_bytes", [50, 1 << 20])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 20), share=st.sampled_from([1, 5, 50]))
def test_what_is_wanted_is_found_as_it_was_written(id_bytes: int, seed: int, chunk_bytes: int, share: int) -> None:
    data, objects = a_heap(id_bytes, seed, 150)
    wanted = set(random.Random(seed).sample(sorted(objects), max(1, len(objects) // share)))
    missing = b"\xee" * id_bytes
    walk = walk_for(id_bytes, wanted | {missing})
    walk.go(chunks_of(data, chunk_bytes))
    assert walk.lost == []
    assert walk.heap.objects.keys() == wanted
    for object_id, found in walk.heap.objects.items():
        expected = objects[object_id]
        if isinstance(found, Primitives):
            assert data[found.offset : found.offset + len(found.data)] == found.data
            found = Primitives(found.kind, found.data, 0)
        assert found == expected
    assert walk.heap.absent == {missing}


def test_objects_larger_than_the_buffer_are_kept_in_part_and_stepped_over() -> None:
    out = HprofWriter()
    large = out.i(out.add_numbers(BYTE, b"start" + bytes(5 << 20)))
    table = out.i(out.add_objects([7] * 300_000))
    behind = out.i(out.add_numbers(CHAR, b"\0x"))
    walk = walk_for(8, {large, table, behind})
    walk.go(chunks_of(out.render(), 1 << 16))
    kept = walk.heap.objects
    assert isinstance(first := kept[large], Primitives)
    assert first.data.startswith(b"start")
    assert len(first.data) < 1 << 20
    assert isinstance(second := kept[table], References)
    assert second.elements.startswith(out.i(7) * 1000)
    assert len(second.elements) < 1 << 20
    assert isinstance(third := kept[behind], Primitives)
    assert third.data == b"\0x"


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hprof_walk, "_MAX_KEPT_IN_ALL_BYTES", 10_000)
    out = HprofWriter()
    wanted = {out.i(out.add_numbers(BYTE, bytes(1000))) for _ in range(100)}
    walk = walk_for(8, wanted)
    walk.go(chunks_of(out.render(), 4096))
    assert len(walk.heap.objects) == 9
    assert len(walk.heap.absent) == 91


def test_later_passes_end_where_nothing_is_wanted() -> None:
    out = HprofWriter()
    first = out.i(out.add_numbers(BYTE, b"x"))
    for _ in range(100):
        out.add_numbers(BYTE, bytes(100_000))
    data = out.render(in_a_segment=1)
    read_bytes = 0

    def counted() -> Iterator[bytes]:
        nonlocal read_bytes
        for chunk in chunks_of(data, 4096):
            read_bytes += len(chunk)
            yield chunk

    walk = walk_for(8, {first})
    walk.go(counted())
    assert first in walk.heap.objects
    assert read_bytes < len(data) // 4


def test_following_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hprof_walk, "_MAX_ROUNDS", 20)
    monkeypatch.setattr(hprof_walk, "_MAX_COMPILED", 5)
    out = HprofWriter()
    chain = [out.i(out.add_numbers(BYTE, b"x")) for _ in range(500)]
    next_of = dict(pairwise(chain))
    asked = 0

    def follow(heap: Heap) -> set[bytes]:
        nonlocal asked
        asked += 1
        return {chain[0], *(next_of[found] for found in heap.objects if found in next_of)} - heap.objects.keys()

    walk = HeapWalk(8, HEADER_BYTES, texts={"none"}, statics={}, follow=follow)
    walk.go([])
    walk.wanted = {chain[0]}
    walk.go(chunks_of(out.render(in_a_segment=3), 100))
    assert asked < 30
    assert 0 < len(walk.heap.objects) < 50
    assert walk.wanted


@pytest.mark.parametrize("chunk_bytes", [1, 3, 1000, 1 << 30])
def test_stream_is_the_file(chunk_bytes: int) -> None:
    data = random.Random(1).randbytes(10_000)
    stream = Stream(chunks_of(data, chunk_bytes))
    chosen = random.Random(2)
    at = 0
    while at < len(data):
        count = chosen.randrange(1, 700)
        if chosen.random() < 0.5:
            assert stream.skip(count) is (at + count <= len(data))
            at += count
        else:
            assert stream.fill(count) is (at + count <= len(data))
            assert stream.position == at
            assert stream.data[stream.at : stream.at + count] == data[at : at + count]
    assert not stream.fill(1)


def test_no_pattern_relies_on_possessive_repeats() -> None:
    pattern = hprof_walk._stepping_pattern(8, [b"\0" * 7 + b"*", b"\0" * 7 + b"+"], b"x{3}")
    assert not re.search(rb"(?<!\\)[*+?}]\+", pattern.pattern)
