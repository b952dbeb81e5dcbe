"""Which client library an address means, loaded when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cuckooflow.errors import SpecError
from cuckooflow.logs.address import KafkaAddress
from cuckooflow.logs.kafka_client import KafkaAdmin, KafkaSink, KafkaSource

_Opened = TypeVar("_Opened")
_EXTRAS = {"kafka-python": "kafka", "confluent-kafka": "confluent"}


def open_source(address: KafkaAddress) -> KafkaSource:
    """See :class:`~cuckooflow.logs.kafka_client.KafkaSource`."""

    def load() -> Callable[[KafkaAddress], KafkaSource]:
        if address.library == "confluent-kafka":
            from cuckooflow.logs.confluent_source import ConfluentSource

            return ConfluentSource
        from cuckooflow.logs.kafka_python_source import PythonSource

        return PythonSource

    return _loaded(address, load)(address)


def open_sink(address: KafkaAddress) -> KafkaSink:
    """See :class:`~cuckooflow.logs.kafka_client.KafkaSink`."""

    def load() -> Callable[[KafkaAddress], KafkaSink]:
        if address.library == "confluent-kafka":
            from cuckooflow.logs.confluent_sink import ConfluentSink

            return ConfluentSink
        from cuckooflow.logs.kafka_python_sink import PythonSink

        return PythonSink

    return _loaded(address, load)(address)


def open_admin(address: KafkaAddress) -> KafkaAdmin:
    """See :class:`~cuckooflow.logs.kafka_client.KafkaAdmin`."""

    def load() -> Callable[[KafkaAddress], KafkaAdmin]:
        if address.library == "confluent-kafka":
            from cuckooflow.logs.confluent_admin import ConfluentAdmin

            return ConfluentAdmin
        from cuckooflow.logs.kafka_python_admin import PythonAdmin

        return PythonAdmin

    return _loaded(address, load)(address)


def _loaded(address: KafkaAddress, load: Callable[[], _Opened]) -> _Opened:
    try:
        return load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cuckooflow"):
            raise
        raise SpecError(
            f"expected the library {address.library} for {address}, it is not installed ({error}); "
            f"pip install 'cuckooflow[{_EXTRAS[address.library]}]'"
        ) from None
