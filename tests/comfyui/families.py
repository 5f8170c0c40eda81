"""Small random-weight MODELs of the common families, built from ComfyUI's own classes and run by its own code."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Give everything a checkpoint would set a random value that keeps activations near unit variance.

    ComfyUI leaves weights uninitialised, and trained checkpoints start gates and last layers at zero. Zeros would make
    every derivative vanish, so nothing is left at zero here.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():  # parameters and persistent buffers
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2 and name.endswith("weight") and "embedding" not in name:
            value = noise / tensor[0].numel() ** 0.5  # variance 1 / fan in
        elif tensor.ndim == 1 and name.endswith(("weight", "scale", "gamma")):
            value = 1.0 + 0.1 * noise  # gain of a norm
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = 0.3 * noise  # tokens, position and modulation tables
        tensor.copy_(value)  # shares memory with the module
    module.requires_grad_(False)


def conditioning(seed: int, tokens: int, width: int, pooled: int | None = None, **extra) -> list:
    """Random CONDITIONING in ComfyUI's format: [[tensor of shape 1 x tokens x width, options]]."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, width, generator=generator)
    pooled_output = None if pooled is None else torch.randn(1, pooled, generator=generator)
    return [[text, {"pooled_output": pooled_output, **extra}]]


@dataclass
class TestModel:
    """A loaded MODEL with conditioning, the shape of its latent and a noise level in the middle of its schedule."""

    __test__ = False  # not a test class, whatever its name suggests to pytest

    name: str
    model: comfy.model_patcher.ModelPatcher
    positive: list
    negative: list
    latent_shape: tuple[int, ...]
    sigma: float

    def latent(self, seed: int = 0) -> torch.Tensor:
        """A random model-space latent at the test's noise level, near the variance the model expects there."""
        generator = torch.Generator().manual_seed(seed)
        x0, noise = torch.randn(2, *self.latent_shape, generator=generator)
        sampling = self.model.get_model_object("model_sampling")
        return sampling.noise_scaling(torch.tensor(self.sigma), noise, x0)


@dataclass(frozen=True)
class Family:
    """A name and the function that builds its test model."""

    name: str
    build: Callable[[], TestModel]

    def __str__(self) -> str:
        return self.name


def assemble(name: str, config: object, latent_shape: tuple[int, ...], text: dict, state_dict: dict | None = None):
    """Build the model of a ComfyUI model config in float32, with random weights and two random prompts."""
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(state_dict or {}, device="cpu")
    seed = zlib.crc32(name.encode())  # stable between runs, unlike hash()
    randomise(model.diffusion_model, seed)
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    return TestModel(
        name=name,
        model=patcher,
        positive=conditioning(seed + 1, **text),
        negative=conditioning(seed + 2, **text),
        latent_shape=latent_shape,
        sigma=float(model.model_sampling.percent_to_sigma(0.4)),
    )


def unet_config(**changes) -> dict:
    """The smallest two-level UNet that still has every kind of layer of a full one."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": 1,
        "context_dim": 24,
        "adm_in_channels": None,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_checkpoint": False,
        "legacy": False,
        **changes,
    }


def sd1() -> TestModel:
    """Stable Diffusion 1.x: UNet, eps prediction."""
    config = comfy.supported_models.SD15(unet_config())
    return assemble("sd1", config, (1, 4, 8, 8), {"tokens": 7, "width": 24})


def sd2() -> TestModel:
    """Stable Diffusion 2.1: UNet, v prediction, attention in float32."""
    # ComfyUI tells v from eps prediction by the spread of this bias.
    v_marker = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])}
    config = comfy.supported_models.SD20(
        unet_config(model_channels=64, channel_mult=[1, 1], use_linear_in_transformer=True)
    )
    return assemble("sd2", config, (1, 4, 8, 8), {"tokens": 7, "width": 24}, v_marker)


def sdxl() -> TestModel:
    """SDXL: UNet with pooled text and picture sizes, eps prediction."""
    config = comfy.supported_models.SDXL(
        unet_config(
            transformer_depth=[0, 2],
            transformer_depth_output=[0, 0, 2, 2],
            use_linear_in_transformer=True,
            num_classes="sequential",
            adm_in_channels=32 + 6 * 256,  # pooled text and six embedded sizes
        )
    )
    return assemble("sdxl", config, (1, 4, 8, 8), {"tokens": 7, "width": 24, "pooled": 32})


def sd3() -> TestModel:
    """SD3: MMDiT, rectified flow."""
    config = comfy.supported_models.SD3(
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 32,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 24, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0],
        }
    )
    return assemble("sd3", config, (1, 16, 8, 8), {"tokens": 7, "width": 24, "pooled": 32})


def flux() -> TestModel:
    """Flux.1: double and single stream blocks, rectified flow, guidance embedded."""
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "hidden_size": 64,
            "num_heads": 2,
            "axes_dim": [8, 12, 12],
            "theta": 10000,
            "mlp_ratio": 4.0,
            "depth": 1,
            "depth_single_blocks": 2,
            "context_in_dim": 24,
            "vec_in_dim": 32,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        }
    )
    return assemble("flux", config, (1, 16, 8, 8), {"tokens": 7, "width": 24, "pooled": 32})


CORE = [Family("sd1", sd1), Family("sdxl", sdxl), Family("sd3", sd3), Family("flux", flux)]
MANY = [*CORE, Family("sd2", sd2)]
