"""The U-Net and the autoencoder of a diffusers folder as ComfyUI's MODEL and VAE.

The network stays diffusers' own, with ComfyUI's layers inside, so that offloading, casts, LoRA and this pack's
derivatives (nodes/derivatives.py) treat it as any other. Its attention calls torch's fused function, which is replaced
while a derivative is taken wherever it is called: no attention processor is set, and none has to be put back.
"""

from __future__ import annotations

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor

from .diffusers_folder import DiffusersFolder
from .errors import InputError
from .inputs import quoted

PREDICTIONS = {
    "epsilon": (comfy.model_sampling.EPS, comfy.model_base.ModelType.EPS),
    "v_prediction": (comfy.model_sampling.V_PREDICTION, comfy.model_base.ModelType.V_PREDICTION),
    "sample": (comfy.model_sampling.X0, comfy.model_base.ModelType.EPS),
}
# The schedulers of diffusers whose noise process is x = sqrt(abar) x0 + sqrt(1 - abar) n at numbered timesteps.
SCHEDULERS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
UNETS = {"UNet2DModel": False, "UNet2DConditionModel": True}  # and whether it is given prompts
AUTOENCODERS = ("AutoencoderKL", "VQModel")
LEAST_SIGNAL = 4.8973451890853435e-08  # abar that ComfyUI, too, puts where a schedule ends in noise alone
LAYERS = {  # torch's layers, and ComfyUI's of the same kind
    kind: getattr(comfy.ops.disable_weight_init, kind.__name__)
    for kind in (
        torch.nn.Linear,
        torch.nn.Conv1d,
        torch.nn.Conv2d,
        torch.nn.GroupNorm,
        torch.nn.LayerNorm,
    )
}


class PixelFormat(comfy.latent_formats.LatentFormat):
    """Pictures themselves as latents: three channels in -1..1, one cell a pixel."""

    latent_channels = 3
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    spacial_downscale_ratio = 1


class AutoencoderFormat(comfy.latent_formats.LatentFormat):
    """Latents of an autoencoder, scaled and shifted as its config says."""

    def __init__(self, config: dict, channels: int, ratio: int):
        """Read the scale and shift of a VAE's config; channels and pixels per cell are given."""
        self.scale_factor = config["scaling_factor"]
        self.shift_factor = config.get("shift_factor") or 0.0
        self.latent_channels = channels
        self.spacial_downscale_ratio = ratio

    def process_in(self, latent):
        """From the VAE's latents to the model's."""
        return (latent - self.shift_factor) * self.scale_factor

    def process_out(self, latent):
        """From the model's latents to the VAE's."""
        return latent / self.scale_factor + self.shift_factor


class Timesteps(comfy.model_sampling.ModelSamplingDiscrete):
    """ComfyUI's numbered noise levels with the alphas of a diffusers scheduler, however many they are."""

    def __init__(self, alphas_cumprod: Tensor):
        """Take abar of x = sqrt(abar) x0 + sqrt(1 - abar) n at every timestep; sigma is sqrt(1/abar - 1)."""
        super().__init__()
        alphas = alphas_cumprod.double()
        alphas = torch.where(alphas > 0, alphas, LEAST_SIGNAL)
        self.num_timesteps = len(alphas)
        self.set_sigmas(((1 - alphas) / alphas).sqrt())

    def percent_to_sigma(self, percent):
        """Sigma at a share of the schedule, 0 its noisy end; ComfyUI's own assumes 1000 timesteps."""
        if 0.0 < percent < 1.0:
            return self.sigma(torch.tensor((1.0 - percent) * (len(self.sigmas) - 1))).item()
        return super().percent_to_sigma(percent)


class LCM:
    """Consistency models: the boundary condition of diffusers' LCMScheduler around the prediction of another class."""

    sigma_data, timestep_scaling = 0.5, 10.0

    def calculate_denoised(self, sigma, model_output, model_input):
        """c_skip x + c_out x0, where x is the model's own, variance-preserving input (arXiv 2310.04378)."""
        x0 = super().calculate_denoised(sigma, model_output, model_input)
        t = self.timestep(sigma).view(sigma.shape[:1] + (1,) * (x0.ndim - 1)) * self.timestep_scaling
        total = t**2 + self.sigma_data**2
        return t / total**0.5 * x0 + self.sigma_data**2 / total * self.calculate_input(sigma, model_input)


class DiffusersPixels(comfy.supported_models_base.BASE):
    """A U-Net on pixels. The names of these classes are the model families within which directions carry over."""

    latent_format = PixelFormat


class DiffusersLatents(comfy.supported_models_base.BASE):
    """A U-Net on the latents of an autoencoder."""


