"""A broker that wants TLS and a password: the properties pass through, and the secrets are shown nowhere."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cuckooflow.errors import LogError, LogUnavailable, SpecError
from cuckooflow.logs.address import KafkaAddress, to_address
from cuckooflow.logs.kafka_libraries import open_admin
from cuckooflow.runners.cluster.cache import default_cache
from cuckooflow.runners.cluster.kafka import Kafka
from cuckooflow.runners.cluster.place import Place
from cuckooflow.runners.cluster.ports import LOOPBACK, accepts, free_port
from cuckooflow.runners.cluster.processes import start

pytestmark = pytest.mark.cluster
PASSWORD = "open-sesame-7f3a"
NOW_US = 1_767_225_600_123_000


def self_signed() -> tuple[bytes, bytes]:
    """PEM of a key and of its certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(LOOPBACK))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret, certificate.public_bytes(pem)


@pytest.fixture(scope="module")
def secured(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:  # noqa: ARG001
    """Address of a broker of this module's own behind TLS and SASL, and the folder of its certificate."""
    folder = tmp_path_factory.mktemp("secured")
    key, certificate = self_signed()
    (folder / "broker.pem").write_bytes(key + certificate)
    (folder / "ca.pem").write_bytes(certificate)
    (folder / "password").write_text(PASSWORD + "\n")
    ports = {name: free_port() for name in ("kafka", "kafka-controller", "secured")}
    place = Place(folder, default_cache(), ports)
    command = Kafka().command(place)
    properties = folder / "kafka" / "server.properties"
    text = properties.read_text()
    outside = f"SASL_SSL://{LOOPBACK}:{ports['secured']}"
    for name in ("listeners=PLAINTEXT", "advertised.listeners=PLAINTEXT"):
        text = text.replace(f"\n{name}", f"\n{name.removesuffix('PLAINTEXT')}{outside},PLAINTEXT", 1)
    text = text.replace("security.protocol.map=", "security.protocol.map=SASL_SSL:SASL_SSL,")
    text += f"""
ssl.keystore.type=PEM
ssl.keystore.location={folder / "broker.pem"}
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \\
  required user_films="{PASSWORD}";
"""
    properties.write_text(text)
    running = start(command, folder / "kafka.log")
    try:
        deadline = time.monotonic() + 60
        while not (accepts(ports["secured"]) and Kafka().answers(place)):
            assert running.lives() and time.monotonic() < deadline, (folder / "kafka.log").read_text()[
                -2_000:
            ]
            time.sleep(0.1)
        yield f"{LOOPBACK}:{ports['secured']}", folder
    finally:
        running.stop()


def address(
    secured: tuple[str, Path], library: str, read_timeout_s: float = 30, **changes: str
) -> KafkaAddress:
    bootstrap, folder = secured
    client = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "films",
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
