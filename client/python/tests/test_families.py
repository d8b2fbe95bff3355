"""Every family of transformers: what `register` sends is what `save_pretrained` writes, and `attach` takes it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

import families  # noqa: E402
from conftest import Cluster  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import wsync  # noqa: E402

transformers.logging.disable_progress_bar()


# What transformers 5.24 does not load as FP8, or `wsync quantize` leaves in a form of its own.
NOT_FP8 = {
    "gpt2": "its Conv1D modules are no Linear ones",
    "nemotron_h": "transformers' FP8Experts does not know its activation",
}


def start(folder: Path, **recipe: str) -> Cluster:
    """A trainer agent and a rollout agent: families come to them one after another."""
    cluster = Cluster(folder)
    cluster.start_trainer(**recipe)
    cluster.start_rollout()
    return cluster


@pytest.fixture(scope="module")
def bf16_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = start(tmp_path_factory.mktemp("bf16"), recipe__fp8="false")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def fp8_agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = start(tmp_path_factory.mktemp("fp8"))
    yield cluster
    cluster.stop()


def checkpoint(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def raw(tensor: Any) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def forget(model: Any) -> None:
    for tensor in model.state_dict().values():
        tensor.view(-1).view(torch.uint8).zero_()


def follow_one(rollout: wsync.Rollout, trainer: wsync.Trainer) -> None:
    sync = trainer.publish(1 + trainer.registration.committed_version)
    assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_model_is_sent_as_its_checkpoint_has_it_and_another_takes_it(
    family: str, bf16_agents: Cluster, tmp_path: Path
) -> None:
    trained = families.save(family, tmp_path / "trained", seed=1)
    engine = families.build(family, seed=2)
    files = checkpoint(tmp_path / "trained")
    with wsync.Trainer(bf16_agents.socket("trainer")) as trainer:
        trainer.register(trained)
        with wsync.Rollout(bf16_agents.socket("rollout-0")) as rollout:
            outputs = {o.name: (o.shape, wsync.tensors.torch_dtype(o.dtype)) for o in rollout.plan().outputs}
            assert outputs == {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in files.items()}
            wsync.engines.transformers.attach(rollout, engine)
            follow_one(rollout, trainer)
        want = trained.state_dict()
        for name, tensor in engine.state_dict().items():
            assert torch.equal(raw(tensor), raw(want[name])), name
        folders = ("--out", str(tmp_path / "served"), "--like", str(tmp_path / "trained"))
        bf16_agents.wsync("export", *folders, "--socket", bf16_agents.socket("rollout-0"))
    served = checkpoint(tmp_path / "served")
    assert served.keys() == files.keys()
    for name, tensor in served.items():
        assert torch.equal(raw(tensor), raw(files[name])), name


@pytest.fixture
def load_fp8(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Any]:
    """Loads a checkpoint as FP8 modules. Without a GPU transformers would dequantize it: its check is answered."""
    from transformers.quantizers import quantizer_finegrained_fp8

    monkeypatch.setattr(quantizer_finegrained_fp8, "is_torch_xpu_available", lambda: True)

    def load(family: str, path: Path) -> Any:
        return families.class_of(families.FAMILIES[family]()).from_pretrained(path, dtype=torch.bfloat16)

    return load


@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_fp8_model_holds_after_a_version_what_its_loader_makes_of_the_same_weights(
    family: str, fp8_agents: Cluster, tmp_path: Path, load_fp8: Callable[[str, Path], Any]
) -> None:
    if family in NOT_FP8:
        pytest.skip(f"{family}: {NOT_FP8[family]}")
    trained = families.save(family, tmp_path / "trained", seed=1)
    fp8_agents.wsync("quantize", str(tmp_path / "trained"), str(tmp_path / "fp8"))
    engine = load_fp8(family, tmp_path / "fp8")
    want = {name: raw(tensor).clone() for name, tensor in engine.state_dict().items()}
    codes = [name for name, tensor in engine.state_dict().items() if tensor.dtype == torch.float8_e4m3fn]
    forget(engine)
    with wsync.Trainer(fp8_agents.socket("trainer")) as trainer:
        with wsync.Rollout(fp8_agents.socket("rollout-0")) as rollout:
            assert 0 < len(codes) <= trainer.register(trained).quantized_tensors
            wsync.engines.transformers.attach(rollout, engine)
            follow_one(rollout, trainer)
    for name, tensor in engine.state_dict().items():
        assert torch.equal(raw(tensor), want[name]), name


@pytest.mark.parametrize("mode", ["staged", "in_place"])
def test_what_an_engine_keeps_in_float32_is_widened_before_it_goes_on(mode: str, cluster: Cluster) -> None:
    trained, engine = (families.build("qwen3_next", seed) for seed in (1, 2))
    wide = {name for name, parameter in engine.named_parameters() if parameter.ndim == 1 or ".experts." in name}
    for name, parameter in engine.named_parameters():
        if name in wide:
            parameter.data = parameter.data.float()
    cluster.start_trainer(recipe__fp8="false")
    with wsync.Trainer(cluster.socket("trainer")) as trainer, wsync.Rollout(cluster.start_rollout(transfer__sink_mode=mode)) as rollout:
        trainer.register(trained)
        wsync.engines.transformers.attach(rollout, engine, layer_events=mode == "in_place")
        seen: list[str] = []

        def on_layer(layer: wsync.Layer) -> None:
            for name in wide if layer.name else ():
                if name.startswith(f"{layer.name}."):
                    assert torch.equal(engine.get_parameter(name), trained.get_parameter(name).float()), name
                    seen.append(name)

        for version in (1, 2):
            families.randomize(trained, seed=10 + version)
            sync = trainer.publish(version)
            update = next(rollout.updates(timeout=30))
            assert update.apply(on_layer=on_layer if mode == "in_place" else None).applied and sync.committed().applied
            for name, parameter in engine.named_parameters():
                assert torch.equal(parameter, trained.get_parameter(name).to(parameter.dtype)), name
        assert len(seen) == (2 * sum(".layers." in name for name in wide) if mode == "in_place" else 0)
        engine.model.norm.weight.data = engine.model.norm.weight.data.clone()
        trainer.publish(3)
        with pytest.raises(wsync.DestinationsMoved) as error:
            next(rollout.updates(timeout=30)).apply()
        assert error.value.names == ("model.norm.weight",)
