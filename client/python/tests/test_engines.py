"""What the vLLM and SGLang adapters decide without those engines: layouts, experts, names. The modules are stand-ins."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import Cluster
from models import shared_arrays

import wsync
from wsync.catalog import Dtype, Output
from wsync.engines import sglang, vllm
from wsync.engines.live import Live, check_scales, not_in, parameters_of
from wsync.engines.mapping import Placement


class Module:
    """A tree of named modules with attributes, as far as the adapters look."""

    def __init__(self, **modules: object) -> None:
        self._modules = modules

    def named_modules(self) -> list[tuple[str, object]]:
        return list(self._modules.items())

    def modules(self) -> list[object]:
        return list(self._modules.values())


def method(kind: str, **attributes: object) -> SimpleNamespace:
    """A module whose quant_method is of class `kind`."""
    quant_method = type(kind, (), {})()
    for name, value in attributes.items():
        setattr(quant_method, name, value)
    return SimpleNamespace(quant_method=quant_method)


def kernel(name: str) -> object:
    return type(name, (), {})()


PLAIN = {
    "cutlass": method("Fp8LinearMethod", block_quant=True, fp8_linear=kernel("CutlassFp8BlockScaledMMKernel")),
    "triton": method("Fp8LinearMethod", block_quant=True, fp8_linear=kernel("TritonFp8BlockScaledMMKernel")),
    "flashinfer": method("Fp8LinearMethod", fp8_linear=kernel("FlashInferFp8DeepGEMMDynamicBlockScaledKernel")),
    "older": method("Fp8LinearMethod", block_quant=True, w8a8_block_fp8_linear=kernel("W8A8BlockFp8LinearOp")),
    "moe": method("Fp8MoEMethod", block_quant=True, fp8_backend=SimpleNamespace(name="TRITON")),
    "norm": SimpleNamespace(),
    "head": method("UnquantizedEmbeddingMethod"),
    "attention": method("Fp8KVCacheMethod"),
}

REFUSED = {
    "marlin": (method("Fp8LinearMethod", use_marlin=True), "Marlin", "SM 8.9"),
    "kernel": (method("Fp8LinearMethod", fp8_linear=kernel("MarlinFP8ScaledMMLinearKernel")), "Marlin", "SM 8.9"),
    "flashinfer_moe": (
        method("Fp8MoEMethod", fp8_backend=SimpleNamespace(name="FLASHINFER_CUTLASS")),
        "FLASHINFER_CUTLASS",
        "--moe-backend triton",
    ),
    "aiter": (method("Fp8MoEMethod", fp8_backend=SimpleNamespace(name="AITER")), "AITER", "VLLM_ROCM_USE_AITER"),
    "per_tensor": (method("Fp8LinearMethod", block_quant=False), "one scale per tensor", "weight_block_size"),
    "awq": (method("AWQLinearMethod"), "AWQLinearMethod", "linear-backend"),
    "unknown": (method("Fp8LinearMethod", fp8_linear=kernel("TomorrowsKernel")), "TomorrowsKernel", "triton"),
}


def test_vllm_backends_that_keep_the_checkpoints_layout_pass() -> None:
    vllm.check_layout(Module(**PLAIN))


@pytest.mark.parametrize("name", REFUSED)
def test_vllm_backends_that_do_not_are_refused_by_name_with_the_setting(name: str) -> None:
    module, what, instead = REFUSED[name]
    with pytest.raises(wsync.UnsupportedLayout, match=what) as error:
        vllm.check_layout(Module(**PLAIN, **{name: module}))
    assert error.value.names == (name,) and instead in error.value.next_step


@pytest.mark.parametrize("packed", ["is_amx_bmm_enabled", "W_K", "W_UK_T_dcp_qrep"])
def test_vllm_attention_that_keeps_other_copies_of_kv_b_proj_is_refused(packed: str) -> None:
    plain = {"kv_b_proj": object(), "is_amx_bmm_enabled": False, "W_UK_T_dcp_qrep": None, "impl": None}
    vllm.check_layout(Module(mla=SimpleNamespace(**plain)))
    with pytest.raises(wsync.UnsupportedLayout, match="kv_b_proj") as error:
        vllm.check_layout(Module(mla=SimpleNamespace(**{**plain, packed: True})))
    assert error.value.names == ("mla",)


def test_vllm_with_e8m0_scales_needs_powers_of_two() -> None:
    deep = Module(x=method("Fp8LinearMethod", fp8_linear=kernel("DeepGemmFp8BlockScaledMMKernel")))
    vllm.check_layout(deep)
    vllm.check_layout(deep, e8m0=True, pow2_scales=True)
    vllm.check_layout(Module(**{k: v for k, v in PLAIN.items() if k not in ("older", "flashinfer")}), e8m0=True)
    with pytest.raises(wsync.UnsupportedLayout, match="E8M0") as error:
        vllm.check_layout(deep, e8m0=True)
    assert "VLLM_USE_DEEP_GEMM_E8M0=0" in error.value.next_step and "pow2" in error.value.next_step


def experts(backend: str | None, **attributes: object) -> SimpleNamespace:
    """A layer of experts in SGLang, whose method names its backend; None: it does not."""
    runner = None if backend is None else SimpleNamespace(value=backend)
    module = method("Fp8MoEMethod", get_moe_runner_backend=lambda layer: runner)
    return SimpleNamespace(w13_weight=0, **vars(module), **attributes)


def test_sglang_refuses_shuffled_experts_fused_shared_experts_and_marlin() -> None:
    sglang.check_layout(Module(**PLAIN, x=experts("triton"), y=experts(None)), "deep_gemm")
    with pytest.raises(wsync.UnsupportedLayout, match="flashinfer_trtllm"):
        sglang.check_layout(Module(**PLAIN, x=experts("flashinfer_trtllm")), "auto")
    with pytest.raises(wsync.UnsupportedLayout, match="tomorrows"):
        sglang.check_layout(Module(x=experts(None)), "tomorrows")
    with pytest.raises(wsync.UnsupportedLayout, match="shared experts") as error:
        sglang.check_layout(Module(x=experts("triton", num_fused_shared_experts=1)))
    assert "--disable-shared-experts-fusion" in error.value.next_step
    with pytest.raises(wsync.UnsupportedLayout, match="Marlin"):
        sglang.check_layout(Module(x=method("Fp8LinearMethod", use_marlin=True)))


@pytest.mark.parametrize("copy", ["w_kc_qrep", "q_b_proj_qrep", "q_b_proj_qrep_weight"])
def test_sglang_attention_that_keeps_other_copies_of_its_queries_is_refused(copy: str) -> None:
    plain = {"kv_b_proj": object(), "w_kc_qrep": None, "q_b_proj_qrep": None, "q_b_proj_qrep_weight": None}
    sglang.check_layout(Module(mla=SimpleNamespace(**plain)))
    with pytest.raises(wsync.UnsupportedLayout, match="'mla'") as error:
        sglang.check_layout(Module(mla=SimpleNamespace(**{**plain, copy: object()})))
    assert error.value.names == ("mla",) and "--dcp-replicate-q-proj" in error.value.next_step


class PPMissingLayer:
    """What both engines put in the place of a layer of another stage."""


def test_pipeline_stages_are_refused_with_what_to_set() -> None:
    stage = Module(**{"model.layers.0": SimpleNamespace(), "model.layers.1": PPMissingLayer()})
    with pytest.raises(wsync.UnsupportedLayout, match=r"model\.layers\.1.*another pipeline stage") as error:
        vllm.check_layout(stage)
    assert error.value.names == ("model.layers.1",) and "--pipeline-parallel-size" in error.value.next_step
    with pytest.raises(wsync.UnsupportedLayout, match="another pipeline stage") as error:
        sglang.check_parallel(stage, 1)
    assert "--pp-size" in error.value.next_step


def test_sglang_layouts_of_one_tensor_parallel_group_pass() -> None:
    layers = {f"model.layers.0.mlp.{name}": SimpleNamespace(tp_size=4) for name in ("gate_up_proj", "down_proj")}
    layers["model.layers.0.self_attn.fused_qkv_a_proj_with_mqa"] = SimpleNamespace(tp_size=1)  # whole everywhere
    group = SimpleNamespace(world_size=4)  # newer versions keep that instead
    layers["model.layers.1.self_attn.qkv_proj"] = SimpleNamespace(tp_group=group, kv_tp_group=group)
    sglang.check_parallel(Module(**layers, norm=SimpleNamespace()), 4)
    for spread, over in ((1, 4), (4, 1), (2, 1)):
        sglang.check_parallel(Module(experts=SimpleNamespace(moe_ep_size=spread, moe_tp_size=over)), 4)
    sglang.check_parallel(Module(experts=SimpleNamespace(moe_ep_size=4)), 4)  # before it said more


@pytest.mark.parametrize("groups", [{"tp_group": None}, {"tp_group": 4, "kv_tp_group": 1}, {"tp_group": 2, "tp_size": 4}])
def test_sglang_modules_that_say_their_group_are_judged_by_that(groups: dict[str, int | None]) -> None:
    ranks = {k: v if v is None or k == "tp_size" else SimpleNamespace(world_size=v) for k, v in groups.items()}
    with pytest.raises(wsync.UnsupportedLayout, match=r"qkv_proj' is cut over \d of 4 ranks"):
        sglang.check_parallel(Module(**{"model.layers.0.self_attn.qkv_proj": SimpleNamespace(**ranks)}), 4)


def test_sglangs_arguments_are_read_where_its_version_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def retired() -> None:
        raise RuntimeError("get_global_server_args() is retired")

    def unpublished() -> None:
        raise ValueError("nothing is published")

    def versions(**modules: object) -> None:
        for name in ("sglang", "sglang.srt", "sglang.srt.runtime_context", "sglang.srt.server_args"):
            monkeypatch.setitem(sys.modules, name, modules.get(name.rpartition(".")[2], SimpleNamespace()))

    versions(runtime_context=SimpleNamespace(get_server_args=lambda: "new"),
             server_args=SimpleNamespace(get_global_server_args=retired))  # fmt: skip
    assert sglang._server_args() == "new"
    versions(server_args=SimpleNamespace(get_global_server_args=lambda: "older"))
    assert sglang._server_args() == "older"
    versions(runtime_context=SimpleNamespace(get_server_args=unpublished))
    assert sglang._server_args() is None
    versions()
    assert sglang._server_args() is None


@pytest.mark.parametrize(("spread", "over"), [(2, 2), (1, 2), (1, 1)])
def test_sglang_experts_that_are_cut_otherwise_than_by_all_ranks_are_refused(spread: int, over: int) -> None:
    layer = SimpleNamespace(moe_ep_size=spread, moe_tp_size=over)
    with pytest.raises(wsync.UnsupportedLayout, match=f"cut over {over} and spread over {spread} of 4 ranks") as error:
        sglang.check_parallel(Module(**{"model.layers.3.mlp.experts": layer}), 4)
    assert error.value.names == ("model.layers.3.mlp.experts",)
    assert "--ep-size 4" in error.value.next_step and "--moe-dp-size" in error.value.next_step


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("model.layers.0.mlp.gate_up_proj", "moe_dense_tp_size", 1),
        ("model.layers.3.mlp.shared_experts.down_proj", "moe_a2a_backend", "deepep"),
        ("model.layers.0.self_attn.o_proj", "enable_dp_attention", True),
        ("model.layers.0.self_attn.q_b_proj", "attn_cp_size", 4),
        ("model.layers.0.self_attn.qkv_proj", "dcp_size", 4),
        ("lm_head", "enable_dp_lm_head", True),
    ],
)
def test_sglang_modules_that_are_cut_otherwise_are_refused_with_the_flag(name: str, argument: str, value: object) -> None:
    plain = {
        "enable_dp_attention": False, "enable_dp_lm_head": False, "attn_cp_size": 1, "dcp_size": 1,
        "moe_dense_tp_size": None, "moe_a2a_backend": "none",
    }  # fmt: skip
    model = Module(**{name: SimpleNamespace(tp_size=1)})
    with pytest.raises(wsync.UnsupportedLayout, match="cut over 1 of 4 ranks") as error:
        sglang.check_parallel(model, 4, SimpleNamespace(**{**plain, argument: value}))
    assert error.value.names == (name,)
    assert error.value.next_step == f"leave --{argument.replace('_', '-')} out"
    with pytest.raises(wsync.UnsupportedLayout, match="plain tensor parallelism"):
        sglang.check_parallel(model, 4)


def test_a_worker_that_may_not_attach_leaves_no_connection(
    trainer: wsync.Trainer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine tries again with other settings, or without wsync: the connection and its thread stayed."""
    trainer.register(shared_arrays({"x.weight": (128, 128)}))
    opened: list[Live] = []

    class Counted(Live):
        def __init__(self, socket: str) -> None:
            super().__init__(socket)
            opened.append(self)

    class Worker(vllm.WorkerExtension):
        rank, model_config, parallel_config = 0, None, SimpleNamespace(world_size=1)

        def get_model(self) -> Module:
            return Module(marlin=REFUSED["marlin"][0])

    monkeypatch.setattr(vllm, "Live", Counted)
    monkeypatch.setattr(vllm, "_deep_gemm_scales", lambda live, timeout: (False, live.rollout.plan(timeout).pow2_scales))
    socket = cluster.start_rollout()
    with pytest.raises(wsync.UnsupportedLayout, match="Marlin"):
        Worker().wsync_attach(socket)
    assert len(opened) == 1
    with pytest.raises(wsync.ClientClosed):
        opened[0].rollout.plan()


