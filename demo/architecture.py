"""The networks of the demo model: ComfyUI's own classes in miniature, and a small attribute probe.

The VAE has the TAESD architecture with 16 channels, the diffusion model is an SD3-type MMDiT of depth 4, the text
encoder a CLIP text model with a table of some fifty words. ComfyUI detects the first two from their weights.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch
from torch import nn

from .world import ATTRIBUTES, MAX_TOKENS, SIZE, VOCABULARY

WEIGHTS = Path(os.environ.get("LATENT_DIRECTIONS_DEMO_WEIGHTS") or Path(__file__).parent / "weights")
VAE_SCALE, VAE_SHIFT = 1.5305, 0.0609  # SD3's latent format, so that process_latent_in gives the raw latent
DEPTH, TEXT_WIDTH, LATENT_CHANNELS = 4, 128, 16
START, END, UNKNOWN = 0, 1, 2
WORDS = {word: i + 3 for i, word in enumerate(VOCABULARY)}
TEXT_CONFIG = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": MAX_TOKENS,
    "eos_token_id": END,
}


def demo_weights(name: str, folder: Path | None = None) -> dict[str, torch.Tensor]:
    """Read one of the demo model's weight files (vae, model, text, probe) in float32."""
    import safetensors.torch

    path = Path(folder or WEIGHTS) / f"{name}.safetensors"
    if not path.is_file():
        msg = (
            f"The demo model's file {path.name} is missing from {path.parent}. It comes with the repository; "
            "get it again from there, or train it with the scripts in the demo folder."
        )
        raise FileNotFoundError(msg)
    return {k: v.float() for k, v in safetensors.torch.load_file(path).items()}


class WordTokenizer:
    """A tokenizer of whole words with the few methods that ComfyUI's SDTokenizer calls; commas are ignored."""

    @classmethod
    def from_pretrained(cls, *_, **__) -> WordTokenizer:
        """Build the tokenizer; its vocabulary is fixed, so nothing is read."""
        return cls()

    def __call__(self, text: str) -> dict[str, list[int]]:
        """Tokens of a text: start, one token a word (unknown words share one), end."""
        words = re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())
        return {"input_ids": [START, *(WORDS.get(w, UNKNOWN) for w in words), END]}

    def get_vocab(self) -> dict[str, int]:
        """All words and their tokens."""
        return {"<start>": START, "<end>": END, "<unknown>": UNKNOWN, **WORDS}

    def decode(self, tokens, skip_special_tokens: bool = True) -> str:
        """The words of a list of tokens."""
        names = {i: w for w, i in self.get_vocab().items()}
        return " ".join(names[int(t)] for t in tokens if int(t) > UNKNOWN or not skip_special_tokens)


def text_classes():
    """The tokenizer and text encoder classes, made from ComfyUI's own, that `comfy.sd.CLIP` takes."""
    import comfy.clip_model
    from comfy import sd1_clip

    class SmallTextModel(comfy.clip_model.CLIPTextModel):
        # ComfyUI's CLIPTextModel always holds 49,408 words; only the table is replaced.
        def __init__(self, config_dict, dtype, device, operations):
            super().__init__(config_dict, dtype, device, operations)
            self.set_input_embeddings(operations.Embedding(len(WORDS) + 3, TEXT_WIDTH, dtype=dtype, device=device))

    class DemoClip(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=MAX_TOKENS,
                model_class=SmallTextModel,
                textmodel_json_config=dict(TEXT_CONFIG),
                freeze=False,
                special_tokens={"start": START, "end": END, "pad": END},
                model_options=model_options or {},
            )

    class DemoClipModel(sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, dtype=dtype, model_options=model_options or {}, clip_name="demo", clip_model=DemoClip
            )

    class DemoWords(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                tokenizer_path="words",
                max_length=MAX_TOKENS,
                embedding_size=TEXT_WIDTH,
                embedding_key="clip_demo",
                tokenizer_class=WordTokenizer,
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
            )

    class DemoTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
                clip_name="demo",
                tokenizer=DemoWords,
            )

    return DemoTokenizer, DemoClipModel


def initialise(module: nn.Module) -> nn.Module:
    """Give fresh weights to a module of ComfyUI's classes, which leave them unset."""
    for name, weight in module.named_parameters():
        if name.startswith("vae_") or name.endswith("logit_scale"):
            continue
        if weight.dim() == 4:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        elif "embedding" in name and weight.dim() == 2:
            nn.init.normal_(weight, std=0.5 if "token" in name else 0.1)
        elif weight.dim() >= 2:
            nn.init.xavier_uniform_(weight)
        elif name.endswith("weight"):
            nn.init.ones_(weight)
        else:
            nn.init.zeros_(weight)
    return module


