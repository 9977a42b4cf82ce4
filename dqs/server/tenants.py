"""Tenants: who calls, what each may hold, and the file of their tokens. Knows nothing of gRPC.

The file is TOML. `dqs tokens` writes it; limits may be put in by hand:

    [tenants.alpha]
    max_streams = 8                         # and max_pending_bytes, max_pending_documents

    [[tenants.alpha.tokens]]
    sha256 = "…"                            # of the token, which is written down nowhere
    created = 2026-11-21T09:30:00Z
    expires = 2027-02-19T09:30:00Z          # optional

A token is 256 random bits. A fast hash is right for it: slow, salted hashes protect
what a person can remember and a machine can guess, and nobody guesses 256 bits. Two
tokens of a tenant may be valid at once, so that a new one can be handed out before
the old one ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dqs.errors import ConfigError
from dqs.pipeline import DEFAULT_TENANT

TOKEN_PREFIX = "dqs_"
"""So that programs that look for secrets in files find tokens."""
MAX_VALID_TOKENS = 2
ID_CHARACTERS = 12
"""Length of what names a token in lists: the beginning of its hash."""
_MAX_TOKEN_BYTES = 512
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_LIMITS = ("max_pending_bytes", "max_pending_documents", "max_streams")
_HEADER = "# Tenants and the hashes of their tokens. `dqs tokens` writes this file and keeps no comments.\n"


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody whose documents, corpora and budgets are apart from those of others.

    Attributes:
        name: part of the names of its corpora in the index.
        max_pending_bytes: text of its that may wait; None for the setting `tenant_max_pending_bytes`.
        max_pending_documents: documents of its that may wait; None for the setting.
        max_streams: streams of its that may be open; None for the setting.
    """

    name: str
    max_pending_bytes: int | None = None
    max_pending_documents: int | None = None
    max_streams: int | None = None


ANYBODY = Tenant(DEFAULT_TENANT)
"""Who calls a server that asks for no token."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token.

    Attributes:
        tenant: whose it is.
        digest: sha256 of it.
        created: when it was made, or None where the file does not say.
        expires: from when on it is not valid, or None for never.
    """

    tenant: Tenant
    digest: bytes = field(repr=False)
    created: datetime | None = None
    expires: datetime | None = None

    @property
    def id(self) -> str:
        """What names it in lists; nothing to log in with."""
        return self.digest.hex()[:ID_CHARACTERS]

    def is_valid(self, now_s: float | None = None) -> bool:
        """Whether it has not expired.

        Args:
            now_s: seconds since 1970; now if not given.
        """
        return self.expires is None or (time.time() if now_s is None else now_s) < self.expires.timestamp()


class TokenTable:
    """Tokens of all tenants; never changes.

    Args:
        tenants: by name, those without tokens too.
        tokens: of those tenants.
    """

    def __init__(self, tenants: Mapping[str, Tenant] = MappingProxyType({}), tokens: tuple[Token, ...] = ()) -> None:
        self.tenants = MappingProxyType(dict(tenants))
        self.tokens = tokens
        self._by_digest = {token.digest: token for token in tokens}

    def find(self, secret: str) -> Token | None:
        """The valid token of that text, or None.

        Compares with every token and each in the same time, so that how long it takes says nothing.

        Args:
            secret: what a caller sent.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")[:_MAX_TOKEN_BYTES]).digest()
        found: Token | None = None
        for token in self.tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found if found is not None and found.is_valid() else None

    def still_valid(self, token: Token) -> bool:
        """Whether a token that was valid still is, for the same tenant."""
        known = self._by_digest.get(token.digest)
        return known is not None and known.tenant.name == token.tenant.name and known.is_valid()


def load_tokens(path: Path) -> TokenTable:
    """Reads a file of tokens.

    Args:
        path: TOML, as above.

    Raises:
        ConfigError: it cannot be read, or is not what it should be.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the tokens in {path} ({error.strerror}): make them with `dqs tokens new`."
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The tokens in {path} are not TOML: correct the file or make it again.") from error
    return _parse(path, content)


