"""Models of two layers as checkpoints on disk: BF16, and what `wsync quantize` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from conftest import Cluster

_COMMON = {"vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 512}


def _qwen2() -> transformers.PreTrainedModel:
    config = transformers.Qwen2Config(
        **_COMMON, intermediate_size=768, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True
    )
    return transformers.Qwen2ForCausalLM(config)


def _qwen3_moe() -> transformers.PreTrainedModel:
    config = transformers.Qwen3MoeConfig(
        **_COMMON, intermediate_size=512, moe_intermediate_size=256, num_attention_heads=2, num_key_value_heads=1,
        head_dim=128, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config)


def _deepseek_v3() -> transformers.PreTrainedModel:
    """One dense layer, one with experts and a shared expert; MLA with a compressed query, of DeepSeek's head sizes."""
    config = transformers.DeepseekV3Config(
        **_COMMON, intermediate_size=512, moe_intermediate_size=256, num_attention_heads=4, num_key_value_heads=4,
        n_routed_experts=8, n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1, num_experts_per_tok=2,
        q_lora_rank=128, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        rope_scaling={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
                      "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def _mixtral() -> transformers.PreTrainedModel:
    config = transformers.MixtralConfig(
        **_COMMON, intermediate_size=256, num_attention_heads=2, num_key_value_heads=2, head_dim=128, num_local_experts=4,
        num_experts_per_tok=2,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


MAKERS = {"qwen2": _qwen2, "qwen3_moe": _qwen3_moe, "deepseek_v3": _deepseek_v3}
WITH_OTHER_NAMES = {"mixtral": _mixtral}


def write(kind: str, seed: int, folder: Path, cluster: Cluster) -> tuple[Path, Path]:
    """(BF16 checkpoint, FP8 checkpoint) of a random model."""
    torch.manual_seed(seed)
    model = (MAKERS | WITH_OTHER_NAMES)[kind]().to(torch.bfloat16)
    for module in model.modules():
        bias = getattr(module, "e_score_correction_bias", None)
        if bias is not None:  # float32 in DeepSeek's checkpoints, and not zero after training
            module.e_score_correction_bias = torch.randn(bias.shape)
    bf16, fp8 = folder / f"{kind}-{seed}", folder / f"{kind}-{seed}-fp8"
    model.save_pretrained(bf16)
    if kind == "deepseek_v3":  # in DeepSeek's own config.json, not in what transformers writes
        path = bf16 / "config.json"
        more = {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1}
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    cluster.wsync("quantize", str(bf16), str(fp8))
    return bf16, fp8
