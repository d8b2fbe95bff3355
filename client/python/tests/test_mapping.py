"""Checkpoint names into fused and sharded parameters, against tables of real models. No engine, no tensor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import wsync
from wsync.catalog import Dtype, Output, blocks, matrix
from wsync.engines.mapping import SGLANG, UNFUSED, VLLM, Naming, Placement, Sharding, check, expert_parallel, place

Shapes = dict[str, tuple[int, ...]]


# ---- the models, as their checkpoints have them


def qwen25_7b(layers: int = 28) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (152064, 3584)}
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, rows in (("q", 3584), ("k", 512), ("v", 512)):
            shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, 3584)
            shapes[f"{p}self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{p}self_attn.o_proj.weight"] = (3584, 3584)
        shapes[f"{p}mlp.gate_proj.weight"] = shapes[f"{p}mlp.up_proj.weight"] = (18944, 3584)
        shapes[f"{p}mlp.down_proj.weight"] = (3584, 18944)
        shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (3584,)
    return {**shapes, "model.norm.weight": (3584,), "lm_head.weight": (152064, 3584)}


def qwen3_30b_a3b(layers: int = 48, experts: int = 128) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (151936, 2048)}
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, rows in (("q", 4096), ("k", 512), ("v", 512)):
            shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, 2048)
        shapes[f"{p}self_attn.o_proj.weight"] = (2048, 4096)
        shapes[f"{p}self_attn.q_norm.weight"] = shapes[f"{p}self_attn.k_norm.weight"] = (128,)
        shapes[f"{p}mlp.gate.weight"] = (experts, 2048)
        for e in range(experts):
            shapes[f"{p}mlp.experts.{e}.gate_proj.weight"] = shapes[f"{p}mlp.experts.{e}.up_proj.weight"] = (768, 2048)
            shapes[f"{p}mlp.experts.{e}.down_proj.weight"] = (2048, 768)
        shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (2048,)
    return {**shapes, "model.norm.weight": (2048,), "lm_head.weight": (151936, 2048)}


def deepseek_v3(layers: int = 61, dense: int = 3, experts: int = 256) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (129280, 7168)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes[f"{p}self_attn.q_a_proj.weight"] = (1536, 7168)
        shapes[f"{p}self_attn.q_a_layernorm.weight"] = (1536,)
        shapes[f"{p}self_attn.q_b_proj.weight"] = (128 * 192, 1536)
        shapes[f"{p}self_attn.kv_a_proj_with_mqa.weight"] = (576, 7168)
        shapes[f"{p}self_attn.kv_a_layernorm.weight"] = (512,)
        shapes[f"{p}self_attn.kv_b_proj.weight"] = (128 * 256, 512)
        shapes[f"{p}self_attn.o_proj.weight"] = (7168, 128 * 128)
        mlps = [(f"{p}mlp.", 18432)] if i < dense else [(f"{p}mlp.shared_experts.", 2048)]
        if i >= dense:
            mlps += [(f"{p}mlp.experts.{e}.", 2048) for e in range(experts)]
            shapes[f"{p}mlp.gate.weight"] = (experts, 7168)
            shapes[f"{p}mlp.gate.e_score_correction_bias"] = (experts,)
        for prefix, width in mlps:
            shapes[f"{prefix}gate_proj.weight"] = shapes[f"{prefix}up_proj.weight"] = (width, 7168)
            shapes[f"{prefix}down_proj.weight"] = (7168, width)
        shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (7168,)
    return {**shapes, "model.norm.weight": (7168,), "lm_head.weight": (129280, 7168)}


_KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight")


def outputs_of(shapes: Shapes, granularity: str = "block") -> list[Output]:
    """What the plan of a model gives: FP8 codes and scales for linear weights, the rest as it is."""
    outputs = []
    for name, shape in shapes.items():
        if len(shape) < 2 or any(kept in name for kept in _KEPT):
            outputs.append(Output(name, Dtype.BF16, shape))
            continue
        outputs.append(Output(name, Dtype.F8_E4M3, shape, quantized=True))
        if granularity == "block":
            scale = Output(f"{name}_scale_inv", Dtype.F32, (blocks(shape[0]), blocks(shape[1])), is_scale=True)
        else:
            scale = Output(f"{name}_scale", Dtype.F32, (shape[0], 1) if granularity == "channel" else (1,), is_scale=True)
        outputs.append(scale)
    return outputs


# ---- the engines' parameters, written down per layer


def sharded(name: str, rows: int, cols: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, cols)
    yield f"{name}.weight_scale_inv", (blocks(rows), blocks(cols))


def vllm_qwen25_7b(tp: int) -> Shapes:
    kv = max(4 // tp, 1) * 128
    qkv, half = 3584 // tp + 2 * kv, 18944 // tp
    shapes: Shapes = {"model.embed_tokens.weight": (152064 // tp, 3584), "lm_head.weight": (152064 // tp, 3584)}
    for i in range(28):
        p = f"model.layers.{i}."
        shapes.update(sharded(f"{p}self_attn.qkv_proj", qkv, 3584))
        shapes[f"{p}self_attn.qkv_proj.bias"] = (qkv,)
        shapes.update(sharded(f"{p}self_attn.o_proj", 3584, 3584 // tp))
        shapes.update(sharded(f"{p}mlp.gate_up_proj", 2 * half, 3584))
        shapes.update(sharded(f"{p}mlp.down_proj", 3584, half))
        shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (3584,)
    return {**shapes, "model.norm.weight": (3584,)}


def stacked(p: str, experts: int, width: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{p}w13_weight", (experts, 2 * width, hidden)
    yield f"{p}w13_weight_scale_inv", (experts, 2 * blocks(width), blocks(hidden))
    yield f"{p}w2_weight", (experts, hidden, width)
    yield f"{p}w2_weight_scale_inv", (experts, blocks(hidden), blocks(width))


def vllm_qwen3_30b_a3b(tp: int, experts: int, width: int) -> Shapes:
    kv = max(4 // tp, 1) * 128
    vocabulary = 151936 // tp  # a multiple of 64, and of 2
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, 2048), "lm_head.weight": (vocabulary, 2048)}
    for i in range(48):
        p = f"model.layers.{i}."
        shapes.update(sharded(f"{p}self_attn.qkv_proj", 4096 // tp + 2 * kv, 2048))
        shapes.update(sharded(f"{p}self_attn.o_proj", 2048, 4096 // tp))
        shapes[f"{p}self_attn.q_norm.weight"] = shapes[f"{p}self_attn.k_norm.weight"] = (128,)
        shapes[f"{p}mlp.gate.weight"] = (128, 2048)
        shapes.update(stacked(f"{p}mlp.experts.", experts, width, 2048))
        shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (2048,)
    return {**shapes, "model.norm.weight": (2048,)}


def engine_deepseek_v3(tp: int, experts: int, width: int, qkv_a: str) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (129280 // tp, 7168), "lm_head.weight": (129280 // tp, 7168)}
    for i in range(61):
        p = f"model.layers.{i}."
        shapes[f"{p}self_attn.{qkv_a}.weight"] = (1536 + 576, 7168)
        shapes[f"{p}self_attn.{qkv_a}.weight_scale_inv"] = (12 + 5, 56)
        shapes[f"{p}self_attn.q_a_layernorm.weight"] = (1536,)
        shapes[f"{p}self_attn.kv_a_layernorm.weight"] = (512,)
        shapes.update(sharded(f"{p}self_attn.q_b_proj", 128 // tp * 192, 1536))
        shapes.update(sharded(f"{p}self_attn.kv_b_proj", 128 // tp * 256, 512))
        shapes.update(sharded(f"{p}self_attn.o_proj", 7168, 128 // tp * 128))
        mlp, intermediate = (f"{p}mlp.", 18432) if i < 3 else (f"{p}mlp.shared_experts.", 2048)
        shapes.update(sharded(f"{mlp}gate_up_proj", 2 * intermediate // tp, 7168))
        shapes.update(sharded(f"{mlp}down_proj", 7168, intermediate // tp))
        if i >= 3:
            shapes[f"{p}mlp.gate.weight"] = (256, 7168)
            shapes[f"{p}mlp.gate.e_score_correction_bias"] = (256,)
            shapes.update(stacked(f"{p}mlp.experts.", experts, width, 7168))
        shapes[f"{p}input_layernorm.weight"] = shapes[f"{p}post_attention_layernorm.weight"] = (7168,)
    return {**shapes, "model.norm.weight": (7168,)}


# ---- checks


def assert_exact(placements: list[Placement], parameters: Shapes) -> None:
    """Every element of every parameter is filled exactly once."""
    check(placements, parameters)
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    for p in placements:
        box = (p.row, p.row + p.rows[1] - p.rows[0], p.col, p.col + p.cols[1] - p.cols[0])
        boxes.setdefault(p.parameter, []).append(box)
    for name, shape in parameters.items():
        area = sum((b - a) * (d - c) for a, b, c, d in boxes[name])
        rows, cols = matrix(shape)
        assert area == rows * cols, name
        ordered = sorted(boxes[name])
        assert all(x[1] <= y[0] or x[3] <= y[2] for x, y in zip(ordered, ordered[1:], strict=False)), name


def find(placements: list[Placement], output: str) -> Placement:
    found = [p for p in placements if p.output.name == output]
    assert len(found) == 1, output
    return found[0]


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_qwen25_7b_on_vllm(tp: int) -> None:
    outputs = outputs_of(qwen25_7b())
    for rank in range(tp):
        placements = place(outputs, VLLM, Sharding(rank, tp, kv_heads=4))
        assert_exact(placements, vllm_qwen25_7b(tp))
    q, kv = 3584 // tp, 512 // tp
    last = tp - 1
    k = find(placements, "model.layers.5.self_attn.k_proj.weight")
    assert (k.parameter, k.rows, k.row) == ("model.layers.5.self_attn.qkv_proj.weight", (last * kv, tp * kv), q)
    v = find(placements, "model.layers.5.self_attn.v_proj.weight_scale_inv")
    assert (v.rows, v.row) == ((last * kv // 128, 4), (q + kv) // 128)
    bias = find(placements, "model.layers.5.self_attn.v_proj.bias")
    assert (bias.rows, bias.cols, bias.row, bias.col) == ((0, 1), (last * kv, tp * kv), 0, q + kv)
    up = find(placements, "model.layers.27.mlp.up_proj.weight")
    assert (up.rows, up.row) == ((18944 // tp * last, 18944), 18944 // tp)
    down = find(placements, "model.layers.27.mlp.down_proj.weight_scale_inv")
    assert (down.cols, down.col) == ((148 // tp * last, 148), 0)
    head = find(placements, "lm_head.weight")
    assert head.rows == (152064 // tp * last, 152064)


def test_kv_heads_are_repeated_where_ranks_outnumber_them() -> None:
    shapes = {f"m.self_attn.{n}_proj.weight": (rows, 1024) for n, rows in (("q", 2048), ("k", 256), ("v", 256))}
    for rank in range(8):
        placements = place(outputs_of(shapes), VLLM, Sharding(rank, 8, kv_heads=2))
        head = rank // 4
        assert find(placements, "m.self_attn.k_proj.weight").rows == (128 * head, 128 * head + 128)
        assert find(placements, "m.self_attn.v_proj.weight_scale_inv").rows == (head, head + 1)
        assert_exact(placements, dict(sharded("m.self_attn.qkv_proj", 256 + 256, 1024)))


def test_qwen25_7b_at_eight_ranks_is_refused_as_the_engine_does() -> None:
    with pytest.raises(wsync.UnsupportedLayout, match="blocks of 128") as error:
        place(outputs_of(qwen25_7b(1)), VLLM, Sharding(0, 8, kv_heads=4))
    assert error.value.names and "fewer tensor-parallel ranks" in error.value.next_step
    with pytest.raises(wsync.UnsupportedLayout, match="do not divide by 5"):
        place(outputs_of(qwen25_7b(1)), VLLM, Sharding(0, 5, kv_heads=4))


@pytest.mark.parametrize("tp", [1, 2])
def test_qwen3_30b_a3b_on_vllm(tp: int) -> None:
    outputs = outputs_of(qwen3_30b_a3b())
    assert len(outputs) == 18867 + 18624
    rank = tp - 1
    placements = place(outputs, VLLM, Sharding(rank, tp, kv_heads=4))
    assert_exact(placements, vllm_qwen3_30b_a3b(tp, 128, 768 // tp))
    up = find(placements, "model.layers.3.mlp.experts.9.up_proj.weight")
    assert up.parameter == "model.layers.3.mlp.experts.w13_weight"
    assert (up.rows, up.row) == ((768 // tp * rank, 768), 9 * 2 * 768 // tp + 768 // tp)
    scale = find(placements, "model.layers.3.mlp.experts.9.up_proj.weight_scale_inv")
    assert (scale.rows, scale.row) == ((6 // tp * rank, 6), 9 * 12 // tp + 6 // tp)
    down = find(placements, "model.layers.3.mlp.experts.9.down_proj.weight_scale_inv")
    assert (down.cols, down.row, down.parameter[-20:]) == ((6 // tp * rank, 6), 9 * 16, ".w2_weight_scale_inv")


def test_qwen3_30b_a3b_with_four_ranks_needs_expert_parallelism() -> None:
    outputs = outputs_of(qwen3_30b_a3b(1))
    with pytest.raises(wsync.UnsupportedLayout):
        place(outputs, VLLM, Sharding(1, 4, kv_heads=4))


@pytest.mark.parametrize(("ep", "per_rank"), [(2, 64), (8, 16)])
def test_qwen3_30b_a3b_with_expert_parallelism(ep: int, per_rank: int) -> None:
    outputs = outputs_of(qwen3_30b_a3b())
    for rank in (0, ep - 1):
        experts = expert_parallel(128, rank, ep)
        placements = place(outputs, VLLM, Sharding(rank, 2, kv_heads=4, experts=experts) if ep == 2 else
                           Sharding(0, 1, kv_heads=4, experts=experts))  # fmt: skip
        assert_exact(placements, vllm_qwen3_30b_a3b(2 if ep == 2 else 1, per_rank, 768))
    first = per_rank * (ep - 1)
    gate = find(placements, f"model.layers.0.mlp.experts.{first + 1}.gate_proj.weight")
    assert (gate.rows, gate.row) == ((0, 768), 2 * 768)
    assert not any(f".experts.{first - 1}." in p.output.name for p in placements)


def test_experts_are_shared_out_as_vllm_does_where_they_do_not_divide() -> None:
    parts = [expert_parallel(10, rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [3, 3, 2, 2]
    assert sorted(expert for part in parts for expert in part) == list(range(10))
    assert parts[2] == {6: 0, 7: 1}


@pytest.mark.parametrize(("naming", "qkv_a"), [(VLLM, "fused_qkv_a_proj"), (SGLANG, "fused_qkv_a_proj_with_mqa")])
def test_deepseek_v3_with_expert_parallelism(naming: Naming, qkv_a: str) -> None:
    outputs = outputs_of(deepseek_v3())
    assert sum(output.quantized for output in outputs) == 45032
    experts = expert_parallel(256, 5, 32)
    placements = place(outputs, naming, Sharding(5, 8, experts=experts))
    assert_exact(placements, engine_deepseek_v3(8, 8, 2048, qkv_a))
    kv_a = find(placements, "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv")
    assert (kv_a.rows, kv_a.row, kv_a.parameter) == ((0, 5), 12, f"model.layers.0.self_attn.{qkv_a}.weight_scale_inv")


def test_deepseek_v3_with_tensor_parallelism_only() -> None:
    placements = place(outputs_of(deepseek_v3()), VLLM, Sharding(15, 16))
    assert_exact(placements, engine_deepseek_v3(16, 256, 128, "fused_qkv_a_proj"))


def test_the_dense_q_proj_of_a_small_mla_model_is_not_fused_with_kv_a() -> None:
    shapes = {"m.self_attn.q_proj.weight": (3072, 2048), "m.self_attn.kv_a_proj_with_mqa.weight": (576, 2048)}
    placements = place(outputs_of(shapes), Naming(qkv=None), Sharding())
    assert {p.parameter.split(".")[2] for p in placements} == {"q_proj", "kv_a_proj_with_mqa"}


def test_without_fusing_every_output_has_its_parameter() -> None:
    outputs = outputs_of(deepseek_v3(4, 3, 2))
    assert_exact(place(outputs, UNFUSED), {output.name: output.shape for output in outputs})


def test_channel_scales_go_with_the_rows_and_tensor_scales_are_refused_where_fused() -> None:
    outputs = outputs_of(qwen25_7b(1), "channel")
    placements = place(outputs, VLLM, Sharding(1, 2, kv_heads=4))
    v = find(placements, "model.layers.0.self_attn.v_proj.weight_scale")
    assert (v.rows, v.cols, v.row) == ((256, 512), (0, 1), 1792 + 256)
    o = find(placements, "model.layers.0.self_attn.o_proj.weight_scale")
    assert (o.rows, o.cols) == ((0, 3584), (0, 1))
    per_tensor = outputs_of(qwen25_7b(1), "tensor")
    with pytest.raises(wsync.UnsupportedLayout, match="one scale per tensor"):
        place(per_tensor, VLLM, Sharding(0, 1))
    assert_exact(place(per_tensor, UNFUSED), {output.name: output.shape for output in per_tensor})


def test_a_padded_vocabulary_leaves_its_padding_alone() -> None:
    outputs = [Output("model.embed_tokens.weight", Dtype.BF16, (1000, 64))]
    rows = [place(outputs, VLLM, Sharding(rank, 4))[0].rows for rank in range(4)]
    assert rows == [(0, 256), (256, 512), (512, 768), (768, 1000)]  # 1024 rows in all
    check(place(outputs, VLLM, Sharding(3, 4)), {"model.embed_tokens.weight": (256, 64)})


def test_check_lists_what_does_not_fit_on_either_side() -> None:
    outputs = outputs_of({"a.weight": (256, 128), "b.weight": (128, 128), "c.bias": (64,)})
    parameters = {"a.weight": (128, 128), "a.weight_scale_inv": (2, 1), "c.bias": (128,), "d.weight": (1,), "e": (4,)}
    with pytest.raises(wsync.CatalogMismatch) as error:
        check(place(outputs, UNFUSED), parameters, derived=lambda name: name == "e")
    assert set(error.value.names) >= {"a.weight", "b.weight", "b.weight_scale_inv", "c.bias", "d.weight"}
    for text in ("no parameter 'b.weight'", "do not fit 'a.weight'", "64 of 128 elements", "no output goes there"):
        assert text in str(error.value)
    assert "'e'" not in str(error.value)


def test_what_is_skipped_is_not_placed() -> None:
    outputs = outputs_of(deepseek_v3(4, 3, 2))
    placements = place(outputs, VLLM, skip=lambda name: ".layers.3." in name)
    assert not any(".layers.3." in p.output.name for p in placements)


def test_a_fused_part_without_its_partner_is_named() -> None:
    with pytest.raises(wsync.CatalogMismatch, match="gate_proj") as error:
        place(outputs_of({"m.mlp.up_proj.weight": (256, 128)}), VLLM, Sharding())
    assert error.value.names[0].startswith("m.mlp.up_proj.weight")
