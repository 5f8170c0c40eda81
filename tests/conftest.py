import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.comfy_server import Server
from scripts.environment import ROOT, add_comfyui_to_path, ensure, register_package

ENVIRONMENT = ensure()
add_comfyui_to_path(ENVIRONMENT, ROOT / ".run" / "in-process")
register_package()


@pytest.fixture(scope="session")
def comfy():
    """One running ComfyUI with the pack for the whole session."""
    with Server(ENVIRONMENT) as server:
        yield server.wait()
