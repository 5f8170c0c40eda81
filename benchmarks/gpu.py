"""Five directions on models of full size, against a 28-step sampling run: time and peak memory on a CUDA GPU.

    python -m benchmarks.gpu [--quick] [--json FILE]

SD3-medium- and SDXL-sized models with random weights in bf16, pictures of 1024 px. Each is measured with all weights in
VRAM, with dynamic VRAM, and both without and with it where only a quarter of the weights may be in VRAM (low VRAM) and
the others are cast at each call. Every setting has a process of its own that starts as ComfyUI does. Without a CUDA GPU
it says so.
"""

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

from benchmarks.command import parser, write
from benchmarks.small_models import conditioning, randomise
from benchmarks.tables import print_table
from latent_directions.core.errors import DerivativeError, NotFiniteError
from latent_directions.core.jacobian_directions import loco
from latent_directions.core.operators import DIFFERENCES
from latent_directions.core.search import AUTOMATIC, FORWARD_ONLY, Search, Settings
from latent_directions.nodes.host import run
from latent_directions.nodes.progress import peak_megabytes, reset_peak
from latent_directions.nodes.sampling import noise_level, sample_euler
from scripts.environment import ROOT, ensure

STEPS, DIRECTIONS, LEVEL = 28, 5, 0.7
ALL, DYNAMIC = "all in VRAM", "dynamic VRAM"
QUARTER, DYNAMIC_QUARTER = "low VRAM", "dynamic VRAM, low VRAM"
# ComfyUI's own switches; with none it uses dynamic VRAM where it can.
FLAGS = {ALL: ["--highvram"], DYNAMIC: [], QUARTER: ["--disable-dynamic-vram"], DYNAMIC_QUARTER: []}
COLUMNS = ("what", "seconds", "megabytes", "weights in VRAM", "time ratio", "memory ratio")
# ComfyUI's own start: the allocator is chosen before torch is imported, dynamic VRAM while main.py is.
START = """
import json, sys
comfyui, name, setting, steps, directions = sys.argv[1:6]
del sys.argv[1:6]
sys.path.insert(0, comfyui)
import comfy.options
comfy.options.enable_args_parsing()
import cuda_malloc, main
from benchmarks.gpu import measure
print(json.dumps(measure(name, setting, int(steps), int(directions))))
"""
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
SIZES = {
    "SD3 medium": (comfy.supported_models.SD3, SD3, 16, {"tokens": 154, "width": 4096, "pooled": 2048}),
    "SDXL": (comfy.supported_models.SDXL, SDXL, 4, {"tokens": 77, "width": 2048, "pooled": 1280}),
}


class QuarterLoaded(comfy.model_patcher.ModelPatcher):
    """A patcher that loads a quarter of the weights, as ComfyUI does where no more fits."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        """Load within a quarter, whatever more there is room for."""
        super().load(device_to, self.model_size() / 4, force_patch_weights)


class QuarterDynamic(comfy.model_patcher.ModelPatcherDynamic):
    """A patcher of dynamic VRAM that keeps a quarter of the weights there, as where other work needs the rest."""

    def load(self, *args, **kwargs):
        """Prepare loading, with layers above a quarter to be cast at each call."""
        super().load(*args, **kwargs)
        self.model.dynamic_vbars[self.load_device].set_watermark(self.model_size() // 4)


@dataclass(frozen=True)
class Subject:
    """A model under a memory setting, its prompt and the latent of a picture."""

    setting: str
    model: comfy.model_patcher.ModelPatcher
    positive: list
    latent: dict


def built(config) -> torch.nn.Module:
    """A random-weight model in bf16 on the CPU. Under dynamic VRAM, layers would wait for a checkpoint's weights."""
    config.set_inference_dtype(torch.bfloat16, None)
    enabled, comfy.memory_management.aimdo_enabled = comfy.memory_management.aimdo_enabled, False
    try:
        model = config.get_model({}, device="cpu")
    finally:
        comfy.memory_management.aimdo_enabled = enabled
    randomise(model.diffusion_model, 1)
    return model


def under(setting: str, model: torch.nn.Module) -> comfy.model_patcher.ModelPatcher:
    """The MODEL that ComfyUI will load as the setting says."""
    kinds = {QUARTER: QuarterLoaded, DYNAMIC_QUARTER: QuarterDynamic}
    kind = kinds.get(setting, comfy.model_patcher.CoreModelPatcher)
    return kind(model, comfy.model_management.get_torch_device(), torch.device("cpu"))


