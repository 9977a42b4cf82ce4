"""What callers give, turned into documents of the wire."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, TypeAlias

from dqs.data import Document
from dqs.errors import RequestError

DocumentLike: TypeAlias = "Document | str | tuple[str, str | bytes] | Mapping[str, str | bytes]"
"""A document, a text, a pair of id and text, or a mapping with `text` and perhaps `id`, `language`, `source`.

A text without an id gets one that no other text has.
"""


def check_several(documents: object) -> None:
    """Refuses one document where several are asked for: its letters or keys would be scored, each by itself.

    Raises:
        RequestError: it is one.
    """
    if isinstance(documents, str | bytes | bytearray | Mapping | Document):
        raise RequestError(
            f"Several documents are asked for, and a {type(documents).__name__} is one: put it into a list."
        )


class Identifier:
    """Turns what callers give into documents of the wire; numbers those without an id.

    The number follows a prefix of this call's own, because the same id for
    another text would be an error in a corpus that outlives the call, and the
    same id for the same text would not count as a duplicate.
    """

    def __init__(self, language: str) -> None:
        self._language = language
        self._prefix = secrets.token_hex(6)
        self._number = 0

    def append(self, to: Any, document: DocumentLike) -> int:
        """Appends a document to a repeated field of them; returns the length of its text in bytes.

        Raises:
            RequestError: it is nothing that can be sent.
        """
        source = ""
        identity: str | bytes = ""
        language: str | bytes = ""
        text: str | bytes
        if isinstance(document, Document):
            identity, text, language, source = document.id, document.text, document.language, document.source
        elif isinstance(document, str):
            text = document
        elif isinstance(document, tuple) and len(document) == 2:
            identity, text = document
        elif isinstance(document, Mapping):
            try:
                text = document["text"]
            except KeyError:
                raise RequestError("A document given as a mapping has no `text`; give it one.") from None
            identity, language = document.get("id", ""), document.get("language", "")
            source = str(document.get("source", ""))
        else:
            raise RequestError(
                f"A document is a Document, a text, a pair of id and text or a mapping, not {type(document).__name__}."
            )
        if not identity and not isinstance(document, Document):
            identity = f"{self._prefix}-{self._number}"
        self._number += 1
        if isinstance(text, str):
            # A lone surrogate becomes bytes that are not UTF-8: an error of this document alone.
            text = text.encode("utf-8", "surrogatepass")
        try:
            to.add(id=identity, text=text, language=language or self._language, source=source)
        except (TypeError, UnicodeEncodeError):
            raise RequestError(
                "A document's id, language and source are strings of Unicode, its text is a string or bytes: "
                f"not so in document {self._number} of the call."
            ) from None
        return len(text)
