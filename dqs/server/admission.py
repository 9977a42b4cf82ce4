"""How much may be in the service: budgets of everybody and of each tenant, and the number of open calls.

What is counted is what has been read and not yet answered, in bytes of encoded
messages from before they are parsed. A unary call that does not fit is refused.
A stream waits: its next message is read once there is room for one of the size
that it sends, and that room is reserved while it is read, so that many waiting
streams do not rush into the room of one. Answers that are kept for a client to
come back count too, but stand in nobody's way: they are forgotten, the oldest
first, when the budget is needed.

Everything here lives on the event loop and needs no lock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dqs.errors import Overloaded
from dqs.server.tenants import Tenant

if TYPE_CHECKING:
    from dqs.observability.metrics import Metrics
    from dqs.server.codec import Limits

FIRST_MESSAGE_BYTES = 512 << 10
"""How large the first message of a stream is taken to be before it is read."""
RESERVED_S = 1.0
"""Room is reserved this long for a message that does not come; most of those that come take far less."""
_SHARE_OF_MANY = 7 / 8
"""Of everybody's budget: what tenants that hold more than others may fill."""


class Kept(Protocol):
    """An answer that may be forgotten."""

    text_bytes: int
    documents: int

    def forget(self) -> None:
        """Called when its room is needed; the budget counts it no more."""
        ...


class Window:
    """What one stream has sent and not been answered. It has one reader.

    Args:
        max_bytes: bound on bytes.
        max_documents: bound on documents.
    """

    def __init__(self, max_bytes: int, max_documents: int) -> None:
        self._max_bytes = max_bytes
        self._max_documents = max_documents
        self._free = asyncio.Event()
        self._free.set()
        self.text_bytes = 0
        self.documents = 0

    async def free(self) -> None:
        """Waits until less than the bound is held; what is read next may exceed it, by one message."""
        await self._free.wait()

    def take(self, text_bytes: int, documents: int) -> None:
        """Counts what has been read."""
        self.text_bytes += text_bytes
        self.documents += documents
        if self.text_bytes >= self._max_bytes or self.documents >= self._max_documents:
            self._free.clear()

    def give_back(self, text_bytes: int, documents: int) -> None:
        """Counts what has been answered."""
        self.text_bytes -= text_bytes
        self.documents -= documents
        if self.text_bytes < self._max_bytes and self.documents < self._max_documents:
            self._free.set()


@dataclass(slots=True, eq=False)
class _Budget:
    """A bound and what is counted against it."""

    max_bytes: int
    max_documents: int
    text_bytes: int = 0
    documents: int = 0
    reserved_bytes: int = 0
    reserved_documents: int = 0
    kept: OrderedDict[Kept, None] = field(default_factory=OrderedDict)
    kept_bytes: int = 0
    kept_documents: int = 0

    def fits(self, text_bytes: int, documents: int, share: float = 1.0) -> bool:
        """Whether that much more may come in, up to a share of the bound; anything may where nothing is."""
        total_bytes = self.text_bytes + self.reserved_bytes
        total_documents = self.documents + self.reserved_documents
        if not total_documents:
            return True
        return (
            total_bytes + text_bytes <= self.max_bytes * share
            and total_documents + documents <= self.max_documents * share
        )

    @property
    def is_exceeded(self) -> bool:
        """Whether more is held than may be, kept answers included."""
        return (
            self.text_bytes + self.kept_bytes > self.max_bytes
            or self.documents + self.kept_documents > self.max_documents
        )


@dataclass(slots=True, eq=False)
class _Waiter:
    """A stream that waits to read."""

    granted: asyncio.Future[None]
    text_bytes: int
    documents: int


