"""Peak memory of each mode of derivatives, relative to one sampling step, each in a fresh process (Linux).

    python -m benchmarks.memory [--full] [--json FILE]

The model is SD3-shaped with random weights (width 512, depth 8, 1,024 image tokens), so that activations weigh
something. Peak is VmHWM after clearing it, minus what was resident before; the ratio of the whole process stands
beside it. With --full: models of full size instead, the self-check and searches in them (an hour or more on two cores).
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace

import torch

from benchmarks.command import parser, write
from benchmarks.memory_full_size import MODELS
from benchmarks.memory_full_size import measure as measure_full_size
from benchmarks.process_memory import memory_of, peak_of
from benchmarks.small_models import conditioning, randomise
from benchmarks.tables import print_table
from latent_directions.core.jacobian_directions import forward_products
from latent_directions.core.krylov import ForwardKrylovSpace
from latent_directions.core.operators import (
    DIFFERENCE_STEP,
    DIFFERENCES,
    DOUBLE_BACKWARD,
    FORWARD_AD,
    Jacobian,
    prediction_jacobian,
)
from latent_directions.nodes.host import run
from scripts.environment import ROOT

STEP = "one sampling step"
MODES = (
    STEP,
    "central difference",
    "forward AD",
    "backward",
    "double backward",
    "Krylov space of one-sided differences",
)
SIGMA = 0.7


def model():
    """The random-weight model, its prompt and a latent."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    depth = 8
    config = comfy.supported_models.SD3(
        {
            "in_channels": 16,
            "patch_size": 2,
            "depth": depth,
            "input_size": None,
            "adm_in_channels": 64,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 64, "out_features": 64 * depth},
            },
            "num_patches": 4096,
            "pos_embed_max_size": 64,
            "pos_embed_scaling_factor": None,
        }
    )
    config.set_inference_dtype(torch.float32, None)
    built = config.get_model({}, device="cpu")
    randomise(built.diffusion_model, 1)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(built, load_device=cpu, offload_device=cpu)
    latent = {"samples": torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(2))}
    return patcher, conditioning(3, tokens=32, width=64, pooled=64), latent


def measure(mode: str) -> dict:
    """Peak memory of one mode of products, in this process."""

    def body(denoiser, x0):
        x = denoiser.noised(x0, torch.randn_like(x0), SIGMA)

        def jacobian(mode: str = FORWARD_AD) -> Jacobian:
            return prediction_jacobian(denoiser, x, SIGMA, mode=mode)

        one_sided = replace(jacobian(), one_sided_step=DIFFERENCE_STEP)
        actions = {
            STEP: lambda: denoiser(x, SIGMA),
            "central difference": lambda: jacobian(DIFFERENCES).matvec(x),
            "forward AD": lambda: jacobian().matvec(x),
            "backward": lambda: jacobian().rmatvec(x),
            "double backward": lambda: jacobian(DOUBLE_BACKWARD).matvec(x),
            "Krylov space of one-sided differences": lambda: ForwardKrylovSpace(
                one_sided.approximate_matvec, x, forward_products(7, one_sided.approximate_cost, 5, 5)
            ),
        }
        denoiser(x, SIGMA)  # what the first call of all allocates is not the mode's
        started = denoiser.counter.evaluations
        _, peak = peak_of(actions[mode])
        return {
            "mode": mode,
            "evaluations": denoiser.counter.evaluations - started,
            "peak_megabytes": peak,
            "process_megabytes": memory_of(os.getpid(), "VmHWM") / 2**20,
        }

    with torch.inference_mode():
        patcher, positive, latent = model()
        return run(patcher, {"source": positive}, latent, SIGMA, body)[0]


def in_a_process(mode: str):
    """What `--mode` prints, in a fresh process; what it writes while it runs is passed on."""
    # tensors go back to the system when they are freed, so that the peak is the code's and not the allocator's
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.memory", "--mode", mode]
    output = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Measure every mode in a process of its own and print the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--full", action="store_true", help="models of full size, and searches in them")
    arguments.add_argument("--mode", choices=[*MODES, *MODELS], help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.mode in MODELS:
        print(json.dumps(measure_full_size(options.mode, lambda row: print(row, file=sys.stderr, flush=True))))
        return
    if options.mode:
        print(json.dumps(measure(options.mode)))
        return
    if options.full:
        rows = [row for name in MODELS for row in in_a_process(name)]
        print_table(rows)
        write(rows, options.json)
        return
    rows = [in_a_process(mode) for mode in MODES]
    for row in rows:
        row["ratio"] = row["peak_megabytes"] / rows[0]["peak_megabytes"]
        row["process_ratio"] = row["process_megabytes"] / rows[0]["process_megabytes"]
    print_table(rows)
    write(rows, options.json)


if __name__ == "__main__":
    main()
