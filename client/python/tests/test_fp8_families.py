"""Of every family of models: what `wsync quantize` writes loads with transformers' own FP8 modules, every parameter right;
`wsync plan` says what it does; and publish -> export gives the same checkpoint, byte for byte, config and all."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import families  # noqa: E402
from conftest import BIN, Cluster  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

BLOCK = 128

# What transformers' FP8 modules cannot hold, by name, with the reason. The rest of the test runs with them, too.
CANNOT_LOAD = {"nemotron_h": "its FP8Experts want a `hidden_act`, and NemotronHConfig has a `mlp_hidden_act`"}

# What has no linear weights that can be FP8: Conv1D has them transposed.
NOTHING_TO_QUANTIZE = {"gpt2"}


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


def assert_all_agree(agents: Cluster, folder: Path) -> Path:
    """plan, quantize and publish -> export of `folder`; what quantize wrote."""
    fp8, exported = folder.with_name("fp8"), folder.with_name("exported")
    agents.wsync("quantize", str(folder), str(fp8))
    assert quantized_weights(fp8) - quantized_weights(folder) == planned(agents, folder)
    published(agents, folder, exported)
    for file in ("model.safetensors", "config.json"):
        assert (exported / file).read_bytes() == (fp8 / file).read_bytes(), file
    return fp8


@pytest.mark.parametrize("family", families.FAMILIES)
def test_quantized_checkpoint_loads_and_is_what_is_published(
    family: str, agents: Cluster, fp8_modules: None, tmp_path: Path
) -> None:
    model = families.save(family, tmp_path / "bf16")
    fp8 = assert_all_agree(agents, tmp_path / "bf16")
    if family in CANNOT_LOAD:
        with pytest.raises(AttributeError):
            load_fp8(model, fp8)
        pytest.skip(f"transformers {transformers.__version__} itself cannot load it as FP8: {CANNOT_LOAD[family]}")
    assert (assert_loads(model, fp8) > 0) == (family not in NOTHING_TO_QUANTIZE)


@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_moe", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "mixtral", "phimoe"])
def test_experts_that_are_stacked_in_the_file_load_too(
    family: str, agents: Cluster, fp8_modules: None, tmp_path: Path
) -> None:
    """Live names as a file: Qwen3.5-MoE is published so. Of families whose loader wants other names they stay BF16."""
    model = families.save(family, tmp_path / "bf16")
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "bf16" / "model.safetensors", metadata={"format": "pt"})
    fp8 = assert_all_agree(agents, tmp_path / "bf16")
    assert assert_loads(model, fp8) > 0
    experts = any(".experts." in name for name in quantized_weights(fp8))
    assert experts == (family not in ("mixtral", "phimoe"))


@pytest.mark.parametrize("granularity", ["block", "channel", "tensor"])
def test_checkpoints_that_are_fp8_already_pass_through_with_their_config(
    granularity: str, agents: Cluster, tmp_path: Path
) -> None:
    families.save("qwen3_moe", tmp_path / "bf16")
    agents.wsync("quantize", str(tmp_path / "bf16"), str(tmp_path / "before"), "--granularity", granularity)
    fp8 = assert_all_agree(agents, tmp_path / "before")
    for file in ("model.safetensors", "config.json"):
        assert (fp8 / file).read_bytes() == (tmp_path / "before" / file).read_bytes(), file
    shutil.rmtree(fp8)
    agents.wsync("quantize", str(tmp_path / "before"), str(fp8), "--granularity", granularity)
    assert (fp8 / "config.json").read_bytes() == (tmp_path / "before" / "config.json").read_bytes()


def test_an_export_of_fp8_weights_without_their_config_says_what_is_missing(agents: Cluster, tmp_path: Path) -> None:
    families.save("qwen3", tmp_path / "bf16")
    agents.wsync("quantize", str(tmp_path / "bf16"), str(tmp_path / "fp8"))
    published(agents, tmp_path / "fp8", tmp_path / "exported")
    export = [BIN / "wsync", "export", "--out", tmp_path / "bare", "--socket", agents.socket("rollout-0")]
    done = subprocess.run(export, capture_output=True, text=True, timeout=60, check=True)
    assert "does not say so: give their own checkpoint as --like" in done.stderr


def gpt_oss(experts: int = 2, hidden: int = 256) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """As published: MXFP4 experts, and a list with globs."""
    prefix = "model.layers.0."
    tensors = {
        "model.embed_tokens.weight": torch.randn(256, hidden).bfloat16(),
        "lm_head.weight": torch.randn(256, hidden).bfloat16(),
        f"{prefix}self_attn.q_proj.weight": torch.randn(256, hidden).bfloat16(),
        f"{prefix}mlp.router.weight": torch.randn(experts, hidden).bfloat16(),
        f"{prefix}mlp.experts.down_proj_blocks": torch.zeros(experts, hidden, 4, 16, dtype=torch.uint8),
        f"{prefix}mlp.experts.down_proj_scales": torch.zeros(experts, hidden, 4, dtype=torch.uint8),
    }
    keep = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return tensors, {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": keep}}


def kimi(hidden: int = 256) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """INT4 experts beside BF16, and the scheme within text_config."""
    prefix = "language_model.model.layers.1."
    tensors = {
        f"{prefix}self_attn.o_proj.weight": torch.randn(hidden, hidden).bfloat16(),
        f"{prefix}mlp.up_proj.weight": torch.randn(hidden, hidden).bfloat16(),
        f"{prefix}mlp.experts.0.up_proj.weight_packed": torch.zeros(hidden, hidden // 8, dtype=torch.int32),
        f"{prefix}mlp.experts.0.up_proj.weight_scale": torch.rand(hidden, hidden // 32).bfloat16(),
    }
    scheme = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*self_attn.*"]}
    return tensors, {"model_type": "kimi_k25", "text_config": {"quantization_config": scheme}}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_list_with_globs_leaves_mxfp4_as_it_is(agents: Cluster, tmp_path: Path) -> None:
    folder = write(tmp_path / "gpt-oss", *gpt_oss())
    fp8 = assert_all_agree(agents, folder)
    assert quantized_weights(fp8) == set()
    assert json.loads((fp8 / "config.json").read_text()) == gpt_oss()[1]


def test_a_scheme_that_only_the_config_tells_is_refused_by_publish_which_takes_its_registration_back(
    agents: Cluster, tmp_path: Path
) -> None:
    tensors = {"model.layers.0.mlp.up_proj.weight": torch.randn(256, 256).bfloat16()}
    folder = write(tmp_path / "awq", tensors, {"quantization_config": {"quant_method": "awq"}})
    publish = [BIN / "wsync", "publish", "--model", folder, "--socket", agents.socket("trainer")]
    done = subprocess.run(publish, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and 'quantization_config.quant_method "awq"' in done.stderr, done.stderr
    assert "unregistered" in agents.log("trainer")


def test_a_second_scheme_is_refused_by_every_command_until_the_rest_is_listed(agents: Cluster, tmp_path: Path) -> None:
    tensors, config = kimi()
    folder = write(tmp_path / "kimi", tensors, config)
    for command in (
        ["plan", "--model", folder],
        ["quantize", folder, tmp_path / "no"],
        ["publish", "--model", folder, "--socket", agents.socket("trainer")],
    ):
        done = subprocess.run([BIN / "wsync", *map(str, command)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1, command
        assert "quantized already" in done.stderr or "already quantized" in done.stderr, done.stderr
        assert "--exclude" in done.stderr and "recipe.fp8" in done.stderr
    config["text_config"]["quantization_config"]["ignore"].append("re:.*mlp\\.(gate|up|down)_proj.*")
    assert_all_agree(agents, write(tmp_path / "listed", tensors, config))
