"""How a store's traffic is encrypted and authenticated: TLS and a bearer token.

Both are needed where other machines can reach the store; on loopback each is optional. A token comes from a
file or from the environment, never from a command line, which every user of a machine can read; it
is neither shown nor pickled, so a client in another process reads it there.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cuckooflow.errors import SpecError

TOKEN_VARIABLE = "CUCKOOFLOW_STORE_TOKEN"
TOKEN_FILE_VARIABLE = "CUCKOOFLOW_STORE_TOKEN_FILE"
ROOT_CERTIFICATE_VARIABLE = "CUCKOOFLOW_STORE_ROOT_CERTIFICATE"
#: A shorter token can be guessed.
TOKEN_CHARACTERS_MIN = 16


@dataclass(frozen=True)
class ServerSecurity:
    """What a store's process encrypts with and asks for.

    Attributes:
        certificate, key: PEM of the server's certificate chain and its private key; None: no TLS.
        token: what a client must send; None: anything goes.
    """

    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def whole(self) -> bool:
        """Whether other machines may reach what is secured so."""
        return self.certificate is not None and self.token is not None

    @classmethod
    def load(
        cls, certificate: Path | None = None, key: Path | None = None, token_file: Path | None = None
    ) -> ServerSecurity:
        """From files; the token from the environment where no file is given.

        Raises:
            SpecError: a file cannot be read, one of certificate and key is missing, they are no PEM or do not
                belong together, or the token is too short.
        """
        if (certificate is None) != (key is None):
            raise SpecError(
                "expected a certificate and its key, received one of them. Give both, or neither."
            )
        if certificate is not None and key is not None:
            _check_pair(certificate, key)
        return cls(
            None if certificate is None else _read(certificate, "a certificate"),
            None if key is None else _read(key, "a private key"),
            _token(token_file, os.environ),
        )


@dataclass(frozen=True)
class ClientSecurity:
    """What a client trusts and sends.

    Attributes:
        root_certificate: PEM of the authority that signed the server's certificate; None: no TLS.
        token: what it sends; None: nothing.
    """

    root_certificate: bytes | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def whole(self) -> bool:
        """Whether a store on another machine may be spoken to so."""
        return self.root_certificate is not None and self.token is not None

    @classmethod
    def load(cls, root_certificate: Path | None = None, token_file: Path | None = None) -> ClientSecurity:
        """From files, and from the environment where none is given.

        ``CUCKOOFLOW_STORE_ROOT_CERTIFICATE`` names the certificate's file; ``CUCKOOFLOW_STORE_TOKEN`` is
        the token, or ``CUCKOOFLOW_STORE_TOKEN_FILE`` names its file.

        Raises:
            SpecError: a file cannot be read, holds no certificate, or the token is too short.
        """
        if root_certificate is None and (named := os.environ.get(ROOT_CERTIFICATE_VARIABLE)):
            root_certificate = Path(named)
        return cls(
            None if root_certificate is None else _read_roots(root_certificate),
            _token(token_file, os.environ),
        )


def _token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    if file is None and TOKEN_VARIABLE in environment:
        token, where = environment[TOKEN_VARIABLE].strip(), TOKEN_VARIABLE
    else:
        if file is None:
            named = environment.get(TOKEN_FILE_VARIABLE)
            if not named:
                return None
            file = Path(named)
        token, where = _read(file, "a token").decode(errors="replace").strip(), str(file)
    if len(token) < TOKEN_CHARACTERS_MIN or not (token.isascii() and token.isprintable()) or " " in token:
        raise SpecError(
            f"expected a token of {TOKEN_CHARACTERS_MIN} or more printable ASCII characters without blanks in "
            f"{where}, received {len(token)} characters. Make one with: openssl rand -hex 32"
        )
    return token


def _check_pair(certificate: Path, key: Path) -> None:
    """Here, where the files are known: a server that starts with others says no more than that it did not."""
    _read(certificate, "a certificate"), _read(key, "a private key")
    try:
        # An encrypted key asks for a password, of which there is none.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise SpecError(
            f"expected a certificate chain in {certificate} and its private key, not encrypted, in {key}, both "
            f"PEM; received others ({error})."
        ) from error


def _read_roots(path: Path) -> bytes:
    content = _read(path, "a root certificate")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise SpecError(
            f"expected a root certificate as PEM in {path}, received another file ({error})."
        ) from error
    return content


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(f"expected {what} in {path}, which cannot be read ({error.strerror}).") from error
