"""For tests: Google's own fake of Pub/Sub as a process, and what became of the messages in it."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage

from cuckooflow.logs.pubsub_address import PubSubAddress

#: The shortest that Pub/Sub has.
LEASE_S = 10
PROJECT = "shop-1"


class PubSubFake:
    """One server. Use subscriptions of your own; each has a topic of the same name.

    Args:
        binary: made by ``make pubsub-fake``.
    """

    def __init__(self, binary: Path) -> None:
        self.process = subprocess.Popen([binary], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint, self._http = self.process.stdout.readline().split()
        self._channel = grpc.insecure_channel(self.endpoint)
        self._publisher = PublisherClient(transport=PublisherGrpcTransport(channel=self._channel))
        self.subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=self._channel))

    def create(self, name: str, **more: Any) -> PubSubAddress:
        """A topic and its subscription; ``more`` are fields of the address."""
        topic = f"projects/{PROJECT}/topics/{name}"
        self._publisher.create_topic(name=topic)
        address = PubSubAddress(
            project=PROJECT, subscription=name, endpoint=self.endpoint, lease_s=LEASE_S, **more
        )
        self.subscriber.create_subscription(name=address.path, topic=topic, ack_deadline_seconds=LEASE_S)
        return address

    def publish(self, name: str, messages: Iterable[bytes]) -> list[str]:
        """Publish to a topic; the messages' ids."""
        ids: list[str] = []
        every = [PubsubMessage(data=message) for message in messages]
        for at in range(0, len(every), 500):
            topic = f"projects/{PROJECT}/topics/{name}"
            ids += self._publisher.publish(topic=topic, messages=every[at : at + 500]).message_ids
        return ids

    def seen(self) -> dict[str, tuple[int, int]]:
        """Id of each message -> how often it was delivered, and acknowledged."""
        with urllib.request.urlopen(f"http://{self._http}/") as answer:
            return {one["id"]: (one["deliveries"], one["acks"]) for one in json.load(answer)}

    def close(self) -> None:
        """End it."""
        self._channel.close()
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
