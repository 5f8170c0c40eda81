"""The text encoder of a diffusers folder as ComfyUI's CLIP: CLIP or T5 of ComfyUI, with the tokenizer of the folder.

So prompts are weighted, cut and padded as in any other CLIP, and the encoder is offloaded and patched like one.
"""

from __future__ import annotations

from types import SimpleNamespace

import comfy.clip_model
import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.t5
import comfy.utils
import torch
from comfy.supported_models_base import ClipTarget

from .diffusers_folder import DiffusersFolder
from .inputs import quoted

ENCODERS = {"CLIPTextModel": "CLIPTokenizer", "T5EncoderModel": "T5Tokenizer"}  # and the tokenizer of each
TOKENIZER_FILES = {
    "CLIPTokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "T5Tokenizer": (("tokenizer.json",), ("spiece.model",)),
}
TOKENS = 77  # of a prompt, as diffusers' pipelines of both encoders pad and cut it


class SmallOrLargeCLIP(comfy.clip_model.CLIPTextModel):
    """ComfyUI's CLIP text model with as many words as the config says; the stock one always holds 49,408."""

    def __init__(self, config, dtype, device, operations):
        """Replace the table of words."""
        super().__init__(config, dtype, device, operations)
        words = operations.Embedding(config["vocab_size"], config["hidden_size"], dtype=dtype, device=device)
        self.set_input_embeddings(words)


def load_clip(folder: DiffusersFolder) -> comfy.sd.CLIP:
    """The CLIP of a folder, in the precision of its files.

    Raises:
        InputError: the encoder is of an unknown class, or files of it or of its tokenizer are missing or unreadable.
    """
    name = folder.classes.get("text_encoder")
    if name not in ENCODERS:
        reason = (
            f"whose unet takes text, with {quoted(name)} as its text encoder. This node knows {' and '.join(ENCODERS)}."
        )
        raise folder.refused(reason)
    tokenizer = load_tokenizer(folder, ENCODERS[name])
    config = folder.config("text_encoder")
    files, _ = folder.weights("text_encoder", "model")
    with folder.readable("text_encoder"), torch.inference_mode(False), torch.no_grad():
        weights = {}
        for file in files:
            weights.update(comfy.utils.load_torch_file(str(file), safe_load=True))
        is_clip = name == "CLIPTextModel"
        if is_clip and not any(key.startswith("text_model.") for key in weights):  # as newer versions save it
            weights = {f"text_model.{key}": value for key, value in weights.items()}
        options = (_clip_options if is_clip else _t5_options)(config, tokenizer, weights)
        clip = comfy.sd.CLIP(
            _target(tokenizer, options),
            parameters=comfy.utils.calculate_parameters(weights),
            model_options={"dtype": comfy.utils.weight_dtype(weights)},
        )
        missing = [key for key in clip.load_sd(weights)[0] if not key.endswith("logit_scale")]
    if missing:
        reason = (
            f"whose text_encoder lacks {len(missing)} of the weights that its config.json asks for. Copy the whole"
            " folder of the model again."
        )
        raise folder.refused(reason)
    return clip


def load_tokenizer(folder: DiffusersFolder, name: str):
    """The tokenizer of a folder by its class in transformers; InputError where its files are missing."""
    path, choices = folder.part("tokenizer"), TOKENIZER_FILES[name]
    if not any(all((path / file).is_file() for file in files) for files in choices):
        needed = " or ".join(" and ".join(files) for files in choices)
        reason = f"which lacks the files of its tokenizer ({needed}). Copy the whole folder of the model again."
        raise folder.refused(reason)
    with folder.readable("tokenizer"):
        import transformers

        return getattr(transformers, name).from_pretrained(str(path), local_files_only=True)


def _clip_options(config: dict, tokenizer, weights: dict) -> dict:
    """What ComfyUI's SDClipModel is told for a CLIP text model; its mask is not used, as in diffusers."""
    # the projection that ComfyUI expects is of the pooled output, which these models do not use
    weights.setdefault("text_projection.weight", torch.eye(config["hidden_size"]))
    special = {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    return {
        "model_class": SmallOrLargeCLIP,
        "textmodel_json_config": config | {"eos_token_id": tokenizer.eos_token_id},
        "special_tokens": special,
        "freeze": True,
    }


def _t5_options(config: dict, tokenizer, _weights: dict) -> dict:
    """What ComfyUI's SDClipModel is told for a T5 encoder."""
    *gate, activation = config.get("feed_forward_proj", "relu").split("-")
    activation = "gelu_pytorch_tanh" if activation in ("gelu", "gelu_new") else activation
    return {
        "model_class": comfy.text_encoders.t5.T5,
        "textmodel_json_config": config | {"is_gated_act": bool(gate), "dense_act_fn": activation},
        "special_tokens": {"end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id},
        "enable_attention_masks": True,
        "freeze": True,
    }


def _target(tokenizer, options: dict) -> ClipTarget:
    """The pair of classes that ComfyUI's CLIP is made from."""
    is_t5 = options["model_class"] is comfy.text_encoders.t5.T5

    class Words(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                max_length=TOKENS,
                embedding_directory=embedding_directory,
                embedding_key="clip_diffusers",
                tokenizer_class=SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer),
                has_start_token=not is_t5,
                pad_with_end=False,
                pad_token=tokenizer.pad_token_id,
                tokenizer_data=tokenizer_data or {},
            )

        def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
            # DeepFloyd IF was trained on prompts in lower case
            return super().tokenize_with_weights(text.lower().strip() if is_t5 else text, return_word_ids, **kwargs)

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, dtype=dtype, max_length=TOKENS, model_options=model_options or {}, **options
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory, tokenizer_data or {}, clip_name="diffusers", tokenizer=Words)

    class TextModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, dtype=dtype, model_options=model_options or {}, clip_name="diffusers", clip_model=Encoder
            )

    return ClipTarget(Tokenizer, TextModel)
