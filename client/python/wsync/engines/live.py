"""What vLLM and SGLang workers share: their parameters under common names, derived tensors, one update at a time."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from ..catalog import BLOCK
from ..errors import DeadlineExceeded, UnsupportedLayout
from ..rollout import Rollout
from ..tensors import Tensor
from ..updates import Outcome, Update
from .bind import bind
from .mapping import Naming, Placement, Sharding, check, place


def socket_of(given: str, rank: int, ranks: int) -> str:
    """The rollout agent's for this worker: `given` with its {rank}; else an agent's default, one per rank of several."""
    if given:
        return given.format(rank=rank)
    return "unix:///run/wsync/rollout.sock" if ranks == 1 else f"unix:///run/wsync/rollout-{rank}.sock"


def canonical(name: str) -> str:
    """A parameter's name without the containers that newer versions put between a layer and its experts' weights."""
    return name.replace(".experts.routed_experts.", ".experts.")


def parameters_of(model: Any, placements: Iterable[Placement]) -> dict[str, Tensor]:
    """The model's parameters by common name. Block scales that the engine renamed `..._scale` on loading are found."""
    own = {canonical(name): parameter for name, parameter in model.named_parameters()}
    for wanted in {p.parameter for p in placements if p.parameter.endswith("_scale_inv")} - own.keys():
        renamed = wanted.removesuffix("_inv")
        if renamed in own:
            own[wanted] = own.pop(renamed)
    return own


def check_scales(parameters: Mapping[str, Tensor]) -> None:
    """UnsupportedLayout where scales are packed (UE8M0 in int32), which a plain copy would garble."""
    packed = [n for n, p in parameters.items() if n.endswith("_scale_inv") and "float32" not in str(p.dtype)]
    if packed:
        raise UnsupportedLayout(
            f"{len(packed)} block scales are not float32, such as '{packed[0]}' ({parameters[packed[0]].dtype}): the "
            "engine packs them for DeepGEMM's E8M0 kernels",
            names=packed,
            next_step="turn them off: VLLM_USE_DEEP_GEMM=0 in vLLM, --fp8-gemm-backend triton (or cutlass) in SGLang",
        )


def check_stage(model: Any, instead: str) -> None:
    """UnsupportedLayout under pipeline parallelism, whose stages hold only some of the layers. `instead`: what to set."""
    for name, module in model.named_modules():
        if type(module).__name__ == "PPMissingLayer":  # in vLLM and in SGLang
            raise UnsupportedLayout(
                f"'{name}' lies on another pipeline stage: an agent brings whole models", names=[name], next_step=instead
            )


def not_in(model: Any) -> Callable[[str], bool]:
    """For `skip`: outputs that this model has no layer for: multi-token prediction, and the tied output head."""
    names = {name for name, _ in model.named_parameters()}
    layers = {int(found[1]) for name in names if (found := re.search(r"\.layers\.(\d+)\.", name))}

    def skip(name: str) -> bool:
        layer = re.search(r"\.layers\.(\d+)\.", name)
        tied = name.rpartition(".lm_head.")[1] or name.startswith("lm_head.")
        return bool(layer and layers and int(layer[1]) not in layers) or bool(tied and name not in names)

    return skip


def dequantized(weight: Tensor, scale_inv: Tensor, dtype: Any) -> Tensor:
    """[N, K] FP8 codes times their 128 x 128 block scales, computed in float32, as `dtype`."""
    rows, cols = weight.shape
    scales = scale_inv.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]
    return (weight.float() * scales).to(dtype)


class Live:
    """One worker's model attached to one rollout agent."""

    def __init__(self, socket: str) -> None:
        self.rollout = Rollout(socket)
        self._pending: Update | None = None

    @classmethod
    @contextlib.contextmanager
    def opened(cls, socket: str) -> Iterator[Live]:
        """One to attach: closed where the block fails, and the caller's where it ends."""
        live = cls(socket)
        try:
            yield live
        except BaseException:
            live.close()
            raise

    def close(self) -> None:
        """Detaches, as far as the agent is there, and ends the connection and its threads."""
        self._pending = None
        self.rollout.close()

    def attach(
        self,
        model: Any,
        naming: Naming,
        sharding: Sharding,
        engine: str,
        *,
        derived: Callable[[str], bool] = lambda name: False,
        skip: Callable[[str], bool] = lambda name: False,
        rename: Callable[[str], str | None] = str,
        timeout: float = 60.0,
    ) -> int:
        """Maps, checks and attaches; bytes per version. `derived`: parameters that the engine computes itself.

        `skip`, `rename`: as `mapping.place` takes them.
        """
        outputs = self.rollout.plan(timeout).outputs
        placements = place(outputs, naming, sharding, skip, rename)
        parameters = parameters_of(model, placements)
        check(placements, {name: tuple(parameter.shape) for name, parameter in parameters.items()}, derived)
        check_scales(parameters)
        destinations = bind(placements, parameters)
        return self.rollout.attach(
            destinations, engine=engine, allow_partial=len(outputs) > len(placements), module=model, timeout=timeout
        ).bytes_per_version

    def poll(self) -> int:
        """The version that waits for a pause; 0: none."""
        if self._pending is None:
            self._pending = self.rollout.poll()
        return self._pending.version if self._pending else 0

    def apply(self, timeout: float) -> Outcome | None:
        """Takes the version that waits, or the first that comes within `timeout` seconds; None: none came.

        The caller guarantees that nothing reads the weights meanwhile.
        """
        update, self._pending = self._pending, None
        try:
            update = update or next(self.rollout.updates(timeout=timeout), None)
        except DeadlineExceeded:
            return None
        return update.apply(timeout) if update else None
