"""verl: a checkpoint engine that carries weights with wsync.

Written against verl 0.9.1 (`verl/checkpoint_engine/base.py`, and commit 11eb3d0 before it): the abstract methods prepare,
build_topology, init_process_group, finalize, send_weights, receive_weights, and one engine object per trainer rank and per
rollout worker. The class is run against that version's base class (client/python/tests/engines), with ray and the servers
played. Not run here: a training run, which wants GPUs.

    # on every node: a trainer agent beside trainer rank 0, a rollout agent beside each rollout worker
    PYTHONPATH=client/python/examples python -m verl.trainer.main_ppo \
        actor_rollout_ref.rollout.checkpoint_engine.backend=wsync \
        actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=verl_checkpoint_engine \
        +actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs.wsync.trainer_socket=unix:///run/wsync/trainer.sock \
        +actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=verl_vllm_worker.WorkerExtension

The last line is for vLLM, and needed: verl's own worker quantizes whatever an FP8 server is given, FP8 codes as well. With
SGLang leave `rollout.quantization` unset, for the same reason.

The agents choose names, replicas and ranks in their own configuration; verl's process group is not needed. The worker
gets FP8 tensors under checkpoint names (`X.weight`, `X.weight_scale_inv`) and hands them to its server, which must have
been started from an FP8 checkpoint (`wsync quantize`), so that its loader knows these names.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from typing import Any

import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from wsync.streams import Receiver, Sender


@CheckpointEngineRegistry.register("wsync")
class WsyncCheckpointEngine(CheckpointEngine):
    """Trainer rank 0 sends, rollout workers receive, all other trainer ranks only take part in gathering."""

    def __init__(
        self,
        bucket_size: int,  # the agents' transfer.bucket_bytes decides
        is_master: bool = False,
        trainer_socket: str = "unix:///run/wsync/trainer.sock",
        rollout_socket: str = "unix:///run/wsync/rollout-{local_rank}.sock",
        device: str = "cuda",
    ) -> None:
        self._device = device
        self._trainer_socket = trainer_socket
        self._rollout_socket = rollout_socket.format(local_rank=os.environ.get("LOCAL_RANK", "0"))
        self._sender: Sender | None = None  # of rank 0
        self._receiver: Receiver | None = None

    def prepare(self) -> None:
        """Nothing to allocate: buffers are made with the first weights, and stay."""

    @classmethod
    def build_topology(
        cls, trainer_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        trainer = {"rank": [0] + [-1] * (trainer_world_size - 1)}
        return trainer, {"rank": list(range(1, rollout_world_size + 1))}

    def init_process_group(self, rank: int) -> None:
        if rank == 0:
            self._sender = self._sender or Sender(self._trainer_socket)

    def finalize(self) -> None:
        """Agents and registrations live on: the next step costs no set-up."""

    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> None:
        if self._sender is None:
            for _ in weights:  # gathering is collective
                pass
            return
        await asyncio.to_thread(self._sender.send_and_wait, weights, require="all")

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        self._receiver = self._receiver or Receiver(self._rollout_socket, device=self._device, engine="verl")
        received = await asyncio.to_thread(lambda: list(self._receiver.receive()))
        for name, tensor in received:
            yield name, tensor