class DiffusersNetwork(torch.nn.Module):
    """A U-Net of diffusers, called as ComfyUI calls a diffusion model.

    Where the network predicts its variance too (more channels out than in), the variance is left out.
    """

    def __init__(self, unet: torch.nn.Module, has_text: bool):
        """Take a loaded U-Net; `has_text` where it is given prompts."""
        super().__init__()
        self.unet, self.has_text = unet, has_text
        self.dtype = unet.dtype
        # a U-Net with text brings pictures of any size back itself
        self.multiple = 1 if has_text else 2 ** (len(unet.config.block_out_channels) - 1)

    def forward(self, x, timesteps, context=None, control=None, guidance=None, **_kwargs):
        """The network's output for x (B C H W), timesteps (B), context (B tokens width), guidance (B) of some LCMs.

        Raises:
            InputError: the picture's size does not suit the network, or a ControlNet is on the prompt.
        """
        if control is not None:
            msg = "A ControlNet is on the prompt, which models of Load Diffusers Model do not take. Leave it out."
            raise InputError(msg)
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            msg = (
                f"The latent is {width} x {height} cells, but this model takes multiples of {self.multiple}. Resize or"
                " crop the picture."
            )
            raise InputError(msg)
        if not self.has_text:
            return self.unet(x, timesteps).sample[:, : x.shape[1]]
        options = {}
        if self.unet.config.time_cond_proj_dim is not None:
            options["timestep_cond"] = self._guidance_embedding(guidance, x)
        return self.unet(x, timesteps, encoder_hidden_states=context, **options).sample[:, : x.shape[1]]

    def _guidance_embedding(self, guidance, x):
        """diffusers' embedding of the guidance that a distilled model was given in training."""
        import diffusers

        scale = guidance.flatten().float() - 1  # w of the paper, arXiv 2310.04378
        embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        return embed(None, scale, self.unet.config.time_cond_proj_dim).to(x).expand(x.shape[0], -1)


class DiffusersModel(comfy.model_base.BaseModel):
    """ComfyUI's model around a U-Net of diffusers."""

    GUIDANCE = 8.5  # what diffusers' LCM pipeline gives the model by default

    def __init__(self, config, network: DiffusersNetwork, sampling, model_type):
        """Take a model config, the network and its noise levels."""
        super().__init__(config, model_type)
        self.diffusion_model, self.model_sampling = network.eval().requires_grad_(False), sampling
        comfy.model_management.archive_model_dtypes(self.diffusion_model)

    def extra_conds(self, **kwargs):
        """The guidance that FluxGuidance has put on a prompt, for a model that is told its guidance."""
        found = super().extra_conds(**kwargs)
        if self.diffusion_model.has_text and self.diffusion_model.unet.config.time_cond_proj_dim is not None:
            guidance = kwargs.get("guidance", self.GUIDANCE)
            found["guidance"] = comfy.conds.CONDRegular(torch.tensor([float(guidance)]))
        return found


def takes_text(folder: DiffusersFolder) -> bool:
    """Whether the U-Net of a folder is given prompts; InputError where it is of an unknown class."""
    if "unet" not in folder.classes:
        reason = "whose model_index.json names no unet. This node loads models with a U-Net of diffusers."
        raise folder.refused(reason)
    name = folder.class_of("unet")
    if name not in UNETS:
        reason = f"whose unet is {quoted(name)}. This node knows {' and '.join(UNETS)}."
        raise folder.refused(reason)
    return UNETS[name]


def load_vae(folder: DiffusersFolder) -> tuple[comfy.sd.VAE, comfy.latent_formats.LatentFormat]:
    """The VAE of a folder and the latent format that goes with it; without an autoencoder, pixels as they are.

    Works in float32.

    Raises:
        InputError: the autoencoder is of an unknown class, or cannot be read.
    """
    # ComfyUI's own VAE for models on pixels: pictures of 0..1 to and from -1..1
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    part = next((part for part in ("vae", "vqvae") if part in folder.classes), None)
    if part is None:
        return vae, PixelFormat()
    network = load_network(folder, part, AUTOENCODERS, torch.float32)
    channels, ratio = network.config.latent_channels, 2 ** (len(network.config.block_out_channels) - 1)
    vae.first_stage_model = Autoencoder(network).eval()
    vae.patcher = comfy.model_patcher.ModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.size = None
    vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = channels, ratio, ratio
    # per pixel what ComfyUI reckons with for its AutoencoderKL
    vae.memory_used_encode = lambda shape, _: 1767 * shape[2] * shape[3] * 4
    vae.memory_used_decode = lambda shape, _: 2178 * shape[2] * shape[3] * ratio**2 * 4
    return vae, AutoencoderFormat(network.config, channels, ratio)


