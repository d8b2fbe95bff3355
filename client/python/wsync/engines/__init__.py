"""Engine adapters: they build destinations and pause; the agent does the rest.

`mapping` is pure: names and shapes in, placements out. `torch_nn` and `transformers` attach a model of this process;
`vllm` and `sglang` hold the classes and functions that those engines load into their workers. Nothing here imports an
engine before one of its functions is called.
"""

from . import bind, mapping, sglang, torch_nn, transformers, vllm

__all__ = ["bind", "mapping", "sglang", "torch_nn", "transformers", "vllm"]
