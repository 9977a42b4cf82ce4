"""The nouns: Document, Label, Reason, Verdict. Read this first.

Plain standard-library types, shared by the client and the service.
This module knows nothing of how scores are computed, sent or stored.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

_LANGUAGES = frozenset((
    "aa", "ab", "ae", "af", "ak", "am", "an", "ar", "as", "av", "ay", "az", "ba", "be", "bg", "bh", "bi", "bm",
    "bn", "bo", "br", "bs", "ca", "ce", "ch", "co", "cr", "cs", "cu", "cv", "cy", "da", "de", "dv", "dz", "ee",
    "el", "en", "eo", "es", "et", "eu", "fa", "ff", "fi", "fj", "fo", "fr", "fy", "ga", "gd", "gl", "gn", "gu",
    "gv", "ha", "he", "hi", "ho", "hr", "ht", "hu", "hy", "hz", "ia", "id", "ie", "ig", "ii", "ik", "io", "is",
    "it", "iu", "ja", "jv", "ka", "kg", "ki", "kj", "kk", "kl", "km", "kn", "ko", "kr", "ks", "ku", "kv", "kw",
    "ky", "la", "lb", "lg", "li", "ln", "lo", "lt", "lu", "lv", "mg", "mh", "mi", "mk", "ml", "mn", "mr", "ms",
    "mt", "my", "na", "nb", "nd", "ne", "ng", "nl", "nn", "no", "nr", "nv", "ny", "oc", "oj", "om", "or", "os",
    "pa", "pi", "pl", "ps", "pt", "qu", "rm", "rn", "ro", "ru", "rw", "sa", "sc", "sd", "se", "sg", "sh", "si",
    "sk", "sl", "sm", "sn", "so", "sq", "sr", "ss", "st", "su", "sv", "sw", "ta", "te", "tg", "th", "ti", "tk",
    "tl", "tn", "to", "tr", "ts", "tt", "tw", "ty", "ug", "uk", "ur", "uz", "ve", "vi", "vo", "wa", "wo", "xh",
    "yi", "yo", "za", "zh", "zu",
))  # fmt: skip
"""ISO 639-1."""


class Label(enum.IntEnum):
    """The decision about a document. The numbers are those of the wire."""

    UNSPECIFIED = 0
    KEEP = 1
    DROP = 2
    REVIEW = 3


class Missing(enum.IntEnum):
    """Why a signal has no value. The numbers are those of the wire."""

    PRESENT = 0
    TOO_SHORT = 1
    """The text is too short for the signal to mean anything."""
    NO_MODEL = 2
    """No model serves the document's language."""
    NOT_ASKED = 3
    """The caller switched the signal off (for instance duplication)."""
    UNAVAILABLE = 4
    """What computes the signal could not be reached; the value is unknown."""
    NOT_LOOKED_AT = 5
    """A slower model computes the signal, which looks only at what a faster one leaves in doubt."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text to score.

    Attributes:
        id: names the document in answers and in the duplicate index; unique within a corpus.
        text: UTF-8 bytes; other bytes become an error of this document alone.
        language: ISO 639-1 code if the caller knows it, else "" (detected); see `parse_language`.
        source: free label of the caller's, carried along.
    """

    id: str
    text: bytes
    language: str = ""
    source: str = ""


def parse_language(code: str) -> str | None:
    """A language code as columns hold it.

    Args:
        code: ISO 639-1 in any case, with or without script and region: en, EN, zh-Hant, zh_CN.

    Returns:
        Two small letters; "" where nothing is said, which `und` does too; None where it is no such code.
    """
    language = code.replace("_", "-").partition("-")[0].lower()
    if language in ("", "und"):
        return ""
    return language if language in _LANGUAGES else None


@dataclass(frozen=True, slots=True)
class Documents(Sequence[Document]):
    """n documents as columns, which cost less than one object each; reads as a sequence of `Document`.

    Labels of the caller's (`Document.source`) are not kept.

    Attributes:
        ids: id per document.
        texts: text per document.
        languages: language per document, "" where the caller does not know it.
    """

    ids: list[str]
    texts: list[bytes]
    languages: list[str]

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Documents:
        """The columns of any documents."""
        if isinstance(documents, Documents):
            return documents
        return cls([d.id for d in documents], [d.text for d in documents], [d.language for d in documents])

    @classmethod
    def join(cls, parts: Iterable[Documents]) -> Documents:
        """Puts documents one after the other."""
        joined = cls([], [], [])
        for part in parts:
            joined.ids.extend(part.ids)
            joined.texts.extend(part.texts)
            joined.languages.extend(part.languages)
        return joined

    @property
    def text_bytes(self) -> int:
        """Length of all texts together."""
        return sum(map(len, self.texts))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Documents: ...

    def __getitem__(self, index: int | slice) -> Document | Documents:
        if isinstance(index, slice):
            return Documents(self.ids[index], self.texts[index], self.languages[index])
        return Document(self.ids[index], self.texts[index], self.languages[index])


@dataclass(frozen=True, slots=True)
class Reason:
    """One broken rule.

    Attributes:
        rule: rule id, stable across versions of a policy.
        signal: name of the signal that the rule reads.
        value: what the document has; None where the signal is missing.
        operator: one of `<`, `<=`, `>`, `>=`: the rule is broken when `value operator threshold`.
        threshold: the policy's limit, in the signal's unit.
        missing: why `value` is None.
    """

    rule: str
    signal: str
    value: float | None
    operator: str
    threshold: float
    missing: Missing = Missing.PRESENT

    @property
    def margin(self) -> float | None:
        """Distance from the threshold, in the signal's unit and never negative; None without a value."""
        return None if self.value is None else abs(self.value - self.threshold)

    @property
    def explanation(self) -> str:
        """One sentence for a person."""
        if self.value is None:
            return f"{self.rule}: {self.signal} is missing ({self.missing.name.lower()})"
        return f"{self.rule}: {self.signal} {self.value:.6g} {self.operator} {self.threshold:.6g}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer about one document.

    Attributes:
        id: the document's id.
        label: KEEP, DROP or REVIEW; UNSPECIFIED exactly when `error` is set.
        reasons: every broken rule, empty for a kept document.
        language: ISO 639-1 code, or "und".
        signals: value per signal name; None where missing.
        missing: why, for each signal whose value is None.
        duplicate_of: id of the earlier kept document that this one repeats, or None.
        toxicity_span: first and past-the-last code point of the most toxic window, or None.
        policy: `name@version` of the policy that decided.
        error: None, or the document's error code and a sentence.
        models: `name@version` of every model that served when the document was scored.
    """

    id: str
    label: Label
    reasons: tuple[Reason, ...] = ()
    language: str = "und"
    signals: Mapping[str, float | None] = field(default_factory=dict)
    missing: Mapping[str, Missing] = field(default_factory=dict)
    duplicate_of: str | None = None
    toxicity_span: tuple[int, int] | None = None
    policy: str = ""
    error: tuple[str, str] | None = None
    models: tuple[str, ...] = ()
