"""A topic that is deleted and made anew, under the same name."""

from __future__ import annotations

from collections.abc import Callable

from cuckooflow.errors import LogError
from cuckooflow.logs.address import KafkaAddress


def recreate(address: KafkaAddress, wait_for: Callable[..., None]) -> None:
    """Delete the topic and make it anew, empty."""
    from kafka.admin import KafkaAdminClient

    old = address.open_reader().incarnation()
    client = KafkaAdminClient(bootstrap_servers=address.bootstrap)
    client.delete_topics([address.topic])
    client.close()

    def anew() -> bool:
        try:
            return address.create_missing().incarnation() != old
        except LogError:  # it is not deleted everywhere yet
            return False

    wait_for(anew, "the topic anew", 60)
