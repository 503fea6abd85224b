import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before anything imports torch: there is a test process for each core already.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Ray would report its use to its makers, and let its actors run when nothing else wants to.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest

TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real simulators have the marker `sim`."""
    for item in items:
        if item.path.parent == TESTS / "sim":
            item.add_marker("sim")


@pytest.fixture(autouse=True)
def _tests_importable_in_subprocesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fake_suite:make` must be found by every Python process that a test starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))


def pytest_sessionfinish() -> None:
    """robosuite takes the display down at exit, before the embedded suite could free its contexts."""
    tabletop = sys.modules.get("simplevla.suites.tabletop.environment")
    if tabletop is not None:
        tabletop.close_renderers()
