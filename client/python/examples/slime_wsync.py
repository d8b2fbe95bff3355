"""slime: a weight updater that carries weights with wsync, into SGLang's own parameters.

Written against slime's `slime/backends/megatron_utils/` of commits 04b6c8d and 02a644a (2026): the actor calls
connect_rollout_engines, update_weights and pop_metrics of its updater, HfWeightIteratorBase gives HF-named tensors, driven
by every rank. The class is run with played engines and iterator (client/python/tests/engines). Not run here: slime and Megatron
themselves, which no package index has.

In `slime/backends/megatron_utils/actor.py`, where the updater is chosen:

    from slime_wsync import UpdateWeightFromWsync as update_weight_cls                      # this file, on PYTHONPATH

and for SGLang: `--sglang-custom-weight-loader wsync.engines.sglang.load`, WSYNC_ROLLOUT_SOCKET in its environment, and
an FP8 checkpoint (`wsync quantize`) as `--hf-checkpoint` of the rollout.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist
from sglang.srt.entrypoints.engine import Engine
from slime.backends.megatron_utils.update_weight.hf_weight_iterator_base import HfWeightIteratorBase
from slime.utils.distributed_utils import get_gloo_group

from wsync.engines import sglang
from wsync.streams import Sender


def payloads(version: int, ranks: int) -> list[str]:
    """`serialized_named_tensors` of `/update_weights_from_tensor`: the wanted version, once for each tensor-parallel rank.

    The number travels in the request itself, pickled as SGLang reads it. SGLang's own serializer would lend memory of this
    process, which a server that it did not start cannot open.
    """
    return [base64.b64encode(pickle.dumps(sglang.wanted(version))).decode()] * ranks


class UpdateWeightFromWsync:
    """Rank 0 gathers HF tensors and publishes them; SGLang's workers take the version from the agents beside them."""

    def __init__(
        self,
        args: Any,
        model: Sequence[torch.nn.Module],
        weights_getter: Callable[[], Mapping[str, torch.Tensor]],
        *,
        model_name: str,
        quantization_config: Any,
        socket: str = "unix:///run/wsync/trainer.sock",
    ) -> None:
        self._weights_getter = weights_getter
        # BF16 tensors: quantizing is the trainer agent's work.
        self._iterator = HfWeightIteratorBase.create(args, model, model_name=model_name, quantization_config=None)
        self._sender = Sender(socket) if dist.get_rank() == 0 else None
        self._args = args
        self._engines: Sequence[Any] = ()
        self._gpus: Sequence[int] = ()
        self.weight_version = 0

    def connect_rollout_engines(
        self, rollout_engines: Sequence[Any], *_: Any, engine_gpu_counts: Sequence[int] | None = None, **__: Any
    ) -> None:
        self._engines = rollout_engines
        self._gpus = engine_gpu_counts or [self._args.rollout_num_gpus_per_engine] * len(rollout_engines)

    def pop_metrics(self) -> dict[str, float]:
        return {}

    @torch.no_grad()
    def update_weights(self) -> None:
        self.weight_version += 1
        try:
            self._send_or_gather()
        finally:  # whatever happened here, the other ranks are on their way to it
            dist.barrier(group=get_gloo_group())

    def _send_or_gather(self) -> None:
        if self._sender is None:
            for _ in self._weights():  # gathering is collective
                pass
        else:
            publication = self._sender.send(self._weights(), self.weight_version)
            self._on_all("pause_generation")
            self._on_all("flush_cache")
            sessions = hasattr(Engine, "begin_weight_update")  # newer SGLang; this process has the same one installed
            if sessions:
                self._on_all("_make_request", "begin_weight_update", {"selector": "target"})
            ray.get([self._ask(engine, gpus) for engine, gpus in zip(self._engines, self._gpus, strict=True)])
            if sessions:
                self._on_all("_make_request", "end_weight_update")
            publication.committed(require="all")
            self._on_all("continue_generation")

    def _on_all(self, method: str, *arguments: Any) -> None:
        ray.get([getattr(engine, method).remote(*arguments) for engine in self._engines])

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for chunk in self._iterator.get_hf_weight_chunks(self._weights_getter()):
            yield from chunk

    def _ask(self, engine: Any, gpus: int) -> Any:
        """SGLang takes this request between two forward passes, on every rank; it carries a number, no weights."""
        return engine.update_weights_from_tensor.remote(
            serialized_named_tensors=payloads(self.weight_version, gpus),
            load_format="wsync.engines.sglang.load",
            flush_cache=False,  # it was, while paused
            weight_version=str(self.weight_version),
        )
