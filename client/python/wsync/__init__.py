"""wsync: model weights from training processes to inference engines, once per step, as FP8.

`Trainer` is the training process's side, `Rollout` the engine's; both talk to the agent beside them over its Unix
socket. `wsync.engines` builds destinations for transformers, vLLM and SGLang; `wsync.aio` is the asyncio form.
"""

import logging

from . import aio, engines, names, streams
from .catalog import Dtype, Output, Plan, ReplicaOutcome, Timings, VersionReport
from .destinations import Destination
from .errors import (
    AgentError,
    AgentGone,
    AgentUnavailable,
    AlreadyAttached,
    AlreadyRegistered,
    CatalogMismatch,
    ClientClosed,
    DeadlineExceeded,
    DestinationsMoved,
    InvalidWeights,
    MemoryNotShareable,
    NotAllApplied,
    NotAttached,
    NotRegistered,
    PublishFailed,
    PublishInProgress,
    StaleVersion,
    StreamUnsupported,
    TooFewReplicas,
    TornUpdate,
    UnmergedAdapters,
    UnsupportedLayout,
    WeightsChanged,
    WeightsMoved,
    WrongDevice,
    WrongProcess,
    WsyncError,
)
from .layer_window import Layer, WantedLayer
from .memory import SharedBuffer, share
from .publication import Publication
from .registration import Registration
from .rollout import Attached, Rollout
from .trainer import Trainer
from .updates import Event, Outcome, Update

__all__ = [
    "AgentError",
    "AgentGone",
    "AgentUnavailable",
    "AlreadyAttached",
    "AlreadyRegistered",
    "Attached",
    "CatalogMismatch",
    "ClientClosed",
    "DeadlineExceeded",
    "Destination",
    "DestinationsMoved",
    "Dtype",
    "Event",
    "InvalidWeights",
    "Layer",
    "MemoryNotShareable",
    "NotAllApplied",
    "NotAttached",
    "NotRegistered",
    "Outcome",
    "Output",
    "Plan",
    "Publication",
    "PublishFailed",
    "PublishInProgress",
    "Registration",
    "ReplicaOutcome",
    "Rollout",
    "SharedBuffer",
    "StaleVersion",
    "StreamUnsupported",
    "Timings",
    "TooFewReplicas",
    "TornUpdate",
    "Trainer",
    "UnmergedAdapters",
    "UnsupportedLayout",
    "Update",
    "VersionReport",
    "WantedLayer",
    "WeightsChanged",
    "WeightsMoved",
    "WrongDevice",
    "WrongProcess",
    "WsyncError",
    "__version__",
    "aio",
    "engines",
    "names",
    "share",
    "streams",
]

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what happens is written where the program asks for it
