"""Specimens that many tests look at, made once."""

from __future__ import annotations

import pytest

from tests.conftest import _need
from tests.formats.test_core import compiled, kernel_core, run
from tests.verify.specimens import REBUILT, Crashed, Rebuilt


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Rebuilt:
    _need("gcc", "gdb")
    folder = tmp_path_factory.mktemp("rebuilt")
    run(REBUILT, folder)
    return Rebuilt(folder)


CALLS = """
#include <stdlib.h>
static int twice(int number) { return number * 2; }
int main(int argc, char **argv) { (void)argv; if (twice(argc) > 1) abort(); return 0; }
"""


@pytest.fixture(scope="session")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    _need("gcc")
    folder = tmp_path_factory.mktemp("crashed")
    program = compiled(folder, CALLS, "-g", "-Wl,--build-id")
    return Crashed(program, kernel_core(_need, program, dump_filter="0x37"))
