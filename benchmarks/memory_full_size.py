"""SD1.5's U-Net and SD3-medium's MMDiT at full size with random weights, in bfloat16: what searches take there.

Random weights make no picture, but cost the same time and memory as a checkpoint, and round alike. Seconds are those of
the CPU, all threads together, so that other programs on the machine do not count.
"""

import time

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from benchmarks.gpu import SD3
from benchmarks.process_memory import peak_of
from benchmarks.small_models import conditioning, randomise
from latent_directions.core.denoiser import SOURCE, Denoiser
from latent_directions.core.methods import METHODS
from latent_directions.core.operators import prediction_jacobian
from latent_directions.core.search import FORWARD_ONLY, TARGET, Search, Settings
from latent_directions.core.self_check import self_check
from latent_directions.nodes.host import run

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
}
# Name -> ComfyUI's class, its settings, channels and side of the latent, tokens and width of the prompt, width of its
# pooled vector, and the noise level.
MODELS = {
    "SD1.5 U-Net, 512 px": (comfy.supported_models.SD15, SD15, 4, 64, 77, 768, None, 2.0),
    "SD3-medium MMDiT, 256 px": (comfy.supported_models.SD3, SD3, 16, 32, 77, 4096, 2048, 0.7),
}
STEP = "one sampling step"
STEPS = 20  # of the sampling run, at guidance 1, that the time is compared with


def build(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple:
    """MODEL with `dtype` weights and arithmetic, source and target prompt, a LATENT, and its sigma."""
    kind, settings, channels, side, tokens, width, pooled, sigma = MODELS[name]
    config = kind(dict(settings))
    config.set_inference_dtype(dtype, None)
    cpu = torch.device("cpu")
    made = config.get_model({}, device=cpu)
    randomise(made.diffusion_model, 1)
    patcher = comfy.model_patcher.CoreModelPatcher(made, load_device=cpu, offload_device=cpu)
    prompts = (conditioning(seed, tokens=tokens, width=width, pooled=pooled) for seed in (3, 4))
    latent = {"samples": torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(2))}
    return patcher, *prompts, latent, sigma


def measure(name: str, report) -> list[dict]:
    """Evaluations, seconds and peak memory of a sampling step, the self-check and searches; `report` gets each row."""

    def body(denoiser: Denoiser, x0: torch.Tensor) -> list[dict]:
        x = denoiser.noised(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(5)), sigma)
        mask = torch.zeros(1, 1, *x.shape[2:])
        mask[..., x.shape[-1] // 4 : x.shape[-1] // 2, x.shape[-1] // 4 : x.shape[-1] // 2] = 1

        def search(method: str) -> dict:
            task = Search(denoiser, x, sigma, mask, Settings(count=3, derivatives=FORWARD_ONLY))
            move, *_ = METHODS[method].run(task)
            check = task.notes["self_check"]
            notes = {key: move.notes.get(key) for key in ("asymmetry", "products_by")}
            return {"mode": check["mode"], "difference": check["difference"], "sentence": check["sentence"]} | notes

        def step() -> dict:
            denoiser(x, sigma)
            return {}

        def check() -> dict:
            found = self_check(prediction_jacobian(denoiser, x, sigma))
            found.jacobian.release()
            said = {"mode": found.jacobian.mode, "backward": found.backward, "difference": found.difference}
            return said | {"adjoint": found.adjoint, "sentence": found.sentence}

        actions = {
            STEP: step,
            "self-check with a backward pass": check,
            "HSDS forward only": lambda: search("HSDS"),
            "LOCO forward only": lambda: search("LOCO"),
        }
        denoiser(x, sigma)  # what the first call of all allocates is not the step's
        rows: list[dict] = []
        for action, act in actions.items():
            before, started = denoiser.counter.evaluations, time.process_time()
            found, peak = peak_of(act)
            rows.append(
                {
                    "model": name,
                    "action": action,
                    "evaluations": denoiser.counter.evaluations - before,
                    "cpu_seconds": time.process_time() - started,
                    "peak_megabytes": peak,
                }
                | found
            )
            row, step = rows[-1], rows[0]
            row["share_of_a_run"] = row["cpu_seconds"] / (STEPS * step["cpu_seconds"])
            row["memory_of_a_step"] = row["peak_megabytes"] / step["peak_megabytes"]
            report(row)
        return rows

    with torch.inference_mode():
        patcher, source, target, latent, sigma = build(name)
        return run(patcher, {SOURCE: source, TARGET: target}, latent, sigma, body)[0]
