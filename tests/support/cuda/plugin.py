"""Tests with the mark ``cuda`` where there is no GPU: each is run by another process, which has the stand-in loaded.

The process is a pytest of its own that takes orders: the parent sends the name of a test, and gets its reports back. So
a test counts, is selected and fails as any other, and no other test sees a GPU. A process that dies fails one test.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from flowblending.engine.backends.gpu import gpu_architecture
from tests.support.cuda import site
from tests.support.cuda.build import build_driver, compiler
from tests.support.cuda.driver import Driver
from tests.support.required import unavailable
from tests.support.shared import SHARED, alone, shared_folder

MARK: Final = "cuda"
CHANNEL: Final = "--stand-in-channel"
ROOT = Path(__file__).parents[3]


def _needs_stand_in(item: pytest.Item) -> bool:
    if item.get_closest_marker(MARK) is None:
        return False
    return "driver" in getattr(item, "fixturenames", ()) or gpu_architecture() is None


class Parent:
    """Sends marked tests to the other process; made at the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Any = None
        self._log: Path | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Have a test run elsewhere, and report it here."""
        if not _needs_stand_in(item) or compiler() is None:
            return None
        # What the last test of this process left set up may not wait until a test of this process comes again.
        item.session._setupstate.teardown_exact(nextitem)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._run(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that is still here has no stand-in to run on."""
        if _needs_stand_in(item):
            unavailable("the stand-in for a GPU needs a C++ compiler (c++, or what CXX names)")

    def pytest_sessionfinish(self) -> None:
        """End the process."""
        self._close()

    def _run(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        if self._process is None:
            self._start(item.session)
        following = nextitem.nodeid if nextitem is not None and _needs_stand_in(nextitem) else None
        reports: list[pytest.TestReport] = []
        try:
            self._channel.write(json.dumps({"test": item.nodeid, "next": following}).encode() + b"\n")
            self._channel.flush()
            for line in self._channel:
                told = json.loads(line)
                if told is None:
                    return reports
                reports.append(item.config.hook.pytest_report_from_serializable(config=item.config, data=told))
        except OSError:
            pass
        return [*reports, self._died(item)]

    def _start(self, session: pytest.Session) -> None:
        shared = shared_folder(session.config)
        with alone(shared, "stand-in"):
            libraries = build_driver(shared / "stand-in")
        packages = site.install(shared / f"stand-in-packages-{os.getpid()}")
        ours, theirs = socket.socketpair()
        self._log = shared / f"stand-in-{os.getpid()}.log"
        names = shared / f"stand-in-{os.getpid()}.tests"
        names.write_text("\n".join(each.nodeid for each in session.items if _needs_stand_in(each)))
        environment = {
            **os.environ,
            SHARED: str(shared),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(libraries), os.environ.get("LD_LIBRARY_PATH")))),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(packages), str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST", "CUDA_VISIBLE_DEVICES"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", MARK, f"--rootdir={ROOT}"]
        command += [f"{CHANNEL}={theirs.fileno()}", f"--basetemp={shared / f'stand-in-{os.getpid()}'}", f"@{names}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()]
            )
        theirs.close()
        self._channel = ours.makefile("rwb")
        ours.close()

    def _died(self, item: pytest.Item) -> pytest.TestReport:
        """The report of a test that took its process with it; the next test gets another."""
        assert self._process is not None and self._log is not None
        status = self._process.wait()
        self._close()
        text = self._log.read_text(errors="replace")[-6000:]
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"the process with the stand-in ended with {status}:\n{text}",
            when="call",
        )

    def _close(self) -> None:
        if self._process is not None:
            self._channel.close()
            self._process.wait()
        self._process = None


class Child:
    """Runs the tests that it is told to, with the stand-in loaded."""

    def __init__(self, channel: int) -> None:
        self._channel = socket.socket(fileno=channel).makefile("rwb")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In place of running all."""
        items = {item.nodeid: item for item in session.items}
        for line in self._channel:
            asked = json.loads(line)
            item, following = items[asked["test"]], items.get(asked["next"])
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            self._send(None)
        return True

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell the parent."""
        self._send(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_configure(self, config: pytest.Config) -> None:
        """Remember it."""
        self._config = config

    def _send(self, told: object) -> None:
        self._channel.write(json.dumps(told).encode() + b"\n")
        self._channel.flush()

    @pytest.fixture(scope="session")
    def driver(self) -> Driver:
        """The stand-in."""
        return Driver()

    @pytest.fixture(autouse=True)
    def _no_faults(self, driver: Driver) -> Iterator[None]:
        """What no GPU would survive fails the test that does it."""
        driver.journal()
        yield
        faults = driver.revive()
        assert not faults, faults


def add_option(parser: pytest.Parser) -> None:
    """For `configure`, from conftest.py."""
    parser.addoption(CHANNEL, type=int, help="of the process that runs tests on the stand-in; not for people")


def configure(config: pytest.Config) -> None:
    """Register what this process is."""
    channel = config.getoption(CHANNEL)
    config.pluginmanager.register(Parent() if channel is None else Child(channel), "stand-in")
