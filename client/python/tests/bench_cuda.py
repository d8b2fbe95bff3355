"""Figures, not a test: what torch processes at both ends cost beside 'wsync bench' of the same shapes and modes.

bench_cuda.py [qwen2.5-7b | qwen3-30b-a3b] [full | ring] [staged | in_place] [syncs], on two GPUs, with WSYNC_BIN set as for
the tests. The weights are random and lie in torch's caching allocator; the engine is a process of its own. Prints, of `syncs`
versions after three to warm up (medians): publish to committed, on both sides the time that calls take of the caller's
thread, and once registering and attaching. 'wsync bench' runs last, in the same call, for the ratio.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conftest import BIN, Cluster

import wsync
from wsync.tensors import torch_dtype

WARM_UP = 3


def shapes_of(model: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as the checkpoints on the hub have them."""
    if model == "qwen2.5-7b":
        hidden, layers, queries, keys, vocabulary, inner, experts = 3584, 28, 3584, 512, 152064, 18944, 0
    elif model == "qwen3-30b-a3b":
        hidden, layers, queries, keys, vocabulary, inner, experts = 2048, 48, 4096, 512, 151936, 768, 128
    else:
        raise SystemExit(f"no model {model!r}; there are qwen2.5-7b and qwen3-30b-a3b")
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        layer = f"model.layers.{i}"
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
            if not experts:
                yield f"{layer}.self_attn.{name}_proj.bias", (rows,)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries)
        if experts:
            yield f"{layer}.self_attn.q_norm.weight", (128,)
            yield f"{layer}.self_attn.k_norm.weight", (128,)
            yield f"{layer}.mlp.gate.weight", (experts, hidden)
        for mlp in [f"mlp.experts.{e}" for e in range(experts)] or ["mlp"]:
            yield f"{layer}.{mlp}.gate_proj.weight", (inner, hidden)
            yield f"{layer}.{mlp}.up_proj.weight", (inner, hidden)
            yield f"{layer}.{mlp}.down_proj.weight", (hidden, inner)
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def engine(socket: str, versions: int, report: Any) -> None:
    """The engine's process."""
    with wsync.Rollout(socket, timeout=60) as rollout:
        memory = {
            output.name: torch.zeros(output.shape, dtype=torch_dtype(output.dtype), device="cuda:1")
            for output in rollout.plan(60).outputs
        }
        begun = time.perf_counter()
        rollout.attach(memory)
        report.send(("attach", time.perf_counter() - begun))
        calls = []
        for update in rollout.updates(timeout=120):
            begun = time.thread_time()
            outcome = update.apply()
            calls.append(time.thread_time() - begun)
            if outcome.version == versions:
                break
        report.send(("apply", statistics.median(calls[WARM_UP:])))


def main(model: str = "qwen2.5-7b", source: str = "full", sink: str = "in_place", syncs: str = "20") -> None:
    versions = int(syncs) + WARM_UP
    torch.manual_seed(0)
    weights = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="cuda:0").normal_(std=0.02) for name, shape in shapes_of(model)
    }
    with tempfile.TemporaryDirectory(prefix="wsync-py-") as folder:
        cluster = Cluster(Path(folder))
        common = {"transfer__backend": "cuda", "transfer__bucket_bytes": "256MiB"}
        try:
            trainer_socket = cluster.start_trainer(**common, transfer__device="0", transfer__source_mode=source)
            common.pop("transfer__bucket_bytes")
            rollout_socket = cluster.start_rollout(**common, transfer__device="1", transfer__sink_mode=sink)
            here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
            with wsync.Trainer(trainer_socket, timeout=60) as trainer:
                begun = time.perf_counter()
                trainer.register(weights)
                print(f"register {len(weights)} tensors: {time.perf_counter() - begun:.2f} s")
                process = multiprocessing.get_context("spawn").Process(
                    target=engine, args=(rollout_socket, versions, there), daemon=True
                )
                process.start()
                if not here.poll(120):
                    raise SystemExit("the engine did not attach:\n" + cluster.log("rollout-0"))
                print(f"attach: {here.recv()[1]:.2f} s")
                committed, calls = [], []
                for version in range(1, versions + 1):
                    torch.cuda.synchronize()
                    begun, used = time.perf_counter(), time.thread_time()
                    sync = trainer.publish(version)
                    calls.append(time.thread_time() - used)
                    report = sync.committed(60)
                    committed.append(time.perf_counter() - begun)
                    assert report.applied, report
                print(f"publish -> committed: {statistics.median(committed[WARM_UP:]) * 1e3:.2f} ms")
                print(f"the publish call: {statistics.median(calls[WARM_UP:]) * 1e3:.2f} ms of the trainer's thread")
                print(f"the apply call: {here.recv()[1] * 1e3:.2f} ms of the engine's thread" if here.poll(60) else "no answer")
                process.join(20)
        finally:
            cluster.stop()
    del weights
    torch.cuda.empty_cache()
    command = [BIN / "wsync", "bench", "--backend", "cuda", "--shapes", model, "-o", "json"]
    command += ["--source-mode", source, "--sink-mode", sink, "--syncs", syncs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    bench = json.loads(done.stdout)
    ms = bench["committed_ms"]
    print(f"'wsync bench', same run: {ms:.2f} ms, ratio {statistics.median(committed[WARM_UP:]) * 1e3 / ms:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
