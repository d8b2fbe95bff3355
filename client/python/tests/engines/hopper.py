"""vLLM and SGLang on a machine without a GPU, for tests: what they choose for an H100, their tensors in host memory.

Nothing of theirs is replaced but the answer to "which device is this?". Their kernels cannot run, so nothing here does a
forward pass. Import before anything of theirs.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # vLLM then believes in a Triton without a driver
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_DISABLE_SHARED_EXPERTS_STREAM"] = "1"  # its stream is a CUDA stream
os.environ["HF_HUB_OFFLINE"] = "1"

_RENDEZVOUS = tempfile.TemporaryDirectory(prefix="wsync-rendezvous-")  # every group that is made reads it


def be_an_h100() -> None:
    """vLLM's platform from here on: CUDA, compute capability 9.0, memory on the CPU."""
    import vllm.platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class H100(CudaPlatformBase):
        device_name = device_type = "cpu"
        dispatch_key = "CPU"
        dist_backend = "gloo"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 << 30

        @classmethod
        def get_device_communicator_cls(cls) -> str:
            return "vllm.distributed.device_communicators.base_device_communicator.DeviceCommunicatorBase"

        @classmethod
        def is_pin_memory_available(cls) -> bool:
            return False

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 132

    vllm.platforms._current_platform = H100()


def vllm_config(path: Path, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    options = {"skip_tokenizer_init": True, "enforce_eager": True, "dtype": "bfloat16", "max_model_len": 128, **options}
    return EngineArgs(model=str(path), **options).create_engine_config()


def _one_rank() -> None:
    """A group of one, made anew for each model: an expert-parallel one only for models with experts."""
    import torch
    from vllm.distributed import destroy_model_parallel, init_distributed_environment, initialize_model_parallel
    from vllm.v1.worker.workspace import init_workspace_manager

    if not torch.distributed.is_initialized():
        init_distributed_environment(1, 0, f"file://{_RENDEZVOUS.name}/vllm", 0, "gloo")
        init_workspace_manager(torch.device("cpu"))
    destroy_model_parallel()
    initialize_model_parallel(1, 1)


def vllm_model(config: Any, load: bool = True, rank: int = 0) -> Any:
    """vLLM's own model, loaded and processed by vLLM; without `load` only constructed, on the meta device.

    `rank`: of the config's tensor-parallel ones, which loading asks after and never talks to.
    """
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import get_tp_group
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_current_vllm_config(config):
        _one_rank()
        group = get_tp_group()
        group.world_size, group.rank_in_group = config.parallel_config.tensor_parallel_size, rank
        if load:
            return get_model(vllm_config=config)
        with set_default_torch_dtype(torch.bfloat16), torch.device("meta"):
            return initialize_model(config)


def be_sglangs_h100() -> None:
    """torch from here on as SGLang asks it: one H100, whose memory is on the CPU."""
    import torch
    from torch.overrides import TorchFunctionMode

    class OnTheCpu(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if "cuda" in str(kwargs.get("device")):
                kwargs["device"] = "cpu"
            return func(*args, **kwargs)

    class Stream:
        """In the place of a CUDA stream, which models make and keep."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132,
        shared_memory_per_block_optin=232448,
    )  # fmt: skip
    torch.cuda.Stream = Stream
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.set_device = lambda device: None
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    torch.cuda.get_device_name = lambda *device: properties.name
    torch.cuda.get_device_properties = lambda *device: properties
    torch.cuda.mem_get_info = lambda *device: (79 << 30, 80 << 30)
    OnTheCpu().__enter__()


def _stand(parallel: Any, group: Any) -> None:
    """This process in the tensor-parallel `group`. A group of one, such as the pipeline's, is how it began."""
    values = {}
    for kind in ("tp", "attn_tp", "moe_tp"):
        values |= {f"{kind}_group": group, f"{kind}_size": group.world_size, f"{kind}_rank": group.rank_in_group}
    parallel.override_permanently(**values)


def sglang_model(path: Path, rank: int = 0, ranks: int = 1, **options: Any) -> Any:
    """SGLang's own model of a checkpoint, loaded and processed by SGLang, as the one of this process.

    `rank`: of `ranks` tensor-parallel ones, which loading asks after and never talks to.
    """
    import torch
    from safetensors.torch import load_file
    from sglang.srt import runtime_context
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
    from sglang.srt.layers.dp_attention import initialize_dp_attention
    from sglang.srt.layers.moe import initialize_moe_config
    from sglang.srt.model_loader import loader
    from sglang.srt.model_loader.utils import set_default_torch_dtype
    from sglang.srt.server_args import ServerArgs

    arguments = ServerArgs(
        model_path=str(path), device="cpu", skip_tokenizer_init=True, mem_fraction_static=0.5, attention_backend="fa3",
        disable_cuda_graph=True, custom_weight_loader=["wsync.engines.sglang.load"], **options,
    )  # fmt: skip
    parallel = runtime_context.get_parallel()
    if torch.distributed.is_initialized():
        _stand(parallel, parallel.pp_group)
    runtime_context.publish(arguments, role="scheduler", ranks=runtime_context.SpawnRanks(world_rank=0))
    if not torch.distributed.is_initialized():
        init_distributed_environment(1, 0, f"file://{_RENDEZVOUS.name}/sglang", 0, "gloo")
        initialize_model_parallel(backend="gloo")
    group = copy.copy(parallel.tp_group)
    group.world_size, group.rank_in_group = ranks, rank
    _stand(parallel, group)
    initialize_dp_attention(arguments)
    initialize_moe_config()
    config = ModelConfig.from_server_args(arguments)
    load_config = LoadConfig()
    with set_default_torch_dtype(torch.bfloat16):
        model = loader._initialize_model(config, load_config, loader._get_quantization_config(config, load_config))
        model.load_weights(load_file(path / "model.safetensors").items())
        loader.DefaultModelLoader.postprocess_weights(model, torch.device("cpu"))
    return model
