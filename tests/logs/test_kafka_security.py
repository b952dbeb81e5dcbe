"""A broker that wants TLS and a password: the properties pass through, and the secrets are shown nowhere."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cuckooflow.errors import LogError, LogUnavailable, SpecError
from cuckooflow.logs.address import KafkaAddress, to_address
from cuckooflow.logs.kafka_libraries import open_admin
from tests.secured_broker import PASSWORD, USER, secured, self_signed

__all__ = ["secured"]

pytestmark = pytest.mark.cluster
NOW_US = 1_767_225_600_123_000


def address(
    secured: tuple[str, Path], library: str, read_timeout_s: float = 30, **changes: str
) -> KafkaAddress:
    bootstrap, folder = secured
    client = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": f"${{file:{folder / 'password'}}}",
        "ssl.ca.location": str(folder / "ca.pem"),
        **{name.replace("_", "."): value for name, value in changes.items()},
    }
    return KafkaAddress(
        bootstrap=bootstrap,
        topic=f"secured-{library}",
        partitions=2,
        library=library,
        client=client,
        read_timeout_s=read_timeout_s,
    )


def test_a_log_behind_tls_and_a_password(
    secured: tuple[str, Path],
    library: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    place = address(secured, library)
    reader = place.create_missing()
    writer = place.open_writer()
    assert writer.append(1, [b"a", b"b"], NOW_US) == 0
    writer.close()
    assert reader.read(1, 0).values.to_pylist() == [b"a", b"b"]
    assert reader.config() is not None
    reader.close()
    said = caplog.text + "".join(capfd.readouterr()) + repr(place) + str(place)
    assert PASSWORD not in said


def test_who_is_not_let_in_is_told_so_without_the_password(secured: tuple[str, Path], library: str) -> None:
    with pytest.raises(LogError) as caught:
        address(secured, library, 8, sasl_password="wrong-password").open_reader()
    assert "wrong-password" not in str(caught.value)
    assert "let in" in str(caught.value)
    with pytest.raises(LogError, match="let in"):
        open_admin(address(secured, library, 8, sasl_password="wrong-password")).create(1, None, {})


def test_a_certificate_that_is_not_trusted_is_refused(
    secured: tuple[str, Path], library: str, tmp_path: Path
) -> None:
    (tmp_path / "other.pem").write_bytes(self_signed()[1])
    with pytest.raises(LogUnavailable) as caught:
        address(secured, library, 5, ssl_ca_location=str(tmp_path / "other.pem")).open_reader()
    if library == "kafka-python":
        assert "certificate verify failed" in str(caught.value)


def test_a_password_that_is_not_there_names_where_it_should_be(
    secured: tuple[str, Path], library: str
) -> None:
    with pytest.raises(SpecError, match="CUCKOOFLOW_TEST_NO_SUCH"):
        address(secured, library, sasl_password="${env:CUCKOOFLOW_TEST_NO_SUCH}").open_reader()


def test_an_address_as_text_takes_properties_too(secured: tuple[str, Path], library: str) -> None:
    known = address(secured, library)
    query = "&".join(f"client.{name}={value}" for name, value in known.client.items())
    place = to_address(f"kafka://{known.bootstrap}/by-text-{library}?library={library}&{query}")
    assert place.create_missing().end_offset(0) == 0
