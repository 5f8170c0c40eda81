import os

import pytest
from browser import Browser, find_chromium
from canvas import HELPERS, setting

from scripts.comfy_server import Server
from scripts.environment import ROOT, add_comfyui_to_path, ensure

ENVIRONMENT = ensure()
# every process of a parallel run has folders of its own
add_comfyui_to_path(ENVIRONMENT, ROOT / ".run" / f"in-process-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep together what shares something: the tests of a file, and all tests that share the running ComfyUI."""
    for item in items:
        group = "comfy" if "comfy" in item.fixturenames else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session):
    """Check that pytest-xdist has taken the groups; it does not with pytest 9.2, which builds the ids otherwise."""
    if session.config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in session.items):
        message = (
            "pytest-xdist keeps no groups of tests together with this pytest. Install the pinned versions of both."
        )
        raise pytest.UsageError(message)


@pytest.fixture(scope="session")
def comfy():
    """One running ComfyUI with the pack for all tests that need one."""
    with Server(ENVIRONMENT) as server:
        yield server.wait()


@pytest.fixture(scope="session")
def page(comfy):
    """One page of ComfyUI in a headless browser for all tests that need one."""
    program = find_chromium()
    if program is None:
        pytest.fail("The browser tests need Chromium: install the package 'chromium', or name a program in CHROMIUM.")
    # A first visit opens the Templates dialog over the graph.
    comfy.client.request("/settings/Comfy.TutorialCompleted", b"true")
    with Browser(program) as browser:
        browser.open(comfy.client.url)
        browser.wait_for("Boolean(window.app && app.vueAppReady && app.graph)")
        yield browser


@pytest.fixture(params=["classic", "nodes 2.0"], scope="module")
def renderer(page, request):
    """The page, drawn by one of its two renderers."""
    if not page.evaluate("Boolean(window.test)"):
        page.evaluate(HELPERS)
    setting(page, "Comfy.VueNodes.Enabled", request.param == "nodes 2.0")
    yield page
    setting(page, "Comfy.VueNodes.Enabled", False)
