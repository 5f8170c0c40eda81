"""A small trained U-Net of the Stable Diffusion kind (v prediction) on the demo's latents: a second trained model.

    python -m benchmarks.unet

trains it in about eight minutes on one core, the demo's text encoder frozen; `trained_unet` does so the first time it
is asked.
"""

import hashlib

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import numpy as np
import safetensors.torch
import torch

from latent_directions.demo.architecture import build_text, build_vae, demo_weights, initialise
from latent_directions.demo.common import POOL_SEED, Average
from latent_directions.demo.train_model import encode_pool, tokens_of
from latent_directions.demo.world import caption, sample_pool
from scripts.environment import ROOT

STEPS, BATCH, POOL, RATE = 2500, 32, 20000, 1e-3
CONFIG = {
    "image_size": 32,
    "in_channels": 16,
    "out_channels": 16,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 128,
    "num_heads": 4,
    "adm_in_channels": None,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "use_checkpoint": False,
    "legacy": False,
}
SETTINGS = hashlib.sha256(repr((STEPS, BATCH, POOL, RATE, CONFIG)).encode()).hexdigest()[:8]
WEIGHTS = ROOT / ".cache" / "benchmarks" / f"unet-{SETTINGS}.safetensors"


def trained_unet() -> comfy.model_patcher.ModelPatcher:
    """The trained U-Net as a ComfyUI MODEL; trained now where that has not been done yet."""
    if not WEIGHTS.is_file():
        with torch.inference_mode(False):
            train()
    model = _build()
    model.diffusion_model.load_state_dict(safetensors.torch.load_file(WEIGHTS))
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def train() -> None:
    """Train with a fixed number of steps and fixed seeds, and write the averaged weights."""
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # tiny moments in the optimizer halve the speed of a CPU
    rng = np.random.default_rng(0)
    vae, model, (tokenizer, encoder) = build_vae(), _build(), build_text()
    vae.load_state_dict(demo_weights("vae"))
    encoder.transformer.load_state_dict(demo_weights("text"))
    encoder.requires_grad_(False)
    portraits, pictures = sample_pool(POOL, POOL_SEED + 20)
    latents = encode_pool(vae, pictures)
    unet = initialise(model.diffusion_model).requires_grad_(True)
    torch.nn.init.zeros_(unet.out[-1].weight)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS, pct_start=0.05, cycle_momentum=False)
    average, running = Average(unet, 0.998), 1.0
    for step in range(STEPS):
        picked = torch.randint(len(latents), (BATCH,))
        prompts = ["" if rng.random() < 0.1 else caption(portraits[i], rng) for i in picked.tolist()]
        with torch.no_grad():
            context, _ = encoder([tokens_of(tokenizer, prompt) for prompt in prompts])
        timestep = torch.randint(1000, (BATCH,))
        sigma = model.model_sampling.sigma(timestep).view(-1, 1, 1, 1)
        noise = torch.randn(BATCH, *latents.shape[1:])
        scale = (sigma**2 + 1).sqrt()
        x, v = (latents[picked] + sigma * noise) / scale, (noise - sigma * latents[picked]) / scale
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(x, timestep.float(), context=context)
        loss = (predicted.float() - v).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(unet)
        running += (loss.item() - running) * max(0.01, 1 / (step + 1))
        if step % 200 == 0 or step == STEPS - 1:
            print(f"U-Net, step {step}: loss {running:.4f}", flush=True)
    torch.set_flush_denormal(False)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().contiguous() for k, v in average.module.state_dict().items()}
    safetensors.torch.save_file(weights, WEIGHTS)


def _build():
    """The model without weights, in ComfyUI's own classes."""
    config = comfy.supported_models.SD15(dict(CONFIG))
    config.latent_format = comfy.latent_formats.SD3()
    config.model_type = lambda *_: comfy.model_base.ModelType.V_PREDICTION
    config.inpaint_model = lambda: False  # which more than four channels would make it
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, device="cpu")


if __name__ == "__main__":
    train()