class Autoencoder(torch.nn.Module):
    """An autoencoder of diffusers with the two methods that ComfyUI's VAE calls; encoding draws no random numbers."""

    def __init__(self, network: torch.nn.Module):
        """Take an AutoencoderKL or a VQModel."""
        super().__init__()
        self.network = network

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pictures in -1..1: the mean of the encoder's distribution, or what is quantized in decoding."""
        found = self.network.encode(pixels)
        return found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in -1..1."""
        return self.network.decode(latents).sample


def load_network(folder: DiffusersFolder, part: str, known: tuple[str, ...], dtype: torch.dtype) -> torch.nn.Module:
    """A network of a folder in the wanted precision, with ComfyUI's layers inside.

    Raises:
        InputError: its class is none of `known`, its weights are pickled, missing, or do not fit its config.
    """
    name = folder.class_of(part)
    if name not in known:
        reason = f"whose {part} is {quoted(name)}. This node knows {' and '.join(known)}."
        raise folder.refused(reason)
    _, variant = folder.weights(part, "diffusion_pytorch_model")
    # outside inference mode: a library may fill the weights from another thread, which is not inside it
    with folder.readable(part), torch.inference_mode(False), torch.no_grad():
        import diffusers

        network, report = getattr(diffusers, name).from_pretrained(
            str(folder.part(part)),
            torch_dtype=dtype,
            variant=variant or None,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        reason = (
            f"whose {part} lacks {len(report['missing_keys']) + len(report['mismatched_keys'])} of the weights that its"
            " config.json asks for. Copy the whole folder of the model again."
        )
        raise folder.refused(reason)
    for module in network.modules():
        if type(module) in LAYERS:
            module.__class__ = LAYERS[type(module)]
    return network.eval().requires_grad_(False)


def load_model(folder: DiffusersFolder, latent_format, has_text: bool) -> comfy.model_patcher.ModelPatcher:
    """The MODEL of a folder, on the latents of that format.

    Raises:
        InputError: its U-Net or scheduler is unknown, unreadable, or asks for more than a picture and a prompt.
    """
    sampling, model_type = load_sampling(folder)
    unet = load_network(folder, "unet", tuple(UNETS), network_dtype(has_text))
    check_unet(folder, unet, latent_format)
    pixels = isinstance(latent_format, PixelFormat)
    config = (DiffusersPixels if pixels else DiffusersLatents)({"disable_unet_model_creation": True})
    config.latent_format = latent_format
    config.memory_usage_factor = unet.config.block_out_channels[0] / 320  # 1 for SD1, whose first level has 320
    return comfy.model_patcher.CoreModelPatcher(
        DiffusersModel(config, DiffusersNetwork(unet, has_text), sampling, model_type),
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def network_dtype(has_text: bool) -> torch.dtype:
    """Float32 for the small unconditional networks; for those with text what ComfyUI chooses on this device."""
    if not has_text:
        return torch.float32
    choice = comfy.model_management.unet_dtype(comfy.model_management.get_torch_device())
    return choice if choice in (torch.float16, torch.bfloat16, torch.float32) else torch.float32


def check_unet(folder: DiffusersFolder, unet: torch.nn.Module, latent_format) -> None:
    """Refuse a U-Net that needs inputs which ComfyUI's samplers do not give, or works on other latents."""
    config, channels = unet.config, latent_format.latent_channels
    if config.in_channels != channels:
        reason = (
            f"whose unet takes {config.in_channels} channels, but its latents have {channels}. Inpainting and"
            " upscaling models cannot be loaded; choose one that makes pictures from noise."
        )
        raise folder.refused(reason)
    wanted = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "time_embedding_type": ("positional",),
        "addition_embed_type": (None, "text"),
    }
    for name, fine in wanted.items():
        if config.get(name) not in fine and name in config:
            reason = (
                f"whose unet has {name} {config[name]!r}, an input that this node cannot give it. ComfyUI's own loaders"
                " take SDXL; choose a model that is given noise, or noise and a prompt, alone."
            )
            raise folder.refused(reason)


def load_sampling(folder: DiffusersFolder):
    """The noise levels of a folder's scheduler, and ComfyUI's type of what the network predicts.

    Raises:
        InputError: the scheduler or what it says of the prediction is unknown.
    """
    settings = folder.config("scheduler", "scheduler_config.json")
    name = folder.class_of("scheduler", "scheduler_config.json")
    if name not in SCHEDULERS:
        reason = (
            f"whose scheduler is {quoted(name)}. This node knows the schedulers of the DDPM noise process:"
            f" {', '.join(SCHEDULERS)}."
        )
        raise folder.refused(reason)
    with folder.readable("scheduler"):
        import diffusers

        scheduler = getattr(diffusers, name).from_config(settings)
        alphas, prediction = scheduler.alphas_cumprod, scheduler.config.prediction_type
    if scheduler.config.get("use_flow_sigmas"):
        prediction = "flow_prediction"
    if prediction not in PREDICTIONS:
        reason = (
            f"whose scheduler says that the network predicts {quoted(prediction)}. This node"
            f" knows {', '.join(PREDICTIONS)}."
        )
        raise folder.refused(reason)
    kind, model_type = PREDICTIONS[prediction]
    bases = (Timesteps, LCM, kind) if name == "LCMScheduler" else (Timesteps, kind)
    sampling = type("DiffusersSampling", bases, {})(alphas)
    if name == "LCMScheduler":
        sampling.timestep_scaling = scheduler.config.timestep_scaling
    return sampling, model_type
