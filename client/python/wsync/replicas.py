"""Which replicas could take a version now, and why the others could not: read from the job's status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import DeadlineExceeded


def ready_replicas(status: Any) -> tuple[list[str], dict[str, str]]:
    """Of a JobStatus: names of those whose ranks are all there, and of the others why not."""
    ranks: dict[str, list[Any]] = {}
    for member in status.members:
        if member.role == "rollout":
            ranks.setdefault(member.replica, []).append(member)
    ready: list[str] = []
    absent: dict[str, str] = {}
    for replica, members in sorted(ranks.items()):
        why = [_why(member) for member in members if member.state in ("lost", "waiting")]
        missing = members[0].replica_size - len(members)
        if missing > 0:
            why.append(f"{missing} of its {members[0].replica_size} ranks did not join")
        if why:
            absent[replica] = "; ".join(why)
        else:
            ready.append(replica)
    return ready, absent


def _why(member: Any) -> str:
    rank = f"rank {member.rank} " if member.replica_size > 1 else ""
    return f"{rank}{member.state}" + (f" ({member.last_error})" if member.last_error else "")


def too_few(wanted: int, timeout: float, ready: Sequence[str], absent: dict[str, str]) -> DeadlineExceeded:
    if absent:
        others = "; ".join(f"'{replica}': {why}" for replica, why in absent.items())
    else:
        others = "no other rollout agent has joined"
    return DeadlineExceeded(
        f"{len(ready)} of {wanted} replicas were ready within {timeout:g} s; {others}",
        names=absent,
        next_step="start their rollout agents with this trainer's coordinator, and attach an engine to each",
    )
