"""A corpus over several shards whose decisions commit at one place, simulated; see `dqs/index/CLUSTER.md`.

One run is one seed: clients submit and delete a few documents of a few clusters
of near-duplicates, while messages are lost, delayed, reordered and repeated,
clients crash, shards fall back to a replica that lacks their last commits, and
deciders are replaced while the old one goes on believing that it leads. After a
while the faults end, everything catches up, and the history and the final state
go to `history.check`.

Only what decides is simulated: texts are names of clusters and variants, time
has no unit, and an entry of a bucket carries its record. Elections are one step
(a majority promises the new epoch and hands over its logs); everything else is
single messages. A `Flaw` breaks one rule of the design, to show that the
checker sees it.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache, partial

from tests.simulation.history import Action, Outcome, Recorder, Violation, check

BANDS = 6
"""Bands of a text. Two variants of a cluster share at least two of them."""


class Flaw(Enum):
    """A rule of the design that is left out."""

    NONE = "the design as it is"
    NO_DECIDER = "clients insert into the shards themselves when they find nothing"
    NO_WINDOW = "the decider trusts the look-ups and does not check the commits since"
    SHORT_WINDOW = "a call that began before the window is decided instead of refused"
    BLIND_TO_DELETIONS = "what the look-ups found is believed although it was deleted since"
    EARLY_ANSWER = "the decider answers before a majority holds the decision"
    NO_FENCING = "replicas of the log follow leaders of old epochs"
    LASTING_WATERMARK = "a shard that fell back to its replica keeps the number it had reached"
    GAPS_APPLIED = "a shard applies a commit before the ones it lacks"
    DECIDED_TWICE = "a request is decided again after an earlier decision of the same call"


@dataclass(frozen=True, slots=True)
class Settings:
    """The size of a run and its faults; times in units of the mean delay of a message.

    Attributes:
        shards: that hold the buckets.
        replicas: of the decider's log; odd.
        clients: one call at a time each.
        calls: per client, retries of its failed ones not counted.
        clusters: of near-duplicates.
        variants: texts per cluster.
        window: commits that the decider remembers; all look-ups of a call must be younger.
        loss: probability that a message is lost.
        repetition: probability that a message comes twice.
        straggling: probability that a message takes twenty times as long.
        deletion: probability that a call deletes a document.
        crash: probability per call that the client ends in the middle of it.
        faults_until: end of losses, failovers and crashes.
        failover_every: mean time between failovers, of shards and of deciders each.
    """

    shards: int = 3
    replicas: int = 3
    clients: int = 4
    calls: int = 6
    clusters: int = 2
    variants: int = 5
    window: int = 8
    loss: float = 0.05
    repetition: float = 0.1
    straggling: float = 0.1
    deletion: float = 0.15
    crash: float = 0.03
    faults_until: float = 120.0
    failover_every: float = 25.0


class _Entry(Enum):
    KEEP = "keep"
    DUPLICATE = "duplicate"
    DELETE = "delete"
    READ = "read"
    """Changes nothing; its commit proves that its leader still led when it answered."""


@dataclass(frozen=True, slots=True)
class _Commit:
    """A line of the log. `target` is the number of the document that is named or deleted."""

    number: int
    epoch: int
    kind: _Entry
    document: str = ""
    text: str = ""
    target: int = 0
    target_document: str = ""
    call: int = -1
    answer: _Answer | None = None


@dataclass(frozen=True, slots=True)
class _Hint:
    """A shard's answer: true of the commits up to `watermark`, whenever it arrives."""

    shard: int
    watermark: int
    verdict: _Commit | None
    candidates: tuple[_Commit, ...]


@dataclass(slots=True, eq=False)
class _Call:
    number: int
    action: Action
    document: str
    text: str
    hints: dict[int, _Hint] = field(default_factory=dict)
    attempts: int = 0
    begun: int | None = None
    inserted: set[int] = field(default_factory=set)
    done: bool = False


