"""Tokens of texts, cut into windows, as columns.

This is the only module that imports tokenizers, whose work is done in Rust
outside of Python's lock. Truncation and padding of tokenizer.json are
switched off: windows are cut here, padding belongs to whoever makes batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray

from dqs.errors import ModelError
from dqs.models import ModelFolder
from dqs.settings import bound_tokenizers

TOKENIZER_ROLE = "tokenizer"
_PROBE = "a"
_SOME_WINDOWS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Windows of texts; those of one text stand together, in its order.

    Attributes:
        ids: int32[tokens]; the tokens of all texts end to end, without special ones.
        window_offsets: int64[texts + 1]; text i owns the windows from `window_offsets[i]` up to and
            without `window_offsets[i + 1]`, always at least one.
        first: int64[windows]; first token of the window, in `ids`.
        length: int64[windows]; number of its tokens, special ones not counted; 0 for a text without tokens.
        span: int32[windows, 2]; first and past-the-last code point of the window in its text, or
            (-1, -1) throughout where spans were not asked for.
    """

    ids: NDArray[np.int32]
    window_offsets: NDArray[np.int64]
    first: NDArray[np.int64]
    length: NDArray[np.int64]
    span: NDArray[np.int32]

    def __len__(self) -> int:
        return int(self.first.size)


class Tokenizer:
    """The tokenizer of a model. Thread-safe.

    Args:
        folder: the model; its file with the role `tokenizer` is a tokenizer.json.
        threads: threads of one call.

    Attributes:
        prefix: int32[…]; special tokens before those of a text.
        suffix: int32[…]; special tokens after them.

    Raises:
        ModelError: the file is no tokenizer, or one for pairs of texts.
    """

    def __init__(self, folder: ModelFolder, threads: int = 1) -> None:
        bound_tokenizers(threads)
        path = folder.file(TOKENIZER_ROLE)
        try:
            self._inner = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise ModelError(f"model file {path} cannot be read ({error.strerror}): restore it") from error
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(
                f"{path} of the model {folder.label} is no tokenizer.json that this version of tokenizers reads "
                f"({_first_line(error)}): export it again."
            ) from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self.prefix, self.suffix = self._special_tokens(folder.label)

    @property
    def last_id(self) -> int:
        """The greatest token id, those added later included."""
        return max(self._inner.get_vocab(with_added_tokens=True).values(), default=0)

    @property
    def special_tokens(self) -> int:
        """How many special tokens every window needs."""
        return int(self.prefix.size + self.suffix.size)

    def windows(
        self, texts: Sequence[str], capacity: int, overlap: int, *, most: int = 0, spans: bool = True
    ) -> Windows:
        """Tokenises texts and cuts them into windows.

        A text of up to `capacity` tokens is one window. A longer one is cut every
        `capacity - overlap` tokens; its last window ends with its last token and is full.

        Args:
            texts: the texts.
            capacity: most tokens of a window, special ones not counted.
            overlap: tokens that a window shares with the next one, less than `capacity`.
            most: most windows of a text, spread evenly over it, the first and the last included; 0 for all.
            spans: whether code points are wanted, which costs a little.
        """
        encode = self._inner.encode_batch if spans else self._inner.encode_batch_fast
        encodings = encode(list(texts), add_special_tokens=False)
        columns = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        sizes = np.fromiter(map(len, columns), dtype=np.int64, count=len(columns))
        offsets = np.zeros(sizes.size + 1, dtype=np.int64)
        np.cumsum(sizes, out=offsets[1:])
        window_offsets, within = _cut(sizes, capacity, overlap, most)
        text = np.repeat(np.arange(sizes.size), np.diff(window_offsets))
        length = np.minimum(sizes[text], capacity)
        span = np.full((text.size, 2), -1, dtype=np.int32)
        if spans:
            # The first window of a text begins with it and the last one ends with it, so that nothing is left out.
            span[window_offsets[:-1], 0] = 0
            span[window_offsets[1:] - 1, 1] = np.fromiter(map(len, texts), dtype=np.int64, count=sizes.size)
            for i in np.flatnonzero(np.diff(window_offsets) >= _SOME_WINDOWS).tolist():
                encoding = encodings[i]
                for window in range(window_offsets[i], window_offsets[i + 1]):
                    first, past = int(within[window]), int(within[window] + length[window])
                    if window > window_offsets[i]:
                        span[window, 0] = _place(encoding, first)[0]
                    if window < window_offsets[i + 1] - 1:
                        span[window, 1] = _place(encoding, past - 1)[1]
        ids = np.concatenate(columns) if columns else np.empty(0, dtype=np.int32)
        return Windows(ids, window_offsets, offsets[text] + within, length, span)

    def _special_tokens(self, label: str) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        bare = self._inner.encode(_PROBE, add_special_tokens=False).ids
        whole = self._inner.encode(_PROBE)
        places = [at for at in range(len(whole.ids) - len(bare) + 1) if whole.ids[at : at + len(bare)] == bare]
        if not bare or not places or any(whole.type_ids):
            raise ModelError(
                f"The tokenizer of the model {label} frames a text in a way that cannot be read: export a model that "
                "takes single texts, with special tokens before and after them."
            )
        at = places[0]
        return (
            np.array(whole.ids[:at], dtype=np.int32),
            np.array(whole.ids[at + len(bare) :], dtype=np.int32),
        )


def _cut(
    sizes: NDArray[np.int64], capacity: int, overlap: int, most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of the windows of each text, and the first token of every window within its text."""
    step = capacity - overlap
    all_windows = np.maximum(-(-(sizes - capacity) // step), 0) + 1
    counts = np.minimum(all_windows, most) if most else all_windows
    window_offsets = np.zeros(sizes.size + 1, dtype=np.int64)
    np.cumsum(counts, out=window_offsets[1:])
    text = np.repeat(np.arange(sizes.size), counts)
    position = np.arange(text.size) - window_offsets[text]
    # Where there are too many, every so many are taken.
    spread = position * (all_windows[text] - 1) // np.maximum(counts[text] - 1, 1)
    return window_offsets, np.minimum(spread * step, np.maximum(sizes[text] - capacity, 0))


def _place(encoding: tokenizers.Encoding, token: int) -> tuple[int, int]:
    """First and past-the-last code point of a token."""
    place: tuple[int, int] = encoding.token_to_chars(token) or (0, 0)  # none only where it is a special one
    return place


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
