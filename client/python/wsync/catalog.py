"""Names, dtypes and shapes: what a trainer registers and what an engine gets. No torch, no numpy, no memory here."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

from . import _wire

BLOCK = 128  # rows and columns that share one scale in block FP8


class Dtype(enum.IntEnum):
    """Element types, named as in safetensors; numbers as in proto/wsync/v1/types.proto."""

    BOOL = 1
    U8 = 2
    I8 = 3
    F8_E5M2 = 4
    F8_E4M3 = 5
    I16 = 6
    U16 = 7
    F16 = 8
    BF16 = 9
    I32 = 10
    U32 = 11
    F32 = 12
    F64 = 13
    I64 = 14
    U64 = 15
    F8_E8M0 = 16  # from here on they are moved as they are, never quantized
    F8_E4M3FNUZ = 17
    F8_E5M2FNUZ = 18
    C64 = 19

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEMSIZE[self]


ITEMSIZE = {
    dtype: size
    for size, dtypes in {
        1: (Dtype.BOOL, Dtype.U8, Dtype.I8, Dtype.F8_E5M2, Dtype.F8_E4M3)
        + (Dtype.F8_E8M0, Dtype.F8_E4M3FNUZ, Dtype.F8_E5M2FNUZ),
        2: (Dtype.I16, Dtype.U16, Dtype.F16, Dtype.BF16),
        4: (Dtype.I32, Dtype.U32, Dtype.F32),
        8: (Dtype.F64, Dtype.I64, Dtype.U64, Dtype.C64),
    }.items()
    for dtype in dtypes
}


def blocks(size: int) -> int:
    """How many 128-blocks cover `size` rows or columns."""
    return -(-size // BLOCK)


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) a tensor is moved as: a scalar is 1 x 1, [n] is one row of n, [a, b, c] is a*b rows of c."""
    if not shape:
        return 1, 1
    return math.prod(shape[:-1]), shape[-1]


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor that the plan gives to engines, under its checkpoint name."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    is_scale: bool = False
    quantized: bool = False  # the FP8 codes of a quantized weight


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout agent will deliver per version, in wire order."""

    outputs: tuple[Output, ...]
    plan_hash: str
    payload_bytes: int
    fp8: bool  # False: every tensor is moved as it is
    pow2_scales: bool = False

    @property
    def by_name(self) -> dict[str, Output]:
        return {output.name: output for output in self.outputs}


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one version went, in milliseconds."""

    encode_ms: float
    transfer_ms: float
    check_ms: float
    apply_ms: float
    pause_ms: float


@dataclass(frozen=True, slots=True)
class ReplicaOutcome:
    """What one replica made of a version, and why not applied.

    "applied"; "left_out": it serves an older one, or nothing where it was cut off while it received in place; "torn".
    """

    replica: str
    outcome: str
    reason: str
    timings: Timings


@dataclass(frozen=True, slots=True, repr=False)
class VersionReport:
    """What became of one publish. Printed, it is one line: who took it, who did not and why, how much and how long."""

    version: int
    content_digest: str
    payload_bytes: int
    wire_bytes: int
    tensors: int
    replicas: tuple[ReplicaOutcome, ...]
    encode_ms: float
    released_ms: float
    staged_ms: float
    committed_ms: float
    already_committed: bool  # the same content was committed before: nothing was moved

    @property
    def applied(self) -> bool:
        """Every replica serves the version."""
        return self.already_committed or all(r.outcome == "applied" for r in self.replicas)

    def metrics(self, prefix: str = "wsync/") -> dict[str, float]:
        """Flat figures for wandb.log, TensorBoard and the like; of the replicas the slowest one's."""
        told = {
            "version": self.version,
            "tensors": self.tensors,
            "payload_bytes": self.payload_bytes,
            "wire_bytes": self.wire_bytes,
            "encode_ms": self.encode_ms,
            "released_ms": self.released_ms,
            "staged_ms": self.staged_ms,
            "committed_ms": self.committed_ms,
            "already_committed": self.already_committed,
            "replicas": len(self.replicas),
        }
        for outcome in ("applied", "left_out", "torn"):
            told[f"replicas_{outcome}"] = sum(replica.outcome == outcome for replica in self.replicas)
        for step in ("transfer_ms", "check_ms", "apply_ms", "pause_ms"):
            told[f"slowest_{step}"] = max((getattr(replica.timings, step) for replica in self.replicas), default=0.0)
        return {prefix + name: float(figure) for name, figure in told.items()}

    def __repr__(self) -> str:
        took = sum(r.outcome == "applied" for r in self.replicas)
        others = [f"; {r.replica} {r.outcome.replace('_', ' ')}: {r.reason}" for r in self.replicas if r.outcome != "applied"]
        if self.already_committed:
            return f"<version {self.version}: was committed already, content {self.content_digest[:8]}>"
        return (
            f"<version {self.version}: applied by {took} of {len(self.replicas)} replicas in {self.committed_ms:.1f} ms"
            f" (released after {self.released_ms:.1f}), {self.tensors} tensors, {self.wire_bytes / 1e6:.1f} MB on the wire,"
            f" content {self.content_digest[:8]}{''.join(others)}>"
        )


# ---- from messages


def hash_text(message: Any) -> str:
    """32 hex digits of a Hash message."""
    return f"{message.high:016x}{message.low:016x}"


def output_from(message: Any) -> Output:
    tensor = message.tensor
    return Output(tensor.name, Dtype(tensor.dtype), tuple(tensor.shape), message.is_scale, message.quantized)


def timings_from(message: Any) -> Timings:
    return Timings(message.encode_ms, message.transfer_ms, message.check_ms, message.apply_ms, message.pause_ms)


_OUTCOMES = {1: "applied", 2: "left_out", 3: "torn"}


def report_from(message: Any) -> VersionReport:
    return VersionReport(
        version=message.version,
        content_digest=hash_text(message.content_digest),
        payload_bytes=message.payload_bytes,
        wire_bytes=message.wire_bytes,
        tensors=message.tensors,
        replicas=tuple(
            ReplicaOutcome(r.replica, _OUTCOMES.get(r.outcome, "unknown"), r.reason, timings_from(r.timings))
            for r in message.replicas
        ),
        encode_ms=message.encode_ms,
        released_ms=message.released_ms,
        staged_ms=message.staged_ms,
        committed_ms=message.committed_ms,
        already_committed=message.already_committed,
    )


_TENSOR = _wire.message("Tensor")


def tensor_message(name: str, dtype: int, shape: tuple[int, ...]) -> Any:
    return _TENSOR(name=name, dtype=dtype, shape=shape)
