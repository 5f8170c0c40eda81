"""Small random-weight MODELs of further families, built from ComfyUI's own classes as in families.py."""

import comfy.ldm.anima.model
import comfy.supported_models
import torch
from families import Family, TestModel, assemble

TEXT = {"tokens": 7, "width": 24}


def flux2() -> TestModel:
    """Flux.2: modulation shared by all blocks, gated MLPs, no biases, no pooled text; text padded to 512 tokens."""
    config = comfy.supported_models.Flux2(
        {
            "image_model": "flux2",
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "hidden_size": 64,
            "num_heads": 2,
            "axes_dim": [8, 8, 8, 8],
            "theta": 2000,
            "mlp_ratio": 3.0,
            "depth": 1,
            "depth_single_blocks": 1,
            "context_in_dim": 24,
            "vec_in_dim": None,
            "qkv_bias": False,
            "ops_bias": False,
            "guidance_embed": True,
            "global_modulation": True,
            "mlp_silu_act": True,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
            "txt_ids_dims": [3],
        }
    )
    return assemble("flux2", config, (1, 128, 4, 4), TEXT)


CHROMA_BLOCKS = {
    "hidden_size": 64,
    "num_heads": 2,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "mlp_ratio": 4.0,
    "depth": 1,
    "depth_single_blocks": 2,
    "context_in_dim": 24,
    "vec_in_dim": None,
    "qkv_bias": True,
    "txt_ids_dims": [],
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 2,
}


def chroma() -> TestModel:
    """Chroma: Flux's blocks, modulated by a network of the noise level."""
    config = comfy.supported_models.Chroma(
        {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "patch_size": 2, **CHROMA_BLOCKS}
    )
    return assemble("chroma", config, (1, 16, 8, 8), TEXT)


def chroma_radiance(*, use_x0: bool = False) -> TestModel:
    """Chroma Radiance: Chroma in pixel space, its latent the picture itself in -1..1, with a head for single pixels."""
    config = comfy.supported_models.ChromaRadiance(
        {
            "image_model": "chroma_radiance",
            "in_channels": 3,
            "out_channels": 3,
            "patch_size": 4,
            **CHROMA_BLOCKS,
            "nerf_hidden_size": 16,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 1,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 512,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": torch.float32,
            "use_x0": use_x0,
            "use_sequential_txt_ids": True,
        }
    )
    return assemble("chroma_radiance", config, (1, 3, 16, 16), TEXT)


def lumina_config(**changes) -> dict:
    """The smallest NextDiT with refiner layers, grouped key heads and normalised queries and keys."""
    return {
        "image_model": "lumina2",
        "patch_size": 2,
        "in_channels": 16,
        "dim": 96,
        "cap_feat_dim": 24,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "qk_norm": True,
        "n_heads": 4,
        "n_kv_heads": 2,
        "axes_dims": [8, 8, 8],
        "axes_lens": [300, 512, 512],
        "rope_theta": 10000.0,
        "multiple_of": 32,
        "ffn_dim_multiplier": 1.0,
        **changes,
    }


def lumina2() -> TestModel:
    """Lumina 2."""
    return assemble("lumina2", comfy.supported_models.Lumina2(lumina_config()), (1, 16, 8, 8), TEXT)


def z_image() -> TestModel:
    """Z-Image: Lumina's transformer with one key head per query head and padded token lists."""
    config = comfy.supported_models.ZImage(
        lumina_config(
            dim=256,  # the width of its modulation is fixed
            axes_dims=[16, 24, 24],
            n_kv_heads=4,
            rope_theta=256.0,
            z_image_modulation=True,
            time_scale=1000.0,
            pad_tokens_multiple=32,
        )
    )
    return assemble("z_image", config, (1, 16, 8, 8), TEXT)


def qwen_image() -> TestModel:
    """Qwen-Image: a latent with a time axis of length one."""
    config = comfy.supported_models.QwenImage(
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (8, 12, 12),
        }
    )
    return assemble("qwen_image", config, (1, 16, 1, 8, 8), TEXT)


def aura_flow() -> TestModel:
    """AuraFlow: double and single blocks, register tokens, learned positions."""
    config = comfy.supported_models.AuraFlow(
        {
            "dim": 64,
            "n_layers": 2,
            "n_double_layers": 1,
            "n_heads": 2,
            "global_conddim": 64,
            "cond_seq_dim": 24,
            "max_seq": 64,
        }
    )
    return assemble("aura_flow", config, (1, 4, 8, 8), TEXT)


