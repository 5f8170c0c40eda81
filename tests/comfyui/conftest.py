import pytest

from scripts.comfy_server import Server
from scripts.environment import ROOT, add_comfyui_to_path, ensure

ENVIRONMENT = ensure()
add_comfyui_to_path(ENVIRONMENT, ROOT / ".run" / "in-process")


@pytest.fixture(scope="session")
def comfy():
    """One running ComfyUI with the pack for the whole session."""
    with Server(ENVIRONMENT) as server:
        yield server.wait()
