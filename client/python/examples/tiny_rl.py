"""A loop that trains: one process trains a small Qwen2 model with policy gradients, another generates with FP8 weights.

    python tiny_rl.py                                        # starts agents of its own; CPU, about a minute
    python tiny_rl.py --device cuda:0 --rollout-device cuda:1
    python tiny_rl.py --device cuda:0 --rollout-device cpu   # one GPU: NCCL takes one agent per GPU, so through host memory
    python tiny_rl.py --trainer-socket unix:///... --rollout-socket unix:///... --device cuda:0 --rollout-device cuda:1

Per step: the trainer publishes its weights; the rollout process takes them as FP8 codes and scales, straight into its
parameters, samples completions with matrix products of dequantized weights, and sends samples and logprobs back, tagged
with the version they were sampled with; the trainer takes a REINFORCE step (the reward is the share of even tokens).

Checked at every version: the rollout's logprobs of its own samples agree with the trainer's within what FP8 rounding of
the weights explains, and the reward has grown in the end. Any failure exits with 1. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.nn.functional import linear
from transformers import Qwen2Config, Qwen2ForCausalLM

import wsync
from wsync.engines.live import dequantized

PROMPT, LENGTH, SAMPLES = 4, 8, 64
# Block FP8 rounds a weight by at most 1/16 of itself, mostly far less; through this model's two layers the worst of 512
# tokens is off by 0.06 nat at first and less as the policy sharpens.
LOGPROB_BOUND = 0.2
ATTACHED = b"attached"  # what the rollout process says before its first samples


def tiny_qwen2(seed: int) -> Qwen2ForCausalLM:
    """256 wide, 2 layers, 512 tokens, FP32; all projections are multiples of 128, as FP8 blocks want them."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


# ---- the rollout process


class DequantizedLinear(torch.nn.Module):
    """A linear layer that holds what the checkpoint holds: FP8 codes, and a float32 scale per 128 x 128 block."""

    def __init__(self, replaced: torch.nn.Linear) -> None:
        super().__init__()
        rows, cols = replaced.weight.shape
        codes = torch.zeros(rows, cols, dtype=torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.weight_scale_inv = torch.nn.Parameter(torch.zeros(-(-rows // 128), -(-cols // 128)), requires_grad=False)
        self.bias = replaced.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, dequantized(self.weight, self.weight_scale_inv, x.dtype), self.bias)


def serving_model(outputs: dict[str, wsync.Output]) -> Qwen2ForCausalLM:
    """Other weights than the trainer's, and FP8 wherever the plan sends FP8."""
    model = tiny_qwen2(seed=99).requires_grad_(False)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and outputs[f"{name}.weight"].quantized:
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], DequantizedLinear(module))
    return model


@torch.no_grad()
def sample(model: Qwen2ForCausalLM, seed: int) -> torch.Tensor:
    """SAMPLES completions of random prompts, [SAMPLES, PROMPT + LENGTH]."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    tokens = torch.randint(0, 512, (SAMPLES, PROMPT), generator=generator, device=device)
    for _ in range(LENGTH):
        logits = model(tokens).logits[:, -1].float()
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1, generator=generator)], 1)
    return tokens


def logprobs(model: Qwen2ForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Of every completion token, [SAMPLES, LENGTH], float32."""
    logits = model(tokens[:, :-1]).logits[:, PROMPT - 1 :].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, PROMPT:, None])[..., 0]


def rollout_process(arguments: argparse.Namespace) -> None:
    with wsync.Rollout(arguments.rollout_socket) as rollout, Connection(arguments.samples, readable=False) as trainer:
        model = serving_model(rollout.plan().by_name).to(arguments.rollout_device)
        wsync.engines.torch_nn.attach(rollout, model, engine="tiny_rl")
        trainer.send_bytes(ATTACHED)
        for update in rollout.updates(timeout=120):
            outcome = update.apply()  # this thread is the engine: while it is here, nothing is generated
            tokens = sample(model, seed=outcome.version)
            with torch.no_grad():
                scores = logprobs(model, tokens)
            pause = outcome.timings.pause_ms if outcome.timings else 0.0
            send(trainer, rollout.serving_version, pause, tokens, scores)
            if outcome.version == arguments.steps:
                return


# ---- between the two: plain bytes


def send(to: Connection, version: int, pause_ms: float, tokens: torch.Tensor, scores: torch.Tensor) -> None:
    to.send_bytes(f"{version} {pause_ms:.3f}".encode())
    to.send_bytes(tokens.to("cpu", torch.int64).contiguous().numpy().tobytes())
    to.send_bytes(scores.to("cpu", torch.float32).contiguous().numpy().tobytes())


def receive_bytes(sender: Connection) -> bytes:
    if not sender.poll(120):
        raise SystemExit("tiny_rl: the rollout process sent nothing for 120 s")
    try:
        return sender.recv_bytes()
    except EOFError:
        raise SystemExit("tiny_rl: the rollout process has ended") from None


def receive(sender: Connection, device: str) -> tuple[int, float, torch.Tensor, torch.Tensor]:
    version, pause_ms = receive_bytes(sender).decode().split()
    tokens = torch.frombuffer(bytearray(receive_bytes(sender)), dtype=torch.int64).view(SAMPLES, PROMPT + LENGTH)
    scores = torch.frombuffer(bytearray(receive_bytes(sender)), dtype=torch.float32).view(SAMPLES, LENGTH)
    return int(version), float(pause_ms), tokens.to(device), scores.to(device)


