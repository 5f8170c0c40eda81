import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.environment import ROOT, add_comfyui_to_path, ensure, register_package

add_comfyui_to_path(ensure(), ROOT / ".run" / "in-process")
register_package()
