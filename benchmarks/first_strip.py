"""From a loaded ComfyUI to the first strip of seven pictures, with the demo model: seconds and evaluations by stage.

What the template First slider does, its values included, at seven strengths: the demo model is loaded, a portrait is
drawn and encoded, a direction is found, the strengths are sampled and decoded. ComfyUI and the pack are imported
before the clock starts. Live runs first, then, from the loading on anew, Slider Strip with its own number of keyframes.
CPU seconds are those of all threads, and hardly depend on what else the machine does.

    python -m benchmarks.first_strip [--threads N] [--json FILE]
"""

import json
import time
from collections.abc import Iterator

import torch

from benchmarks.command import parser, write
from benchmarks.tables import print_table
from latent_directions.core.distilled import evenly_spaced
from latent_directions.nodes.demo_model import DemoPortrait, LoadDemoModel
from latent_directions.nodes.encode import FRESH, InvertImage
from latent_directions.nodes.identify import FindDirections
from latent_directions.nodes.identify_prompts import FOUND
from latent_directions.nodes.manipulate import sampled, with_slider
from latent_directions.nodes.quick import SliderStrip

LIVE, STRIP = "live", "Slider Strip"
PORTRAIT, LEVEL, STEPS = 7, 0.7, 20
SOURCE, TARGET, LIST = "a portrait of a person, neutral", "a portrait of a person, smiling", "demo portraits"
FIRST, LAST, POSITIONS, KEYFRAMES = -1.5, 1.5, 7, 5


def stages(way: str) -> Iterator[tuple[str, int]]:
    """The stages one after another, each with the model evaluations that it took."""
    model, clip, vae = LoadDemoModel.execute().args
    yield "load the demo model", 0
    image = DemoPortrait.execute(PORTRAIT).args[0]
    yield "draw the portrait", 0
    positive, latent = clip.encode_from_tokens_scheduled(clip.tokenize("")), {"samples": vae.encode(image)}
    encoded = InvertImage.execute(model, positive, latent, level=LEVEL, steps=STEPS, method=FRESH).args
    sigmas, inversion = encoded[2], encoded[4]
    yield "encode", json.loads(encoded[5])["model_evaluations"]
    directions, report, *_ = FindDirections.execute(
        model, inversion, "text", SOURCE, TARGET, clip=clip, find_keeps=LIST, where=FOUND
    ).args
    yield "find the direction", json.loads(report)["model_evaluations"]
    if way == LIVE:
        strengths = evenly_spaced(FIRST, LAST, POSITIONS)
        latents = [sampled(with_slider(inversion, directions[0], strength), sigmas) for strength in strengths]
        evaluations = inversion.statistics.evaluations
    else:
        options = {"keyframes": KEYFRAMES, "frames": POSITIONS, "sigmas": sigmas}
        strip, report, *_ = SliderStrip.execute(inversion, directions, start=FIRST, end=LAST, **options).args
        latents, evaluations = strip["samples"].split(1), json.loads(report)["model_evaluations"]
    yield f"{POSITIONS} positions", evaluations
    pictures = vae.decode(torch.cat(latents))
    assert len(pictures) == POSITIONS
    yield "decode", 0


def timed(way: str) -> list[dict]:
    """The stages of one way with their seconds, and all together."""
    found, started, used = [], time.perf_counter(), time.process_time()
    for name, evaluations in stages(way):
        taken = {"seconds": time.perf_counter() - started, "cpu seconds": time.process_time() - used}
        found.append({"way": way, "stage": name, **taken, "evaluations": evaluations})
        started, used = time.perf_counter(), time.process_time()
    total = {key: sum(row[key] for row in found) for key in ("seconds", "cpu seconds", "evaluations")}
    return [*found, {"way": way, "stage": "all", **total}]


@torch.inference_mode()
def main() -> None:
    """Time both ways and print the table."""
    made = parser(__doc__)
    made.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [row for way in (LIVE, STRIP) for row in timed(way)]
    print(f"\nThe first strip of {POSITIONS} pictures, {STEPS} steps, on {arguments.threads} of the CPU's threads:\n")
    print_table(rows)
    write(rows, arguments.json)


if __name__ == "__main__":
    main()
