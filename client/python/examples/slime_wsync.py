"""slime: a weight updater that carries weights with wsync, into SGLang's own parameters.

Written against slime's `slime/backends/megatron_utils/update_weight/` of commit 02a644a (2026): an updater has
connect_rollout_engines and update_weights, and HfWeightIteratorBase gives HF-named tensors, driven by every rank. Not
run here: slime, Megatron, SGLang and a GPU are not installed. What it rests on, wsync.streams, is tested.

In `slime/backends/megatron_utils/actor.py`, where the updater is chosen:

    from slime_wsync import UpdateWeightFromWsync as update_weight_cls                      # this file, on PYTHONPATH

and for SGLang: `--sglang-custom-weight-loader wsync.engines.sglang.load`, WSYNC_ROLLOUT_SOCKET in its environment, and
an FP8 checkpoint (`wsync quantize`) as `--hf-checkpoint` of the rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist
from sglang.srt.utils import MultiprocessingSerializer
from slime.backends.megatron_utils.update_weight.hf_weight_iterator_base import HfWeightIteratorBase

import wsync
from wsync.streams import Sender


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
        self._engines: Sequence[Any] = ()
        self.weight_version = 0

    def connect_rollout_engines(self, rollout_engines: Sequence[Any], *_: Any, **__: Any) -> None:
        self._engines = rollout_engines

    @torch.no_grad()
    def update_weights(self) -> None:
        self.weight_version += 1
        if self._sender is None:
            for _ in self._weights():  # gathering is collective
                pass
        else:
            publication = self._sender.send(self._weights(), self.weight_version)
            ray.get([self._ask(engine) for engine in self._engines])
            report = publication.committed()
            if not report.applied:
                raise RuntimeError(f"version {report.version}: {report.replicas}")
        dist.barrier()

    def _weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for chunk in self._iterator.get_hf_weight_chunks(self._weights_getter()):
            yield from chunk

    def _ask(self, engine: Any) -> Any:
        """SGLang takes this request between two forward passes, on every rank; it carries a number, no weights."""
        wanted = MultiprocessingSerializer.serialize(wsync.engines.sglang.wanted(self.weight_version), output_str=True)
        return engine.update_weights_from_tensor.remote(
            serialized_named_tensors=[wanted],
            load_format="wsync.engines.sglang.load",
            flush_cache=True,
            weight_version=str(self.weight_version),
        )