class Account:
    """The budget of one tenant, within everybody's. Made by `Admission`."""

    def __init__(self, admission: Admission, tenant: Tenant, limits: Limits) -> None:
        self._admission = admission
        self.tenant = tenant
        self.budget = _Budget(0, 0)
        self.streams = 0
        self.max_streams = 0
        self.waiters: deque[_Waiter] = deque()
        self.change(tenant, limits)

    def change(self, tenant: Tenant, limits: Limits) -> None:
        """Takes over the bounds of a tenant; where it has none of its own, those of everybody."""

        def either(own: int | None, common: int) -> int:
            return common if own is None else own

        self.tenant = tenant
        self.budget.max_bytes = either(tenant.max_pending_bytes, limits.tenant_max_pending_bytes)
        self.budget.max_documents = either(tenant.max_pending_documents, limits.tenant_max_pending_documents)
        self.max_streams = either(tenant.max_streams, limits.tenant_max_streams)

    def check(self, text_bytes: int, documents: int) -> None:
        """Refuses what does not fit now.

        Args:
            text_bytes: of the message.
            documents: in the message.

        Raises:
            Overloaded: there is no room.
        """
        if not self.fits(text_bytes, documents):
            budget, whose = self.budget, "of this tenant"
        elif not self._admission.fits(self, text_bytes, documents):
            budget, whose = self._admission.budget, "of all tenants"
        else:
            return
        raise Overloaded(
            f"{budget.text_bytes} bytes and {budget.documents} documents {whose} wait for scoring, and at most"
            f" {budget.max_bytes} and {budget.max_documents} may: try again later, or use ScoreStream, which waits."
        )

    def fits(self, text_bytes: int, documents: int) -> bool:
        """Whether that much more is within the tenant's budget."""
        return self.budget.fits(text_bytes, documents)

    def take(self, text_bytes: int, documents: int) -> None:
        """Counts what has been read."""
        for budget in (self.budget, self._admission.budget):
            budget.text_bytes += text_bytes
            budget.documents += documents
        self._admission.make_room(self)

    def give_back(self, text_bytes: int, documents: int) -> None:
        """Counts what has been answered or given up."""
        for budget in (self.budget, self._admission.budget):
            budget.text_bytes -= text_bytes
            budget.documents -= documents
        self._admission.wake()

    def keep(self, kept: Kept) -> None:
        """Counts an answer that may be forgotten; calls its `forget` when room is needed."""
        for budget in (self.budget, self._admission.budget):
            budget.kept[kept] = None
            budget.kept_bytes += kept.text_bytes
            budget.kept_documents += kept.documents
        self._admission.make_room(self)

    def drop(self, kept: Kept) -> None:
        """Counts a kept answer no more."""
        for budget in (self.budget, self._admission.budget):
            del budget.kept[kept]
            budget.kept_bytes -= kept.text_bytes
            budget.kept_documents -= kept.documents

    async def reserve(self, text_bytes: int, documents: int) -> Reservation:
        """Waits for room to read a message of a stream, in turn, and holds it for a moment.

        The budget of a tenant whose own streams and calls fill it does not hold up other tenants.

        Args:
            text_bytes: how large the message is taken to be.
            documents: how many documents it is taken to have.
        """
        # A larger one than may ever be held goes alone.
        text_bytes = min(text_bytes, self.budget.max_bytes, self._admission.budget.max_bytes)
        documents = min(documents, self.budget.max_documents, self._admission.budget.max_documents)
        waiter = _Waiter(asyncio.get_running_loop().create_future(), text_bytes, documents)
        self.waiters.append(waiter)
        self._admission.queue(self)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled():
                self.unreserve(text_bytes, documents)
            raise
        return Reservation(self, text_bytes, documents)

    def unreserve(self, text_bytes: int, documents: int) -> None:
        """Counts room as free again."""
        for budget in (self.budget, self._admission.budget):
            budget.reserved_bytes -= text_bytes
            budget.reserved_documents -= documents
        self._admission.wake()


