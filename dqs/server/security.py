"""What keeps strangers out: certificates, the tokens in force, and the refusal to serve the world unguarded.

Certificates and tokens are read again when their files change. A file that is then
broken is not taken: what was read before stays in force, and one line of the log says so.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from dqs.errors import ConfigError, DqsError
from dqs.server.tenants import TokenTable, load_tokens

if TYPE_CHECKING:
    from dqs.settings import Settings

RELOAD_S = 1.0
"""How often files are looked at. A changed one is read when it has kept still for one more look."""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_EXPIRED, _NOT_YET_VALID = 10, 9
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED and X509_V_ERR_CERT_NOT_YET_VALID."""

_log = logging.getLogger(__name__)

FileState = tuple[tuple[int, int, int] | None, ...]
"""What tells one version of files from another: time, size and inode of each; None where there is none."""


def check_exposure(settings: Settings) -> None:
    """Refuses settings that would let strangers in or show tokens to them.

    Args:
        settings: address, certificates and tokens.

    Raises:
        ConfigError: they would, and `insecure` is not set; or TLS is set by halves.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, other = ("--tls-cert", "--tls-key") if settings.tls_key is None else ("--tls-key", "--tls-cert")
        raise ConfigError(f"{given} is of no use alone: give {other} too.")
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise ConfigError("--tls-client-ca is of no use alone: give --tls-cert and --tls-key too.")
    if settings.insecure or is_loopback(settings.host):
        return
    if settings.tls_cert is None:
        raise ConfigError(
            f"{settings.host} can be reached from other machines and there is no TLS: give --tls-cert and --tls-key,"
            " or say --insecure where the network keeps everybody else out."
        )
    if settings.tokens is None and settings.tls_client_ca is None:
        raise ConfigError(
            f"{settings.host} can be reached from other machines and anybody may call: give --tokens or"
            " --tls-client-ca, or say --insecure where the network keeps everybody else out."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Args:
        host: an address or a name; a name that cannot be resolved is taken for a public one.
    """
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host or None, 0, flags=socket.AI_PASSIVE)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


def access_of_others(path: Path, what: str) -> str | None:
    """What to say if others on this machine may read or write a file that only its owner should, else None.

    Args:
        path: the file.
        what: what it holds.
    """
    mode = path.stat().st_mode
    may = [verb for verb, bits in (("read", stat.S_IROTH), ("write", stat.S_IWOTH | stat.S_IWGRP)) if mode & bits]
    return f"others may {' and '.join(may)} {path}, which holds {what}: run chmod 600 {path}" if may else None


def _warn_of_access(path: Path, what: str) -> None:
    warning = access_of_others(path, what)
    if warning is not None:
        _log.warning("%s", warning)


class Tokens:
    """The tokens in force.

    Args:
        path: their file.

    Raises:
        ConfigError: see `load_tokens`; or there is no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.table: TokenTable = load_tokens(path)
        """Replaced as a whole when the file changes."""
        _warn_of_access(path, "hashes of tokens")
        if not self.table.tokens:
            raise ConfigError(
                f"{path} holds no token, so nobody could call: make one with `dqs tokens new TENANT --file {path}`."
            )
        if not any(token.is_valid() for token in self.table.tokens):
            _log.warning("every token in %s has expired: make new ones with dqs tokens new", path)

    def reload(self) -> None:
        """Reads the file again.

        Raises:
            ConfigError: it is broken; the table stays as it was.
        """
        self.table = load_tokens(self._path)


@dataclass(frozen=True, slots=True)
class _Pems:
    """Contents of the files of `Certificates`."""

    cert: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """The server's certificate and key, and the authorities that clients' certificates must come from.

    Args:
        cert: chain, PEM, the server's own certificate first.
        key: its private key, PEM, without a passphrase.
        client_ca: PEM; None asks for no client certificates.

    Raises:
        ConfigError: a file cannot be read, has expired, or does not fit the others.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca
        self._paths = (cert, key) if client_ca is None else (cert, key, client_ca)
        self.expires = ""
        """When the certificate ends, as text."""
        self._lock = threading.Lock()
        self._current = self._read()
        self._is_new = False
        _warn_of_access(self._key, "a private key")

    def credentials(self) -> grpc.ServerCredentials:
        """For one port of a gRPC server; later connections get what was read last."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._current), self._fetch, require_client_authentication=self._client_ca is not None
        )

    def reload(self) -> None:
        """Reads the files again.

        Raises:
            ConfigError: they are broken; what was read before stays.
        """
        pems = self._read()
        with self._lock:
            self._is_new = self._is_new or pems != self._current
            self._current = pems

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks at each new connection, in a thread of its own: a new certificate, or None."""
        with self._lock:
            if not self._is_new:
                return None
            self._is_new = False
            return _configuration(self._current)

    def _read(self) -> _Pems:
        for _ in range(20):
            before = _state(self._paths)
            pems = _Pems(
                _read_pem(self._cert, "--tls-cert"),
                _read_pem(self._key, "--tls-key"),
                None if self._client_ca is None else _read_pem(self._client_ca, "--tls-client-ca"),
            )
            self._check_pair(pems.cert)
            if self._client_ca is not None:
                _check_authorities(self._client_ca)
            # What was checked is what was read only if nobody wrote meanwhile.
            if _state(self._paths) == before:
                return pems
            time.sleep(0.05)
        raise ConfigError(f"{self._cert} and {self._key} change all the time: write them once.")

    def _check_pair(self, cert: bytes) -> None:
        """Does a TLS handshake with itself, which finds what would make clients refuse the certificate."""
        own = _CERTIFICATE.search(cert)
        if own is None:
            raise ConfigError(f"{self._cert} holds no certificate: give --tls-cert a file in PEM.")

        def passphrase() -> str:
            raise ConfigError(f"The key in {self._key} has a passphrase: give --tls-key one without.")

        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusts the certificate itself, whoever signed it
        try:
            client.load_verify_locations(cadata=own.group().decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{self._cert} holds no certificate: give --tls-cert a file in PEM.") from error
        try:
            server.load_cert_chain(self._cert, self._key, password=passphrase)
            self.expires = _handshake(server, client)
        except ssl.SSLCertVerificationError as error:
            what = {_EXPIRED: "has expired", _NOT_YET_VALID: "is not valid yet"}.get(
                error.verify_code, f"would be refused by clients ({error.verify_message})"
            )
            raise ConfigError(f"The certificate in {self._cert} {what}: give --tls-cert another one.") from error
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                problem = f"The key in {self._key} does not belong to the certificate in {self._cert}"
            else:
                reason = (error.reason or "no PEM").replace("_", " ").lower()
                problem = f"The certificate in {self._cert} and the key in {self._key} cannot be used ({reason})"
            raise ConfigError(f"{problem}: give --tls-cert and --tls-key files that fit.") from error


def _configuration(pems: _Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], root_certificates=pems.client_ca)


