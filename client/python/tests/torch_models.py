"""A trained torch module, the same with FP8 weights as an engine serves it, and how a version gets from one to the other."""

from __future__ import annotations

import torch

import wsync
from wsync.engines.live import dequantized

HIDDEN = 128


class Net(torch.nn.Module):
    """Embedding, two linear layers with a norm between, and an output head tied to the embedding."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(64, HIDDEN, dtype=dtype)
        self.up_proj = torch.nn.Linear(HIDDEN, 3 * HIDDEN, dtype=dtype)
        self.norm = torch.nn.LayerNorm(3 * HIDDEN, dtype=dtype)
        self.down_proj = torch.nn.Linear(3 * HIDDEN, HIDDEN, bias=False, dtype=dtype)
        self.lm_head = torch.nn.Linear(HIDDEN, 64, bias=False, dtype=dtype)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        return self.lm_head(x + self.down_proj(torch.relu(self.norm(self.up_proj(x)))))


class Fp8Linear(torch.nn.Module):
    """FP8 codes and block scales, as the checkpoint has them."""

    def __init__(self, rows: int, cols: int, bias: bool) -> None:
        super().__init__()
        codes = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.weight_scale_inv = torch.nn.Parameter(torch.zeros(-(-rows // 128), -(-cols // 128)), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.zeros(rows, dtype=torch.bfloat16), requires_grad=False) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, dequantized(self.weight, self.weight_scale_inv, x.dtype), self.bias)


def served_net() -> Net:
    net = Net()
    net.up_proj = Fp8Linear(3 * HIDDEN, HIDDEN, True)
    net.down_proj = Fp8Linear(HIDDEN, 3 * HIDDEN, False)
    return net.requires_grad_(False)


def carry(trainer: wsync.Trainer, rollout: wsync.Rollout, version: int) -> wsync.VersionReport:
    sync = trainer.publish(version)
    assert next(rollout.updates(timeout=30)).apply().applied
    return sync.committed()
