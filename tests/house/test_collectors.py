"""The table of collectors and what each collector says of itself."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields, is_dataclass

import pytest

from pmforensics.collect import NAMES, OPT_IN, collectors
from pmforensics.collect.base import Collector
from pmforensics.model.capture import Ask

HEADINGS = ("Source:", "Yields:", "Cost:", "Partial:", "Errors:")
ALL = tuple(collectors(Ask(pid=1)))


def test_the_table_holds_what_it_names_in_order() -> None:
    assert len(ALL) >= 15
    assert tuple(collector.name for collector in ALL) == NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert tuple(collector.name for collector in ALL if collector.opt_in) == OPT_IN


@pytest.mark.parametrize("collector", ALL, ids=lambda collector: collector.name)
def test_a_collector_says_what_it_does(collector: Collector) -> None:
    said = inspect.getdoc(type(collector)) or ""
    at = [said.find(heading) for heading in HEADINGS]
    assert all(place >= 0 for place in at), f"{collector.name} lacks {HEADINGS[at.index(-1)]}"
    assert at == sorted(at)
    assert collector.question.endswith("?")
    assert 0 < collector.limit_s <= 900


@pytest.mark.parametrize("collector", ALL, ids=lambda collector: collector.name)
def test_a_collector_is_frozen_and_named_like_its_module(collector: Collector) -> None:
    kind = type(collector)
    assert is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    module = kind.__module__.rsplit(".", 1)[1]
    words = set(collector.name.split("_"))
    assert words & set(module.split("_")) or collector.name == "executable", f"{collector.name} lives in {module}"
    assert all(field.type is not None for field in fields(kind))
    assert re.fullmatch(r"[a-z][a-z0-9_]*", collector.name)


@pytest.mark.parametrize("collector", ALL, ids=lambda collector: collector.name)
def test_a_collectors_module_is_documented(collector: Collector) -> None:
    assert inspect.getdoc(sys.modules[type(collector).__module__])
