"""Signs of prose in each document: shapes of lines, kinds of characters, function words. Knows no threshold.

What is measured here tells running text from menus, tables, code, markup, mis-decoded
bytes and lists of keywords. Every measure is a share or an average, so that none grows
with the length of the text by itself.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dqs.text.batch import TextBatch
from dqs.text.repetition import trimmed
from dqs.text.unicode_tables import CharClass, unicode_tables

# Full stop, exclamation mark, question mark; then their forms in other scripts.
TERMINATORS = ".!?。！？｡؟۔।॥‼⁇⁈⁉"
"""What ends a sentence."""
CLOSERS = "\"'”’»›」』）)]】》〉*_"
"""What may follow the end of a sentence."""

FEATURES = (
    "prose_characters", "menu_lines", "menu_characters", "menu_run_lines", "longest_menu_run", "menu_head",
    "menu_tail", "line_columns", "cut_lines", "upper_case", "markup", "tags", "odd_latin", "odd_pairs",
    "digit_edges", "inner_capitals", "sentence_marks", "clause_marks", "long_words", "function_words",
    "content_runs", "stray_letters", "spaced_han",
)  # fmt: skip
"""Names of the columns of `prose_features`, in order."""

PROSE_COLUMNS = 60
"""A line of this width that ends a sentence is prose; wide characters take two columns."""
MENU_COLUMNS = 40
"""A line under this width that ends no sentence is an entry of a menu, or a heading."""
MENU_RUN = 3
EDGE_LINES = 6
LONG_WORD = 25
CONTENT_RUN = 6

_FUNCTION_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an "
    "they which you were her all she there would their we him been has when who will more no if out so what up "
    "its about into than them can only other some could do may these i my your our me us did such also how "
    "most any after before where while because very then over between under through during should must being "
    "those each both"
)
_FUNCTION_CHARACTERS = (
    "的了是在和有不这這为為与與以及等对對于於也就而之其或并並由被把"
    "将將从從到都但所者我他她们們个個地得着著过過要会會能可很还還又"
)

_OTHER, _UPPER, _LOWER, _DIGIT, _MARKUP, _SENTENCE, _CLAUSE, _ODD, _BLANK, _HAN_KIND = range(10)
_LESS, _SLASH, _EQUALS, _QUOTE, _AMPERSAND = range(10, 15)  # markup, too
_KINDS = 16
_KIND_TABLE_SIZE = 1 << 16
_SPACE = np.uint8(CharClass.SPACE)
_LETTER = np.uint8(CharClass.LETTER)
_HAN = np.uint8(CharClass.HAN)
_UNSPACED = np.uint8(CharClass.UNSPACED)
_TERMINATORS_ARRAY = np.array(list(map(ord, TERMINATORS)), dtype=np.uint32)
_CLOSERS_ARRAY = np.array(list(map(ord, CLOSERS)), dtype=np.uint32)
_ELLIPSIS = ord("…")


@functools.cache
def _kind_table() -> NDArray[np.uint8]:
    """Kind of every code point of the basic plane, uint8[65536]."""
    classes = unicode_tables().classes[:_KIND_TABLE_SIZE]
    kinds = np.zeros(_KIND_TABLE_SIZE, dtype=np.uint8)
    # Controls and accented letters: rare in English and Chinese, common in mis-decoded bytes.
    kinds[0x00:0x09] = kinds[0x0E:0x20] = kinds[0x7F:0x300] = _ODD
    kinds[0xE000:0xF900] = kinds[0xFFFD] = _ODD
    kinds[(classes & _SPACE) != 0] = _BLANK
    kinds[(classes & _UNSPACED) != 0] = _HAN_KIND
    for first, last, kind in (("A", "Z", _UPPER), ("a", "z", _LOWER), ("0", "9", _DIGIT)):
        kinds[ord(first) : ord(last) + 1] = kind
    for characters, kind in (
        (">{}[]|_\\#$%^~`@", _MARKUP), ("<", _LESS), ("/", _SLASH), ("=", _EQUALS), ('"', _QUOTE), ("&", _AMPERSAND),
        (".!?。！？", _SENTENCE), (",;:，、；：", _CLAUSE), ("·°«»§©", _OTHER),
    ):  # fmt: skip
        kinds[[ord(character) for character in characters]] = kind
    return kinds


def prose_features(batch: TextBatch) -> NDArray[np.float32]:
    """Measures every document.

    Returns:
        float32[n, features], columns as in `FEATURES`, 0 for a document without a visible
        character. Shares of characters: lines of prose, lines of menus, markup signs, starts
        of tags and entities, odd Latin characters, pairs of them, words of more than 25
        characters. Shares of lines: menu lines, those in runs of three or more, those among
        the first and last six, lines cut off by an ellipsis. Per word: sentence marks, clause
        marks, edges between letter and digit, capitals after a small letter, function words,
        words in runs of six or more without function word or punctuation, single letters that
        are no word, Han characters after Han and one space. `longest_menu_run` and
        `line_columns` are logarithms of a number of lines and of the mean width of a line in
        columns; `upper_case` is a share of ASCII letters.
    """
    features = np.zeros((len(batch), len(FEATURES)), dtype=np.float32)
    _measure_lines(batch.codepoints, batch.classes, batch.line_start, batch.line_end, batch.line_offsets, features)
    _measure_characters(batch.codepoints, batch.codepoint_offsets, _kind_table(), features)
    _measure_words(
        batch.folded_classes, batch.folded_offsets, batch.word_start, batch.word_end, batch.word_hash,
        batch.word_offsets, *_function_words(), features,
    )  # fmt: skip
    return features


@functools.cache
def _function_words() -> tuple[NDArray[np.uint64], np.uint64]:
    """Hashes of function words, each where its bits from `shift` on say, and `shift`; 0 is free."""
    text = f"{_FUNCTION_WORDS} {_FUNCTION_CHARACTERS}"
    hashes = np.unique(TextBatch.from_bytes([text.encode()]).word_hash)
    size = 1024
    while True:
        for shift in range(48):
            places = (hashes >> np.uint64(shift)) & np.uint64(size - 1)
            if np.unique(places).size == hashes.size:
                table = np.zeros(size, dtype=np.uint64)
                table[places] = hashes
                return table, np.uint64(shift)
        size *= 2


@njit(cache=True, nogil=True)
def is_closer(codepoint: np.uint32) -> bool:
    """Whether the character may follow the end of a sentence."""
    for known in _CLOSERS_ARRAY:
        if codepoint == known:
            return True
    return False


@njit(cache=True, nogil=True)
def is_terminator(codepoint: np.uint32) -> bool:
    """Whether the character ends a sentence."""
    for known in _TERMINATORS_ARRAY:
        if codepoint == known:
            return True
    return False


@njit(cache=True, nogil=True)
def _measure_lines(
    codepoints: NDArray[np.uint32],
    classes: NDArray[np.uint8],
    line_start: NDArray[np.int64],
    line_end: NDArray[np.int64],
    line_offsets: NDArray[np.int64],
    features: NDArray[np.float32],
) -> None:
    for document in range(line_offsets.size - 1):
        characters = wide = lines = 0
        prose = menu_lines = menu_characters = run = run_lines = longest = head = cut = 0
        tail = 0  # the last lines as bits, 1 for a line of a menu
        for line in range(line_offsets[document], line_offsets[document + 1]):
            first, last = trimmed(classes, line_start[line], line_end[line])
            if first == last:
                continue
            columns = last - first
            if columns < PROSE_COLUMNS:
                for position in range(first, last):
                    columns += (classes[position] & _UNSPACED) != 0
            end = last
            while end > first + 1 and is_closer(codepoints[end - 1]):
                end -= 1
            ending = codepoints[end - 1]
            is_cut = ending == _ELLIPSIS or (
                ending == 46 and end - first > 2 and codepoints[end - 2] == 46 and codepoints[end - 3] == 46
            )
            ended = not is_cut and is_terminator(ending)
            cut += is_cut
            if ended and columns >= PROSE_COLUMNS:
                prose += last - first
            is_menu = not ended and columns < MENU_COLUMNS
            if is_menu:
                menu_lines += 1
                menu_characters += last - first
                run += 1
                if run == MENU_RUN:
                    run_lines += run
                elif run > MENU_RUN:
                    run_lines += 1
                longest = max(longest, run)
                if lines < EDGE_LINES:
                    head += 1
            else:
                run = 0
            tail = ((tail << 1) | is_menu) & ((1 << EDGE_LINES) - 1)
            lines += 1
            characters += last - first
            wide += columns
        if lines == 0:
            continue
        edge = min(lines, EDGE_LINES)
        tail_lines = 0
        while tail:
            tail_lines += tail & 1
            tail >>= 1
        row = features[document]
        row[0] = prose / characters
        row[1] = menu_lines / lines
        row[2] = menu_characters / characters
        row[3] = run_lines / lines
        row[4] = np.log1p(longest)
        row[5] = head / edge
        row[6] = tail_lines / edge
        row[7] = np.log(wide / lines)
        row[8] = cut / lines


@njit(cache=True, nogil=True)
def _measure_characters(
    codepoints: NDArray[np.uint32],
    codepoint_offsets: NDArray[np.int64],
    kind_table: NDArray[np.uint8],
    features: NDArray[np.float32],
) -> None:
    # Everything follows from how often a kind follows a kind. Two tables, so that equal
    # pairs in a row do not wait for each other.
    pairs = np.empty(2 * _KINDS * _KINDS, dtype=np.int32)
    kinds = np.empty(_KINDS, dtype=np.int64)
    for document in range(codepoint_offsets.size - 1):
        pairs[:] = 0
        previous = np.int64(_BLANK)
        for position in range(codepoint_offsets[document], codepoint_offsets[document + 1]):
            value = codepoints[position]
            kind = np.int64(kind_table[value]) if value < _KIND_TABLE_SIZE else np.int64(_OTHER)
            pairs[(position & 1) * 256 + previous * 16 + kind] += 1
            previous = kind
        pairs[:256] += pairs[256:]
        characters = np.int64(0)
        for member in range(_KINDS):
            kinds[member] = 0
            for before in range(_KINDS):
                kinds[member] += pairs[before * 16 + member]
            if member != _BLANK:
                characters += kinds[member]
        if characters == 0:
            continue
        letters = kinds[_UPPER] + kinds[_LOWER]
        markup = kinds[_MARKUP] + kinds[_LESS] + kinds[_SLASH] + kinds[_EQUALS] + kinds[_AMPERSAND]
        tags = pairs[_LESS * 16 + _SLASH] + pairs[_EQUALS * 16 + _QUOTE] + pairs[_AMPERSAND * 16 + _LOWER]
        digit_edges = (
            pairs[_UPPER * 16 + _DIGIT]
            + pairs[_LOWER * 16 + _DIGIT]
            + pairs[_DIGIT * 16 + _UPPER]
            + pairs[_DIGIT * 16 + _LOWER]
        )
        row = features[document]
        row[9] = kinds[_UPPER] / letters if letters else 0.0
        row[10] = markup / characters
        row[11] = tags / characters
        row[12] = kinds[_ODD] / characters
        row[13] = pairs[_ODD * 16 + _ODD] / characters
        # Per word once the words are counted.
        row[14] = digit_edges
        row[15] = pairs[_LOWER * 16 + _UPPER]
        row[16] = kinds[_SENTENCE]
        row[17] = kinds[_CLAUSE]
        row[18] = characters


@njit(cache=True, nogil=True)
def _measure_words(
    folded_classes: NDArray[np.uint8],
    folded_offsets: NDArray[np.int64],
    word_start: NDArray[np.int64],
    word_end: NDArray[np.int64],
    word_hash: NDArray[np.uint64],
    word_offsets: NDArray[np.int64],
    function_words: NDArray[np.uint64],
    shift: np.uint64,
    features: NDArray[np.float32],
) -> None:
    slots = np.uint64(function_words.size - 1)
    for document in range(word_offsets.size - 1):
        text_end = folded_offsets[document + 1]
        end = folded_offsets[document]  # of the word before
        after_han = False
        long_words = functions = in_runs = run = stray = spaced_han = 0
        for word in range(word_offsets[document], word_offsets[document + 1]):
            start = word_start[word]
            gap = start - end
            end = word_end[word]
            spaced = gap == 1 and (folded_classes[start - 1] & _SPACE) != 0
            if gap > 0 and not spaced:
                run = 0
            length = end - start
            is_han = (folded_classes[start] & _HAN) != 0
            spaced_han += is_han and after_han and spaced
            after_han = is_han
            value = word_hash[word]
            is_function = function_words[(value >> shift) & slots] == value
            functions += is_function
            # Without branches: which words are function words is hard to foresee.
            run = 0 if is_function else run + 1
            in_runs += (run >= CONTENT_RUN) + (CONTENT_RUN - 1) * (run == CONTENT_RUN)
            if is_han or is_function:
                continue
            if length > LONG_WORD:
                long_words += length
            elif length == 1 and spaced and (end == text_end or folded_classes[end] & _SPACE):
                stray += (folded_classes[start] & _LETTER) != 0
        words = max(word_offsets[document + 1] - word_offsets[document], 1)
        row = features[document]
        for column in range(14, 18):
            row[column] /= words
        row[18] = min(1.0, long_words / row[18]) if row[18] else 0.0
        row[19] = functions / words
        row[20] = in_runs / words
        row[21] = stray / words
        row[22] = spaced_han / words
