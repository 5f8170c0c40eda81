"""Make the demo's pictures with the example workflow in a real ComfyUI.

By default four strips of one portrait, each moved by words: smile, brows, hair and glasses; what else the words would
change is found and held still. Only the slider moves along a strip, so directions are found once for each. A moving
picture, sliders.webp, shows all four.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.comfy_client import PromptError
from scripts.comfy_server import Server, ServerError
from scripts.environment import ROOT, enter, register_package
from scripts.workflow import WorkflowError


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo-output", help="folder for pictures and report.json")
    parser.add_argument("--image", type=Path, help="a picture of your own in place of the drawn portrait")
    parser.add_argument("--prompt", help="words for the picture as it is now")
    parser.add_argument("--target", help="words for what strength 1 shows")
    parser.add_argument("--method", help="one strip with this method of Find Directions, such as HSDS, text or LOCO")
    parser.add_argument("--seed", type=int, help="seed of the drawn portrait")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running for the browser; no pictures")
    parser.add_argument("--port", type=int, help="port of ComfyUI (default: a free one)")
    options = parser.parse_args()
    if options.image and not options.image.is_file():
        parser.error(f"--image {options.image} is not a file")
    return options


def main() -> int:
    """Run the command and return its exit status."""
    options = arguments()
    environment = enter()
    register_package()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped then too
    print("Starting ComfyUI", flush=True)
    try:
        with Server(environment, port=options.port) as server:
            server.wait()
            if options.serve:
                serve(server)
            else:
                from scripts.strips import make_strips

                for path in make_strips(server, options):
                    print(path)
    except (ServerError, PromptError, WorkflowError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def serve(server: Server) -> None:
    """Wait until the user has done with the browser; raises ServerError where the server ends by itself."""
    print(f"ComfyUI runs at {server.client.url}")
    print("The example workflows are under Templates, latent-directions. Stop with Ctrl-C.", flush=True)
    server.process.wait()
    raise ServerError(server.ended("while it was served"))


if __name__ == "__main__":
    sys.exit(main())
