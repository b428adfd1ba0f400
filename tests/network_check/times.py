"""What a side says of a case: when each rank was done, and when each message arrived."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple


class Message(NamedTuple):
    src: int
    dst: int
    nbytes: int
    arrival_s: float


@dataclass(frozen=True)
class Times:
    """`ends_s` by rank; messages in any order."""

    ends_s: list[float]
    messages: list[Message]

    @property
    def end_s(self) -> float:
        """The last rank's, or the last message's that nobody waits for."""
        return max([*self.ends_s, *(message.arrival_s for message in self.messages)])

    @property
    def traffic(self) -> list[tuple[int, int, int]]:
        """Who sent what to whom, whenever."""
        return sorted(message[:3] for message in self.messages)

    @property
    def arrivals(self) -> list[tuple[int, float]]:
        """At each device, one after another. Not by sender: of messages that are at a port at once
        either may be the first."""
        return sorted((message.dst, message.arrival_s) for message in self.messages)

    def to_json(self) -> str:
        return json.dumps({"ends_s": self.ends_s, "messages": self.messages})

    @classmethod
    def from_json(cls, text: str) -> Times:
        found = json.loads(text)
        return cls(found["ends_s"], [Message(*row) for row in found["messages"]])