def build_vae() -> nn.Module:
    """A fresh TAESD with 16 channels that stores SD3's scale and shift."""
    from comfy.taesd.taesd import TAESD, Block

    vae = initialise(TAESD(latent_channels=LATENT_CHANNELS))
    with torch.no_grad():
        vae.vae_scale.fill_(VAE_SCALE)
        vae.vae_shift.fill_(VAE_SHIFT)
        for block in vae.modules():
            if isinstance(block, Block):
                block.conv[-1].weight *= 0.3  # a residual branch that starts small
        for last in (vae.taesd_encoder[-1], vae.taesd_decoder[-1]):
            last.weight *= 0.3
    vae.vae_scale.requires_grad_(False)
    vae.vae_shift.requires_grad_(False)
    return vae


def build_mmdit() -> nn.Module:
    """A fresh SD3-type MMDiT: depth 4, width 256, patch 2, 16 latent channels."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    model = initialise(
        OpenAISignatureMMDITWrapper(
            input_size=None,
            patch_size=2,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            depth=DEPTH,
            adm_in_channels=TEXT_WIDTH,
            qk_norm="rms",
            operations=comfy.ops.disable_weight_init,
            dtype=torch.float32,
            context_embedder_config={
                "target": "torch.nn.Linear",
                "params": {"in_features": TEXT_WIDTH, "out_features": 64 * DEPTH},
            },
        )
    )
    for name, weight in model.named_parameters():
        if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
            nn.init.zeros_(weight)  # every block starts as the identity
    return model


def build_text():
    """A fresh tokenizer and text encoder; the encoder is the bare SDClipModel inside."""
    tokenizer, model = text_classes()
    encoder = model(dtype=torch.float32).clip_demo
    initialise(encoder)
    return tokenizer(), encoder


class Probe(nn.Module):
    """Reads every attribute of a picture: BHWC in 0..1 -> raw outputs B x 18."""

    def __init__(self) -> None:
        """Build four smooth strided stages and one hidden layer."""
        super().__init__()
        widths, layers = (3, 32, 64, 96, 96), []
        for i in range(4):
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1),
                nn.GroupNorm(8, widths[i + 1]),
                nn.SiLU(),
                nn.Conv2d(widths[i + 1], widths[i + 1], 3, padding=1),
                nn.SiLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(96 * 16, 192), nn.SiLU(), nn.Linear(192, sum(output_sizes().values())))

    def raw(self, image: torch.Tensor) -> torch.Tensor:
        """Raw outputs in the order of ATTRIBUTES: values in -1..1, then logits."""
        x = image.movedim(-1, 1) * 2 - 1  # BHWC -> BCHW
        if x.shape[-2:] != (SIZE, SIZE):
            x = nn.functional.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.head(self.body(x).flatten(1))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Attribute values: B for continuous, B x classes for categorical, B (probability) for binary.

        Binary attributes also give `<name>_logit`.
        """
        values, parts = {}, self.raw(image).split(list(output_sizes().values()), dim=1)
        for (name, attribute), part in zip(ATTRIBUTES.items(), parts, strict=True):
            if attribute.kind == "continuous":
                half = (attribute.high - attribute.low) / 2
                values[name] = attribute.low + half * (part[:, 0] + 1)
            elif attribute.kind == "categorical":
                values[name] = part.softmax(dim=1)
            else:
                values[name], values[f"{name}_logit"] = part[:, 0].sigmoid(), part[:, 0]
        return values


def output_sizes() -> dict[str, int]:
    """Numbers the probe gives per attribute."""
    return {n: len(a.classes) if a.kind == "categorical" else 1 for n, a in ATTRIBUTES.items()}


def load_probe() -> Probe:
    """The trained attribute probe, in float32 on the CPU, without gradients for its weights."""
    probe = Probe()
    probe.load_state_dict(demo_weights("probe"))
    return probe.eval().requires_grad_(False)


def latent_rgb() -> tuple[list[list[float]], list[float]]:
    """Preview colours of the demo's latents: 16 x 3 factors and a bias, fitted by least squares."""
    stored = json.loads((WEIGHTS / "latent_rgb.json").read_text())
    return stored["factors"], stored["bias"]


def load_demo_model():
    """The demo model as ComfyUI's own (MODEL, CLIP, VAE), in float32 and made by ComfyUI's loaders."""
    import comfy.latent_formats
    import comfy.sd
    from comfy.supported_models_base import ClipTarget

    class DemoLatent(comfy.latent_formats.SD3):
        # The same numbers as SD3, with preview colours that fit this VAE.
        def __init__(self):
            super().__init__()
            self.latent_rgb_factors, self.latent_rgb_factors_bias = latent_rgb()
            self.taesd_decoder_name = None

    model = comfy.sd.load_diffusion_model_state_dict(demo_weights("model"), model_options={"dtype": torch.float32})
    model.model.latent_format = DemoLatent()
    model.model.model_config.latent_format = model.model.latent_format
    tokenizer, encoder = text_classes()
    clip = comfy.sd.CLIP(
        ClipTarget(tokenizer, encoder), state_dict=[demo_weights("text")], model_options={"dtype": torch.float32}
    )
    vae = comfy.sd.VAE(sd=demo_weights("vae"), dtype=torch.float32)
    return model, clip, vae
