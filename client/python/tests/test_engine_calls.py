"""How an engine's workers find their agents and their own names, and what vLLM is told around a version. With stand-ins."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

import wsync
from wsync.catalog import Dtype, Output
from wsync.engines import vllm
from wsync.engines.live import socket_of
from wsync.engines.mapping import VLLM, place
from wsync.engines.remote_errors import answer


def test_vllms_sleep_mode_is_refused_by_its_own_name() -> None:
    vllm.check_memory(SimpleNamespace(enable_sleep_mode=False))
    with pytest.raises(wsync.UnsupportedLayout, match="sleep mode") as error:
        vllm.check_memory(SimpleNamespace(enable_sleep_mode=True))
    assert "enable_sleep_mode" in error.value.next_step and "PYTORCH" not in str(error.value)


@pytest.mark.parametrize("given, rank, ranks, socket", [
    ("", 0, 1, "unix:///run/wsync/rollout.sock"),
    ("", 1, 2, "unix:///run/wsync/rollout-1.sock"),
    ("unix:///tmp/r{rank}", 3, 4, "unix:///tmp/r3"),
    ("unix:///tmp/r", 0, 1, "unix:///tmp/r"),
])  # fmt: skip
def test_a_worker_finds_its_agent_by_the_agents_own_default(given: str, rank: int, ranks: int, socket: str) -> None:
    assert socket_of(given, rank, ranks) == socket


@dataclass
class Mapper:
    """As vLLM's WeightsMapper: a prefix, and what is fused."""

    prefix: dict[str, str]
    orig_to_new_stacked: dict[str, str] = field(default_factory=lambda: {"x": "y"})

    def _map_name(self, name: str) -> str | None:
        assert not self.orig_to_new_stacked, "fused modules are mapping's to find"
        for old, new in self.prefix.items():
            if name.startswith(old):
                return new + name.removeprefix(old) if new else None
        return name


def test_a_models_own_names_are_found_by_its_mappers_from_the_outside_to_the_inside() -> None:
    body = Mapper({"layers.0.mamba.A_log": "layers.0.mamba.A", "layers.": "blocks."})
    modules = {
        "": SimpleNamespace(hf_to_vllm_mapper=Mapper({"model.language_model.": "language.model.", "mtp.": ""})),
        "language.model": SimpleNamespace(hf_to_vllm_mapper=body),
        "language.model.again": SimpleNamespace(hf_to_vllm_mapper=body),
    }  # fmt: skip
    rename = vllm.renaming(SimpleNamespace(named_modules=modules.items))
    assert rename("model.language_model.layers.0.x.weight") == "language.model.blocks.0.x.weight"
    assert rename("visual.layers.0.weight") == "visual.layers.0.weight" and rename("mtp.fc.weight") is None
    with pytest.raises(wsync.UnsupportedLayout, match="computes") as error:
        rename("model.language_model.layers.0.mamba.A_log")
    assert error.value.names and error.value.next_step


def test_outputs_go_where_their_renamed_names_belong_and_keep_their_own() -> None:
    shapes = {f"m.block.experts.0.{w}.weight": (256, 128) for w in ("w1", "w3")} | {"m.block.experts.0.w2.weight": (128, 256)}
    outputs = [Output(name, Dtype.BF16, shape) for name, shape in shapes.items()]
    placements = place(outputs, VLLM, rename=lambda name: name.replace("m.block.", "language.mlp."))
    places = {p.output.name: (p.parameter, p.row) for p in placements}
    assert places == {
        "m.block.experts.0.w1.weight": ("language.mlp.experts.w13_weight", 0),
        "m.block.experts.0.w3.weight": ("language.mlp.experts.w13_weight", 256),
        "m.block.experts.0.w2.weight": ("language.mlp.experts.w2_weight", 0),
    }
    assert place(outputs, VLLM, rename=lambda name: None) == []


@pytest.mark.parametrize("done", [True, False])
def test_the_prefix_cache_is_reset_after_a_version_unless_told_not_to(done: bool, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def rpc(method: str, args: tuple[object, ...] = ()) -> list[dict[str, object]]:
        assert method == "wsync_call"
        calls.append(str(args[0]))
        return [answer(lambda: 7), answer(lambda: 7)]

    llm = SimpleNamespace(collective_rpc=rpc, reset_prefix_cache=lambda: calls.append("reset") or done)
    assert vllm.update(llm) == 7 and calls == ["wsync_poll", "wsync_apply", "reset"]
    assert ("prefix cache" in caplog.text) is not done
    assert vllm.update(llm, reset_prefix_cache=False) == 7 and calls[3:] == ["wsync_poll", "wsync_apply"]


def test_an_async_engine_is_paused_for_a_version_and_left_paused_where_that_fails() -> None:
    class Engine:
        def __init__(self, served: list[int]) -> None:
            self.served, self.calls = served, []

        async def collective_rpc(self, method: str, args: tuple[object, ...] = ()) -> list[dict[str, object]]:
            assert method == "wsync_call"
            self.calls.append(str(args[0]))
            return [answer(lambda: version) for version in self.served]

        async def pause_generation(self, *, mode: str) -> None:
            self.calls.append(mode)

        async def resume_generation(self) -> None:
            self.calls.append("resume")

        async def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
            self.calls.append(f"reset {reset_running_requests}")
            return True

    one, two = Engine([4]), Engine([4, 3])
    assert asyncio.run(vllm.update_async(one)) == 4
    assert one.calls == ["wsync_poll", "keep", "wsync_apply", "reset True", "resume"]
    with pytest.raises(wsync.UnsupportedLayout):
        asyncio.run(vllm.update_async(two))
    assert two.calls == ["wsync_poll", "keep", "wsync_apply"]
    assert asyncio.run(vllm.update_async(Engine([0]))) == 0
    attached = Engine([5, 6])
    assert asyncio.run(vllm.attach_async(attached)) == 11 and attached.calls == ["wsync_attach"]
