"""Scoring in Ray actors: on this machine, or on the nodes of a cluster. Only it and `ray_tasks` import ray.

The calling thread chooses a scorer, sends it the batch in one call and waits for
the columns. Three more threads watch, of which only the last never waits for Ray:
one starts scorers, lets each in only after a real batch has passed through it,
notices deaths while nothing is scored, and grows and shrinks the pools; one asks
the head of the cluster whether it is there; one tells whoever asked when any of
that has changed something. Who gets a batch, what a death means and how many
scorers there are is decided in `dqs.executors.pool`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dqs.errors import ConfigError, DqsError, ModelError, Unavailable
from dqs.executors.columns import Languages, MixedModels, blank, decode_scores, encode_batch, join, pack_languages
from dqs.executors.loading import check_signals, slow_models
from dqs.executors.pool import Limits, Member, Quarantine, Roster, Sizer, State, cut
from dqs.executors.ray_start import RayFolder, join_cluster, start_here
from dqs.executors.replica import Introduction, Loaded, Recipe, ScorerReplica
from dqs.inference.runtime import Runtime
from dqs.pipeline import ExecutorStatus, ModelInfo, ModelSet, Replica, Scored
from dqs.scorer import Signal
from dqs.settings import MIB, Settings, prepare_ray

if TYPE_CHECKING:
    from dqs.executors.replica import BuildScorers
    from dqs.index.signature import SignatureParameters

CPU_POOL = "cpu"
GPU_POOL = "gpu"

_LOG = logging.getLogger(__name__)
_OBJECT_STORE_BYTES = 512 * MIB
_INLINE_BYTES = 2 * MIB
"""Batches and answers up to this size travel in the message itself, which takes half the time and half the processor
time of the way through shared memory, a batch of 0.5 MB or 1 MB each."""
_TICK_S = 0.1
_HEAD_PERIOD_S = 1.0
_HEAD_TIMEOUT_S = 3
_HEAD_SILENT_S = 6.0
"""Longer without an answer of the head, and nothing new is taken on."""
_ASK_AGAIN_S = 0.25
_PING_S = 1.0
_LOADED_S = 0.1
"""How often a worker that loads other models is asked whether it has."""
_PING_TIMEOUT_S = 10.0
_RETRY_PATIENCE_S = 40.0
"""How long a batch whose scorer died waits for another."""
_SPARE_PATIENCE_S = 20.0
"""How long it leaves the last scorer to everybody else."""
_ISOLATION_PATIENCE_S = 120.0
_QUARANTINE_S = 600.0
_REFUSED_AGAIN_S = 30.0
_CLOSE_S = 10.0


class _Died(Exception):
    """The scorer died, or does not answer, with the batch in it."""


class _Moved(Exception):
    """The scorer did not take the batch: it is another process by now, or full."""


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Documents on their way to a scorer."""

    utf8: NDArray[np.uint8]
    byte_offsets: NDArray[np.int64]
    languages: Languages | None
    signature: SignatureParameters | None
    classifiers: frozenset[str] | None = None

    def __len__(self) -> int:
        return int(self.byte_offsets.size) - 1

    @property
    def text_bytes(self) -> int:
        # A scorer with many empty documents is not idle.
        return int(self.utf8.size) + 1

    def message(self, token: str) -> bytes:
        """As it travels to the process that introduced itself with `token`."""
        return encode_batch(
            token,
            self.utf8,
            self.byte_offsets,
            self.languages,
            signature=self.signature,
            classifiers=self.classifiers,
        )

    def part(self, documents: slice) -> _Work:
        """Some of the documents."""
        offsets = self.byte_offsets[documents.start : documents.stop + 1]
        languages = self.languages and (self.languages[0], self.languages[1][documents])
        text = self.utf8[offsets[0] : offsets[-1]]
        return replace(self, utf8=text, byte_offsets=offsets - offsets[0], languages=languages)

    def without(self, documents: NDArray[np.bool_]) -> _Work:
        """The same batch with some texts empty."""
        sizes = np.diff(self.byte_offsets)
        left = np.repeat(~documents, sizes)
        offsets = np.zeros_like(self.byte_offsets)
        np.cumsum(np.where(documents, 0, sizes), out=offsets[1:])
        return replace(self, utf8=self.utf8[left], byte_offsets=offsets)


