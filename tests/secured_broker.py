"""A broker of a test module's own behind TLS and a password; the cluster's own takes everybody."""

from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cuckooflow.runners.cluster.cache import default_cache
from cuckooflow.runners.cluster.kafka import Kafka
from cuckooflow.runners.cluster.place import Place
from cuckooflow.runners.cluster.ports import LOOPBACK, accepts, free_port
from cuckooflow.runners.cluster.processes import start

USER, PASSWORD = "films", "open-sesame-7f3a"


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
  required user_{USER}="{PASSWORD}";
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
