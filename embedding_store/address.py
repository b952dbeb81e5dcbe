"""Where a store's process listens: the rule for it, and the file that tells it."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from cuckooflow.embedding_store.durable import write_durably
from cuckooflow.embedding_store.security import ClientSecurity, ServerSecurity
from cuckooflow.errors import InsecureListen, SpecError, StoreUnavailable


def parse_address(address: str) -> tuple[str, int]:
    """``host:port`` as (host, port); an IPv6 host in brackets.

    Raises:
        SpecError: it is not of this form.

    >>> parse_address("127.0.0.1:0")
    ('127.0.0.1', 0)
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise SpecError(f"expected an address as host:port, received {address!r}; for example 127.0.0.1:0")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_loopback(host: str, security: ServerSecurity | ClientSecurity | None = None) -> None:
    """Refuse what other machines could reach, unless it is encrypted and authenticated.

    Raises:
        InsecureListen.
    """
    try:
        inside = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        inside = False
    if not inside and not (security is not None and security.whole):
        raise InsecureListen(
            f"expected a loopback address (127.0.0.1, ::1, localhost), received {host!r} without both TLS and a "
            "token. Give certificate, key and token (a client: root certificate and token), or stay on one machine."
        )


def write_address(file: Path, host: str, port: int) -> None:
    """Tell clients where the process listens now."""
    shown = f"[{host}]" if ":" in host else host
    write_durably(file, f"{shown}:{port}\n".encode())


class Address:
    """What a client was given: ``host:port``, or the path of an address file.

    A file is read again at every connection, since a restarted store may have another port.

    Raises:
        SpecError: it is neither.
        InsecureListen: another machine's, without TLS and a token.
    """

    def __init__(self, address_or_path: str | Path, security: ClientSecurity | None = None) -> None:
        self._security = security
        text = str(address_or_path)
        self._file: Path | None = None
        if isinstance(address_or_path, Path) or "/" in text or Path(text).exists():
            self._file = Path(text)
        else:
            self._fixed = parse_address(text)
            check_loopback(self._fixed[0], security)

    def now(self) -> tuple[str, int]:
        """(host, port) to connect to.

        Raises:
            StoreUnavailable: the file is not there (yet).
            InsecureListen: it names another machine, without TLS and a token.
        """
        if self._file is None:
            return self._fixed
        try:
            found = parse_address(self._file.read_text().strip())
        except (OSError, UnicodeDecodeError, SpecError) as error:
            raise StoreUnavailable(
                f"expected a store's address in {self._file}, found none ({error}). Start the store, or correct "
                "the path."
            ) from error
        check_loopback(found[0], self._security)
        return found

    def __str__(self) -> str:
        return str(self._file) if self._file is not None else "{}:{}".format(*self._fixed)
