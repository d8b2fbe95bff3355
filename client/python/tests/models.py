"""Small models as numpy arrays in shared memory, and engines for them."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import ml_dtypes
import numpy as np

import wsync
from wsync.memory import Blank, empty_shared

NUMPY = {
    wsync.Dtype.F8_E4M3: ml_dtypes.float8_e4m3fn,
    wsync.Dtype.BF16: ml_dtypes.bfloat16,
    wsync.Dtype.F16: np.float16,
    wsync.Dtype.F32: np.float32,
}

SHAPES = {
    "model.embed_tokens.weight": (500, 96),
    "model.layers.0.self_attn.q_proj.weight": (256, 192),
    "model.layers.0.self_attn.q_proj.bias": (256,),
    "model.layers.0.mlp.up_proj.weight": (1000, 192),
    "model.layers.0.mlp.down_proj.weight": (192, 1000),
    "model.layers.0.input_layernorm.weight": (192,),
    "lm_head.weight": (500, 96),
}


def shared_arrays(shapes: dict[str, tuple[int, ...]], dtype: object = ml_dtypes.bfloat16) -> dict[str, np.ndarray]:
    """Zeroed arrays by name, all in one SharedBuffer."""
    arrays = empty_shared([Blank(shape, np.dtype(dtype), False) for shape in shapes.values()], "test")
    return dict(zip(shapes, arrays, strict=True))


def randomize(arrays: dict[str, np.ndarray], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for array in arrays.values():
        array[...] = rng.standard_normal(array.shape, dtype=np.float32).astype(array.dtype)


def memory_for(plan: wsync.Plan) -> dict[str, np.ndarray]:
    """An array per output of the plan, in one SharedBuffer."""
    blanks = [Blank(output.shape, np.dtype(NUMPY[output.dtype]), False) for output in plan.outputs]
    return dict(zip((output.name for output in plan.outputs), empty_shared(blanks, "engine"), strict=True))


def dequantized(weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A weight as float32, whether it came as FP8 with block scales or as it was."""
    array = weights[name].astype(np.float32)
    scales = weights.get(f"{name}_scale_inv")
    if scales is None:
        return array
    return array * scales.repeat(128, 0).repeat(128, 1)[: array.shape[0], : array.shape[1]]


def assert_same_weights(engine: dict[str, np.ndarray], trained: dict[str, np.ndarray]) -> None:
    """Every weight of the engine equals the trainer's, within FP8 rounding where it is quantized."""
    for name, want in trained.items():
        got, want = dequantized(engine, name), want.astype(np.float32)
        if f"{name}_scale_inv" in engine:
            bound = np.abs(want) / 16 + np.abs(want).max() / 448 / 2**7
            assert (np.abs(got - want) <= bound).all(), name
        else:
            np.testing.assert_array_equal(got, want, err_msg=name)


class EngineThread:
    """Attaches to a rollout agent and takes every version, on a thread."""

    def __init__(self, socket: str, versions: Iterable[int] = ()) -> None:
        self.rollout = wsync.Rollout(socket)
        self.weights = memory_for(self.rollout.plan())
        self.rollout.attach(self.weights)
        self.error: BaseException | None = None
        self.outcomes: list[wsync.Outcome] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for update in self.rollout.updates():
                self.outcomes.append(update.apply())
        except BaseException as error:  # the test looks at it
            self.error = error

    def stop(self) -> None:
        self.rollout.close()
        self._thread.join(30)
        assert not self._thread.is_alive() and self.error is None, self.error
