"""Whatever is public says what it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import pmforensics
from pmforensics.collect.base import Collector, Host

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(pmforensics.__path__, "pmforensics.")
    if not module.name.endswith("__main__")
)
# A method that has one of these names, in a class that stands for the protocol, is documented there.
PROTOCOL_METHODS = {name for protocol in (Collector, Host) for name in vars(protocol) if not name.startswith("_")}


def load(name: str) -> ModuleType:
    """The module."""
    return importlib.import_module(name)


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("name", MODULES)
def test_module_and_its_public_names_have_docstrings(name: str) -> None:
    module = load(name)
    assert (module.__doc__ or "").strip(), f"{name} does not say what it is"
    bare = []
    for public, thing in vars(module).items():
        if public.startswith("_") or getattr(thing, "__module__", None) != name:
            continue
        if inspect.isfunction(thing) and not inspect.getdoc(thing):
            bare.append(public)
        if inspect.isclass(thing):
            # A dataclass without a docstring gets its signature as one.
            if not thing.__doc__ or thing.__doc__.startswith(f"{thing.__name__}("):
                bare.append(public)
            for method, function in vars(thing).items():
                function = getattr(function, "fget", None) or getattr(function, "__func__", function)
                if method.startswith("_") or not inspect.isfunction(function) or method in PROTOCOL_METHODS:
                    continue
                if not inspect.getdoc(getattr(thing, method)):
                    bare.append(f"{public}.{method}")
    assert bare == []