# ---- the trainer process


def train(arguments: argparse.Namespace, samples: Connection) -> None:
    model = tiny_qwen2(seed=1).to(arguments.device)  # FP32 masters; the agent makes FP8 of them
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rewards = []
    with wsync.Trainer(arguments.trainer_socket) as trainer:
        if arguments.through_host:  # registered copies, which each publish fills
            registration = trainer.register({n: p.detach().cpu() for n, p in model.named_parameters()}, copy="always")
        else:
            registration = trainer.register(model)
        print(f"{registration.tensors} tensors, {registration.quantized_tensors} as FP8, {registration.payload_bytes} bytes")
        assert receive_bytes(samples) == ATTACHED  # a publish waits for replicas, not for an engine that still starts
        for step in range(1, arguments.steps + 1):
            weights = model.named_parameters() if arguments.through_host else None
            sync = trainer.publish(version=step, weights=weights)
            released_ms = sync.released()
            version, pause_ms, tokens, theirs = receive(samples, arguments.device)
            report = sync.committed()
            assert report.applied and version == step, (report, version)

            ours = logprobs(model, tokens)
            gap = (ours.detach() - theirs).abs()
            reward = (tokens[:, PROMPT:] % 2 == 0).float().mean(-1)
            loss = -((reward - reward.mean())[:, None] * ours).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # in place: the agent reads here
            rewards.append(reward.mean().item())
            print(
                f"step {step:3d}  version {version:3d}  reward {rewards[-1]:.3f}  loss {loss.item():+.4f}  "
                f"logprob {ours.mean().item():+.4f} (rollout {theirs.mean().item():+.4f}, "
                f"mean gap {gap.mean().item():.4f}, worst {gap.max().item():.4f})  "
                f"released {released_ms:.1f} ms  committed {report.committed_ms:.1f} ms  pause {pause_ms:.2f} ms",
                flush=True,
            )
            assert gap.max().item() < LOGPROB_BOUND, f"version {version}: the rollout computes with other weights"
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    print(f"reward {first:.3f} -> {last:.3f}")
    assert last > first + 0.1, "the policy did not learn"


# ---- agents of its own, when none are given


@contextmanager
def agents(arguments: argparse.Namespace):
    """A trainer agent and a rollout agent in a temporary folder, unless sockets were given."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiny-rl-"))
        if arguments.trainer_socket is None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
            arguments.trainer_socket, arguments.rollout_socket = (f"unix://{folder}/{n}.sock" for n in ("t", "r"))
            for device, command in (
                (arguments.device, ["wsync-trainer", f"--local_socket={arguments.trainer_socket}",
                                    f"--coordinator.listen={coordinator}"]),
                (arguments.rollout_device, ["wsync-rollout", f"--local_socket={arguments.rollout_socket}",
                                            f"--coordinator={coordinator}"]),
            ):  # fmt: skip
                command[0] = str(arguments.bin / command[0])
                if device != "cpu" and not arguments.through_host:
                    command += ["--transfer.backend=cuda", f"--transfer.device={torch.device(device).index or 0}"]
                agent = subprocess.Popen([*command, "--log.level=error"])
                stack.callback(agent.wait)
                stack.callback(agent.terminate)
        yield


def choose_devices(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.rollout_device is None:
        another = arguments.device != "cpu" and torch.cuda.device_count() > 1
        arguments.rollout_device = f"cuda:{1 - min(torch.device(arguments.device).index or 0, 1)}" if another else "cpu"
    if arguments.device != "cpu" and arguments.device == arguments.rollout_device:
        parser.error("NCCL takes one agent per GPU: choose another --rollout-device, or cpu")
    if (arguments.device == "cpu") != (arguments.rollout_device == "cpu"):
        if arguments.device == "cpu":
            parser.error("a rollout on a GPU needs a trainer on one: give --device, too")
        arguments.through_host = True  # agents of one kind on both sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    build = Path(__file__).resolve().parents[3] / "build" / "release" / "bin"
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="of the trainer")
    parser.add_argument("--rollout-device", default=None, help="of the rollout; default: another GPU if there is one, or cpu")
    parser.add_argument("--through-host", action="store_true", help="host agents, and copies of the weights in host memory")
    parser.add_argument("--trainer-socket", help="of running agents; default: starts its own")
    parser.add_argument("--rollout-socket")
    parser.add_argument("--bin", type=Path, default=Path(os.environ.get("WSYNC_BIN", build)), help="the agents' folder")
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)  # given to the rollout process
    arguments = parser.parse_args()
    choose_devices(parser, arguments)
    torch.set_num_threads(1)  # two processes and two agents share the cores
    if arguments.samples is not None:
        return rollout_process(arguments)
    began = time.monotonic()
    samples, theirs = Pipe(duplex=False)
    with agents(arguments), samples:
        command = [sys.executable, __file__, f"--samples={theirs.fileno()}", f"--steps={arguments.steps}",
                   f"--rollout-socket={arguments.rollout_socket}", f"--rollout-device={arguments.rollout_device}"]  # fmt: skip
        rollout = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()  # or its end would not be seen
        try:
            train(arguments, samples)
            assert rollout.wait(60) == 0, "the rollout process failed"
        finally:
            rollout.kill()
            rollout.wait()
    print(f"{arguments.steps} versions in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
