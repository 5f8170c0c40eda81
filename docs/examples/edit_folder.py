"""Move one slider on every picture of a folder, over ComfyUI's HTTP API. Standard library only.

    python docs/examples/edit_folder.py photos edited --checkpoint sd_xl_base_1.0.safetensors \
        --source "a photo of a sad woman" --target "a photo of a smiling woman" --strength 1

Without --checkpoint the demo model of the pack is used, for portraits drawn by Demo Portrait. ComfyUI must be running.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


class EditError(Exception):
    """A picture could not be edited; the message says why."""


def ask(server: str, path: str, body: bytes | None = None, kind: str = "application/json") -> bytes:
    """GET, or POST where there is a body; raises EditError with what the server says."""
    try:
        request = urllib.request.Request(server + path, body, {"Content-Type": kind} if body else {})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise EditError(refusal(error)) from error
    except (OSError, ValueError) as error:
        message = f"ComfyUI cannot be reached at {server} ({error}). Start it, or give its address with --server."
        raise EditError(message) from error


def refusal(error: urllib.error.HTTPError) -> str:
    """Word what ComfyUI answers in place of queueing: one line for each input at fault."""
    text = error.read().decode(errors="replace")
    try:
        nodes = json.loads(text)["node_errors"].values()
    except (ValueError, KeyError, AttributeError):
        return f"ComfyUI answers with {error.code} {error.reason} to {urllib.parse.urlsplit(error.url).path}."
    lines = [f"{node['class_type']}: {e['message']}: {e['details']}" for node in nodes for e in node["errors"]]
    return "ComfyUI refuses the workflow:\n" + "\n".join(lines)


def upload(server: str, picture: Path) -> str:
    """Upload a picture and return the name that Load Image takes."""
    boundary, name = uuid.uuid4().hex, f"{uuid.uuid4().hex}{picture.suffix}"  # never the name of another upload
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    body = head.encode() + picture.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
    return json.loads(ask(server, "/upload/image", body, f"multipart/form-data; boundary={boundary}"))["name"]


def workflow(image: str, options: argparse.Namespace) -> dict:
    """Return the nodes in ComfyUI's API format; a link is [id of the other node, number of its output]."""
    pack = "LatentDirections_"
    load = ("CheckpointLoaderSimple", {"ckpt_name": options.checkpoint})
    words = {"source": options.source, "target": options.target, "keep": "\n".join(options.keep)}
    if not options.checkpoint:
        load, words = (pack + "LoadDemoModel", {}), {**words, "find_keeps": "demo portraits"}
    width, height = options.size
    fit = {"image": ["picture", 0], "upscale_method": "lanczos", "width": width, "height": height, "crop": "center"}
    encode = {"model": ["load", 0], "positive": ["prompt", 0], "latent": ["latent", 0]}
    find = {"model": ["encode", 3], "inversion": ["encode", 4], "clip": ["load", 1], **words}
    slide = {"inversion": ["encode", 4], "directions": ["find", 0], "strength": options.strength}
    sample = {
        "model": ["apply", 0],
        "positive": ["apply", 1],
        "negative": ["negative", 0],
        "latent_image": ["encode", 0],
    }
    sample |= {"steps": options.steps, "cfg": options.cfg, "sampler_name": "euler", "scheduler": "simple"}
    nodes = {
        "load": load,
        "picture": ("LoadImage", {"image": image}),
        "fit": ("ImageScale", fit),
        "latent": ("VAEEncode", {"pixels": ["fit", 0], "vae": ["load", 2]}),
        "prompt": ("CLIPTextEncode", {"clip": ["load", 1], "text": options.prompt}),
        "negative": ("CLIPTextEncode", {"clip": ["load", 1], "text": ""}),
        "encode": (pack + "InvertImage", encode),  # shown as Encode Picture
        "find": (pack + "FindDirections", find),
        "slide": (pack + "DirectionSlider", slide),
        "apply": (pack + "ApplySliders", {"inversion": ["slide", 3]}),
        "sample": ("KSampler", sample),
        "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["load", 2]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "edit_folder"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def with_defaults(server: str, nodes: dict) -> dict:
    """Give every input that is not set the default that ComfyUI itself reports."""
    for node in nodes.values():
        kind = node["class_type"]
        info = json.loads(ask(server, f"/object_info/{kind}")).get(kind)
        if info is None:
            message = f"ComfyUI at {server} has no node {kind}. Install Latent Directions there and start it again."
            raise EditError(message)
        for name, (_, *options) in info["input"].get("required", {}).items():
            if options and "default" in options[0]:
                node["inputs"].setdefault(name, options[0]["default"])
    return nodes


def edited(server: str, nodes: dict) -> bytes:
    """Queue the nodes, wait for the end and return the saved picture; raises EditError with the node's own message."""
    key = json.loads(ask(server, "/prompt", json.dumps({"prompt": nodes}).encode()))["prompt_id"]
    queued = True
    while not (history := json.loads(ask(server, f"/history/{key}"))):
        if not queued:  # nor in the history, which was asked after the queue
            message = (
                "The run was removed from ComfyUI's queue, or ComfyUI was started again. Start this command again."
            )
            raise EditError(message)
        queue = json.loads(ask(server, "/queue"))
        queued = any(entry[1] == key for entries in queue.values() for entry in entries)
        time.sleep(0.3)
    status = history[key]["status"]
    for event, said in status["messages"]:
        if event == "execution_error":
            message = f"{said['node_type']}: {said['exception_message'].strip()}"
            raise EditError(message)
    if status["status_str"] != "success":
        message = "The run was stopped in ComfyUI."
        raise EditError(message)
    file = history[key]["outputs"]["save"]["images"][0]
    return ask(server, "/view?" + urllib.parse.urlencode(file))


def size(text: str) -> tuple[int, int]:
    """Read 1024x768 as width and height."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder with pictures")
    parser.add_argument("results", type=Path, help="folder for the edited pictures, as .png")
    parser.add_argument("--source", required=True, help="what the pictures show now")
    parser.add_argument("--target", required=True, help="what strength 1 shows: source with one thing changed")
    parser.add_argument("--strength", type=float, default=1.0, help="from -3 to 3; 0 gives the picture back")
    parser.add_argument("--keep", action="append", default=[], help='"with | without": stays as it is; may be repeated')
    parser.add_argument("--prompt", default="", help="what all pictures show, in few words")
    parser.add_argument("--checkpoint", help="file in ComfyUI's models/checkpoints (default: the demo model)")
    parser.add_argument("--size", type=size, help="WIDTHxHEIGHT of the results (default 1024x1024; demo model 64x64)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--cfg", type=float, help="guidance of the sampler (default 4; demo model 1)")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of ComfyUI")
    options = parser.parse_args()
    options.server = options.server.rstrip("/")
    options.size = options.size or ((1024, 1024) if options.checkpoint else (64, 64))
    options.cfg = (4.0 if options.checkpoint else 1.0) if options.cfg is None else options.cfg
    if not options.pictures.is_dir():
        parser.error(f"{options.pictures} is not a folder")
    if options.results.exists() and options.results.samefile(options.pictures):
        parser.error("the results would replace the pictures; name another folder for them")
    return options


def main() -> int:
    """Edit every picture and return the exit status: 1 where one failed."""
    options = arguments()
    pictures = sorted(path for path in options.pictures.iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        print(f"error: {options.pictures} holds no pictures ({', '.join(sorted(PICTURES))})", file=sys.stderr)
        return 1
    by_result = {}
    for picture in pictures:  # no difference of upper and lower case, as some systems know none
        other = by_result.setdefault(picture.stem.lower(), picture)
        if other is not picture:
            message = f"{other.name} and {picture.name} would have the same result. Rename one of them."
            print(f"error: {message}", file=sys.stderr)
            return 1
    options.results.mkdir(parents=True, exist_ok=True)
    failed = 0
    for picture in pictures:
        try:
            nodes = with_defaults(options.server, workflow(upload(options.server, picture), options))
            result = options.results / f"{picture.stem}.png"
            result.write_bytes(edited(options.server, nodes))
            print(result, flush=True)
        except EditError as error:
            print(f"error: {picture.name}: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