def _read_pem(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"Cannot read {path} ({error.strerror}): give {option} a file that this user may read."
        ) from error


def _check_authorities(path: Path) -> None:
    """Refuses a file without certificates, or whose authorities have all expired."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise ConfigError(f"{path} holds no certificates: give --tls-client-ca a file in PEM.") from error
    ends = [ssl.cert_time_to_seconds(str(authority["notAfter"])) for authority in context.get_ca_certs()]
    if ends and max(ends) < time.time():
        raise ConfigError(f"The authorities in {path} have expired: give --tls-client-ca others.")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """A TLS handshake in memory.

    Returns:
        When the server's certificate ends, as text.

    Raises:
        ssl.SSLError: it fails.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    open_ends = set(ends)
    while open_ends:
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            open_ends.discard(end)
    return str((ends[0].getpeercert() or {}).get("notAfter", ""))


def _state(paths: Sequence[Path]) -> FileState:
    states: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - follows links, as Kubernetes renews what it mounts
            states.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            states.append(None)
    return tuple(states)


@dataclass(slots=True)
class _Watched:
    what: str
    paths: tuple[Path, ...]
    reload: Callable[[], None]
    read: FileState
    """State of the files when they were read last."""
    seen: FileState
    """State of the files at the last look."""


class Reloader:
    """Reads files again when they have changed, in a thread, since a disk may be slow.

    Args:
        interval_s: time between two looks.
    """

    def __init__(self, interval_s: float = RELOAD_S) -> None:
        self._interval_s = interval_s
        self._watched: list[_Watched] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dqs-reload", daemon=True)

    def watch(self, what: str, paths: Sequence[Path], reload: Callable[[], None]) -> None:
        """Watches files. Call it before `start` and before they are read for the first time.

        Args:
            what: what they hold, in the plural, for the log.
            paths: the files; they may be replaced one after the other.
            reload: reads them; a `DqsError` of its leaves everything as it was.
        """
        state = _state(paths)
        self._watched.append(_Watched(what, tuple(paths), reload, state, state))

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Looks at all files once."""
        for watched in self._watched:
            self._look(watched)

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self.look()

    def _look(self, watched: _Watched) -> None:
        state = _state(watched.paths)
        # A pair is written one file after the other; one that has just changed may not be whole.
        is_still = state == watched.seen
        watched.seen = state
        if state == watched.read or not is_still:
            return
        watched.read = state
        try:
            watched.reload()
        except DqsError as error:
            _log.error("the %s stay as they were: %s", watched.what, error.message)
        except Exception as error:
            _log.error("the %s stay as they were: %s", watched.what, type(error).__qualname__)
        else:
            _log.info("the %s have been read again", watched.what)


__all__ = ["RELOAD_S", "Certificates", "Reloader", "Tokens", "access_of_others", "check_exposure", "is_loopback"]