def test_a_sglang_worker_that_may_not_attach_leaves_no_connection(
    trainer: wsync.Trainer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.register(shared_arrays({"x.weight": (128, 128)}))
    closed: list[Live] = []
    close = Live.close
    monkeypatch.setattr(Live, "close", lambda self: (closed.append(self), close(self))[1])
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace(__version__="0.5"))
    monkeypatch.setattr(sglang, "_ranks", lambda: (0, 1))
    monkeypatch.setenv("WSYNC_ROLLOUT_SOCKET", cluster.start_rollout())
    model = Module(norm=SimpleNamespace())
    model.config = SimpleNamespace(num_key_value_heads=1)  # type: ignore[attr-defined]
    model.named_parameters = lambda: []  # type: ignore[attr-defined]
    for _ in range(2):
        with pytest.raises(wsync.CatalogMismatch, match="the engine has no parameter"):
            sglang.load(model, [("wsync.version", np.array(1))])
    assert len(closed) == 2 and not sglang._lives
    with pytest.raises(wsync.ClientClosed):
        closed[0].rollout.plan()


def test_packed_scales_are_refused() -> None:
    check_scales({"x.weight_scale_inv": np.zeros((2, 2), np.float32), "x.weight": np.zeros((2, 2), np.int32)})
    with pytest.raises(wsync.UnsupportedLayout, match="int32") as error:
        check_scales({"x.weight_scale_inv": np.zeros((2, 2), np.int32)})
    assert error.value.names == ("x.weight_scale_inv",)