class Reservation:
    """Room for a message that is being read; for a moment only, since the client may have none to send."""

    def __init__(self, account: Account, text_bytes: int, documents: int) -> None:
        self._account = account
        self._size = (text_bytes, documents)
        self._timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(RESERVED_S, self.release)

    def release(self) -> None:
        """Gives the room back; others get it after what the caller does next without waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._account.unreserve(*self._size)


class Admission:
    """What all calls of a server hold, and who may come in. Make it on a running event loop.

    Args:
        limits: the bounds.
        metrics: counts what is refused, and shows what is held.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._accounts: dict[str, Account] = {}
        self._waiting: OrderedDict[Account, None] = OrderedDict()
        """Tenants with streams that wait to read, whose turn is next first."""
        self._waking = False
        self.budget = _Budget(limits.max_pending_bytes, limits.max_pending_documents)
        self.calls = 0
        self.streams = 0
        metrics.watch("pending_bytes", lambda: self.budget.text_bytes)
        metrics.watch("pending_documents", lambda: self.budget.documents)
        metrics.watch("calls", lambda: self.calls)
        metrics.watch("streams", lambda: self.streams)

    def account(self, tenant: Tenant) -> Account:
        """The budget of a tenant."""
        account = self._accounts.get(tenant.name)
        if account is None:
            account = self._accounts[tenant.name] = Account(self, tenant, self._limits)
        elif account.tenant != tenant:  # the file of tokens was read again
            account.change(tenant, self._limits)
        return account

    def fits(self, account: Account, text_bytes: int, documents: int) -> bool:
        """Whether that much more of a tenant is within everybody's budget.

        Where several hold something, one that holds more than an equal share leaves the last eighth to
        those that hold less, so that a few which send all they may do not shut the others out. The share
        is that of one tenant more than there are, since the next one is to find room too.
        """
        active = sum(1 for other in self._accounts.values() if other is account or other.budget.documents)
        held = account.budget
        fair_bytes, fair_documents = self.budget.max_bytes / (active + 1), self.budget.max_documents / (active + 1)
        is_modest = held.text_bytes + text_bytes <= fair_bytes and held.documents + documents <= fair_documents
        return self.budget.fits(text_bytes, documents, 1.0 if is_modest or active == 1 else _SHARE_OF_MANY)

    @contextlib.contextmanager
    def call(self, tenant: Tenant) -> Iterator[Account]:
        """Counts a unary call while it is open.

        Raises:
            Overloaded: too many are.
        """
        account = self.account(tenant)
        with self.counting_refusals():
            if self.calls >= self._limits.max_calls:
                raise Overloaded(f"{self.calls} calls are open, and no more may be: try again later.")
        self.calls += 1
        try:
            yield account
        finally:
            self.calls -= 1

    @contextlib.contextmanager
    def stream(self, tenant: Tenant) -> Iterator[Account]:
        """Counts a stream while it is open.

        Raises:
            Overloaded: too many are.
        """
        account = self.account(tenant)
        with self.counting_refusals():
            if self.streams >= self._limits.max_streams:
                raise Overloaded(f"{self.streams} streams are open, and no more may be: try again later.")
            if account.streams >= account.max_streams:
                raise Overloaded(
                    f"{account.streams} streams of this tenant are open, and no more may be: close some, or try again"
                    " later."
                )
        self.streams += 1
        account.streams += 1
        try:
            yield account
        finally:
            self.streams -= 1
            account.streams -= 1

    @contextlib.contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Counts an `Overloaded` that is raised inside; as one document, because nobody has looked how many."""
        try:
            yield
        except Overloaded:
            self._metrics.dropped("overloaded", 1)
            raise

    def queue(self, account: Account) -> None:
        """Lets a tenant's waiting streams read when it is their turn."""
        self._waiting.setdefault(account)
        self._grant()

    def wake(self) -> None:
        """Lets streams read, once the caller is done with what it does without waiting."""
        if self._waiting and not self._waking:
            self._waking = True
            self._loop.call_soon(self._grant)

    def make_room(self, account: Account) -> None:
        """Has kept answers forgotten until the rest is within the bounds: the oldest of whose is too much."""
        for budget in (account.budget, self.budget):
            while budget.kept and budget.is_exceeded:
                next(iter(budget.kept)).forget()

    def _grant(self) -> None:
        """Lets streams read one by one, tenants in turn, while there is room for what they are taken to send."""
        self._waking = False
        granted = True
        while granted:
            granted = False
            for account in list(self._waiting):
                while account.waiters and account.waiters[0].granted.done():  # gave up
                    account.waiters.popleft()
                if not account.waiters:
                    del self._waiting[account]
                    continue
                first = account.waiters[0]
                if not account.fits(first.text_bytes, first.documents):
                    continue
                if not self.fits(account, first.text_bytes, first.documents):
                    return  # who is first waits for room; smaller ones do not overtake it for ever
                account.waiters.popleft()
                for budget in (account.budget, self.budget):
                    budget.reserved_bytes += first.text_bytes
                    budget.reserved_documents += first.documents
                first.granted.set_result(None)
                self._waiting.move_to_end(account)
                granted = True
