"""Properties of a Kafka client: what a user may write, secrets from elsewhere, the names of each library.

A value may hold ``${env:NAME}`` or ``${file:/path}``. Both stay as they are in a job's spec, in what travels
to workers and in messages; they are replaced where a client is made, so a secret is nowhere else.

Names are those of the library that is used. For kafka-python the names of librdkafka and of the Java
clients are understood too: dots are underscores, and :data:`OTHER_NAMES` says the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from cuckooflow.errors import SpecError

Value = str | int | float | bool

#: Parts of the names of properties whose values nobody may see.
_SECRET_NAMES = ("password", "secret", "token", "jaas", "pem")


class Secret(str):
    """A text that client libraries may use and whose ``repr`` does not show it, as they log what they are given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


#: A place in a value: ``${env:NAME}`` or ``${file:/path}``; a file's last line break is no part of it.
_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")
_ANY_REFERENCE = re.compile(r"\$\{([^}]*)\}?")

#: librdkafka's name -> kafka-python's, where dots to underscores does not do.
OTHER_NAMES: Mapping[str, str] = {
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
    "ssl.crl.location": "ssl_crlfile",
    "compression.codec": "compression_type",
    "message.max.bytes": "max_request_size",
    "receive.message.max.bytes": "receive_message_max_bytes",
    "message.timeout.ms": "delivery_timeout_ms",
}

#: What cuckooflow decides, in both spellings: another value would break what a log promises.
FIXED = {
    "bootstrap.servers": "the address's bootstrap",
    "enable.idempotence": "always on: a resent message is written once",
    "acks": "always all: what is acknowledged survives the loss of a broker",
    "request.required.acks": "always all: what is acknowledged survives the loss of a broker",
    "isolation.level": "always read_committed",
    "enable.auto.commit": "always off: offsets are kept with the job's state",
    "auto.offset.reset": "always an error: nothing is skipped silently",
    "enable.partition.eof": "always on",
    "group.id": "the address's group",
    "transactional.id": "not used",
}


def check_properties(properties: Mapping[str, Value]) -> None:
    """Refuse what no client may be given, without looking into environment or files.

    Raises:
        SpecError: naming the property, never its value.
    """
    for name, value in properties.items():
        dotted = name.replace("_", ".")
        if dotted in FIXED:
            raise SpecError(f"expected no client property {name!r}, it is not free: {FIXED[dotted]}")
        if isinstance(value, str):
            for found in _ANY_REFERENCE.finditer(value):
                if not _REFERENCE.fullmatch(found[0]):
                    raise SpecError(
                        f"expected ${{env:NAME}} or ${{file:/path}} in client property {name!r}, "
                        "received another reference"
                    )


def resolved(properties: Mapping[str, Value]) -> dict[str, Value]:
    """The properties with secrets in place of references. For the maker of a client, nobody else.

    Raises:
        SpecError: a variable is not set, or a file cannot be read.
    """
    return {name: _resolved(name, value) for name, value in properties.items()}


def for_kafka_python(properties: Mapping[str, Value]) -> dict[str, Value]:
    """The properties under kafka-python's names, with numbers and booleans as such."""
    renamed = {OTHER_NAMES.get(name, name.replace(".", "_")): value for name, value in properties.items()}
    return {
        name: value if name.startswith(("sasl_", "ssl_p")) else _plain(value)
        for name, value in renamed.items()
    }


def _resolved(name: str, value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = _REFERENCE.sub(lambda found: _secret(name, found[1], found[2]), value)
    hidden = text != value or any(part in name.lower() for part in _SECRET_NAMES)
    return Secret(text) if hidden else text


def _secret(name: str, kind: str, place: str) -> str:
    if kind == "env":
        value = os.environ.get(place)
        if value is None:
            raise SpecError(
                f"expected the environment variable {place} for client property {name!r}, it is not set"
            )
        return value
    try:
        return Path(place).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"expected a text file {place} for client property {name!r}: {error}") from None


def _plain(value: Value) -> Value:
    """A number or a boolean that was written as text, as URLs have them."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return int(value) if re.fullmatch(r"-?\d+", value) else value