def test_scales_that_vllm_renamed_and_nested_experts_are_found() -> None:
    scale = Output("a.weight_scale_inv", Dtype.F32, (1, 1), is_scale=True)
    nested = Output("m.experts.0.up_proj.weight", Dtype.F8_E4M3, (128, 128))
    placements = [
        Placement(scale, (0, 1), (0, 1), "a.weight_scale_inv"),
        Placement(nested, (0, 1), (0, 1), "m.experts.w13_weight"),
    ]
    own = {"a.weight": 1, "a.weight_scale": 2, "m.experts.routed_experts.w13_weight": 3, "b.weight_scale": 4}
    model = SimpleNamespace(named_parameters=own.items)
    assert parameters_of(model, placements) == {
        "a.weight": 1, "a.weight_scale_inv": 2, "m.experts.w13_weight": 3, "b.weight_scale": 4,
    }  # fmt: skip


def test_experts_of_a_worker_are_read_from_its_layers() -> None:
    layer = SimpleNamespace(expert_map=np.array([-1, -1, 0, 1]), local_num_experts=2)
    assert vllm.local_experts(Module(a=SimpleNamespace(), b=layer)) == {2: 0, 3: 1}
    assert vllm.local_experts(Module(a=SimpleNamespace(expert_map=None, local_num_experts=4))) is None
    assert sglang.local_experts(Module(a=SimpleNamespace(moe_ep_size=4, moe_ep_rank=3, num_local_experts=2))) == {6: 0, 7: 1}
    assert sglang.local_experts(Module(a=SimpleNamespace(moe_ep_size=1, num_local_experts=8))) is None