def _parse(path: Path, content: dict[str, Any]) -> TokenTable:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"The tokens in {path} cannot be used: {what}.")

    entries = content.get("tenants", {})
    if set(content) - {"tenants"} or not isinstance(entries, dict):
        raise wrong("beside [tenants.NAME] there must be nothing")
    tenants: dict[str, Tenant] = {}
    tokens: list[Token] = []
    digests: set[bytes] = set()
    for name, entry in entries.items():
        check_tenant_name(name)
        if not isinstance(entry, dict) or set(entry) - {"tokens", *_LIMITS}:
            raise wrong(f"tenant {name} has a key other than tokens, {', '.join(_LIMITS)}")
        limits = {limit: entry[limit] for limit in _LIMITS if limit in entry}
        if any(type(value) is not int or value < 1 for value in limits.values()):
            raise wrong(f"the limits of tenant {name} must be whole numbers from 1 on")
        tenants[name] = Tenant(name, **limits)
        own = entry.get("tokens", [])
        if not isinstance(own, list) or not all(isinstance(token, dict) for token in own):
            raise wrong(f"the tokens of tenant {name} must be tables [[tenants.{name}.tokens]]")
        for values in own:
            if set(values) - {"sha256", "created", "expires"} or not _DIGEST.match(str(values.get("sha256", ""))):
                raise wrong(f"a token of tenant {name} needs sha256 of 64 hexadecimal digits, and may have expires")
            moments = {key: values[key] for key in ("created", "expires") if key in values}
            if any(not isinstance(value, datetime) or value.tzinfo is None for value in moments.values()):
                raise wrong(f"the times of a token of tenant {name} must be like 2027-02-19T09:30:00Z")
            token = Token(tenants[name], bytes.fromhex(values["sha256"]), **moments)
            if token.digest in digests:
                raise wrong(f"the token {token.id} of tenant {name} is there twice")
            digests.add(token.digest)
            tokens.append(token)
        if sum(token.tenant.name == name and token.is_valid() for token in tokens) > MAX_VALID_TOKENS:
            raise wrong(f"tenant {name} has more than {MAX_VALID_TOKENS} valid tokens; revoke the oldest")
    return TokenTable(tenants, tuple(tokens))


def check_tenant_name(name: str) -> None:
    """Refuses a name that a tenant cannot have.

    Raises:
        ConfigError: it is one.
    """
    if not _NAME.match(name):
        raise ConfigError(
            f"A tenant cannot be called {name[:80]!r}: use at most 64 letters, digits, dots, dashes and underscores."
        )


def new_token(path: Path, tenant: str, expires: datetime | None = None) -> str:
    """Makes a token and puts its hash into a file, which is made if need be; tokens that have expired leave it.

    Args:
        path: file of tokens.
        tenant: who gets it.
        expires: from when on it is not valid, with a time zone; None for never.

    Returns:
        The token. It cannot be had again.

    Raises:
        ConfigError: the file cannot be read or written, or the tenant has two valid tokens already.
    """
    check_tenant_name(tenant)
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    with _changing(path) as table:
        kept = tuple(token for token in table.tokens if token.tenant.name != tenant or token.is_valid())
        valid = [token.id for token in kept if token.tenant.name == tenant]
        if len(valid) >= MAX_VALID_TOKENS:
            raise ConfigError(
                f"Tenant {tenant} has {len(valid)} valid tokens already: run `dqs tokens revoke {valid[0]}` first."
            )
        tenants = {**table.tenants, tenant: table.tenants.get(tenant, Tenant(tenant))}
        now = datetime.now(UTC).replace(microsecond=0)
        token = Token(tenants[tenant], hashlib.sha256(secret.encode()).digest(), now, expires)
        _write(path, TokenTable(tenants, (*kept, token)))
    return secret


def revoke_token(path: Path, token_id: str) -> Token:
    """Takes a token out of a file.

    Args:
        path: file of tokens.
        token_id: its id, or the beginning of it.

    Raises:
        ConfigError: there is no such token or more than one, or the file cannot be read or written.
    """
    with _changing(path) as table:
        found = [token for token in table.tokens if token_id and token.digest.hex().startswith(token_id.lower())]
        if len(found) != 1:
            how_many = "no token" if not found else "more than one token"
            raise ConfigError(f"{path} has {how_many} whose id begins with {token_id!r}: see `dqs tokens list`.")
        _write(path, TokenTable(table.tenants, tuple(token for token in table.tokens if token is not found[0])))
    return found[0]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[TokenTable]:
    """The tokens of a file, empty if there is none; others that change it wait."""
    try:
        folder = os.open(path.absolute().parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"Cannot write {path} ({error.strerror}): choose another --file.") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield load_tokens(path) if path.exists() else TokenTable()
    finally:
        os.close(folder)


def _write(path: Path, table: TokenTable) -> None:
    """Replaces a file in one step, readable by nobody else."""
    lines = [_HEADER]
    for name, tenant in sorted(table.tenants.items()):
        lines.append(f"\n[tenants.{json.dumps(name)}]\n")
        for limit in _LIMITS:
            if getattr(tenant, limit) is not None:
                lines.append(f"{limit} = {getattr(tenant, limit)}\n")
        for token in table.tokens:
            if token.tenant.name == name:
                lines.append(f"\n[[tenants.{json.dumps(name)}.tokens]]\n")
                lines.append(f'sha256 = "{token.digest.hex()}"\n')
                for key, moment in (("created", token.created), ("expires", token.expires)):
                    if moment is not None:
                        lines.append(f"{key} = {moment.isoformat()}\n")
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ConfigError(f"Cannot write {path} ({error.strerror}): choose another --file.") from error


__all__ = [
    "ANYBODY",
    "MAX_VALID_TOKENS",
    "Tenant",
    "Token",
    "TokenTable",
    "check_tenant_name",
    "load_tokens",
    "new_token",
    "revoke_token",
]
