"""The training process's side: register the weights once, publish a version per step.

    trainer = wsync.Trainer("unix:///run/wsync/trainer.sock")
    trainer.register(model)                 # or its (name, tensor) pairs
    sync = trainer.publish(version=step)    # returns at once
    sync.released()                         # weights may change again
    report = sync.committed()               # what each replica made of it
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Any, Literal, get_args

import grpc

from . import _rpc, _wire, memory
from .adapters import Choice as AdapterChoice
from .adapters import Merged
from .arguments import check_callable, check_choice, check_seconds, check_text, whole_number
from .catalog import Dtype
from .changes import Watched
from .errors import (
    AgentUnavailable,
    AlreadyRegistered,
    CatalogMismatch,
    DeadlineExceeded,
    NotRegistered,
    PublishInProgress,
    WeightsMoved,
    WsyncError,
)
from .held import Held
from .names import pairs
from .ownership import OfOneProcess
from .publication import Publication
from .registration import Registration, chunked, entry_of, messages_of, registration_from
from .replicas import ready_replicas, too_few
from .stream_events import LentEvents, Stream, StreamOrder, check_stream
from .tensors import Addresses, Tensor, Tensors, bf16_of, check_pair, garbage_free, once, plain, to_the_end, why_unreadable
from .weights import Cast, CopyPolicy, Weight, collect, copy_into, held_by, lend, refresh

_log = logging.getLogger("wsync")

# For an agent that is back to take the registration again: the five seconds that one which is stopped may cost.
_AGAIN_TIMEOUT = 5.0
_LOOK = 0.1  # seconds between looks at who is ready
_SLICE = 0.2  # seconds that a thread which waits for its agent may go on after `unregister`


class Trainer(OfOneProcess):
    """One trainer agent's client. Methods may be called from any thread, one at a time; publications from any."""

    def __init__(
        self,
        socket: str = "unix:///run/wsync/trainer.sock",
        *,
        timeout: float = 10.0,
        reconnect_timeout: float = 0.8,
    ) -> None:
        """`socket`: the agent's local_socket. `timeout`: seconds that `register` waits for the agent to answer at all.

        `reconnect_timeout`: seconds that a publish waits for an agent that died to come back. By default a dead agent
        costs the trainer less than a second; more is for supervisors that take longer, and keeps the trainer waiting.
        """
        check_text("socket", socket)
        check_seconds("timeout", timeout)
        check_seconds("reconnect_timeout", reconnect_timeout)
        self._connection = _rpc.Connection(socket, "wsync-trainer")
        self._stub = _wire.TrainerStub(self._connection.channel)
        self._timeout = timeout
        self._reconnect_timeout = reconnect_timeout
        self._era = 0  # up by one with each register and unregister: nothing of an earlier one is published again
        self._era_ended = ""  # why the last one did
        self._lock = threading.Lock()  # of the three below: publications register again from their threads
        self._id = ""
        self._registration: Registration | None = None
        self._request: list[Any] = []  # messages of the present registration
        self._weights: list[Weight] = []
        self._copies: list[Weight] = []
        self._addresses = Addresses([])
        self._watched = Watched([])
        self._held: Held | None = None
        self._adapters = Merged((), "base")
        self._devices: set[str] = set()
        self._events = LentEvents("")
        self._last: Publication | None = None

    # ---- registering

    def register(
        self,
        tensors: Tensors,
        *,
        rename: Callable[[str], str | None] | None = None,
        copy: CopyPolicy = "never",
        cast: Cast | None = None,
        tied: Literal["first", "all"] = "first",
        adapters: AdapterChoice = "merged",
        modules_to_not_convert: tuple[str, ...] | list[str] = (),
        replace: bool = False,
        timeout: float = 60.0,
    ) -> Registration:
        """Tells the agent which weights there are and where they lie. Once; again after memory moved.

        `tensors`: (name, tensor) pairs, a mapping, or a module. Any shape; dtypes of torch and numpy. FP32 and FP16
        weights are quantized as BF16 ones are; FP8 weights with their `weight_scale_inv` pass through unchanged. Only of
        a module can `publish` tell that it was given other parameters since; of pairs, that these were moved.

        A transformers model, also inside of another module (DDP, FSDP, torch.compile, PEFT), is sent under its checkpoint's
        names, as `save_pretrained` writes them: each expert of a stack by itself, without a copy. CatalogMismatch names
        what transformers would have to compute. Of other modules and of pairs the names are their own.

        `adapters`, of a PEFT model: "merged": the base weights, into which the adapters must be merged whenever a version
        is published (else UnmergedAdapters); "base": the base weights, not looked at; "only": the one active adapter
        alone, as PEFT's `save_pretrained` names it.

        `rename(name)` is given that name and gives another, None leaves the tensor out. `cast(name, tensor)` gives a dtype to
        send a copy in, or None. "unquantized", for FP32 masters: as BF16 what is FP32 and would not be quantized, which the
        agent is asked for.

        `copy`: "never": the agent reads the tensors themselves; private CPU tensors are moved into shared memory
        (their `.data`). "if_needed": what cannot be lent (non-contiguous, private numpy) is copied, and copied again
        by each publish. "always": everything is, and may change right after publish returned.

        `tied`: of names for the same memory in the same shape, dtype and order of elements, send the "first", as
        checkpoints of transformers do, or "all", for engines that hold each: the bytes are carried once per name. A view
        that differs in one of them is no tie, and is sent under its own name.

        CatalogMismatch, MemoryNotShareable and WrongDevice name the tensors; AlreadyRegistered: another process, or
        an earlier call, holds the agent (`replace=True` takes over); AgentUnavailable; DeadlineExceeded after `timeout` seconds.

        A publication that waits for its agent to come back ends with NotRegistered: its number does not stand for these
        weights. So does a `register` that another thread's `register` or `unregister` overtakes.

        What is refused leaves nothing behind: what was registered before stays, and no memory was moved. An iterator is asked
        for all it gives first: gathering is collective.
        """
        tensors = once(tensors)
        with to_the_end(tensors):
            return self._register(tensors, rename, copy, cast, tied, adapters, modules_to_not_convert, replace, timeout)

    def _register(
        self,
        tensors: Tensors,
        rename: Callable[[str], str | None] | None,
        copy: CopyPolicy,
        cast: Cast | None,
        tied: str,
        adapters: AdapterChoice,
        modules_to_not_convert: tuple[str, ...] | list[str],
        replace: bool,
        timeout: float,
    ) -> Registration:
        check_choice("copy", copy, get_args(CopyPolicy))
        check_choice("tied", tied, ("first", "all"))
        check_choice("adapters", adapters, get_args(AdapterChoice))
        check_callable("rename", rename)
        if isinstance(cast, str):
            check_choice("cast", cast, ("unquantized",))
        else:
            check_callable("cast", cast)
        check_seconds("timeout", timeout)
        if isinstance(modules_to_not_convert, str):
            raise TypeError(f"modules_to_not_convert {modules_to_not_convert!r}: expected a list of names")
        self._connection.check_open("register")
        with contextlib.ExitStack() as undo:  # what was refused leaves nothing behind
            with garbage_free():
                weights, ties = collect(tensors, rename, tied, adapters)
                undo.callback(weights.clear)
                self._connection.wait(self._timeout)
                if isinstance(cast, str):
                    cast = self._cast_unquantized(weights, list(modules_to_not_convert), timeout)
                lend(weights, ties, copy, cast, undo)
                handles = memory.Handles()
                undo.callback(handles.let_go)
                places = [handles.locate(weight.name, weight.view) for weight in weights]
                request = messages_of(weights, places, handles, list(modules_to_not_convert), replace)
            reply = self._adopt(request, timeout)
            undo.pop_all()
        self._weights = weights
        self._copies = [weight for weight in weights if weight.copied]
        lent = [(w.name, w.lent) for w in weights if not w.copied and w.view.torch]
        lent += [(tie.name, tie.source) for tie in ties if not tie.weight.copied and tie.view.torch and tie.apart]
        self._addresses, self._watched = Addresses(lent), Watched(lent)
        self._held = held_by(tensors, weights, ties)
        self._adapters = Merged(tensors, adapters)
        self._devices = {weight.view.device for weight in weights}
        self._events = LentEvents(handles.uuid)
        self._registration = registration_from(reply, ties, self._copies)
        _log.info("registered with %s: %s", self._connection.socket, self._registration)
        return self._registration

    def _cast_unquantized(
        self, weights: list[Weight], modules_to_not_convert: list[str], timeout: float
    ) -> Callable[[str, Tensor], Any]:
        """FP32 as BF16, but for what the agent says that it would quantize, and for scales of weights that are FP8."""
        header = _wire.message("RegisterHeader")(
            pid=os.getpid(), modules_to_not_convert=modules_to_not_convert, plan_only=True
        )
        entries = [entry_of(weight, (0, 0)) for weight in weights]
        quantized = self._call_register(list(chunked(entries, header)), timeout).quantized
        keep = {weights[i].name for i in quantized}
        keep |= {weight.name + "_scale_inv" for weight in weights if weight.view.dtype == Dtype.F8_E4M3}
        return lambda name, tensor: None if name in keep else bf16_of(tensor)

    def _adopt(self, request: list[Any], timeout: float) -> Any:
        """The agent's reply; from here on this is what `publish` is about."""
        give_up = time.monotonic() + timeout
        era = self._end_era("the weights were registered anew", "register", timeout)
        reply = self._call_register(request, max(give_up - time.monotonic(), 0.0))
        request[0].header.replace = False  # to take over was asked for once, not whenever the agent restarts
        with self._lock:
            if self._era != era:  # nobody may wait for this one: asyncio's, whose task was cancelled
                with contextlib.suppress(grpc.RpcError, ValueError):  # the later one took over
                    self._call_unregister(reply.registration_id, _AGAIN_TIMEOUT)
                raise NotRegistered(f"register: meanwhile {self._era_ended}", next_step="one registration at a time")
            self._request = request
            self._id = reply.registration_id
        return reply

    def _call_register(self, request: list[Any], timeout: float) -> Any:
        try:
            return self._stub.register(iter(request), timeout=timeout)
        except grpc.RpcError as error:
            raise _rpc.register_error(self._connection, error) from None
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            raise self._connection.closed("register") from None

    def _register_again(self, lost: str, era: int, *, forgotten: bool) -> str:
        """The id that the weights of this era have now; `forgotten`: the agent said that it is not `lost`. "": taken back.

        An id of a later era would be that of other weights, which were not published under this number.
        """
        with self._lock:
            if self._id == lost and self._found_agent(era):
                again = self._register_or_keep(lost, forgotten)
                if self._era != era:
                    with contextlib.suppress(grpc.RpcError, ValueError):  # gone, or closed: nobody can
                        self._call_unregister(again, _AGAIN_TIMEOUT)
                else:
                    self._id = again
                    _log.warning("%s is back: registered with it again", self._connection.socket)
            return self._id if self._era == era else ""

    def _register_or_keep(self, lost: str, forgotten: bool) -> str:
        """The connection alone may have been lost: then the agent has our registration yet.

        Where it has another one of this process, another Trainer took over.
        """
        try:
            return str(self._call_register(self._request, _AGAIN_TIMEOUT).registration_id)
        except AlreadyRegistered as held:
            if forgotten or not _rpc.is_held_by_this_process(str(held)):
                raise
            return lost

    def _found_agent(self, era: int) -> bool:
        """One check that takes as long as it needs: an agent on a loaded machine is there, and slow to say so."""
        found: Future[None] = Future()
        threading.Thread(target=self._look_for_agent, args=(era, found), name="wsync-reconnect", daemon=True).start()
        while self._era == era and not found.done():
            with contextlib.suppress(FutureTimeout):
                found.exception(_SLICE)
        if self._era == era:
            found.result()
        return self._era == era

    def _look_for_agent(self, era: int, found: Future[None]) -> None:
        give_up = time.monotonic() + self._reconnect_timeout
        while self._era == era and not found.done():
            left = give_up - time.monotonic()
            try:
                self._connection.wait(max(left, 0.0))
                found.set_result(None)
            except AgentUnavailable as absent:  # with time left: it died over the check
                if left <= 0:
                    found.set_exception(absent)
            except BaseException as error:
                found.set_exception(error)

    @property
    def registration(self) -> Registration | None:
        """What the last register answered."""
        return self._registration

    # ---- publishing

    def publish(
        self, version: int, *, weights: Tensors | None = None, synchronize: bool = True, stream: Stream | None = None
    ) -> Publication:
        """Makes the present content of the registered weights version `version` (above 0, only grows).

        Returns at once; what comes of it is told by the publication. The weights must not change before `released`.
        `weights`: (name, tensor) pairs to fill registered copies from, under the registered names: gathered shards; or a
        module, by the names that `register` gives it. Names that `registration.tied` left out are left out.
        `synchronize`: wait for the GPU work queued so far first, which may still write the weights.

        `stream`: a torch.cuda.Stream; instead of waiting here, the agent reads the weights when everything that is in
        the stream now has been done, and `released(stream=...)` can be had. A stream that does not get there within
        4/5 of the agent's coordinator.stage_timeout_ms fails the version (PublishFailed).

        UnmergedAdapters: what would be sent is a PEFT model's base alone.

        WeightsMoved before anything is read, with the names: a weight lies elsewhere, or the registered module has another
        parameter in its place. StreamUnsupported: the weights lie on the CPU. An agent that restarted since is registered
        with again. One that dies fails the version within a second (after `reconnect_timeout`, where nothing was released
        yet), one that is stopped within five: AgentGone.
        """
        weights = None if weights is None else once(weights)
        with to_the_end(weights):
            return self._publish(_checked_version(version), weights, synchronize, stream)

    def _publish(self, version: int, weights: Tensors | None, synchronize: bool, stream: Stream | None) -> Publication:
        self._connection.check_open(f"publish version {version}")
        if self._registration is None:
            raise NotRegistered(f"publish version {version}: no weights are registered")
        self._adapters.check(version)
        Merged(weights, self._adapters.choice).check(version)
        self._check_addresses(version, given=weights is not None)
        if weights is not None or self._copies:
            self._check_released(version, stream)
        if stream is not None:
            device = check_stream(stream, self._devices, f"publish version {version}")
            with _current(stream):
                self._refresh(weights)
            self._last = Publication(self, version, StreamOrder(self._events, device, stream))
            return self._last
        self._refresh(weights)
        if synchronize:
            memory.synchronize(self._devices)
        self._last = Publication(self, version)
        return self._last

    def _check_released(self, version: int, stream: Stream | None = None) -> None:
        """Before registered copies are written (on `stream`): the agent may still read them."""
        last = self._last
        if last is None or last.free_for(stream):
            return
        raise PublishInProgress(
            f"publish version {version}: version {last.version} is still read from the registered copies",
            next_step="wait for its released(), which may be asked for before the next training step ends",
        )

    def _refresh(self, weights: Tensors | None) -> None:
        if weights is not None:
            self._fill(weights)
        elif self._copies:
            refresh(self._copies)

    def _check_addresses(self, version: int, given: bool) -> None:
        """`given`: what is copied is not read from where it was registered."""
        replaced = self._held.replaced() if self._held else []
        if given and replaced:
            copied = {weight.name for weight in self._copies}
            replaced = [name for name in replaced if name not in copied]
        freed = [] if given else [w.name for w in self._copies if why_unreadable(plain(w.source, w.name))]
        for names, text in (
            (self._addresses.moved(), "registered weights lie elsewhere now"),
            (freed, "the memory of weights that are copied was freed since they were registered"),
            (replaced, "the module has other tensors now than the registered ones"),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise WeightsMoved(f"publish version {version}: {text}: {', '.join(map(repr, names[:3]))}{more}", names=names)

    def _fill(self, weights: Tensors) -> None:
        """One after another: the tensors of an iterator may be there only until the next one is asked for."""
        by_name = {weight.name: weight for weight in self._weights}
        tied = self._registration.tied if self._registration else {}
        entries: Iterable[tuple[str, Tensor]]
        if isinstance(weights, Iterator):
            entries = map(check_pair, weights)
        else:
            entries = pairs(weights, self._adapters.choice)
            self._check_given(by_name, [name for name, _ in entries if name not in tied])
        given: list[str] = []
        for name, tensor in entries:
            if name not in tied:
                given.append(name)
                if name in by_name:
                    copy_into(by_name[name].lent, tensor, name)
        self._check_given(by_name, given)

    def _check_given(self, by_name: dict[str, Weight], given: list[str]) -> None:
        unknown = [name for name in given if name not in by_name]
        there = set(given)
        missing = [weight.name for weight in self._copies if weight.name not in there]
        if unknown or missing:
            raise CatalogMismatch(
                f"publish: {len(unknown)} given weights are not registered, {len(missing)} registered copies are not given",
                names=[*unknown, *missing],
                next_step="give every registered copy, under the name it was registered with",
            )

    # ---- waiting for others

    def wait_for_replicas(self, n: int = 1, *, timeout: float = 300.0) -> tuple[str, ...]:
        """Returns when at least `n` replicas could take a version: their agents joined, an engine is attached. Their names.

        Needs registered weights, which engines wait for. DeadlineExceeded after `timeout` seconds says which replicas
        are absent, and why; AgentUnavailable.
        """
        n = whole_number("n", n, 1)
        check_seconds("timeout", timeout)
        give_up = time.monotonic() + timeout
        while True:
            ready, absent = self._ready_replicas()
            if len(ready) >= n:
                return tuple(ready)
            left = give_up - time.monotonic()
            if left <= 0:
                raise too_few(n, timeout, ready, absent)
            time.sleep(min(_LOOK, left))

    def _ready_replicas(self) -> tuple[list[str], dict[str, str]]:
        self._connection.check_open("wait for replicas")
        try:
            return ready_replicas(self._stub.get_status(_wire.message("GetStatusRequest")(), timeout=self._timeout))
        except grpc.RpcError as error:
            raise _rpc.status_error(self._connection, error) from None
        except ValueError:  # gRPC's word for a channel that was closed meanwhile
            raise self._connection.closed("wait for replicas") from None

    # ---- ending

    def unregister(self, *, timeout: float = 30.0) -> bool:
        """Takes the weights back; a version whose bytes are still being read is aborted. True if there was one.

        A publication that waits for its agent to come back ends with NotRegistered.
        """
        check_seconds("timeout", timeout)
        self._connection.check_process("unregister")
        if self._registration is None:
            return False
        give_up = time.monotonic() + timeout
        try:
            self._end_era("the weights were unregistered", "unregister", timeout)
            aborted = self._call_unregister(self._id, max(give_up - time.monotonic(), 0.0))
            _log.info("unregistered from %s%s", self._connection.socket, ": a version was aborted" if aborted else "")
            return aborted
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                return False  # the agent let go of it already
            raise _rpc.unregister_error(self._connection, error) from None
        finally:
            self._forget()

    def _end_era(self, why: str, doing: str, timeout: float) -> int:
        """The new era. When it returns no publication registers the present weights again, nor is one about to."""
        self._era_ended = why
        self._era += 1
        era = self._era
        if not self._lock.acquire(timeout=timeout):  # a publication is registering again: it sees that it must not
            raise DeadlineExceeded(f"{doing}: the agent did not answer within {timeout:g} s")
        self._lock.release()
        return era

    def _call_unregister(self, registration_id: str, timeout: float) -> bool:
        request = _wire.message("UnregisterRequest")(registration_id=registration_id)
        return bool(self._stub.unregister(request, timeout=timeout).aborted_version)

    def _forget(self) -> None:
        self._registration = None
        self._weights, self._copies, self._held = [], [], None
        self._addresses, self._watched = Addresses([]), Watched([])
        self._adapters = Merged((), "base")

    def close(self) -> None:
        """Unregisters, as far as the agent is there, and closes the connection.

        What other threads wait for ends with ClientClosed. In a forked child it does nothing.
        """
        if self._connection.is_elsewhere:
            return
        self._connection.is_closed = True
        try:
            self.unregister(timeout=5.0)
        except WsyncError:
            pass
        self._connection.close()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked_version(version: Any) -> int:
    try:
        number = operator.index(version)
    except TypeError:
        raise TypeError(f"version {version!r}: expected an int, got {type(version).__name__}") from None
    if not 1 <= number < 1 << 64:
        raise ValueError(f"version {number}: versions begin with 1 and have 64 bits")
    return number


def _current(stream: Stream) -> Any:
    """What is called within is put into `stream`."""
    import torch

    return torch.cuda.stream(stream)