def test_layers_and_heads_that_a_model_does_not_have_are_left_out() -> None:
    model = SimpleNamespace(named_parameters=lambda: [("model.layers.0.x.weight", 0), ("model.embed_tokens.weight", 0)])
    skip = not_in(model)
    assert skip("model.layers.61.eh_proj.weight") and skip("lm_head.weight")
    assert not skip("model.layers.0.x.weight") and not skip("model.norm.weight")


def test_a_worker_extension_takes_one_version_for_all_ranks() -> None:
    class Llm:
        def __init__(self, pending: list[int], served: list[int]) -> None:
            self.pending, self.served, self.calls = pending, served, []

        def collective_rpc(self, method: str, args: tuple[object, ...] = ()) -> list[dict[str, int]]:
            self.calls.append(args[0])
            return [{"value": value} for value in (self.pending if args[0] == "wsync_poll" else self.served)]

        def reset_prefix_cache(self) -> bool:
            return True

    assert vllm.update(Llm([3, 0], [])) == 0  # not on every worker yet
    assert vllm.update(Llm([3, 3], [3, 3])) == 3
    with pytest.raises(wsync.UnsupportedLayout, match=r"\[2, 3\]"):
        vllm.update(Llm([3, 3], [3, 2]))


def test_experts_that_are_moved_about_are_refused() -> None:
    with pytest.raises(wsync.UnsupportedLayout, match="EPLB") as refused:
        vllm.check_layout(Module(experts=SimpleNamespace(enable_eplb=True)))
    assert "--enable-eplb" in refused.value.next_step
    plain = {
        "enable_eplb": False, "ep_num_redundant_experts": 0, "init_expert_location": "trivial", "elastic_ep_backend": None,
    }  # fmt: skip
    sglang.check_experts(SimpleNamespace(**plain))
    sglang.check_experts(None)
    for name, value in (
        ("enable_eplb", True), ("ep_num_redundant_experts", 8), ("init_expert_location", "a.json"),
        ("elastic_ep_backend", "mooncake"), ("dwdp_size", 2),
    ):  # fmt: skip
        with pytest.raises(wsync.UnsupportedLayout, match=name.replace("_", "-")):
            sglang.check_experts(SimpleNamespace(**{**plain, name: value}))
