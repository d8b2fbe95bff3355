"""What a trainer tells its agent of the weights, and what the agent made of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import _rpc, _wire, memory
from .catalog import hash_text, tensor_message
from .weights import Tie, Weight


@dataclass(frozen=True, slots=True)
class Registration:
    """What the agent made of the registered weights. As text it is one line."""

    tensors: int
    quantized_tensors: int
    payload_bytes: int  # per replica and version
    wire_bytes: int
    buckets: int
    plan_hash: str
    committed_version: int  # what the group has already (0: nothing): publish a higher one
    tied: dict[str, str]  # left-out name -> the name whose memory it shares
    copied: tuple[str, ...]  # sent from a copy that publish refreshes

    def __str__(self) -> str:
        more = f", {len(self.tied)} tied names left out" if self.tied else ""
        more += f", {len(self.copied)} sent from copies" if self.copied else ""
        return (
            f"{self.tensors} tensors, {self.quantized_tensors} of them quantized, {self.wire_bytes / 1e6:.1f} MB on the wire "
            f"per version, plan {self.plan_hash[:8]}{more}"
        )


def messages_of(
    weights: list[Weight],
    places: list[tuple[int, int]],
    handles: memory.Handles,
    modules_to_not_convert: list[str],
    replace: bool,
) -> list[Any]:
    header = _wire.message("RegisterHeader")(
        pid=os.getpid(),
        handles=handles.messages(),
        replace=replace,
        modules_to_not_convert=modules_to_not_convert,
    )
    return list(chunked(list(map(entry_of, weights, places)), header))


_REGISTERED = _wire.message("RegisteredTensor")


def entry_of(weight: Weight, place: tuple[int, int]) -> Any:
    handle, offset = place
    tensor = tensor_message(weight.name, weight.view.dtype, weight.view.shape)
    return _REGISTERED(tensor=tensor, handle=handle, offset_bytes=offset)


def chunked(entries: list[Any], header: Any) -> Iterator[Any]:
    """The requests of one stream; the header says how many tensors they have in all."""
    request = _wire.message("RegisterRequest")
    header.tensors = len(entries)
    step = _rpc.TENSORS_PER_MESSAGE
    yield request(header=header, tensors=entries[:step])
    for begin in range(step, len(entries), step):
        yield request(tensors=entries[begin : begin + step])


def registration_from(reply: Any, ties: list[Tie], copies: list[Weight]) -> Registration:
    return Registration(
        tensors=reply.tensors,
        quantized_tensors=reply.quantized_tensors,
        payload_bytes=reply.payload_bytes,
        wire_bytes=reply.wire_bytes,
        buckets=reply.buckets,
        plan_hash=hash_text(reply.plan_hash),
        committed_version=reply.committed.version,
        tied={tie.name: tie.weight.name for tie in ties if tie.name != tie.weight.name},
        copied=tuple(weight.name for weight in copies),
    )
