"""
The one way to skip, and the switch that forbids it.

    @pytest.mark.needs("go", "gdb")      skips the test, naming what this machine lacks
    def test_x(needs): needs("jdk25")    the same, from inside

PMF_NO_SKIPS=1 makes a run that skipped anything fail, and lists what it skipped. Continuous integration
sets it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests import zoo


def _need(*tools: str) -> None:
    lacking = zoo.missing(*tools)
    if lacking:
        pytest.skip(f"needs: {', '.join(lacking)}")


@pytest.fixture
def needs() -> Callable[..., None]:
    """Called with the names that zoo.missing() understands, skips the test when one is not here."""
    return _need


@pytest.hookimpl(tryfirst=True)  # before any fixture is set up
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        _need(*mark.args)


class NoSkips:
    """Fails a run in which a test or a module was skipped. An expected failure is not a skip."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def _note(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skipped.append(f"{report.nodeid}: {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, which PMF_NO_SKIPS=1 forbids", red=True)
            for line in self.skipped:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*tools): skip, by name, where a tool is missing")
    if os.environ.get("PMF_NO_SKIPS") == "1":
        config.pluginmanager.register(NoSkips())
