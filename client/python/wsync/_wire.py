"""The local APIs' messages and methods, from the descriptors that were compiled when this package was built.

Messages are made at run time, in a descriptor pool of our own: no generated code, so no protobuf or gRPC release that
it would have to match, and no clash with another package's `wsync.v1`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _load() -> dict[str, Any]:
    data = resources.files(__package__).joinpath("_proto/wsync.binpb").read_bytes()
    files = descriptor_pb2.FileDescriptorSet.FromString(data).file
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    return {
        name.removeprefix("wsync.v1."): cls
        for file in files
        for name, cls in message_factory.GetMessageClassesForFiles([file.name], pool).items()
    }


_classes = _load()


def message(name: str) -> Any:
    """The class of message `wsync.v1.<name>`."""
    return _classes[name]


class _Stub:
    def __init__(self, channel: grpc.Channel, service: str) -> None:
        self._channel = channel
        self._service = service

    def _method(self, make: Callable[..., Any], name: str, request: str, reply: str) -> Any:
        return make(
            f"/wsync.v1.{self._service}/{name}",
            request_serializer=message(request).SerializeToString,
            response_deserializer=message(reply).FromString,
        )


class TrainerStub(_Stub):
    """Methods of wsync.v1.Trainer (proto/wsync/v1/trainer.proto)."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel, "Trainer")
        self.register = self._method(channel.stream_unary, "Register", "RegisterRequest", "RegisterReply")
        self.publish = self._method(channel.unary_stream, "Publish", "PublishRequest", "PublishEvent")
        self.unregister = self._method(channel.unary_unary, "Unregister", "UnregisterRequest", "UnregisterReply")
        self.get_status = self._method(channel.unary_unary, "GetStatus", "GetStatusRequest", "JobStatus")


class RolloutStub(_Stub):
    """Methods of wsync.v1.Rollout (proto/wsync/v1/rollout.proto)."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel, "Rollout")
        self.get_outputs = self._method(channel.unary_stream, "GetOutputs", "GetOutputsRequest", "OutputsReply")
        self.attach = self._method(channel.stream_unary, "Attach", "AttachRequest", "AttachReply")
        self.updates = self._method(channel.stream_stream, "Updates", "EngineMessage", "UpdateEvent")
        self.detach = self._method(channel.unary_unary, "Detach", "DetachRequest", "DetachReply")
