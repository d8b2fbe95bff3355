"""What can go wrong, one class per thing a caller may want to handle.

Every error says in `str(error)` what was tried, on what, why it failed; `error.names` lists the tensors, parameters or
members concerned, and `error.next_step` is what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class WsyncError(Exception):
    """Base of all errors of this package."""

    default_next_step = ""

    def __init__(self, text: str, *, names: Iterable[str] = (), next_step: str = "") -> None:
        self.text = text  # without the next step
        self.names: tuple[str, ...] = tuple(names)
        self.next_step: str = next_step or self.default_next_step
        super().__init__(f"{text}\n  next: {self.next_step}" if self.next_step else text)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ray, process pools and engines' workers carry what their tasks raise to other processes."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[WsyncError], args: tuple[Any, ...], state: dict[str, Any]) -> WsyncError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class AgentUnavailable(WsyncError):
    """No agent answers at the socket, or it went away during the call."""

    default_next_step = "start the agent, or give its local_socket"


class AgentGone(AgentUnavailable):
    """The agent died or stood still with a call open; the text has its phase and when it was last heard of."""

    default_next_step = "see its log, and start it again where its supervisor does not"


class DeadlineExceeded(WsyncError, TimeoutError):
    """The call's own time limit ran out; the text says what was still missing."""

    default_next_step = "see 'wsync status' for what is being waited for, or allow more time"


class ClientClosed(WsyncError):
    """The call was made on a Trainer or Rollout that was closed, or was open when it was."""

    default_next_step = "make another one; where a version was on its way, 'wsync status' tells what became of it"


class AlreadyRegistered(WsyncError):
    """Another live process has registered its weights with this trainer agent, or this one has and did not say `replace`."""

    default_next_step = "stop that process, or take over with register(..., replace=True)"


class NotRegistered(WsyncError):
    """There is no registration that this call could be about."""

    default_next_step = "call register first"


class AlreadyAttached(WsyncError):
    """Another engine is attached to this rollout agent."""

    default_next_step = "stop or detach the other engine; an agent serves one"


class NotAttached(WsyncError):
    """The call needs an attached engine."""

    default_next_step = "call attach first"


class CatalogMismatch(WsyncError):
    """Names, shapes or dtypes disagree between trainer, plan and engine; `names` lists the tensors."""

    default_next_step = "compare with 'wsync plan --model DIR'; the agent's recipe decides which tensors are FP8"


class WrongDevice(WsyncError):
    """A tensor lies on another device than the agent's, or tensors lie on several."""

    default_next_step = "run one agent per device, with transfer.backend set to the device's kind, and register there"


class MemoryNotShareable(WsyncError):
    """A tensor's memory cannot be lent to another process as it is.

    `cause`, of memory on a GPU: "expandable_segments", "async_allocator", "memory_pool", or "" where it is another or unknown.
    """

    def __init__(self, text: str, *, names: Iterable[str] = (), next_step: str = "", cause: str = "") -> None:
        self.cause = cause
        super().__init__(text, names=names, next_step=next_step)


class StreamUnsupported(WsyncError):
    """A CUDA stream was given where nothing can be ordered against one."""

    default_next_step = "leave `stream` out: released() and apply() return when the agent has finished"


class WeightsMoved(WsyncError):
    """Registered weights lie elsewhere now, or their module has others; nothing was read from the old place."""

    default_next_step = "register(..., replace=True) after whatever moved or replaced them (.to(), offload), then publish"


class UnmergedAdapters(WsyncError):
    """Adapters of a registered PEFT model are active and not merged into the weights that would be sent; `names`: their layers."""

    default_next_step = (
        "merge_adapter() before publish and unmerge_adapter() after released(), or register with adapters='base' "
        "(without them) or 'only' (them alone)"
    )


class WeightsChanged(WsyncError):
    """Registered weights were written while the agent read them: the version is, or would be, parts of two states.

    `report`: what became of it, where it went out all the same; None: it was called off, or its end is not known yet.
    """

    report: Any = None
    default_next_step = "let weights change only after released() (or queue it behind released(stream=...)), and publish anew"

    def __init__(self, text: str, *, names: Iterable[str] = (), next_step: str = "", report: Any = None) -> None:
        self.report = report
        super().__init__(text, names=names, next_step=next_step)


class DestinationsMoved(WsyncError):
    """The engine's memory lies elsewhere than when it was attached; nothing was written to it."""

    default_next_step = "attach again after whatever moved the parameters (sleep mode, reload)"


class StaleVersion(WsyncError):
    """An older version than the committed one, or the same number with other content."""

    def __init__(self, text: str, *, next_version: int) -> None:
        self.next_version = next_version
        super().__init__(text, next_step=f"publish version {next_version} or higher")


class PublishInProgress(WsyncError):
    """The agent still carries another version."""

    default_next_step = "wait for committed() of the version before"


class InvalidWeights(WsyncError):
    """NaN or infinity in a weight; `names` has the tensor. The version before is served on."""

    default_next_step = "look at the training step that produced the value; the version number may be used again"


class TooFewReplicas(WsyncError):
    """Fewer replicas are ready than coordinator.min_replicas asks for."""

    default_next_step = "'wsync status' says why each absent replica is not ready"


class PublishFailed(WsyncError):
    """The version was not committed; every replica serves what it served before, or says TORN."""

    default_next_step = "publish again (the number may be used again); 'wsync status' shows the members"


class NotAllApplied(WsyncError):
    """The version is committed, and a replica was left out or is torn; `names` has these, `report` what became of each."""

    report: Any = None
    default_next_step = "'wsync status' shows the members; one that comes back is given the version by itself"

    def __init__(self, text: str, *, names: Iterable[str] = (), next_step: str = "", report: Any = None) -> None:
        self.report = report
        super().__init__(text, names=names, next_step=next_step)


class TornUpdate(WsyncError):
    """The engine's weights hold parts of two versions; it must not serve until a complete version was applied."""

    default_next_step = "stay paused and call apply() again, or restart the engine"


class UnsupportedLayout(WsyncError):
    """The engine keeps a weight in another layout than the checkpoint's, or cuts it where blocks do not end."""


class WrongProcess(WsyncError, TypeError):
    """A client was to be pickled or copied, or was used in a forked child: its connection and memory are its process's own.

    A TypeError as well, as what cannot be pickled raises.
    """

    default_next_step = "give the other process the socket, and make a client there, after the fork"


class AgentError(WsyncError):
    """Anything else that an agent answered."""
