"""The arithmetic that README.md writes down is what is sent, to the byte, and what the published quantizers gave."""

from __future__ import annotations

import re
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from conftest import REPO, Cluster
from models import memory_for, shared_arrays
from safetensors.numpy import load_file

import wsync

Encode = Callable[..., tuple[np.ndarray, np.ndarray]]
NAME = "model.layers.0.mlp.up_proj.weight"
PEERS = REPO / "tests" / "data" / "peers.safetensors"


@pytest.fixture(scope="module")
def encode() -> Encode:
    """README's own."""
    readme = (REPO / "client" / "python" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(def fp8\(.*?)```", readme, re.DOTALL)
    there = {"np": np, "ml_dtypes": ml_dtypes}
    exec(code, there)
    return there["fp8"]


def random_and_extremes() -> np.ndarray:
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((700, 900)) * np.exp2(rng.integers(-40, 40, (700, 900)))).astype(ml_dtypes.bfloat16)
    x[:128, :128] = 0
    x[128:256, :128] = np.float32(1e-40)  # subnormal
    x[:128, 128:256] = np.float32(3.3e38)
    return x


@pytest.mark.parametrize("preset", ["default", "deepgemm", "nemo", "verl"])
@pytest.mark.parametrize("scale", ["fp32", "pow2"])
def test_what_is_sent_is_what_readme_computes(cluster: Cluster, encode: Encode, preset: str, scale: str) -> None:
    weights = shared_arrays({NAME: (700, 900)})
    weights[NAME][...] = random_and_extremes()
    socket = cluster.start_trainer(recipe__preset=preset, recipe__scale=scale)
    with wsync.Trainer(socket) as trainer, wsync.Rollout(cluster.start_rollout()) as rollout:
        trainer.register(weights)
        engine = memory_for(rollout.plan())
        rollout.attach(engine)
        publication = trainer.publish(1)
        next(rollout.updates(timeout=30)).apply()
        assert publication.committed().applied
    codes, scales = encode(weights[NAME].astype(np.float32), preset, pow2=scale == "pow2")
    np.testing.assert_array_equal(engine[f"{NAME}_scale_inv"].view(np.uint32), scales.view(np.uint32))
    np.testing.assert_array_equal(engine[NAME].view(np.uint8), codes.view(np.uint8))


def cases() -> list[str]:
    return sorted(name.removesuffix(".x") for name in load_file(PEERS) if name.endswith(".x"))


# Where README.md says that the published ones differ.
SUBNORMAL, TRITON = "subnormal", "powers_of_two_256x256"


@pytest.mark.parametrize(
    ("peer", "preset", "pow2", "but_for"),
    [
        ("ieee", "default", False, SUBNORMAL),
        ("deepgemm", "deepgemm", False, None),
        ("deepgemm_ue8m0", "deepgemm", True, None),
        ("nemo", "nemo", False, SUBNORMAL),
        ("verl_triton", "verl", False, TRITON),
    ],
)
def test_the_published_quantizers_gave_what_readme_computes(
    encode: Encode, peer: str, preset: str, pow2: bool, but_for: str | None
) -> None:
    peers = load_file(PEERS)
    checked = 0
    for case in cases():
        if but_for is not None and but_for in case:
            continue
        codes, scales = encode(peers[f"{case}.x"].astype(np.float32), preset, pow2=pow2)
        np.testing.assert_array_equal(codes.view(np.uint8), peers[f"{case}.{peer}.q"], err_msg=case)
        np.testing.assert_array_equal(scales.view(np.uint32), peers[f"{case}.{peer}.s"].view(np.uint32), err_msg=case)
        checked += 1
    assert checked >= 13


def test_a_check_that_divides_by_448_finds_other_bytes(encode: Encode) -> None:
    """Why README.md says it: both look right."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1024, 1024)).astype(ml_dtypes.bfloat16).astype(np.float32)
    codes, scales = encode(x)
    blocks = np.abs(x.reshape(8, 128, 8, 128)).max((1, 3))
    divided = blocks / np.float32(448)
    assert (divided != scales).any() and np.allclose(divided, scales, rtol=1e-6)
    naive = (x / divided.repeat(128, 0).repeat(128, 1)).astype(ml_dtypes.float8_e4m3fn)
    assert 0 < (naive.view(np.uint8) != codes.view(np.uint8)).mean() < 0.01
