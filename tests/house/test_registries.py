"""The tables of contents: collectors, errors, commands, names in the manifest."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import pmforensics.collect as collect
import pmforensics.errors as errors
from pmforensics.cli import COMMANDS
from pmforensics.collect.base import Collector
from pmforensics.model.capture import Ask, CoreKind

COLLECTORS = list(collect.collectors(Ask(pid=1, core=CoreKind.FULL, heap_dump=True, include=frozenset(collect.OPT_IN))))
HEADINGS = ("Source", "Yields", "Cost", "Partial", "Errors")
CLASS_VARS = {"name": str, "question": str, "limit_s": float, "stops": bool, "opt_in": bool}


def name_of(collector: Collector) -> str:
    """For test ids."""
    return collector.name


def test_there_are_collectors_and_each_name_is_there_once() -> None:
    names = [collector.name for collector in COLLECTORS]
    assert len(names) >= 7
    assert len(set(names)) == len(names)


def test_names_known_without_imports_are_those_of_the_collectors_in_their_order() -> None:
    assert tuple(collector.name for collector in COLLECTORS) == collect.NAMES
    assert {collector.name for collector in COLLECTORS if collector.opt_in} == set(collect.OPT_IN)


def test_most_fleeting_comes_first_and_bulk_last() -> None:
    order = {collector.name: place for place, collector in enumerate(COLLECTORS)}
    assert order["process_state"] == 0
    assert order["clock_again"] == len(COLLECTORS) - 1
    stacks = [order[name] for name in order if name.startswith(("threads_", "goroutines"))]
    bulk = [order[name] for name in order if name in ("core", "heap_dump", "executable")]
    assert stacks
    assert bulk
    assert max(order["process_state"], order["build_ids"]) < min(stacks)
    assert max(stacks) < min(order[name] for name in order if name in ("core", "heap_dump"))


@pytest.mark.parametrize("collector", COLLECTORS, ids=name_of)
def test_collector_is_a_frozen_slotted_dataclass_with_its_class_variables(collector: Collector) -> None:
    kind = type(collector)
    assert dataclasses.is_dataclass(kind)
    assert "__slots__" in vars(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    fields = {field.name for field in dataclasses.fields(kind)}
    for name, wanted in CLASS_VARS.items():
        assert isinstance(getattr(kind, name), wanted), name
        assert name not in fields, f"{name} is an option of the collector, not a fact about it"
        assert name in inspect.get_annotations(kind) or any(name in inspect.get_annotations(b) for b in kind.__mro__)
    assert collector.question.endswith("?")
    assert collector.limit_s > 0


@pytest.mark.parametrize("collector", COLLECTORS, ids=name_of)
def test_collector_is_named_after_its_class_and_lives_where_one_would_look(collector: Collector) -> None:
    kind = type(collector)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).lower()
    assert words == collector.name
    assert re.fullmatch(r"[a-z][a-z0-9_]*", collector.name)
    assert kind.__module__.startswith("pmforensics.collect.")


@pytest.mark.parametrize("collector", COLLECTORS, ids=name_of)
def test_collector_says_source_yield_cost_partial_and_errors_in_that_order(collector: Collector) -> None:
    text = textwrap.dedent("    " + (type(collector).__doc__ or "").lstrip("\n").rstrip())
    text = inspect.cleandoc(type(collector).__doc__ or "")
    found = re.findall(r"^([A-Z][a-z]+):\s+(\S.*)", text, re.MULTILINE)
    assert tuple(heading for heading, _ in found) == HEADINGS
    assert all(words for _, words in found)
    first = text.split("\n\n")[0]
    assert first, "no sentence before the headings"
    assert first.endswith(".")


def test_every_error_stands_in_the_tree_of_the_docstring_with_a_code_of_its_own() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PmfError)]
    assert len(kinds) > 15
    drawn = errors.__doc__ or ""
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert re.search(rf"\b{kind.__name__}\b", drawn), kind.__name__
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)
        assert "code" in vars(kind), f"{kind.__name__} has the code of its parent"


def test_every_error_is_raised_or_derived_from_somewhere() -> None:
    source = "\n".join(
        path.read_text() for path in Path(errors.__file__).parent.rglob("*.py") if path.name != "errors.py"
    )
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PmfError)]
    for kind in kinds:
        derived = any(kind in other.__bases__ for other in kinds)
        assert derived or re.search(rf"\b{kind.__name__}\b", source), f"nobody raises {kind.__name__}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_module_of_its_name_with_json_and_words(name: str) -> None:
    module = importlib.import_module(f"pmforensics.cli.{name}")
    command = module.command
    assert command.name == name
    assert command.help
    assert command.short_help or COMMANDS[name]
    subcommands = getattr(command, "commands", None)
    for one in subcommands.values() if subcommands else [command]:
        assert any("--json" in getattr(option, "opts", ()) for option in one.params), f"{name} {one.name} has no --json"
