"""A small trained U-Net of the Stable Diffusion 1.x kind on the demo's latents: a second model for the benchmarks.

    python -m benchmarks.unet --minutes 8

trains it (eps prediction, the demo's text encoder frozen) and writes benchmarks/weights/unet.safetensors.
"""

import argparse
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import numpy as np
import safetensors.torch
import torch

from latent_directions.demo.architecture import build_text, build_vae, demo_weights, initialise
from latent_directions.demo.common import POOL_SEED, Average, WallClock, save
from latent_directions.demo.train_model import encode_pool, tokens_of
from latent_directions.demo.world import caption, sample_pool

WEIGHTS = Path(__file__).parent / "weights" / "unet.safetensors"
CONFIG = {
    "image_size": 32,
    "in_channels": 16,
    "out_channels": 16,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
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


def build():
    """The model without weights, in ComfyUI's own classes."""
    config = comfy.supported_models.SD15(dict(CONFIG))
    config.latent_format = comfy.latent_formats.SD3()
    config.set_inference_dtype(torch.float32, None)
    return config.get_model({}, device="cpu")


def load() -> comfy.model_patcher.ModelPatcher:
    """The trained U-Net as a ComfyUI MODEL."""
    model = build()
    weights = {k: v.float() for k, v in safetensors.torch.load_file(WEIGHTS).items()}
    model.diffusion_model.load_state_dict(weights)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def main() -> None:
    """Train until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--pool", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    rng = np.random.default_rng(0)
    vae, model, (tokenizer, encoder) = build_vae(), build(), build_text()
    vae.load_state_dict(demo_weights("vae"))
    encoder.transformer.load_state_dict(demo_weights("text"))
    encoder.requires_grad_(False)
    portraits, pictures = sample_pool(options.pool, POOL_SEED + 20)
    latents = encode_pool(vae, pictures)
    unet = initialise(model.diffusion_model).requires_grad_(True)
    torch.nn.init.zeros_(unet.out[-1].weight)
    print(f"{sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M weights", flush=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    average, clock, running = Average(unet, 0.998), WallClock(options.minutes, 1e-3, optimizer, warmup=200), 1.0
    for step in clock:
        picked = torch.randint(len(latents), (options.batch,))
        prompts = ["" if rng.random() < 0.1 else caption(portraits[i], rng) for i in picked.tolist()]
        with torch.no_grad():
            context, _ = encoder([tokens_of(tokenizer, prompt) for prompt in prompts])
        timestep = torch.randint(1000, (options.batch,))
        sigma = model.model_sampling.sigma(timestep).view(-1, 1, 1, 1)
        noise = torch.randn(options.batch, *latents.shape[1:])
        x = (latents[picked] + sigma * noise) / (sigma**2 + 1).sqrt()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(x, timestep.float(), context=context)
        loss = (predicted.float() - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update(unet)
        running += (loss.item() - running) * 0.02
        if step % 200 == 0:
            clock.report(f"loss {running:.4f}")
    WEIGHTS.parent.mkdir(exist_ok=True)
    save(average.module.state_dict(), WEIGHTS)
    clock.report(f"loss {running:.4f}, written to {WEIGHTS.name}")


if __name__ == "__main__":
    main()
