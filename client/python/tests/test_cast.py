"""FP32 masters: `cast="unquantized"` sends as BF16 what the agent would not quantize, and leaves it to the agent what that is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from conftest import Cluster, assert_helpful
from models import SHAPES, EngineThread, memory_for, randomize, shared_arrays

import wsync

QUANTIZED = {name for name in SHAPES if "proj.weight" in name}


def test_what_is_not_quantized_is_sent_as_bf16(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    masters = shared_arrays(SHAPES, np.float32)
    randomize(masters, 1)
    registration = trainer.register(masters, cast="unquantized")
    assert set(registration.copied) == SHAPES.keys() - QUANTIZED and registration.quantized_tensors == len(QUANTIZED)
    outputs = rollout.plan().by_name
    assert all(outputs[name].quantized == (name in QUANTIZED) for name in SHAPES)
    assert {outputs[name].dtype for name in registration.copied} == {wsync.Dtype.BF16}
    engine = memory_for(rollout.plan())
    rollout.attach(engine)
    publication = trainer.publish(1)
    assert next(rollout.updates(timeout=30)).apply().applied and publication.committed().applied
    for name in registration.copied:
        np.testing.assert_array_equal(engine[name], masters[name].astype(ml_dtypes.bfloat16), err_msg=name)


def test_the_agents_recipe_decides_and_nobody_hears_of_the_question(cluster: Cluster) -> None:
    with wsync.Trainer(cluster.start_trainer(recipe__fp8="false")) as trainer:
        masters = shared_arrays(SHAPES, np.float32)
        keep = trainer.register(masters, modules_to_not_convert=["model.layers.0.mlp"])
        assert keep.quantized_tensors == 0
        registration = trainer.register(masters, cast="unquantized", replace=True)
        assert set(registration.copied) == SHAPES.keys()
        assert cluster.log("trainer").count("weights registered") == 2


def test_an_own_list_of_what_not_to_convert_counts(trainer: wsync.Trainer) -> None:
    masters = shared_arrays(SHAPES, np.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    registration = trainer.register(masters, cast="unquantized", modules_to_not_convert=["model.layers.0.mlp.up_proj"])
    assert name in registration.copied and "model.layers.0.mlp.down_proj.weight" not in registration.copied


def test_scales_of_weights_that_are_fp8_stay_as_they_are(pair: tuple[wsync.Trainer, wsync.Rollout]) -> None:
    trainer, rollout = pair
    name = "model.layers.0.mlp.up_proj.weight"
    weights = {
        **shared_arrays({name: (128, 256)}, ml_dtypes.float8_e4m3fn),
        **shared_arrays({f"{name}_scale_inv": (1, 2), "norm.weight": (64,)}, np.float32),
    }
    assert trainer.register(weights, cast="unquantized").copied == ("norm.weight",)
    assert rollout.plan().by_name[f"{name}_scale_inv"].dtype == wsync.Dtype.F32


def test_a_question_of_the_plan_that_has_no_answer_says_which_tensor(trainer: wsync.Trainer) -> None:
    one = shared_arrays({"x.weight": (4, 4)}, np.float32)["x.weight"]
    with pytest.raises(wsync.CatalogMismatch) as error:
        trainer.register([("x.weight", one)] * 2, tied="all", cast="unquantized")
    assert_helpful(error, "x.weight")
    assert trainer.registration is None


def test_a_torch_model_of_masters_is_served_in_bf16(cluster: Cluster) -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.LayerNorm(128))
    with wsync.Trainer(cluster.start_trainer()) as trainer:
        trainer.register(net, cast="unquantized", rename=lambda name: f"model.layers.{name}")
        engine = EngineThread(cluster.start_rollout())
        trainer.wait_for_replicas(timeout=30)
        with torch.no_grad():
            net[1].weight.fill_(1.00390625)  # BF16 rounds it to 1
        assert trainer.publish(1).committed(require="all").applied
        assert (engine.weights["model.layers.1.weight"].astype(np.float32) == 1).all()
        engine.stop()
