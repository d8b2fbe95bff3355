"""Every family of transformers: what `register` sends is what `save_pretrained` writes, and `attach` takes it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")

import families  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

import wsync  # noqa: E402
from conftest import BIN, Cluster  # noqa: E402

transformers.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A trainer agent that sends BF16, and a rollout agent for an engine; families come one after another."""
    cluster = Cluster(tmp_path_factory.mktemp("families"))
    try:
        cluster.start_trainer(recipe__fp8="false")
        cluster.start_rollout()
        yield cluster
    finally:
        cluster.stop()


def checkpoint(folder: Path) -> dict[str, Any]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_model_is_sent_as_its_checkpoint_names_it_and_another_takes_it(
    family: str, agents: Cluster, tmp_path: Path
) -> None:
    trained = families.save(family, tmp_path, seed=1)
    engine = families.build(family, seed=2)
    files = checkpoint(tmp_path)
    with wsync.Trainer(agents.socket("trainer")) as trainer, wsync.Rollout(agents.socket("rollout-0")) as rollout:
        trainer.register(trained)
        outputs = rollout.plan().outputs
        assert {o.name: o.shape for o in outputs} == {name: tuple(tensor.shape) for name, tensor in files.items()}
        assert {o.name: wsync.tensors.torch_dtype(o.dtype) for o in outputs} == {n: t.dtype for n, t in files.items()}
        wsync.engines.transformers.attach(rollout, engine)
        sync = trainer.publish(1 + trainer.registration.committed_version)
        assert next(rollout.updates(timeout=30)).apply().applied and sync.committed().applied
    for name, tensor in engine.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    engine.save_pretrained(tmp_path / "engine")
    after = checkpoint(tmp_path / "engine")
    assert after.keys() == files.keys() and all(torch.equal(after[name], tensor) for name, tensor in files.items())


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