@dataclass(eq=False, slots=True)
class _Actor:
    """The Ray side of a member.

    Attributes:
        handle: of the Ray actor.
        asked: what was asked of it outside of scoring, until it is answered.
        asked_s: when.
        models: digest of the models that it answers with; "" before it has said so.
    """

    handle: Any
    asked: Future[Any] | None = None
    asked_s: float = -math.inf
    models: str = ""


@dataclass(eq=False, slots=True)
class _Pool:
    """One kind of scorers."""

    name: str
    limits: Limits
    sizer: Sizer
    options: dict[str, Any]
    made: int = 0
    wait_until_s: float = field(default=-math.inf)
    """No new scorer before; set after one was refused or could not be placed."""


class RayExecutor:
    """Runs scorers in Ray actors; thread-safe. Close it at the end.

    Args:
        settings: where Ray is, how many workers, where models are.
        build: makes the scorers from the models in each worker; None for those that ship.

    Raises:
        ConfigError: Ray is not installed or cannot be reached, or no worker starts.
    """

    def __init__(self, settings: Settings, build: BuildScorers | None = None) -> None:
        prepare_ray(local=settings.ray_address is None)
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "Workers need Ray, which is not installed: pip install 'dqs[ray]', or leave --workers at 0."
            ) from error
        self._ray = ray
        self._settings = settings
        self._recipe = Recipe(settings.data_dir, settings.models, build, Runtime.of(settings), settings.classifiers)
        self._changed = threading.Condition()
        self._roster = Roster(settings.worker_batches)
        self._actors: dict[str, _Actor] = {}
        self._pools = _pools(settings)
        self._quarantine = Quarantine(_QUARANTINE_S)
        self._waiting_bytes = 0
        self._reference: Introduction | None = None
        """What every worker must be like; of the first one, and after a swap with other models."""
        self._models: dict[str, ModelSet] = {}
        """By digest, all that workers may answer with."""
        self._swapping = threading.Lock()
        self._refusal: DqsError | None = None
        self._head_answered_s = time.monotonic()
        self._lost: str | None = None
        self._closing = threading.Event()
        self._subscribers: list[Callable[[], None]] = []
        self._announced: tuple[int, str | None] = (0, None)
        self.max_slots = sum(pool.limits.most for pool in self._pools) * settings.worker_batches
        self._folder: RayFolder | None = None
        self._connected = False
        self._threads: list[threading.Thread] = []
        try:
            if ray.is_initialized():
                raise ConfigError("This process uses Ray already: score in one process per service.")
            self._connect()
            self._connected = True
            self._head_answered_s = time.monotonic()
            self._actor_class = ray.remote(ScorerReplica)
            for name, work in (
                ("dqs-workers", self._look_after),
                ("dqs-head", self._ask_head),
                ("dqs-watch", self._watch),
            ):
                thread = threading.Thread(target=work, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            first = self._wait_for_first()
        except BaseException:
            self.close()
            raise
        self.signals: list[Signal] = list(first.signals)
        self._signal_names = [signal.name for signal in first.signals]

    # What the pipeline and the batcher call.

    @property
    def models(self) -> list[ModelInfo]:
        """What the workers answer with now."""
        return [] if self._reference is None else list(self._reference.models)

    @property
    def classifiers(self) -> list[str]:
        """Names of the classifiers that a caller may choose among."""
        return [] if self._reference is None else list(self._reference.classifiers)

    def score(
        self,
        utf8: NDArray[np.uint8],
        byte_offsets: NDArray[np.int64],
        languages: Sequence[str],
        *,
        signature: SignatureParameters | None = None,
        classifiers: frozenset[str] | None = None,
    ) -> Scored:
        """Scores documents that lie end to end in one buffer; see `dqs.pipeline.Executor`."""
        work = _Work(utf8, byte_offsets, pack_languages(languages), signature, classifiers)
        while True:
            # A batch in pieces may meet a swap. What killed is known by then, so the next time is quick.
            with contextlib.suppress(MixedModels):
                return self._score(work)

    def _score(self, work: _Work) -> Scored:
        known = self._quarantine.find(work.utf8, work.byte_offsets, time.monotonic())
        if known is not None:
            work = work.without(known)
        try:
            scored = self._score_shared(work)
        except _Died:
            scored = self._score_suspected(work)
        if known is not None:
            scored.failed = known if scored.failed is None else scored.failed | known
        return scored

    def status(self) -> ExecutorStatus:
        """How it is now; never waits for Ray."""
        with self._changed:
            replicas = tuple(
                Replica(
                    member.name, member.pool, member.node, member.state is State.READY, member.pending_bytes,
                    member.restarts,
                )
                for member in self._roster.members
            )  # fmt: skip
            return ExecutorStatus(self._slots(), replicas, self._lost, self._settings.worker_batches)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Has `changed` called whenever `slots` or `lost` have changed."""
        self._subscribers.append(changed)

    def note_waiting(self, text_bytes: int) -> None:
        """Takes down how much text waits for a slot."""
        self._waiting_bytes = text_bytes

    def close(self) -> None:
        """Ends the workers, and Ray where it was started here. Takes seconds, never hangs."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        deadline_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        closing = threading.Thread(target=self._disconnect, name="dqs-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        if closing.is_alive():
            # Ray waits for a head that is gone. It would do so once more when the interpreter ends.
            _abandon(self._ray)
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    # Scoring, in the calling thread.

    def _score_shared(self, work: _Work) -> Scored:
        """Scores next to other batches.

        Raises:
            Unavailable: there is nobody to score.
            _Died: the scorer died.
        """
        while True:
            with self._changed:
                while (member := self._take(work.text_bytes)) is None:
                    self._changed.wait(1.0)
            try:
                with contextlib.suppress(_Moved):
                    return self._call(member, work)
            finally:
                self._release(member, work.text_bytes)

    def _take(self, text_bytes: int) -> Member | None:
        self._check_able()
        return self._roster.take(text_bytes)

    def _check_able(self) -> None:
        if self._closing.is_set():
            raise Unavailable("The service is stopping; send the documents again later.")
        if not self._slots():
            raise Unavailable("No worker can score now; send the documents again in a few seconds.")

    def _score_suspected(self, work: _Work) -> Scored:
        """Scores a batch that was in a scorer that died: once more alone, then in smaller and smaller pieces."""
        try:
            return self._score_alone(work, isolated=False)
        except _Died:
            return self._isolate(work)

    def _isolate(self, work: _Work) -> Scored:
        """Scores a batch that killed twice, piece by piece; a document that kills alone is given up."""
        if len(work) == 1:
            return self._give_up(work)
        parts: list[Scored] = []
        for documents in cut(work.byte_offsets):
            part = work.part(documents)
            try:
                parts.append(self._score_alone(part, isolated=True))
            except _Died:
                parts.append(self._isolate(part))
        return join(parts)

    def _give_up(self, work: _Work) -> Scored:
        _LOG.error("A document of %d bytes has stopped every worker that scored it; it is left out.", work.utf8.size)
        with self._changed:
            self._quarantine.add(work.utf8, time.monotonic())
        scored = blank(self._signal_names, work.signature)
        scored.failed = np.ones(1, dtype=np.bool_)
        return scored

    def _score_alone(self, work: _Work, *, isolated: bool) -> Scored:
        """Scores on a scorer that holds nothing else.

        Args:
            work: what to score.
            isolated: whether it has killed twice, so that only one such piece may run at a time.

        Raises:
            Unavailable: nobody came free, or came back, in time.
            _Died: the scorer died, and of this work alone.
        """
        patience_s = _ISOLATION_PATIENCE_S if isolated else _RETRY_PATIENCE_S
        while True:
            member = self._reserve(isolated, time.monotonic(), patience_s)
            try:
                if not self._occupy(member, work.text_bytes):
                    continue
                try:
                    with contextlib.suppress(_Moved):
                        return self._call(member, work)
                finally:
                    self._release(member, work.text_bytes)
            finally:
                with self._changed:
                    self._roster.unreserve(member, isolated=isolated)
                    self._changed.notify_all()

    def _reserve(self, isolated: bool, begin_s: float, patience_s: float) -> Member:
        with self._changed:
            while True:
                waited_s = time.monotonic() - begin_s
                spare = len(self._roster.members) > 1 and waited_s < _SPARE_PATIENCE_S
                if self._closing.is_set() or self._lost or waited_s > patience_s:
                    raise Unavailable("The worker that scored the documents stopped, and no other is free; send again.")
                if not self._head_silent() and (member := self._roster.reserve(isolated=isolated, spare=spare)):
                    return member
                self._changed.wait(0.5)

    def _occupy(self, member: Member, text_bytes: int) -> bool:
        """Waits until a reserved scorer holds nothing; false where it dies or stops before."""
        with self._changed:
            while member.state is State.READY:
                if self._roster.occupy(member, text_bytes):
                    return True
                self._changed.wait(0.5)
        return False

    def _release(self, member: Member, text_bytes: int) -> None:
        with self._changed:
            self._roster.release(member, text_bytes, time.monotonic())
            self._changed.notify_all()

    def _call(self, member: Member, work: _Work) -> Scored:
        """One call to one scorer.

        Raises:
            _Died: it died or does not answer.
            _Moved: it did not take the batch.
        """
        exceptions = self._ray.exceptions
        token = member.token
        actor = self._actors.get(member.name)
        if actor is None or not token:
            raise _Moved
        try:
            answer = actor.handle.score.remote(work.message(token))
            scores: bytes = self._ray.get(answer, timeout=self._settings.worker_batch_timeout_s)
        except exceptions.PendingCallsLimitExceeded:
            time.sleep(0.01)
            raise _Moved from None
        except exceptions.RayTaskError as error:
            # What the scorer itself raised; whoever called decides what that means.
            raise _cause(error) from None
        except exceptions.GetTimeoutError:
            _LOG.error(
                "The worker %s on %s did not answer for %g s and is started again.",
                member.name, member.node, self._settings.worker_batch_timeout_s,
            )  # fmt: skip
            self._note_death(member, token)
            self._ray.kill(actor.handle, no_restart=False)
            raise _Died from None
        except exceptions.RayError:
            self._note_death(member, token)
            raise _Died from None
        if not scores:
            self._note_death(member, token)
            raise _Moved
        return decode_scores(scores, self._signal_names, work.signature, member.name, self._models)

    def _note_death(self, member: Member, token: str) -> None:
        with self._changed:
            if self._roster.died(member, token, time.monotonic()):
                _LOG.warning("The worker %s on %s died; it is started again.", member.name, member.node)
            self._changed.notify_all()
        self._announce()

    # Other models, in the thread that asks for them.

    def swap(self, versions: Mapping[str, str], timeout_s: float) -> None:
        """Serves with other models; see `dqs.pipeline.Executor`.

        Every ready worker loads them beside the old ones, one worker after the other, and scores on
        meanwhile. Only when all have, they change over, each between two of its batches; where one
        refuses, all stay as they were. Workers that start meanwhile start with the new models.
        """
        with self._swapping:
            asked: list[str] = []
            tokens: dict[str, str] = {}
            first: Loaded | None = None
            try:
                with self._changed:
                    ready = [(member, member.token) for member in self._roster.ready]
                for member, token in ready:
                    asked.append(member.name)
                    found = self._load(member, token, versions, timeout_s)
                    if found is None:
                        continue
                    tokens[member.name] = token
                    if first is None:
                        first = found
                    elif first.models != found.models:
                        raise ModelError(
                            f"The worker {member.name} on {member.node} has other files of the models than the "
                            "first one: install the same on every node."
                        )
                if first is None:
                    raise Unavailable("No worker is there to load the models: promote them again later.")
            except DqsError:
                for name in asked:
                    self._tell(name, "forget")
                raise
            self._change_over(first, tokens)

    def _load(self, member: Member, token: str, versions: Mapping[str, str], timeout_s: float) -> Loaded | None:
        """Has a worker load models; None where it dies or stops meanwhile.

        Raises:
            DqsError: they cannot serve there.
        """
        exceptions = self._ray.exceptions
        deadline_s = time.monotonic() + timeout_s
        if not self._tell(member.name, "load", dict(versions)):
            return None
        while member.state is State.READY and member.token == token and not self._closing.wait(_LOADED_S):
            actor = self._actors.get(member.name)
            if actor is None:
                return None
            try:
                found: Loaded | None = self._ray.get(actor.handle.loaded.remote(), timeout=timeout_s)
            except exceptions.PendingCallsLimitExceeded:
                found = None
            except exceptions.RayTaskError as error:
                cause = _cause(error)
                raise cause if isinstance(cause, DqsError) else ModelError(f"A worker fails: {cause!r}.") from None
            except exceptions.GetTimeoutError:
                raise slow_models(timeout_s) from None
            except exceptions.RayError:
                self._note_death(member, token)
                return None
            if found is not None:
                return found
            if time.monotonic() > deadline_s:
                raise slow_models(timeout_s)
        return None

    def _tell(self, name: str, method: str, *arguments: object) -> bool:
        """Calls a method of a worker; false where it is gone or has too much to do."""
        actor = self._actors.get(name)
        if actor is None:
            return False
        try:
            getattr(actor.handle, method).remote(*arguments)
        except self._ray.exceptions.RayError:
            return False
        return True

    def _change_over(self, new: Loaded, tokens: Mapping[str, str]) -> None:
        """Makes models those that serve: in the workers that have loaded them at once, in all others by a new start.

        Args:
            new: the models.
            tokens: worker -> token of the life that has loaded them.
        """
        models = ModelSet.of(new.models)
        with self._changed:
            assert self._reference is not None
            self._models[models.digest] = models
            self._reference = replace(self._reference, models=new.models, classifiers=new.classifiers)
            old = [member for member in self._roster.ready if self._actors[member.name].models != models.digest]
        for member in old:
            token = tokens.get(member.name, "")
            actor = self._actors.get(member.name)
            changed = False
            if actor is not None and token and token == member.token:
                with contextlib.suppress(self._ray.exceptions.RayError):
                    changed = self._ray.get(
                        actor.handle.swap.remote(token), timeout=self._settings.worker_batch_timeout_s
                    )
            with self._changed:
                if changed and actor is not None:
                    actor.models = models.digest
                elif actor is not None and actor.models != models.digest:  # else it has started with them meanwhile
                    self._roster.start_again(member, time.monotonic())
                self._changed.notify_all()
        self._announce()

    # Status.

    def _head_silent(self) -> bool:
        return time.monotonic() - self._head_answered_s > _HEAD_SILENT_S

    def _slots(self) -> int:
        if self._lost or self._closing.is_set() or self._head_silent():
            return 0
        return self._roster.slots

    def _announce(self) -> None:
        """Tells subscribers when slots or lost have changed; called without the lock."""
        with self._changed:
            now = (self._slots(), self._lost)
            if now == self._announced:
                return
            self._announced = now
            self._changed.notify_all()
        for changed in self._subscribers:
            changed()

    # Looking after the scorers, in a thread of its own.

    def _look_after(self) -> None:
        while not self._closing.wait(_TICK_S):
            try:
                now_s = time.monotonic()
                for pool in self._pools:
                    self._resize(pool, now_s)
                for member in list(self._roster.members):
                    self._look_at(member, now_s)
            except Exception:
                _LOG.exception("Looking after the workers failed; it goes on.")

    def _resize(self, pool: _Pool, now_s: float) -> None:
        members = [
            member for member in self._roster.members if member.pool == pool.name and member.state is not State.STOPPING
        ]
        if now_s >= pool.wait_until_s and not self._head_silent():
            missing = pool.sizer.missing(members)
            if self._reference is None:
                # The first one compiles what is not compiled yet, for all the others.
                missing = min(missing, 1 - len(self._roster.members))
            for _ in range(missing):
                self._start(pool, now_s)
            if pool.sizer.grows(members, self._waiting_bytes, now_s):
                self._start(pool, now_s)
        with self._changed:
            idle = pool.sizer.shrinks(members, self._waiting_bytes, now_s)
            if idle is not None:
                idle.state = State.STOPPING
        for member in [one for one in self._roster.members if one.pool == pool.name and one.state is State.STOPPING]:
            if not member.batches and not member.reserved:
                _LOG.info("The worker %s has been idle and is stopped.", member.name)
                self._remove(member)

    def _start(self, pool: _Pool, now_s: float) -> None:
        member = Member(f"{pool.name}-{pool.made}", pool.name, now_s)
        pool.made += 1
        recipe = self._recipe
        if pool.name == CPU_POOL:
            recipe = replace(recipe, runtime=replace(recipe.runtime, provider="cpu"))
        actor = self._actor_class.options(**pool.options).remote(recipe)
        with self._changed:
            self._actors[member.name] = _Actor(actor)
            self._roster.members.append(member)

    def _remove(self, member: Member) -> None:
        with self._changed:
            self._roster.members.remove(member)
            actor = self._actors.pop(member.name)
            self._changed.notify_all()
        self._ray.kill(actor.handle, no_restart=True)

    def _look_at(self, member: Member, now_s: float) -> None:
        actor = self._actors.get(member.name)
        if actor is None:
            return
        if actor.asked is not None and actor.asked.done():
            asked, actor.asked = actor.asked, None
            if member.state is State.STARTING:
                self._introduced(member, asked, now_s)
            elif member.state is State.READY:
                self._pinged(member, asked)
        if member.state is State.STARTING:
            if actor.asked is None and now_s - actor.asked_s >= _ASK_AGAIN_S and member.name in self._actors:
                versions, signals = self._expected()
                self._ask(actor, functools.partial(actor.handle.introduce.remote, versions, signals), now_s)
            if now_s - member.since_s > self._settings.worker_start_timeout_s:
                self._gave_no_sign(member, now_s)
        elif (
            member.holds_nothing and actor.asked is None and now_s >= max(actor.asked_s, member.idle_since_s) + _PING_S
        ):
            self._ask(actor, functools.partial(actor.handle.ping.remote, member.token), now_s)

    def _ask(self, actor: _Actor, call: Callable[[], Any], now_s: float) -> None:
        actor.asked_s = now_s
        with contextlib.suppress(self._ray.exceptions.RayError):
            actor.asked = call().future()

    def _introduced(self, member: Member, asked: Future[Any], now_s: float) -> None:
        error = asked.exception()
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause = _cause(error)
            refusal = cause if isinstance(cause, DqsError) else ConfigError(f"A worker cannot start: {cause!r}.")
            self._refuse(member, refusal, now_s)
            return
        if error is not None:
            # Not there yet, or died on the way; Ray starts it again.
            return
        introduction = asked.result()
        if not isinstance(introduction, Introduction):
            return  # a late answer to a ping; it builds its scorers once more now
        with self._changed:
            if self._reference is None:
                self._reference = introduction
            if _versions(introduction) != _versions(self._reference):
                return  # they have changed since it was asked; it is asked again
            difference = _difference(self._reference, introduction)
            if difference is None:
                models = ModelSet.of(introduction.models)
                self._models[models.digest] = models
                if (actor := self._actors.get(member.name)) is not None:
                    actor.models = models.digest
                self._roster.became_ready(member, introduction.token, introduction.node, now_s)
                self._changed.notify_all()
        if difference is not None:
            self._refuse(
                member,
                ConfigError(
                    f"The worker {member.name} on {introduction.node} has other {difference} than the first one: "
                    "install the same version and models on every node."
                ),
                now_s,
            )

    def _expected(self) -> tuple[dict[str, str] | None, list[str] | None]:
        """Versions of the models and names of the signals that a worker must come with; None before the first one."""
        reference = self._reference
        if reference is None:
            return None, None
        return _versions(reference), [signal.name for signal in reference.signals]

    def _pinged(self, member: Member, asked: Future[Any]) -> None:
        if asked.exception() is not None or asked.result() is not True:
            self._note_death(member, member.token)

    def _refuse(self, member: Member, why: DqsError, now_s: float) -> None:
        _LOG.error("%s", why.message)
        self._refusal = why
        for pool in self._pools:
            if pool.name == member.pool:
                pool.wait_until_s = now_s + _REFUSED_AGAIN_S
        self._remove(member)
        with self._changed:
            self._changed.notify_all()

    def _gave_no_sign(self, member: Member, now_s: float) -> None:
        self._refuse(
            member,
            ConfigError(
                f"The worker {member.name} did not start within {self._settings.worker_start_timeout_s:g} s: "
                "check that Ray has the processors and GPUs that it asks for."
            ),
            now_s,
        )

    def _wait_for_first(self) -> Introduction:
        with self._changed:
            while self._reference is None or not self._roster.slots:
                if self._refusal is not None:
                    raise self._refusal
                if self._lost is not None:
                    raise ConfigError(self._lost)
                self._changed.wait(0.5)
            return self._reference

    # The head of the cluster, in two threads: one asks and may wait long, the other never waits.

    def _ask_head(self) -> None:
        from ray._private.worker import global_worker

        client: Any = vars(global_worker)["gcs_client"]
        node = self._ray.NodeID.from_hex(self._ray.get_runtime_context().get_node_id())
        while not self._closing.wait(_HEAD_PERIOD_S):
            try:
                (here,) = client.check_alive([node], timeout=_HEAD_TIMEOUT_S)
            except Exception as error:
                _LOG.debug("The head of the Ray cluster does not answer: %s", type(error).__name__)
                continue
            self._head_answered_s = time.monotonic()
            if not here:
                self._give_up_ray("This machine's Ray node is no longer part of its cluster: start the service again.")

    def _watch(self) -> None:
        silent = False
        while not self._closing.wait(_TICK_S):
            if self._head_silent() != silent:
                silent = not silent
                _LOG.warning("The head of the Ray cluster %s.", "does not answer" if silent else "answers again")
            silent_s = time.monotonic() - self._head_answered_s
            if silent_s > self._settings.ray_head_timeout_s:
                self._give_up_ray(f"The head of the Ray cluster has not answered for {silent_s:.0f} s.")
            self._announce()

    def _give_up_ray(self, why: str) -> None:
        with self._changed:
            self._lost = self._lost or why
            self._changed.notify_all()
        self._announce()

    # Ray itself.

    def _connect(self) -> None:
        settings = self._settings
        if settings.ray_address is not None:
            join_cluster(self._ray, settings.ray_address, settings.ray_node_ip)
            return
        self._folder = RayFolder()
        workers = sum(pool.limits.most for pool in self._pools)
        start_here(
            self._ray,
            self._folder,
            # As many as the workers ask for: how many run here is the person's choice.
            num_cpus=math.ceil(workers * settings.worker_cpus),
            object_store_memory=_OBJECT_STORE_BYTES,
            _system_config={"max_direct_call_object_size": _INLINE_BYTES},
        )

    def _disconnect(self) -> None:
        if self._connected:
            self._ray.shutdown()


def _pools(settings: Settings) -> list[_Pool]:
    pools = []
    for name, least, most, gpus in (
        (CPU_POOL, settings.workers, settings.max_workers, 0.0),
        (GPU_POOL, settings.gpu_workers, settings.max_gpu_workers, settings.worker_gpus),
    ):
        if most is not None and most < least:
            raise ConfigError(
                f"At most {most} {name} workers cannot be at least {least}: raise the one or lower the other."
            )
        limits = Limits(least, least if most is None else most)
        if not limits.most:
            continue
        sizer = Sizer(
            limits,
            grow_bytes=settings.worker_grow_bytes,
            grow_s=settings.worker_grow_s,
            shrink_s=settings.worker_shrink_s,
        )
        options = {
            "num_cpus": settings.worker_cpus,
            "num_gpus": gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            # One more than the batches: whether it is alive is asked in the same way.
            # And another one, about other models.
            "max_pending_calls": settings.worker_batches + 2,
            "scheduling_strategy": "SPREAD",
        }
        pools.append(_Pool(name, limits, sizer, options))
    return pools


def _versions(introduction: Introduction) -> dict[str, str]:
    return {model.name: model.version for model in introduction.models}


def _difference(first: Introduction, other: Introduction) -> str | None:
    """In what two workers differ, or None."""
    for name in ("version", "models"):
        if getattr(first, name) != getattr(other, name):
            return name
    try:
        check_signals(first.signals, other.signals)
    except ModelError:
        return "signals"
    return None


def _cause(error: Any) -> Exception:
    """What was raised in the worker."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error


def _abandon(ray: Any) -> None:
    """Leaves Ray without its goodbye, and ends the processes that it started here."""
    import atexit

    from ray._private import worker

    atexit.unregister(worker.shutdown)
    node = worker._global_node
    if node is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
