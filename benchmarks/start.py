"""What the pack adds to ComfyUI's start: the seconds from its import to the schemas of all its nodes.

    python -m benchmarks.start [--times 30] [--json FILE]

Each time the pack's modules are forgotten and imported again, from compiled modules as at every start but the first,
in one process that has imported ComfyUI. Processor time is shown beside the clock's: other programs lengthen it less.
What ComfyUI's own modules and libraries take is measured once, before that.
"""

if __name__ == "__main__":
    from scripts.environment import enter

    ENVIRONMENT = enter()

import asyncio
import gc
import importlib.util
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from benchmarks.command import parser, write
from scripts.environment import ROOT, add_comfyui_to_path

NAME = "latent_directions_started_anew"
PACK, COMFYUI = "the pack", "ComfyUI's own modules and libraries"


async def load() -> int:
    """Load the pack as ComfyUI does, up to the schemas (but for the routes of its server); return how many nodes."""
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[NAME])
    nodes = await (await sys.modules[NAME].comfy_entrypoint()).get_node_list()
    sys.modules[f"{NAME}.nodes.library"].register_folder()
    for node in nodes:
        node.GET_SCHEMA()
    return len(nodes)


def forget() -> None:
    """Let the next import of the pack start anew, with no garbage of this one left."""
    for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
        del sys.modules[name]
    gc.collect()


@contextmanager
def compiled_modules(folder: str):
    """Keep compiled modules in a folder of their own, whatever this Python was told about writing them."""
    before = sys.dont_write_bytecode, sys.pycache_prefix
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder
    try:
        yield
    finally:
        sys.dont_write_bytecode, sys.pycache_prefix = before


def seconds(call) -> dict:
    """What a call takes, by the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    call()
    return {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}


def import_comfyui() -> None:
    """Import what ComfyUI has imported before it loads any pack."""
    add_comfyui_to_path(ENVIRONMENT, Path(tempfile.gettempdir()) / "latent-directions-start")
    import nodes  # noqa: F401 - ComfyUI's own


def measure(times: int) -> list[dict]:
    """Seconds of each load; the first, which compiles the modules, is left out."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, compiled_modules(folder):
        for _ in range(times + 1):
            rows.append({"what": PACK} | seconds(lambda: asyncio.run(load())))
            forget()
    return rows[1:]


def main() -> None:
    """Print the least and the median."""
    made = parser(__doc__)
    made.add_argument("--times", type=int, default=30, help="how often the pack is loaded")
    arguments = made.parse_args()
    comfyui = {"what": COMFYUI} | seconds(import_comfyui)
    rows = measure(arguments.times)
    print("| ms | least | median |\n|---|---|---|")
    for name in ("clock", "processor"):
        values = [1000 * row[name] for row in rows]
        print(f"| {name} | {min(values):.0f} | {statistics.median(values):.0f} |")
    print(f"\n{COMFYUI}: {comfyui['clock']:.1f} s by the clock, {comfyui['processor']:.1f} s of the processor.")
    write([comfyui, *rows], arguments.json)


if __name__ == "__main__":
    main()
