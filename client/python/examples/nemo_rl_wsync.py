"""NeMo-RL: a checkpoint engine that carries weights with wsync.

Written against `nemo_rl/utils/checkpoint_engines/base.py` of commits e81efc5 and 2bce068 (main, 2026): abstract methods
prepare, init_policy_process_group, init_rollout_process_group, send_weights, receive_weight_batches; a backend is named
"module:Class". The class is run with a played base class of that shape (client/python/tests/engines). Not run here: NeMo-RL
itself, which no package index has.

    policy.generation.checkpoint_engine.backend: "nemo_rl_wsync:WsyncCheckpointEngine"     # this file, on PYTHONPATH
    policy.generation.checkpoint_engine.engine_kwargs: {trainer_socket: unix:///run/wsync/trainer.sock}
    policy.generation.vllm_cfg.precision: fp8

With `recipe.preset: nemo` the trainer agent gives the same FP8 bytes as NeMo-RL's own quantizer, and the rollout side
quantizes nothing: `get_quantized_weight_iterator` passes what is FP8 already. Versions before it quantize codes as if they
were values, and are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any

import torch
from nemo_rl.utils.checkpoint_engines.base import CheckpointEngine

from wsync.errors import UnsupportedLayout
from wsync.streams import Receiver, Sender


class WsyncCheckpointEngine(CheckpointEngine):
    """Policy rank 0 sends; every vLLM worker receives from the rollout agent beside it."""

    cleanup_after_load = False  # the buffers stay for the next version
    shard_expert_weights = False  # every worker gets whole tensors; newer versions ask

    def __init__(
        self,
        bucket_size: int,  # batches handed to vLLM's loader hold about this many bytes
        trainer_socket: str = "unix:///run/wsync/trainer.sock",
        rollout_socket: str = "unix:///run/wsync/rollout-{rank}.sock",
        device: str = "cuda",
    ) -> None:
        self._device = device
        self._bucket_size = bucket_size
        self._trainer_socket, self._rollout_socket = trainer_socket, rollout_socket
        self._sender: Sender | None = None  # of rank 0
        self._receiver: Receiver | None = None

    def prepare(self) -> dict[str, Any]:
        return {}

    def init_policy_process_group(self, *, worker_rank: int, **_: Any) -> None:
        if worker_rank == 0:
            self._sender = self._sender or Sender(self._trainer_socket)

    def init_rollout_process_group(self, *, rollout_rank: int, **_: Any) -> None:
        from nemo_rl.models.generation.vllm.quantization import fp8

        if not hasattr(fp8, "get_quantized_weight_iterator"):
            raise UnsupportedLayout(
                "this NeMo-RL quantizes FP8 weights once more",
                next_step="use a version whose vllm/quantization/fp8.py has get_quantized_weight_iterator",
            )
        self._rollout_socket = self._rollout_socket.format(rank=rollout_rank)

    async def send_weights(self, weights: Generator[tuple[str, torch.Tensor], None, None]) -> None:
        if self._sender is None:
            for _ in weights:  # gathering is collective
                pass
            return
        await asyncio.to_thread(self._sender.send_and_wait, weights, require="all")

    async def receive_weight_batches(self) -> AsyncGenerator[list[tuple[str, torch.Tensor]], None]:
        self._receiver = self._receiver or Receiver(self._rollout_socket, device=self._device, engine="nemo-rl")
        batch, size = [], 0
        for name, tensor in await asyncio.to_thread(lambda: list(self._receiver.receive())):
            batch.append((name, tensor))
            size += tensor.nbytes
            if size >= self._bucket_size:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch
