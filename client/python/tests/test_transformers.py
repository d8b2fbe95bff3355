"""A transformers FP8 model whose live parameters are, byte for byte, what `wsync quantize` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from conftest import Cluster  # noqa: E402

import wsync  # noqa: E402


def qwen3_moe(seed: int) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    config = transformers.Qwen3MoeConfig(
        vocab_size=512, hidden_size=256, intermediate_size=384, moe_intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=128, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)


def qwen2(seed: int) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        vocab_size=512, hidden_size=256, intermediate_size=640, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)


@pytest.fixture
def load_fp8(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], transformers.PreTrainedModel]:
    """Loads a checkpoint as FP8Linear modules. Without a GPU transformers would dequantize it: its check is answered."""
    from transformers.quantizers import quantizer_finegrained_fp8

    monkeypatch.setattr(quantizer_finegrained_fp8, "is_torch_xpu_available", lambda: True)
    return lambda path: transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


@pytest.mark.parametrize("make", [qwen2, qwen3_moe])
def test_live_parameters_equal_the_offline_quantized_checkpoint(make, load_fp8, cluster: Cluster, tmp_path: Path) -> None:
    for name, seed in (("base", 1), ("trained", 2)):
        make(seed).save_pretrained(tmp_path / name)
        cluster.wsync("quantize", str(tmp_path / name), str(tmp_path / f"{name}-fp8"))
    live = load_fp8(tmp_path / "base-fp8")
    want = dict(load_fp8(tmp_path / "trained-fp8").named_parameters())
    assert any(parameter.dtype == torch.float8_e4m3fn for parameter in want.values())
    assert want.keys() == dict(live.named_parameters()).keys()
    cluster.start_trainer()
    from safetensors import safe_open

    with wsync.Trainer(cluster.socket("trainer")) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        with safe_open(tmp_path / "trained" / "model.safetensors", framework="pt") as checkpoint:
            trainer.register({name: checkpoint.get_tensor(name) for name in checkpoint.keys()})
        wsync.engines.transformers.attach(rollout, live)
        sync = trainer.publish(1)
        assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied
        for name, parameter in live.named_parameters():
            same = parameter.detach().contiguous().view(torch.uint8), want[name].detach().contiguous().view(torch.uint8)
            assert torch.equal(*same), name
