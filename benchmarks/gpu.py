"""Five directions on models of full size, against a 28-step sampling run: time and peak memory on a CUDA GPU.

    python -m benchmarks.gpu [--json FILE]

SD3-medium- and SDXL-sized models with random weights in bf16, pictures of 1024 px. Without a CUDA GPU it says so.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from benchmarks.command import parser, write
from benchmarks.small_models import conditioning, randomise
from benchmarks.tables import print_table
from latent_directions.core.errors import DerivativeError
from latent_directions.core.find import AUTOMATIC, FORWARD_ONLY, LOCO, Settings, find_moves
from latent_directions.nodes.encode import SEEDED, InvertImage
from latent_directions.nodes.host import run
from latent_directions.nodes.sampling import sample_euler

STEPS, DIRECTIONS = 28, 5
SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "num_head_channels": 64,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "use_checkpoint": False,
    "legacy": False,
}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
}


@dataclass(frozen=True)
class Subject:
    """A model, its prompt and the latent of a 1024 px picture."""

    name: str
    model: object
    positive: list
    latent: dict


def subjects() -> list[Subject]:
    """Both models on the GPU, bf16, random weights."""
    cases = (
        ("SD3 medium", comfy.supported_models.SD3(dict(SD3)), 16, {"tokens": 154, "width": 4096, "pooled": 2048}),
        ("SDXL", comfy.supported_models.SDXL(dict(SDXL)), 4, {"tokens": 77, "width": 2048, "pooled": 1280}),
    )
    return [assemble(name, config, channels, text) for name, config, channels, text in cases]


def assemble(name: str, config, channels: int, text: dict) -> Subject:
    """A random-weight model of a config, offloaded until ComfyUI loads it."""
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, device="cpu")
    randomise(model.diffusion_model, 1)
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(), offload_device=torch.device("cpu")
    )
    latent = {"samples": torch.randn(1, channels, 128, 128, generator=torch.Generator().manual_seed(2))}
    return Subject(name, patcher, conditioning(3, **text), latent)


def measured(device: torch.device, action: Callable) -> tuple[float, float | None]:
    """Seconds and peak megabytes of an action, after one untimed run."""
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 1e6
    return time.perf_counter() - started, None


def compare(subject: Subject, steps: int, directions: int) -> list[dict]:
    """A sampling run, then the search by each way of derivatives."""
    device = subject.model.load_device
    out = InvertImage.execute(
        subject.model, subject.positive, subject.latent, level=0.7, steps=steps, method=SEEDED
    ).result
    inversion, noise = out[4], out[1].noise
    full = torch.linspace(1, 0, steps + 1) * float(subject.model.get_model_object("model_sampling").sigma_max)
    seconds, memory = measured(
        device, lambda: sample_euler(subject.model, noise, full, subject.positive, subject.latent)
    )
    first = {"model": subject.name, "what": f"{steps} sampling steps", "seconds": seconds, "megabytes": memory}
    rows = [first | {"time ratio": 1.0, "memory ratio": 1.0}]
    mask = torch.zeros(1, 1, *subject.latent["samples"].shape[-2:])
    mask[..., mask.shape[-2] // 2 :, mask.shape[-1] // 3 : 2 * mask.shape[-1] // 3] = 1
    for way in (AUTOMATIC, FORWARD_ONLY):

        def body(denoiser, x0, way=way):
            x = denoiser.noised(x0, noise.to(x0), inversion.sigma)
            settings = Settings(method=LOCO, count=directions, derivatives=way)
            return find_moves(denoiser, x, inversion.sigma, mask.to(x0), settings)

        def search(body=body):
            return run(subject.model, {"source": subject.positive}, subject.latent, inversion.sigma, body)

        what = f"{directions} directions, {way}"
        try:
            took, peak = measured(device, search)
        except DerivativeError as refusal:
            rows.append(dict.fromkeys(rows[0]) | {"model": subject.name, "what": f"{what}: refused. {refusal}"})
            continue
        rows.append(
            {
                "model": subject.name,
                "what": what,
                "seconds": took,
                "megabytes": peak,
                "time ratio": took / seconds,
                "memory ratio": None if peak is None else peak / memory,
            }
        )
    return rows


def main() -> None:
    """Run the benchmark and print its table, or say that there is no GPU."""
    options = parser(__doc__, "fewer steps and directions").parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA GPU here, so nothing was measured.")
        return
    with torch.inference_mode():
        rows = [
            row
            for subject in subjects()
            for row in compare(subject, 8 if options.quick else STEPS, 2 if options.quick else DIRECTIONS)
        ]
    print_table(rows)
    write(rows, options.json)


if __name__ == "__main__":
    main()
