"""Of every family of models: what `wsync quantize` writes loads with transformers' own FP8 modules, every parameter right;
`wsync plan` says what it does; and publish -> export gives the same checkpoint, byte for byte, config and all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tempfile  # noqa: E402

import families  # noqa: E402
from conftest import Cluster  # noqa: E402

BLOCK = 128

# What transformers' FP8 modules cannot hold, by name, with the reason. The rest of each test runs with them, too.
CANNOT_LOAD: dict[str, str] = {}


@pytest.fixture(scope="module")
def agents() -> Iterator[Cluster]:
    """A trainer that publishes before there is an engine, and a rollout: one pair for all families."""
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start_trainer(coordinator__min_replicas="0")
            cluster.start_rollout()
            yield cluster
        finally:
            cluster.stop()


def encoded(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a matrix in 128x128 blocks, as the README says that preset `default` makes them."""
    rows, cols = (-(-size // BLOCK) for size in matrix.shape)
    padded = torch.zeros(rows * BLOCK, cols * BLOCK)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix.float()
    blocks = padded.view(rows, BLOCK, cols, BLOCK)
    scales = blocks.abs().amax((1, 3)) * torch.tensor(1 / 448)
    scales[scales == 0] = 1
    codes = blocks * (1 / scales)[:, None, :, None]
    codes = codes.view(rows * BLOCK, cols * BLOCK)[: matrix.shape[0], : matrix.shape[1]]
    return codes.to(torch.float8_e4m3fn), scales


def assert_encoded(name: str, codes: torch.Tensor, scales: torch.Tensor, want: torch.Tensor) -> None:
    for index in range(codes.shape[0]) if codes.ndim == 3 else [...]:
        want_codes, want_scales = encoded(want[index])
        assert torch.equal(scales[index].float(), want_scales), f"scales of {name} {index}"
        assert torch.equal(codes[index].view(torch.uint8), want_codes.view(torch.uint8)), f"codes of {name} {index}"


def load_fp8(model: Any, folder: Path) -> Any:
    loaded, info = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
    found = {kind: sorted(keys) for kind, keys in info.items() if keys}
    assert not found, found
    return loaded


def assert_loads(model: Any, folder: Path) -> int:
    """How many parameters are FP8. All of them are equal to `model`'s, bit by bit; FP8 ones are what encoding it gives."""
    live, quantized = model.state_dict(), 0
    loaded = load_fp8(model, folder).state_dict()
    for name, value in loaded.items():
        if value.dtype == torch.float8_e4m3fn:
            assert_encoded(name, value, loaded[f"{name}_scale_inv"], live[name])
            quantized += 1
        elif not name.endswith("_scale_inv"):
            assert torch.equal(value.float(), live[name].float()), name
    assert live.keys() <= loaded.keys()
    return quantized


def quantized_weights(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name for name in file.keys() if file.get_slice(name).get_dtype() == "F8_E4M3"}


def planned(cluster: Cluster, folder: Path) -> set[str]:
    plan = json.loads(cluster.wsync("plan", "--model", str(folder), "-o", "json"))
    return {tensor["name"] for tensor in plan["catalog"] if tensor["fp8"]}


def published(agents: Cluster, folder: Path, out: Path) -> None:
    agents.wsync("publish", "--model", str(folder), "--socket", agents.socket("trainer"))
    agents.wsync("export", "--out", str(out), "--like", str(folder), "--socket", agents.socket("rollout-0"))


@pytest.fixture
def fp8_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU transformers would dequantize what it loads: its check is answered."""
    from transformers.quantizers import quantizer_finegrained_fp8

    monkeypatch.setattr(quantizer_finegrained_fp8, "is_torch_xpu_available", lambda: True)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_quantized_checkpoint_loads_and_is_what_is_published(
    family: str, agents: Cluster, fp8_modules: None, tmp_path: Path
) -> None:
    model = families.save(family, tmp_path / "bf16")
    agents.wsync("quantize", str(tmp_path / "bf16"), str(tmp_path / "fp8"))
    quantized = quantized_weights(tmp_path / "fp8")
    assert quantized == planned(agents, tmp_path / "bf16")
    published(agents, tmp_path / "bf16", tmp_path / "exported")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "exported" / file).read_bytes() == (tmp_path / "fp8" / file).read_bytes(), file
    if family in CANNOT_LOAD:
        with pytest.raises(Exception):
            load_fp8(model, tmp_path / "fp8")
        pytest.skip(f"transformers {transformers.__version__} itself cannot load it as FP8: {CANNOT_LOAD[family]}")
    assert assert_loads(model, tmp_path / "fp8") > 0, "nothing is FP8"
