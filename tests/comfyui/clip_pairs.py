"""Small random-weight pairs of CLIP text and vision models of ComfyUI's own classes, and what they compute, by hand."""

import comfy.clip_model
import comfy.sd
import torch
from comfy import sd1_clip
from comfy.clip_vision import ClipVisionModel
from comfy.supported_models_base import ClipTarget
from families import randomise

from latent_directions.demo.architecture import END, START, WORDS, WordTokenizer

SLOTS, HEADS = 16, 2  # tokens of a text, and heads of every attention
SIDE, PATCH = 32, 8  # pixels of a picture and of a patch


class SmallTextModel(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with a small table of words."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__(config_dict, dtype, device, operations)
        words = operations.Embedding(len(WORDS) + 3, config_dict["hidden_size"], dtype=dtype, device=device)
        self.set_input_embeddings(words)


class NoClip(torch.nn.Module):
    """A text model of another kind, as T5 is."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__()
        self.num_layers = 1
        self.words = operations.Embedding(len(WORDS) + 3, config_dict["hidden_size"], dtype=dtype, device=device)


def text_encoder(width: int, seed: int, projected: bool, kind=SmallTextModel) -> sd1_clip.SDClipModel:
    config = {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": HEADS,
        "hidden_act": "quick_gelu", "max_position_embeddings": SLOTS, "eos_token_id": END,
    }  # fmt: skip
    encoder = sd1_clip.SDClipModel(
        dtype=torch.float32,
        max_length=SLOTS,
        model_class=kind,
        textmodel_json_config=config,
        special_tokens={"start": START, "end": END, "pad": END},
        return_projected_pooled=projected,
    )
    randomise(encoder, seed)
    return encoder


def text_clip(**encoders: sd1_clip.SDClipModel) -> comfy.sd.CLIP:
    """A CLIP of several text encoders by their names, such as clip_l; the first one's vector is its pooled one."""

    class Encoders(torch.nn.Module):
        def __init__(self, device, dtype, model_options):
            super().__init__()
            self.dtypes = {torch.float32}
            for name, encoder in encoders.items():
                setattr(self, name, encoder)

        def set_clip_options(self, options):
            for encoder in encoders.values():
                encoder.set_clip_options(options)

        def reset_clip_options(self):
            for encoder in encoders.values():
                encoder.reset_clip_options()

        def encode_token_weights(self, tokens):
            return [e.encode_token_weights(tokens[n.removeprefix("clip_")]) for n, e in encoders.items()][0]

    class Tokenizer:
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            self.words = sd1_clip.SDTokenizer(
                tokenizer_path="words", max_length=SLOTS, tokenizer_class=WordTokenizer, tokenizer_data={}
            )

        def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
            return {n.removeprefix("clip_"): self.words.tokenize_with_weights(text, return_word_ids) for n in encoders}

    return comfy.sd.CLIP(ClipTarget(Tokenizer, Encoders), model_options={"dtype": torch.float32})


def vision_model(width: int, seed: int = 1, **changes) -> ClipVisionModel:
    config = {
        "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": HEADS,
        "hidden_act": "quick_gelu", "image_size": SIDE, "patch_size": PATCH, "num_channels": 3,
        "model_type": "clip_vision_model", "projection_dim": width, **changes,
    }  # fmt: skip
    vision = ClipVisionModel({name: value for name, value in config.items() if value is not None})
    randomise(vision.model, seed)
    return vision


def text_by_hand(encoder: sd1_clip.SDClipModel, text: str) -> torch.Tensor:
    """The projected vector of a text in float64, from the weights alone."""
    weights = doubled(encoder.transformer)
    tokens = [*WordTokenizer()(text)["input_ids"]]
    last = len(tokens) - 1
    tokens += [END] * (SLOTS - len(tokens))
    x = weights["text_model.embeddings.token_embedding.weight"][tokens]
    x = x + weights["text_model.embeddings.position_embedding.weight"]
    x = layers(x, weights, "text_model.encoder", causal=True)
    return normed(x, weights, "text_model.final_layer_norm")[last] @ weights["text_projection.weight"].T


def picture_by_hand(vision: ClipVisionModel, picture: torch.Tensor) -> torch.Tensor:
    """The projected vector of a picture (H, W, 3) of the model's own size, in float64, from the weights alone."""
    weights = doubled(vision.model)
    colours = torch.tensor([vision.image_mean, vision.image_std], dtype=torch.float64)
    pixels = (picture.double() - colours[0]) / colours[1]
    count = SIDE // PATCH
    patches = pixels.view(count, PATCH, count, PATCH, 3).permute(0, 2, 4, 1, 3).reshape(count * count, -1)
    table = weights["vision_model.embeddings.patch_embedding.weight"]
    x = torch.cat([weights["vision_model.embeddings.class_embedding"][None], patches @ table.flatten(1).T])
    x = normed(x + weights["vision_model.embeddings.position_embedding.weight"], weights, "vision_model.pre_layrnorm")
    x = layers(x, weights, "vision_model.encoder", causal=False)
    return normed(x[0], weights, "vision_model.post_layernorm") @ weights["visual_projection.weight"].T


def doubled(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in module.state_dict().items()}


def normed(x, weights, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def layers(x, weights, name, causal):
    """The transformer's layers on (tokens, width)."""
    number = 0
    while (layer := f"{name}.layers.{number}") + ".layer_norm1.weight" in weights:

        def linear(value, part, layer=layer):
            return value @ weights[f"{layer}.{part}.weight"].T + weights[f"{layer}.{part}.bias"]

        h = normed(x, weights, f"{layer}.layer_norm1")
        q, k, v = (linear(h, f"self_attn.{part}_proj").unflatten(1, (HEADS, -1)).transpose(0, 1) for part in "qkv")
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), "self_attn.out_proj")
        h = linear(normed(x, weights, f"{layer}.layer_norm2"), "mlp.fc1")
        x = x + linear(h * (1.702 * h).sigmoid(), "mlp.fc2")
        number += 1
    return x
