"""Small models of the families that transformers has: two layers, hidden size 256, BF16, random weights from a seed.

    model = families.build("qwen3_moe")          # norms, biases and saved buffers are random too: a mix-up shows
    families.save("qwen3_moe", folder)           # as save_pretrained writes it: the checkpoint's names

A family that the installed transformers lacks is a visible skip (`pytest.skip`). Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

_TEXT = {"vocab_size": 256, "hidden_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 256,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_DENSE = {**_TEXT, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
_HEAD64 = {**_DENSE, "head_dim": 64}
_MOE = {**_DENSE, "moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2}
_MIXED = {**_DENSE, "intermediate_size": 128, "num_local_experts": 4, "num_experts_per_tok": 2}  # all layers are experts'
_MLA = {"q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
_ROUTED = {**_DENSE, "moe_intermediate_size": 128, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1,
           "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}  # fmt: skip
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 128, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_conv": 4}
_GATED_DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 64,
                "linear_value_head_dim": 64, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
_TOWER = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56,
          "patch_size": 14}  # fmt: skip
_QWEN_TOWER = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "out_hidden_size": 256}
_AUDIO = {"num_mel_bins": 80, "d_model": 128, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 256,
          "max_source_positions": 64}  # fmt: skip


def _config(kind: str, **values: Any) -> Callable[[], PreTrainedConfig]:
    def make() -> PreTrainedConfig:
        if kind not in transformers.CONFIG_MAPPING:
            pytest.skip(f"transformers {transformers.__version__} has no {kind}")
        return transformers.CONFIG_MAPPING[kind](**values)

    return make


def _text(kind: str, **values: Any) -> dict[str, Any]:
    return {"model_type": kind, **values}


# Kind -> its configuration. The order is: dense, experts, hybrid, vision and language, audio.
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": _config("llama", **_DENSE),
    "qwen2": _config("qwen2", **_DENSE, tie_word_embeddings=True),
    "qwen3": _config("qwen3", **_HEAD64),
    "mistral": _config("mistral", **_HEAD64),
    "gemma2": _config("gemma2", **_HEAD64),
    "gemma3_text": _config("gemma3_text", **_HEAD64),
    "phi3": _config("phi3", **_DENSE),
    "glm4": _config("glm4", **_HEAD64),
    "olmo2": _config("olmo2", **_DENSE),
    "cohere": _config("cohere", **_DENSE),
    "granite": _config("granite", **_DENSE),
    "starcoder2": _config("starcoder2", **_DENSE),
    "nemotron": _config("nemotron", **_HEAD64),
    "gpt_neox": _config("gpt_neox", **_TEXT, intermediate_size=512, num_attention_heads=4),
    "gpt2": _config("gpt2", vocab_size=256, n_positions=64, n_embd=256, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
    "mixtral": _config("mixtral", **_MIXED),
    "qwen2_moe": _config("qwen2_moe", **_MOE, shared_expert_intermediate_size=256),
    "qwen3_moe": _config("qwen3_moe", **_MOE, head_dim=64),
    "deepseek_v3": _config("deepseek_v3", **{**_ROUTED, "num_key_value_heads": 4}, **_MLA),
    "glm4_moe": _config("glm4_moe", **_ROUTED, head_dim=64, use_qk_norm=True),
    "minimax_m2": _config("minimax_m2", **_MIXED, head_dim=64),
    "ernie4_5_moe": _config(
        "ernie4_5_moe", **_DENSE, moe_num_experts=4, moe_k=2, moe_intermediate_size=128, moe_num_shared_experts=1,
        moe_layer_start_index=1,
    ),
    "granitemoe": _config("granitemoe", **_MIXED),
    "llama4": _config("llama4_text", **_MIXED, intermediate_size_mlp=384, head_dim=64, interleave_moe_layer_step=2),
    "gpt_oss": _config("gpt_oss", **_MIXED, head_dim=64),
    "olmoe": _config("olmoe", **{**_MOE, "intermediate_size": 128}),
    "phimoe": _config("phimoe", **_MIXED),
    "qwen3_next": _config("qwen3_next", **_MOE, **_GATED_DELTA, head_dim=64, shared_expert_intermediate_size=128),
    "qwen3_5": _config("qwen3_5_text", **_HEAD64, **_GATED_DELTA),
    "qwen3_5_moe": _config("qwen3_5_moe_text", **_MOE, **_GATED_DELTA, head_dim=64, shared_expert_intermediate_size=128),
    "jamba": _config(
        "jamba", **_DENSE, num_experts=4, num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, mamba_d_state=16, mamba_dt_rank=16, use_mamba_kernels=False,
    ),
    "bamba": _config("bamba", **_DENSE, **_MAMBA2, attn_layer_indices=[1]),
    "nemotron_h": _config(
        "nemotron_h", **{**_HEAD64, "num_hidden_layers": 4}, hybrid_override_pattern="M*-E", mamba_num_heads=4,
        mamba_head_dim=64, n_groups=1, ssm_state_size=16, n_routed_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=128, moe_shared_expert_intermediate_size=128, n_group=1, topk_group=1,
    ),
    "falcon_h1": _config("falcon_h1", **_HEAD64, **{**_MAMBA2, "mamba_d_head": 64}, mamba_d_ssm=256),
    "mamba2": _config(
        "mamba2", vocab_size=256, hidden_size=256, num_hidden_layers=2, num_heads=8, head_dim=64, n_groups=1, state_size=16
    ),
    "granitemoehybrid": _config(
        "granitemoehybrid", **_MIXED, **_MAMBA2, shared_intermediate_size=128, layer_types=["mamba", "attention"]
    ),
    "qwen2_5_vl": _config(
        "qwen2_5_vl",
        text_config=_text("qwen2_5_vl_text", **_DENSE, rope_parameters={"rope_type": "default", "mrope_section": [8, 12, 12]}),
        vision_config={**_QWEN_TOWER, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": _config(
        "qwen3_vl",
        text_config=_text("qwen3_vl_text", **_HEAD64),
        vision_config={**_QWEN_TOWER, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    ),
    "qwen3_vl_moe": _config(
        "qwen3_vl_moe",
        text_config=_text("qwen3_vl_moe_text", **_MOE, head_dim=64),
        vision_config={**_QWEN_TOWER, "deepstack_visual_indexes": [0], "num_position_embeddings": 64},
    ),
    "mistral3": _config(
        "mistral3",
        text_config=_text("mistral", **_HEAD64),
        vision_config={"model_type": "pixtral", **_TOWER, "head_dim": 64},
    ),
    "gemma3": _config(
        "gemma3",
        text_config=_text("gemma3_text", **_HEAD64),
        vision_config={"model_type": "siglip_vision_model", **_TOWER, "vision_use_head": False},
        mm_tokens_per_image=4,
    ),
    "llava": _config(
        "llava",
        text_config=_text("llama", **_DENSE),
        vision_config={"model_type": "clip_vision_model", **_TOWER, "projection_dim": 128},
    ),
    "internvl": _config(
        "internvl",
        text_config=_text("qwen2", **_DENSE),
        vision_config={"model_type": "internvl_vision", **_TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
    ),
    "qwen2_audio": _config(
        "qwen2_audio",
        text_config=_text("qwen2", **_DENSE),
        audio_config={"model_type": "qwen2_audio_encoder", **_AUDIO},
    ),
    "voxtral": _config(
        "voxtral",
        text_config=_text("llama", **_DENSE),
        audio_config={"model_type": "voxtral_encoder", "num_mel_bins": 80, "hidden_size": 128, "num_hidden_layers": 2,
                      "num_attention_heads": 2, "intermediate_size": 512, "max_source_positions": 64},
    ),
    "whisper": _config(
        "whisper", **_AUDIO, vocab_size=256, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=256,
        max_target_positions=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
}  # fmt: skip

_AUTO = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForSpeechSeq2Seq",
         "AutoModelForSeq2SeqLM")  # fmt: skip


def class_of(config: PreTrainedConfig) -> Any:
    """The model with its head that checkpoints of this configuration are of."""
    kinds = [getattr(transformers, name)._model_mapping for name in _AUTO if hasattr(transformers, name)]
    several = [kind[type(config)] for kind in kinds if type(config) in kind]
    # A tower, or an encoder, is only in the last of them: the first may be of the text alone.
    return several[0 if config.get_text_config() is config and not config.is_encoder_decoder else -1]


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """The family's model in eval mode, of weights that `seed` decides."""
    config = FAMILIES[name]()
    config.dtype = torch.bfloat16
    model = class_of(config)._from_config(config, dtype=torch.bfloat16).eval()
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Gives every parameter and saved buffer of floats other values, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point() and tensor.element_size() > 1:
            around = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05 + around)


def save(name: str, folder: Path | str, seed: int = 0) -> PreTrainedModel:
    """Writes `build(name, seed)` as its family's checkpoints are written; the model."""
    model = build(name, seed)
    model.save_pretrained(folder)
    return model
