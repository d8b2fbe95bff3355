"""From the names that training frameworks give to weights, to the checkpoint's: for register(..., rename=...)."""

from __future__ import annotations

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def unwrapped(name: str) -> str:
    """Without what FSDP, activation checkpointing and torch.compile put in: anywhere, and DDP's "module." in front."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("module.")
