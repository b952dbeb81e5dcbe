"""What a broker says while it goes away or comes back is no error of the job's: both libraries name it so."""

from __future__ import annotations

import logging

import confluent_kafka
import kafka.errors
import pytest

from cuckooflow.errors import LogError, LogUnavailable
from cuckooflow.logs import confluent_properties, kafka_python_properties
from cuckooflow.logs.address import KafkaAddress

_ADDRESS = KafkaAddress(bootstrap="127.0.0.1:9092", topic="clicks")
#: Codes of the protocol that its guide lists as retriable and that a reader, a writer or an admin client may be told.
_PASSING = (5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 72, 74, 75, 78, 80, 88, 89)


@pytest.mark.parametrize("code", _PASSING)
def test_a_code_that_passes_is_a_broker_that_is_away(code: int) -> None:
    by_confluent = confluent_properties.named(confluent_kafka.KafkaError(code), _ADDRESS, "within 1 s")
    by_kafka_python = kafka_python_properties.named(kafka.errors.for_code(code)(), _ADDRESS, "within 1 s")
    assert isinstance(by_confluent, LogUnavailable), by_confluent
    assert isinstance(by_kafka_python, LogUnavailable), by_kafka_python


@pytest.mark.parametrize("code", [42, 87])  # a request, a record that is not well formed
def test_a_code_that_stays_is_not(code: int) -> None:
    by_confluent = confluent_properties.named(confluent_kafka.KafkaError(code), _ADDRESS, "within 1 s")
    by_kafka_python = kafka_python_properties.named(kafka.errors.for_code(code)(), _ADDRESS, "within 1 s")
    for error in (by_confluent, by_kafka_python):
        assert isinstance(error, LogError) and not isinstance(error, LogUnavailable), error


def test_a_line_that_is_said_over_and_over_is_logged_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("cuckooflow.logs.confluent_properties.time.monotonic", lambda: now_s[0])
    logger, said = logging.Logger("librdkafka"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.addFilter(confluent_properties.OncePerWhile())
    for n in range(50):
        logger.error("FAIL [cuckooflow#consumer-%d] 127.0.0.1:9092: refused (after %dms)", n % 3, n)
    logger.error("FAIL [cuckooflow#consumer-1] 127.0.0.1:9093: refused (after 0ms)")
    now_s[0] += 11
    logger.error("FAIL [cuckooflow#consumer-1] 127.0.0.1:9092: refused (after 0ms)")
    assert [line.split("] ")[1] for line in said] == [
        "127.0.0.1:9092: refused (after 0ms)",
        "127.0.0.1:9093: refused (after 0ms)",
        "127.0.0.1:9092: refused (after 0ms) (49 more like it before)",
    ]