def check_in_force(subject: Subject) -> None:
    """Raise RuntimeError where ComfyUI loaded the weights otherwise than the setting says."""
    model = subject.model
    share = model.loaded_size() / model.model_size()
    # dynamic VRAM counts pages of 32 MB, and buffers and small weights, which are always there
    most = {ALL: 1.0, DYNAMIC: 1.1, QUARTER: 0.25, DYNAMIC_QUARTER: 0.35}[subject.setting]
    dynamic = subject.setting in (DYNAMIC, DYNAMIC_QUARTER)
    if not 0 < share <= most or (subject.setting == ALL and share < 1) or model.is_dynamic() != dynamic:
        msg = f"'{subject.setting}' was not in force: {type(model).__name__} had {share:.0%} of the weights in VRAM."
        raise RuntimeError(msg)


def measured(subject: Subject, action: Callable) -> dict:
    """Seconds, peak megabytes and megabytes of weights in VRAM of an action, after one untimed run."""
    model, device = subject.model, subject.model.load_device
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    reset_peak(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    check_in_force(subject)
    figures = {"seconds": seconds, "weights in VRAM": model.loaded_size() / 1e6}
    peak = peak_megabytes(model)
    if peak is not None:
        figures["megabytes"] = peak
    return figures


def compare(subject: Subject, steps: int, directions: int) -> list[dict]:
    """A sampling run, then the search with each choice of derivatives."""
    model, samples = subject.model, subject.latent["samples"]
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(4))
    model_sampling = model.get_model_object("model_sampling")
    sigma = noise_level(model_sampling, LEVEL, 0)
    mask = torch.zeros(1, 1, *samples.shape[-2:])
    mask[..., mask.shape[-2] // 2 :, mask.shape[-1] // 3 : 2 * mask.shape[-1] // 3] = 1

    def sample():
        full = torch.linspace(1, 0, steps + 1) * float(model_sampling.sigma_max)
        sample_euler(model, noise, full, subject.positive, subject.latent)

    def search(derivatives):
        def body(denoiser, x0):
            x = denoiser.noised(x0, noise.to(x0), sigma)
            settings = Settings(count=directions, derivatives=derivatives)
            return loco(Search(denoiser, x, sigma, mask.to(x0), settings))

        run(model, {"source": subject.positive}, subject.latent, sigma, body)

    base = measured(subject, sample)
    rows = [in_words(f"{steps} sampling steps") | relative(base, base)]
    for derivatives in (AUTOMATIC, FORWARD_ONLY, DIFFERENCES):
        what = f"{directions} directions, {derivatives}"
        try:
            rows.append(in_words(what) | relative(measured(subject, functools.partial(search, derivatives)), base))
        except (DerivativeError, NotFiniteError, torch.OutOfMemoryError) as refusal:
            rows.append(in_words(f"{what}: refused. {refusal}"))
    return rows


def relative(figures: dict, base: dict) -> dict:
    """Figures with their ratios to those of the sampling run; torch counts no memory on a CPU."""
    ratios = {"time ratio": figures["seconds"] / base["seconds"]}
    if "megabytes" in base:
        ratios["memory ratio"] = figures["megabytes"] / base["megabytes"]
    return figures | ratios


def in_words(what: str) -> dict:
    """A row without figures."""
    return dict.fromkeys(COLUMNS) | {"what": what}


@torch.inference_mode()
def measure(name: str, setting: str, steps: int, directions: int) -> list[dict]:
    """The rows of one model under one setting, in a process that START began with the setting's flags."""
    kind, config, channels, text = SIZES[name]
    if setting in (DYNAMIC, DYNAMIC_QUARTER) and not comfy.memory_management.aimdo_enabled:
        return [in_words("not available: ComfyUI has no dynamic VRAM on this machine")]
    latent = {"samples": torch.randn(1, channels, 128, 128, generator=torch.Generator().manual_seed(2))}
    model = under(setting, built(kind(dict(config))))
    return compare(Subject(setting, model, conditioning(3, **text), latent), steps, directions)


def in_own_process(name: str, setting: str, steps: int, directions: int, flags: list[str]) -> list[dict]:
    """`measure` in a fresh ComfyUI started with these flags; a row in words where that process failed."""
    call = [str(ensure().comfyui), name, setting, str(steps), str(directions)]
    flags = ["--disable-all-custom-nodes", "--base-directory", str(ROOT / ".run" / "in-process"), *flags]
    done = subprocess.run(
        [sys.executable, "-c", START, *call, *flags], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        rows = [in_words(f"failed with status {done.returncode}: {last}")]
    else:
        rows = json.loads(done.stdout.splitlines()[-1])
    return [{"model": name, "setting": setting} | row for row in rows]


def main() -> None:
    """Run the benchmark and print its table, or say that there is no GPU."""
    options = parser(__doc__, "fewer steps and directions").parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA GPU here, so nothing was measured.")
        return
    steps, directions = (8, 2) if options.quick else (STEPS, DIRECTIONS)
    rows = []
    for name in SIZES:
        for setting, flags in FLAGS.items():
            rows += in_own_process(name, setting, steps, directions, flags)
    print_table(rows)
    write(rows, options.json)


if __name__ == "__main__":
    main()
