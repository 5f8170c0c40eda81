"""Small random models written by diffusers' own save_pretrained, and the MODELs that Load Diffusers Model makes."""

from pathlib import Path
from types import SimpleNamespace

import comfy.sd1_clip
import comfy.text_encoders.t5
import diffusers
import torch
import transformers
from families import TestModel, randomise

from latent_directions.nodes.diffusers_model import LoadDiffusersModel

SIZE = 16  # pixels or cells of a side
GENTLE = {"num_train_timesteps": 50, "beta_end": 0.02}  # noise never hides the picture: samples stay near -1..1
BLOCKS = {"layers_per_block": 1, "block_out_channels": (32, 64), "norm_num_groups": 8}


def unet(channels: int = 3, out_channels: int | None = None, **changes):
    """An unconditional U-Net of two levels with attention, down- and upsampling."""
    network = diffusers.UNet2DModel(
        SIZE,
        channels,
        out_channels or channels,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **{**BLOCKS, **changes},
    )
    randomise(network, 5)
    return network


def ddim(**changes):
    """A deterministic scheduler whose first timestep is the last of training, without clipping or thresholding."""
    settings = {"clip_sample": False, "thresholding": False, "timestep_spacing": "trailing", **changes}
    return diffusers.DDIMScheduler(**settings)


def pixels(folder: Path, **scheduler):
    """A pixel-space DDPM."""
    pipeline = diffusers.DDIMPipeline(unet(), ddim(**scheduler))
    pipeline.save_pretrained(folder)
    return pipeline


def vq_model():
    """A VQGAN-type autoencoder, two pixels a cell."""
    network = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        latent_channels=3,
        num_vq_embeddings=64,
        norm_num_groups=8,
        scaling_factor=0.7,
    )
    randomise(network, 6)
    return network


def kl_model():
    """A KL autoencoder, two pixels a cell."""
    network = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 16),
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.6,
    )
    randomise(network, 6)
    return network


def latents(folder: Path, autoencoder=vq_model, **scheduler):
    """Latent diffusion without text."""
    network = autoencoder()
    pipeline = diffusers.LDMPipeline(network, unet(network.config.latent_channels), ddim(**scheduler))
    pipeline.save_pretrained(folder)
    return pipeline


def text_unet(**changes):
    """A U-Net with cross attention."""
    network = diffusers.UNet2DConditionModel(**{"sample_size": SIZE, "cross_attention_dim": 32, **BLOCKS, **changes})
    randomise(network, 5)
    return network


def clip_text():
    """A CLIP text model of two layers and the usual tokenizer."""
    path = Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True, model_max_length=77)
    config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=49408
    )
    encoder = transformers.CLIPTextModel(config).eval()
    randomise(encoder, 7)
    return tokenizer, encoder


def with_text(folder: Path, scheduler=None, **changes):
    """Latent diffusion with a CLIP text encoder."""
    tokenizer, encoder = clip_text()
    two_levels = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    parts = {
        "vae": kl_model(),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "unet": text_unet(**two_levels, **changes),
        "scheduler": scheduler or ddim(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    lcm = changes.get("time_cond_proj_dim") is not None
    kind = diffusers.LatentConsistencyModelPipeline if lcm else diffusers.StableDiffusionPipeline
    pipeline = kind(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return pipeline


def deepfloyd(folder: Path):
    """DeepFloyd IF's first stage in miniature: pixels, T5, learned variance."""
    path = Path(comfy.text_encoders.t5.__file__).parent / "t5_tokenizer"
    tokenizer = transformers.T5Tokenizer.from_pretrained(path, local_files_only=True)
    config = transformers.T5Config(
        d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, vocab_size=32128, feed_forward_proj="gated-gelu"
    )
    encoder = transformers.T5EncoderModel(config).eval()
    randomise(encoder, 7)
    network = text_unet(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        time_embedding_act_fn="gelu",
        act_fn="gelu",
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_proj",
        cross_attention_norm="group_norm",
        only_cross_attention=False,
    )
    scheduler = diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=False, thresholding=True
    )
    parts = {"tokenizer": tokenizer, "text_encoder": encoder, "unet": network, "scheduler": scheduler}
    no_parts = {
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    pipeline = diffusers.IFPipeline(**parts, **no_parts)
    pipeline.save_pretrained(folder)
    return pipeline


def load(name: str) -> SimpleNamespace:
    """Run the node as ComfyUI does; its outputs by name."""
    with torch.inference_mode():
        values = LoadDiffusersModel.execute(name).args
    return SimpleNamespace(**dict(zip(("model", "clip", "vae", "empty"), values, strict=True)))


def test_model(name: str, loaded: SimpleNamespace, prompts: tuple[str, str] = ("a sad person", "a hat")) -> TestModel:
    """What the pack's other tests take: the MODEL with prompts, the shape of its latent, and a noise level."""
    positive = negative = loaded.empty
    if loaded.clip is not None:
        with torch.inference_mode():
            positive, negative = (
                loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(prompt)) for prompt in prompts
            )
    sampling = loaded.model.get_model_object("model_sampling")
    shape = (1, loaded.model.get_model_object("latent_format").latent_channels, SIZE, SIZE)
    return TestModel(name, loaded.model, positive, negative, shape, float(sampling.percent_to_sigma(0.4)))


test_model.__test__ = False