@dataclass(frozen=True, slots=True)
class _Request:
    """What the decider is sent.

    `base` is the lowest watermark of its look-ups, `begun` that of all look-ups of the call so far.
    """

    call: _Call
    begun: int
    action: Action
    document: str
    text: str
    base: int
    verdict: _Commit | None
    candidates: tuple[_Commit, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """A verdict; without an outcome the call began too long ago, or this is not the leader."""

    outcome: Outcome | None = None
    duplicate_of: str | None = None
    not_leader: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a run shows.

    Attributes:
        violations: broken promises, of the history and the final state.
        astray: sentences about shards that do not hold at the end what the log says.
        outcomes: number of answers of every kind; None counts the failed calls and those of crashed clients.
        expired: requests that the decider refused because their call had begun before its window.
        failovers: of shards and deciders.
    """

    violations: list[Violation]
    astray: list[str]
    outcomes: dict[Outcome | None, int]
    expired: int
    failovers: int


def near(a: str, b: str) -> bool:
    """Whether two texts, named `CLUSTER/VARIANT`, are of one cluster."""
    return cluster(a) == cluster(b)


@cache
def cluster(text: str) -> str:
    """The cluster of a text."""
    return text.partition("/")[0]


@cache
def band_keys(text: str) -> tuple[str, ...]:
    """The keys of a text's bands, two of which no other variant has."""
    name, _, variant = text.partition("/")
    own = {int(variant) % BANDS, (5 * int(variant) + 1) % BANDS}
    return tuple(f"{name}.{band}" + (f".{variant}" if band in own else "") for band in range(BANDS))


@cache
def shard_of(key: str, shards: int) -> int:
    """The shard that holds a key: of a band, or `id:` and a document's id."""
    return zlib.crc32(key.encode()) % shards


class _Shard:
    """Buckets and verdicts of some keys: a function of the log up to `watermark`."""

    def __init__(self, number: int, world: _World) -> None:
        self.number = number
        self.watermark = 0
        self.buckets: dict[str, dict[int, _Commit]] = {}
        self.verdicts: dict[str, _Commit] = {}
        self._world = world
        self._applied: list[_Commit] = []
        self._replicated = 0

    def look_up(self, document: str, text: str) -> _Hint:
        shards = self._world.settings.shards
        found: dict[int, _Commit] = {}
        for key in band_keys(text) if text else ():
            if shard_of(key, shards) == self.number:
                found.update(self.buckets.get(key, {}))
        return _Hint(self.number, self.watermark, self.verdicts.get(document), tuple(found.values()))

    def receive(self, commits: Iterable[_Commit]) -> None:
        for commit in commits:
            gap = commit.number > self.watermark + 1
            if commit.number > self.watermark and (not gap or self._world.flaw is Flaw.GAPS_APPLIED):
                self._apply(commit)

    def fall_back(self) -> None:
        """A replica takes over that has got as far as chance will have it."""
        kept = self._applied[: self._world.random.randint(self._replicated, len(self._applied))]
        reached = self.watermark
        self._applied, self.buckets, self.verdicts, self.watermark = [], {}, {}, 0
        for commit in kept:
            self._apply(commit)
        self._replicated = len(kept)
        if self._world.flaw is Flaw.LASTING_WATERMARK:
            self.watermark = reached

    def insert(self, commit: _Commit) -> None:
        """Without a decider: whatever comes is inserted."""
        self._change(commit)

    def _apply(self, commit: _Commit) -> None:
        self._applied.append(commit)
        self._change(commit)
        self.watermark = commit.number

    def _change(self, commit: _Commit) -> None:
        shards = self._world.settings.shards
        if commit.kind is _Entry.KEEP:
            for key in band_keys(commit.text):
                if shard_of(key, shards) == self.number:
                    self.buckets.setdefault(key, {})[commit.number] = commit
        if commit.kind in (_Entry.KEEP, _Entry.DUPLICATE):
            if shard_of(f"id:{commit.document}", shards) == self.number:
                self.verdicts[commit.document] = commit
        elif commit.kind is _Entry.DELETE:
            for key in band_keys(commit.text):
                self.buckets.get(key, {}).pop(commit.target, None)
            # The verdicts that name a deleted document go with it: their documents are decided anew.
            for document, verdict in list(self.verdicts.items()):
                if commit.target in (verdict.number if verdict.kind is _Entry.KEEP else 0, verdict.target):
                    del self.verdicts[document]


class _Decider:
    """One replica of the log; decides while it believes that it leads."""

    def __init__(self, number: int, world: _World) -> None:
        self.number = number
        self.epoch = 0
        self.leads = False
        self.log: list[_Commit] = []
        self.committed = 0
        self._world = world
        self._acknowledged: dict[int, int] = {}
        self._waiting: dict[int, tuple[_Call, _Answer]] = {}

    def lead(self, epoch: int, log: list[_Commit]) -> None:
        self.epoch, self.leads, self.log = epoch, True, list(log)
        self._acknowledged, self._waiting = {}, {}
        # Commits of earlier epochs are certain only below one of this epoch.
        self._append(_Commit(len(self.log) + 1, epoch, _Entry.READ))

    def step_down(self, epoch: int) -> None:
        self.epoch, self.leads = epoch, False
        self._waiting = {}

    def decide(self, request: _Request) -> None:
        if not self.leads:
            self._world.reply(request.call, _Answer(not_leader=True))
            return
        decision = self._decision(request)
        if decision is None:
            self._world.expired += 1
            self._world.reply(request.call, _Answer())
            return
        commit, answer = decision
        if self._world.flaw is Flaw.EARLY_ANSWER:
            self._world.reply(request.call, answer)
        else:
            self._waiting[commit.number] = (request.call, answer)
        self._append(commit)

    def _decision(self, request: _Request) -> tuple[_Commit, _Answer] | None:
        """The next line of the log and its answer; None if the call began before the window."""
        flaw, document, text = self._world.flaw, request.document, request.text
        tail = max(len(self.log) - self._world.settings.window, 0)
        if request.begun < tail and flaw not in (Flaw.SHORT_WINDOW, Flaw.NO_WINDOW):
            return None
        window = [] if flaw is Flaw.NO_WINDOW else self.log[max(request.begun, tail) :]

        def decide(
            kind: _Entry, outcome: Outcome, *, text: str = "", target: int = 0, target_document: str = ""
        ) -> tuple[_Commit, _Answer]:
            answer = _Answer(outcome, target_document or None)
            number = len(self.log) + 1
            made = _Commit(
                number, self.epoch, kind, document, text, target, target_document, request.call.number, answer
            )
            return made, answer

        # A call takes effect once, however often its requests are repeated and whenever they arrive.
        for commit in window:
            if commit.call == request.call.number and commit.answer and flaw is not Flaw.DECIDED_TWICE:
                return replace(commit, number=len(self.log) + 1, epoch=self.epoch, kind=_Entry.READ), commit.answer

        since = [commit for commit in window if commit.number > request.base]
        gone = {commit.target for commit in since if commit.kind is _Entry.DELETE}
        if flaw is Flaw.BLIND_TO_DELETIONS:
            gone = set()
        known = request.verdict
        for commit in since:
            if commit.document == document and commit.kind in (_Entry.KEEP, _Entry.DUPLICATE):
                known = commit if known is None or commit.number > known.number else known
        if known is not None and gone & {known.number, known.target}:
            known = None

        if request.action is Action.DELETE:
            if known is None or known.kind is not _Entry.KEEP:
                return decide(_Entry.READ, Outcome.DELETED)
            return decide(_Entry.DELETE, Outcome.DELETED, text=known.text, target=known.number)
        if known is not None:
            if known.text != text:
                return decide(_Entry.READ, Outcome.ID_REUSED)
            if known.kind is _Entry.KEEP:
                return decide(_Entry.READ, Outcome.KEPT)
            return decide(_Entry.READ, Outcome.DUPLICATE, target_document=known.target_document)
        keys = set(band_keys(text))
        candidates = {commit.number: commit for commit in request.candidates}
        for commit in since:
            if commit.kind is _Entry.KEEP and not keys.isdisjoint(band_keys(commit.text)):
                candidates[commit.number] = commit
        alive = [number for number, commit in candidates.items() if number not in gone and near(commit.text, text)]
        if not alive:
            return decide(_Entry.KEEP, Outcome.KEPT, text=text)
        first = candidates[min(alive)]
        return decide(
            _Entry.DUPLICATE, Outcome.DUPLICATE, text=text, target=first.number, target_document=first.document
        )

    def _append(self, commit: _Commit) -> None:
        self.log.append(commit)
        self.replicate()

    def replicate(self) -> None:
        """Sends the log to the other replicas. In a real one: what each lacks."""
        log = list(self.log)
        for other in self._world.deciders:
            if other is not self:
                self._world.send(partial(other.follow, self, self.epoch, log, self.committed))

    def follow(self, leader: _Decider, epoch: int, log: list[_Commit], committed: int) -> None:
        if epoch < self.epoch and (self.leads or self._world.flaw is not Flaw.NO_FENCING):
            self._world.send(partial(leader.refused, self.epoch))
            return
        if epoch != self.epoch:
            self.step_down(epoch)
        elif self.log and self.log[-1].epoch == epoch and len(log) < len(self.log):
            log = self.log  # an older message of the same leader
        self.log = list(log)
        self.committed = max(self.committed, min(committed, len(log)))
        self._world.send(partial(leader.acknowledged, self.number, epoch, len(log)))

    def refused(self, epoch: int) -> None:
        if epoch > self.epoch:
            self.step_down(epoch)

    def acknowledged(self, replica: int, epoch: int, length: int) -> None:
        if not self.leads or epoch != self.epoch:
            return
        self._acknowledged[replica] = max(self._acknowledged.get(replica, 0), length)
        lengths = sorted([len(self.log), *self._acknowledged.values()], reverse=True)
        majority = len(self._world.deciders) // 2 + 1
        if len(lengths) < majority:
            return
        held = min(lengths[majority - 1], len(self.log))
        if held <= self.committed or self.log[held - 1].epoch != self.epoch:
            return
        new = self.log[self.committed : held]
        self.committed = held
        for shard in self._world.shards:
            self._world.send(partial(shard.receive, new))
        for commit in new:
            if commit.number in self._waiting:
                self._world.reply(*self._waiting.pop(commit.number))

    def hand_out(self, shard: _Shard, after: int) -> None:
        """Sends a shard what it lacks, of what is certain."""
        commits = self.log[after : self.committed]
        if commits:
            self._world.send(partial(shard.receive, commits))


class _Client:
    """Submits and deletes, one call at a time, and repeats most of what failed."""

    TIMEOUT = 8.0
    ATTEMPTS = 8

    def __init__(self, name: str, world: _World, calls: list[tuple[Action, str, str]]) -> None:
        self.name = name
        self.ended = False
        self._world = world
        self._calls = calls
        self._leader = 0
        self._call: _Call | None = None

    def next(self) -> None:
        world = self._world
        if self.ended or not self._calls:
            self.ended = True
            return
        action, document, text = self._calls.pop()
        call = _Call(world.recorder.invoke(self.name, action, document, text), action, document, text)
        self._call = call
        world.callers[call] = self
        if world.faulty and world.random.random() < world.settings.crash:
            world.at(world.random.expovariate(0.25), self._crash)
        self._look_up(call)

    def _crash(self) -> None:
        if self._call is not None:
            self._call.done = True
        self.ended = True

    def _look_up(self, call: _Call) -> None:
        call.hints = {}
        self._attempt(call)

    def _attempt(self, call: _Call) -> None:
        world = self._world
        if call.done:
            return
        call.attempts += 1
        if call.attempts > self.ATTEMPTS and world.faulty:
            self._fail(call)
            return
        if len(call.hints) < world.settings.shards:
            for shard in world.shards:
                if shard.number not in call.hints:
                    world.send(partial(self._ask, shard, call))
        else:
            self._decide(call)
        world.at(self.TIMEOUT, partial(self._late, call, call.attempts))

    def _fail(self, call: _Call) -> None:
        call.done = True
        self._world.recorder.fail(call.number)
        if self._world.random.random() < 0.7:
            self._calls.append((call.action, call.document, call.text))
        self._world.at(1.0, self.next)

    def _ask(self, shard: _Shard, call: _Call) -> None:
        self._world.send(partial(self._hinted, call, shard.look_up(call.document, call.text)))

    def _hinted(self, call: _Call, hint: _Hint) -> None:
        if call.done or hint.shard in call.hints:
            return
        call.hints[hint.shard] = hint
        if len(call.hints) == self._world.settings.shards:
            self._decide(call)

    def _late(self, call: _Call, attempt: int) -> None:
        if call.done or call.attempts != attempt:
            return
        self._leader = self._world.random.randrange(len(self._world.deciders))
        if self._world.random.random() < 0.5:
            self._look_up(call)
        else:
            self._attempt(call)

    def _decide(self, call: _Call) -> None:
        hints = call.hints.values()
        verdict = next((hint.verdict for hint in hints if hint.verdict is not None), None)
        candidates = tuple(candidate for hint in hints for candidate in hint.candidates)
        if self._world.flaw is Flaw.NO_DECIDER:
            self._insert(call, verdict, candidates)
            return
        base = min(hint.watermark for hint in hints)
        # A shard that fell back may answer a later look-up with less than it answered the first.
        call.begun = base if call.begun is None else min(call.begun, base)
        request = _Request(call, call.begun, call.action, call.document, call.text, base, verdict, candidates)
        self._world.send(partial(self._world.deciders[self._leader].decide, request))

    def _insert(self, call: _Call, verdict: _Commit | None, candidates: tuple[_Commit, ...]) -> None:
        others = [candidate for candidate in candidates if candidate.document != call.document]
        if verdict is not None and verdict.text != call.text:
            self.answered(call, _Answer(Outcome.ID_REUSED))
        elif verdict is None and others:
            self.answered(call, _Answer(Outcome.DUPLICATE, others[0].document))
        else:
            commit = _Commit(call.number + 1, 0, _Entry.KEEP, call.document, call.text)
            for shard in self._world.shards:
                if shard.number not in call.inserted:
                    self._world.send(partial(self._insert_at, shard, call, commit))

    def _insert_at(self, shard: _Shard, call: _Call, commit: _Commit) -> None:
        shard.insert(commit)
        self._world.send(partial(self._inserted, call, shard.number))

    def _inserted(self, call: _Call, shard: int) -> None:
        call.inserted.add(shard)
        if len(call.inserted) == self._world.settings.shards:
            self.answered(call, _Answer(Outcome.KEPT))

    def answered(self, call: _Call, answer: _Answer) -> None:
        world = self._world
        if call.done:
            return
        if answer.not_leader:
            self._leader = world.random.randrange(len(world.deciders))
            world.at(1.0, partial(self._again, call, call.attempts))
        elif answer.outcome is None:
            self._fail(call)
        else:
            call.done = True
            world.recorder.answer(call.number, answer.outcome, answer.duplicate_of)
            world.at(world.random.expovariate(0.5), self.next)

    def _again(self, call: _Call, attempt: int) -> None:
        if call.attempts == attempt:
            self._attempt(call)


class _World:
    """The clock, the network, and what goes wrong."""

    LIMIT = 2000.0

    def __init__(self, seed: int, settings: Settings, flaw: Flaw) -> None:
        self.random = random.Random(seed)
        self.settings = settings
        self.flaw = flaw
        self.now = 0.0
        self.expired = 0
        self.failovers = 0
        self.recorder = Recorder(lambda: self.now)
        self.callers: dict[_Call, _Client] = {}
        self.shards = [_Shard(number, self) for number in range(settings.shards)]
        self.deciders = [_Decider(number, self) for number in range(settings.replicas)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.clients = [_Client(f"client {n}", self, self._work()) for n in range(settings.clients)]

    @property
    def faulty(self) -> bool:
        return self.now < self.settings.faults_until

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), action))

    def send(self, deliver: Callable[[], None]) -> None:
        settings, draw = self.settings, self.random.random
        copies = 1
        if self.faulty:
            copies = 0 if draw() < settings.loss else 2 if draw() < settings.repetition else 1
        for _ in range(copies):
            delay = self.random.expovariate(1.0)
            self.at(20.0 * delay if draw() < settings.straggling else delay, deliver)

    def reply(self, call: _Call, answer: _Answer) -> None:
        self.send(partial(self.callers[call].answered, call, answer))

    def run(self) -> None:
        self.deciders[0].lead(1, [])
        for client in self.clients:
            self.at(self.random.expovariate(1.0), client.next)
        if self.flaw is not Flaw.NO_DECIDER:
            self._after_a_while(self._fail_shard)
            self._after_a_while(self._fail_decider)
            self.at(5.0, self._tick)
        while self._events and self.now < self.LIMIT:
            self.now, _, action = heapq.heappop(self._events)
            action()

    def _work(self) -> list[tuple[Action, str, str]]:
        settings, choice = self.settings, self.random.choice
        texts = [f"{c}/{v}" for c in "abcdefgh"[: settings.clusters] for v in range(settings.variants)]
        work = []
        for _ in range(settings.calls):
            text = choice(texts)
            # Most ids belong to one text, so that retries are common and reuses are not rare.
            document = "d" + (text if self.random.random() < 0.9 else choice(texts))
            if self.random.random() < settings.deletion:
                work.append((Action.DELETE, document, ""))
            else:
                work.append((Action.SUBMIT, document, text))
        return work

    def _after_a_while(self, fault: Callable[[], None]) -> None:
        delay = self.random.expovariate(1.0 / self.settings.failover_every)
        if self.now + delay < self.settings.faults_until:
            self.at(delay, fault)

    def _fail_shard(self) -> None:
        self.failovers += 1
        self.random.choice(self.shards).fall_back()
        self._after_a_while(self._fail_shard)

    def _fail_decider(self) -> None:
        """A majority follows a new leader; the old one learns of it from the first refusal, if it was not asked."""
        self.failovers += 1
        voters = self.random.sample(self.deciders, self.settings.replicas // 2 + 1)
        epoch = max(decider.epoch for decider in self.deciders) + 1
        best = max(voters, key=lambda voter: (voter.log[-1].epoch if voter.log else 0, len(voter.log)))
        log = list(best.log)
        for voter in voters:
            voter.step_down(epoch)
        self.random.choice(voters).lead(epoch, log)
        self._after_a_while(self._fail_decider)

    def _tick(self) -> None:
        """Now and then leaders repeat themselves and shards ask for what they lack."""
        for decider in self.deciders:
            if decider.leads:
                decider.replicate()
        for shard in self.shards:
            self.send(partial(self.random.choice(self.deciders).hand_out, shard, shard.watermark))
        if self._events or not all(client.ended for client in self.clients) or self.behind():
            self.at(5.0, self._tick)

    def behind(self) -> bool:
        """Whether something that was decided has not reached every shard."""
        leaders = [decider for decider in self.deciders if decider.leads]
        head = max((len(decider.log) for decider in self.deciders), default=0)
        certain = max(decider.committed for decider in self.deciders)
        return self.faulty or len(leaders) != 1 or certain < head or any(s.watermark < certain for s in self.shards)

    def astray(self) -> list[str]:
        """Sentences about shards that differ from a replay of the log."""
        log = max(self.deciders, key=lambda decider: decider.committed)
        wrong = []
        if self.behind():
            wrong.append("commits have not reached every shard in the end")
        for shard in self.shards:
            replayed = _Shard(shard.number, self)
            replayed.receive(log.log[: log.committed])
            buckets = [{key: set(found) for key, found in s.buckets.items() if found} for s in (shard, replayed)]
            if buckets[0] != buckets[1] or shard.verdicts != replayed.verdicts:
                wrong.append(f"shard {shard.number} does not hold what the log says")
        return wrong


def simulate(seed: int, settings: Settings | None = None, flaw: Flaw = Flaw.NONE) -> Result:
    """One run and what is wrong with it.

    Args:
        seed: decides everything.
        settings: the default ones if None.
        flaw: the rule that is left out.
    """
    world = _World(seed, settings or Settings(), flaw)
    world.run()
    final = {
        document: verdict.text
        for shard in world.shards
        for document, verdict in shard.verdicts.items()
        if verdict.kind is _Entry.KEEP
    }
    violations = check(world.recorder.events, final, near=near, group=cluster)
    outcomes: dict[Outcome | None, int] = dict.fromkeys((*Outcome, None), 0)
    for event in world.recorder.events:
        if event.outcome is not None:
            outcomes[event.outcome] += 1
    outcomes[None] = len(world.callers) - sum(outcomes.values())
    astray = [] if flaw is Flaw.NO_DECIDER else world.astray()
    return Result(violations, astray, outcomes, world.expired, world.failovers)