def pixart() -> TestModel:
    """PixArt Sigma: eps prediction with the variance predicted beside it; ignores the attention override."""
    config = comfy.supported_models.PixArtSigma(
        {
            "image_model": "pixart_sigma",
            "num_heads": 2,
            "patch_size": 2,
            "hidden_size": 64,
            "in_channels": 4,
            "depth": 2,
            "caption_channels": 24,
            "model_max_length": 16,
            "micro_condition": False,
            "input_size": 64,
            "pe_interpolation": 1,
        }
    )
    return assemble("pixart", config, (1, 4, 4, 66), TEXT)  # its position table needs a mean side above 32


def hunyuan_dit() -> TestModel:
    """HunyuanDiT: v prediction, skips between blocks, two text encoders; ignores the attention override."""
    config = comfy.supported_models.HunyuanDiT(
        {
            "image_model": "hydit",
            "depth": 4,
            "hidden_size": 64,
            "num_heads": 2,
            "text_states_dim": 24,
            "text_states_dim_t5": 32,
            "text_len": 7,
            "text_len_t5": 9,
        }
    )
    generator = torch.Generator().manual_seed(5)
    second = {
        "attention_mask": torch.ones(1, 7),
        "attention_mask_mt5xl": torch.ones(1, 9),
        "conditioning_mt5xl": torch.randn(1, 9, 32, generator=generator),
    }
    return assemble("hunyuan_dit", config, (1, 4, 8, 8), {**TEXT, **second})


def wan() -> TestModel:
    """Wan 2.1 text to video, one frame."""
    config = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 64,
            "in_dim": 16,
            "out_dim": 16,
            "ffn_dim": 128,
            "freq_dim": 32,
            "text_dim": 24,
            "text_len": 7,
            "num_heads": 2,
            "num_layers": 2,
            "patch_size": (1, 2, 2),
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
        }
    )
    return assemble("wan", config, (1, 16, 1, 8, 8), TEXT)


def cosmos_config(**changes) -> dict:
    """The smallest Cosmos-Predict2 transformer."""
    return {
        "image_model": "cosmos_predict2",
        "max_img_h": 32,
        "max_img_w": 32,
        "max_frames": 4,
        "in_channels": 16,
        "out_channels": 16,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 64,
        "num_blocks": 2,
        "num_heads": 2,
        "concat_padding_mask": True,
        "crossattn_emb_channels": 24,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop",
        "min_fps": 1,
        "max_fps": 30,
        "use_adaln_lora": True,
        "adaln_lora_dim": 16,
        "extra_per_block_abs_pos_emb": False,
        "rope_h_extrapolation_ratio": 4.0,
        "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0,
        **changes,
    }


def cosmos_predict2() -> TestModel:
    """Cosmos-Predict2 text to image: fused norm and rotary embedding, one frame."""
    config = comfy.supported_models.CosmosT2IPredict2(cosmos_config())
    return assemble("cosmos_predict2", config, (1, 16, 1, 8, 8), TEXT)


class SmallAnima(comfy.supported_models.Anima):
    """Anima with a text adapter of the test's text width: the adapter's own size is fixed at 1024."""

    def get_model(self, state_dict, prefix="", device=None):
        """The model with its adapter exchanged."""
        out = super().get_model(state_dict, prefix, device)
        network = out.diffusion_model
        operations = comfy.ops.disable_weight_init
        network.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
            24, 24, 32, num_layers=1, num_heads=2, device=device, dtype=network.dtype, operations=operations
        )
        return out


def anima() -> TestModel:
    """Anima: Cosmos-Predict2 with an adapter between its text encoder and the tokens of another one."""
    config = SmallAnima(cosmos_config(image_model="anima"))
    second = {"t5xxl_ids": torch.arange(9, dtype=torch.int32), "t5xxl_weights": torch.ones(9)}
    return assemble("anima", config, (1, 16, 1, 8, 8), {**TEXT, **second})


MORE = [
    Family("flux2", flux2),
    Family("chroma", chroma),
    Family("chroma_radiance", chroma_radiance),
    Family("lumina2", lumina2),
    Family("z_image", z_image),
    Family("qwen_image", qwen_image),
    Family("aura_flow", aura_flow),
    Family("pixart", pixart),
    Family("hunyuan_dit", hunyuan_dit),
    Family("wan", wan),
    Family("cosmos_predict2", cosmos_predict2),
    Family("anima", anima),
]
