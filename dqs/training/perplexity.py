"""Training of perplexity models: vocabulary, n-gram counts by KenLM's lmplz, reference quantiles.

The steps of `train_perplexity`:

1. Take the rows whose column `ship` is true, without the excluded sources, at most
   so many characters of each source, in an order fixed by the seed.
2. Choose the vocabulary from word counts; write token lines; run lmplz and build_binary.
3. Reference quantiles: the sources are dealt into folds; a model trained without a fold
   scores that fold's text, cut to several lengths. So the reference is clean text of
   *unseen* sources, and a percentile of 50 is what a new clean source may expect. A source
   that is far from all others is held out by document instead.

This module knows lmplz by its command line only.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dqs.errors import ConfigError
from dqs.models import ModelFolder, write_model
from dqs.scorers.perplexity import KIND, LANGUAGE_MODEL, MINIMUM_TOKENS, VOCABULARY, PerplexityModel
from dqs.text import TextBatch
from dqs.text.simplified import simplified_characters
from dqs.text.vocabulary import BYTE_TOKENS, LONGEST_PIECE, PIECE_MARK, SPACE_TOKEN, VARIANT_MARK, Vocabulary

COLUMNS: Final = ("text", "lang", "source", "domain", "license", "ship")
PERCENTS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 98.0, 99.0)
CUT_CHARACTERS: Final = (40, 60, 90, 130, 200, 300, 450, 700, 1000, 1500, 2200, 3300, 5000, 7500)
"""Lengths to which reference text is cut."""

_BATCH_BYTES = 4 << 20
_REFERENCE_TEXTS_PER_SOURCE = 150
_FOLDS = 4
_ALONE_LOG10 = 0.4
"""A source this far above the others when unseen is the only one of its kind (script, age, subject).

It is then held out by document: the shipped model knows its kind, and one without it says nothing about that.
"""
_LONGEST_WORD = 24
_HAN_BLOCK = range(0x4E00, 0xA000)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What differs between languages.

    Attributes:
        order: longest n-gram.
        prune: n-grams of each order that occur this often or less are left out; the last value
            goes for higher orders. Never below 1 from bigrams on: singletons could identify a text.
        words: most words of two characters or more.
        word_count: fewest occurrences of a word.
        pieces: most pieces of unknown words, single characters apart.
        source_characters: most characters taken from one source.
        domain_shares: domain → factor on `source_characters`, and on its sources' weight in the reference.
        han: every character of the basic Han block is a token, seen or not, and traditional characters
            are read as simplified ones.
    """

    order: int = 3
    prune: tuple[int, ...] = (0, 1, 2)
    words: int = 40_000
    word_count: int = 5
    pieces: int = 6_000
    source_characters: int = 4_000_000
    domain_shares: Mapping[str, float] = field(default_factory=dict)
    han: bool = False


RECIPES: Final[Mapping[str, Recipe]] = {
    "en": Recipe(),
    "zh": Recipe(
        prune=(0, 3, 6),
        words=12_000,
        word_count=10,
        pieces=4_000,
        source_characters=5_000_000,
        domain_shares={"legal": 0.6, "classical_chinese": 0.3},
        han=True,
    ),
}


@dataclass(frozen=True, slots=True)
class SourceReport:
    """One source of training data.

    Attributes:
        source: its name.
        licence: as stated in the data.
        documents: documents taken.
        characters: characters taken.
        held_out_perplexity: median perplexity of its texts of about 1,000 characters under a model trained
            without it; NaN where there was no such text.
        by_document: that model was trained without half of its documents only, for want of another of its kind.
    """

    source: str
    licence: str
    documents: int
    characters: int
    held_out_perplexity: float
    by_document: bool


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """What `train_perplexity` did.

    Attributes:
        model: the folder that was written.
        sources: per source, by name.
        tokens: tokens of the training text.
        ngrams: number of n-grams per order.
        file_bytes: size of the KenLM file.
    """

    model: ModelFolder
    sources: tuple[SourceReport, ...]
    tokens: int
    ngrams: tuple[int, ...]
    file_bytes: int


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    domain: str
    licence: str
    texts: list[str]


@dataclass(frozen=True, slots=True)
class _Fit:
    tokens: int
    ngrams: tuple[int, ...]


def train_perplexity(
    data: Path,
    output: Path,
    language: str,
    *,
    exclude_sources: Iterable[str] = (),
    seed: int = 20_261_121,
    lmplz: Path | None = None,
    name: str | None = None,
    version: str = "1",
    recipe: Recipe | None = None,
    figures: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> PerplexityReport:
    """Trains the perplexity model of one language and writes its folder with CARD.md.

    Args:
        data: `clean_<language>.parquet`, or a folder that holds it. Columns: `COLUMNS`.
        output: models folder; the model goes to `<output>/<name>/<version>`.
        language: ISO 639-1 code; `en` and `zh` have recipes of their own.
        exclude_sources: values of the column `source` to leave out.
        seed: of the order in which documents are taken.
        lmplz: the program, with build_binary beside it; searched on the PATH if None.
        name: model name, `perplexity-<language>` if None.
        version: model version.
        recipe: replaces the language's recipe.
        figures: JSON of `python -m tests.bench.perplexity`, to stand in the card.
        progress: is told what is being done, one line each.

    Raises:
        ConfigError: lmplz is missing or failed, or the data or the figures do not fit.
    """
    lmplz, build_binary = find_programs(lmplz)
    recipe = recipe or RECIPES.get(language, Recipe())
    measured = _measured(figures, language) if figures is not None else ""
    sources = _read(data, language, frozenset(exclude_sources), recipe, seed)
    name = name or f"perplexity-{language}"
    folder = output / name / version
    folder.mkdir(parents=True, exist_ok=True)
    fit = _Fitter(lmplz, build_binary, recipe, language)

    samples = _reference_samples(fit, sources, seed, output, progress)
    progress(f"training on {len(sources)} sources")
    result = fit(sources, folder)
    tables = {KIND: {"minimum_tokens": MINIMUM_TOKENS, "order": recipe.order, **_reference_table(samples)}}
    model_folder = fit.write(output, name, version, [f"{source.name}: {source.licence}" for source in sources], tables)
    report = PerplexityReport(
        model=model_folder,
        sources=tuple(
            SourceReport(
                source.name,
                source.licence,
                len(source.texts),
                sum(map(len, source.texts)),
                10.0 ** _median([sample for sample in samples if sample.source == source.name]),
                any(sample.by_document for sample in samples if sample.source == source.name),
            )
            for source in sorted(sources, key=lambda source: source.name)
        ),
        tokens=result.tokens,
        ngrams=result.ngrams,
        file_bytes=model_folder.file(LANGUAGE_MODEL).stat().st_size,
    )
    card = _card(report, language, recipe, seed, sorted(exclude_sources), measured)
    (folder / "CARD.md").write_text(card, encoding="utf-8")
    return report


def _reference_samples(
    fit: _Fitter, sources: Sequence[_Source], seed: int, scratch_root: Path, progress: Callable[[str], None]
) -> list[_Sample]:
    """Scores every source by a model trained without it; none where there is one source only."""

    def held_out(parts: Sequence[_Source], known: Sequence[_Source], unseen: Sequence[_Source]) -> list[_Sample]:
        with tempfile.TemporaryDirectory(dir=scratch_root) as scratch:
            place = Path(scratch) / "fold" / "0"
            place.mkdir(parents=True)
            fit([*known, *parts], place)
            model = PerplexityModel(fit.write(Path(scratch), "fold", "0"))
            return [sample for source in unseen for sample in _held_out_samples(model, source, fit.recipe, seed)]

    if len(sources) == 1:
        return []
    samples: list[_Sample] = []
    folds = [sources[at::_FOLDS] for at in range(min(_FOLDS, len(sources)))]
    for at, fold in enumerate(folds, 1):
        progress(f"reference fold {at} of {len(folds)}: {', '.join(source.name for source in fold)}")
        names = {source.name for source in fold}
        samples += held_out([], [source for source in sources if source.name not in names], fold)

    medians = {
        source.name: _median([sample for sample in samples if sample.source == source.name]) for source in sources
    }
    usual = float(np.nanmedian(list(medians.values())))
    alone = [source for source in sources if medians[source.name] > usual + _ALONE_LOG10]
    if alone:
        progress(f"reference by document: {', '.join(source.name for source in alone)}")
        names = {source.name for source in alone}
        samples = [sample for sample in samples if sample.source not in names]
        samples += held_out(
            [replace(source, texts=source.texts[::2]) for source in alone],
            [source for source in sources if source.name not in names],
            [replace(source, texts=source.texts[1::2]) for source in alone],
        )
    return [replace(sample, by_document=sample.source in {source.name for source in alone}) for sample in samples]


def find_programs(lmplz: Path | None = None) -> tuple[Path, Path]:
    """Finds KenLM's training programs.

    Args:
        lmplz: the program's path; searched on the PATH if None.

    Returns:
        Paths of lmplz and build_binary.

    Raises:
        ConfigError: one of them is missing.
    """
    found = shutil.which(lmplz or "lmplz")
    if found is not None:
        beside = shutil.which(Path(found).with_name("build_binary")) or shutil.which("build_binary")
        if beside is not None:
            return Path(found), Path(beside)
    raise ConfigError(
        f"{lmplz or 'lmplz'} or build_binary beside it is missing: build them with `make kenlm-tools` "
        "and put their folder on the PATH or name lmplz"
    )


def _read(data: Path, language: str, exclude: frozenset[str], recipe: Recipe, seed: int) -> list[_Source]:
    path = data / f"clean_{language}.parquet" if data.is_dir() else data
    try:
        names = pq.read_schema(path).names
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no parquet file that can be read: give the folder that holds it") from error
    missing = [column for column in COLUMNS if column not in names]
    unknown = [column for column in names if column not in COLUMNS]
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ConfigError(f"{path} {' and '.join(said)}: its columns must be {', '.join(COLUMNS)}")
    table = pq.read_table(path, columns=list(COLUMNS)).to_pydict()

    absent = exclude.difference(table["source"])
    if absent:
        raise ConfigError(f"{path} has no source {', '.join(sorted(absent))}: name sources that it holds")
    taken: dict[str, _Source] = {}
    characters: Counter[str] = Counter()
    for row in np.random.default_rng(seed).permutation(len(table["text"])).tolist():
        source, domain = table["source"][row], table["domain"][row]
        limit = recipe.source_characters * recipe.domain_shares.get(domain, 1.0)
        if (
            not table["ship"][row]
            or table["lang"][row] != language
            or source in exclude
            or characters[source] >= limit
            or not table["text"][row].strip()
        ):
            continue
        entry = taken.setdefault(source, _Source(source, domain, table["license"][row], []))
        entry.texts.append(table["text"][row])
        characters[source] += len(table["text"][row])
    if not taken:
        raise ConfigError(f"{path} holds no text in {language} with `ship` true from a source that is not excluded")
    # Large sources first: dealt in turn, the folds are of similar size.
    return sorted(taken.values(), key=lambda source: (-characters[source.name], source.name))


class _Fitter:
    """Vocabulary, lmplz and build_binary for some sources into a folder."""

    def __init__(self, lmplz: Path, build_binary: Path, recipe: Recipe, language: str) -> None:
        self._lmplz = lmplz
        self._build_binary = build_binary
        self.recipe = recipe
        self._language = language

    def __call__(self, sources: Sequence[_Source], folder: Path) -> _Fit:
        recipe = self.recipe
        texts = [text for source in sources for text in source.texts]
        entries = choose_vocabulary(texts, recipe)
        (folder / f"{self._language}.vocabulary").write_bytes("".join(f"{entry}\n" for entry in entries).encode())
        vocabulary = Vocabulary(entries)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            lines, arpa = Path(scratch) / "lines", Path(scratch) / "arpa"
            tokens = 0
            with lines.open("wb") as stream:
                for batch in _batches(texts):
                    encoded = vocabulary.encode(batch, np.arange(len(batch)))
                    stream.write(encoded.text + b"\n")
                    tokens += int(encoded.tokens.sum())
                # Every token once on a line of its own, so that none is unknown to the model.
                tokens_alone = [entry for entry in entries if not _is_variant(entry)]
                stream.write("".join(f"{token}\n" for token in (*tokens_alone, *BYTE_TOKENS, SPACE_TOKEN)).encode())
            prune = [str(count) for count in recipe.prune]
            _run(
                [str(self._lmplz), "--order", str(recipe.order), "--prune", *prune, "--discount_fallback",
                 "-S", "1G", "-T", f"{scratch}/", "--text", str(lines), "--arpa", str(arpa)]
            )  # fmt: skip
            _run([str(self._build_binary), "-p", "1.3", "probing", str(arpa), str(folder / f"{self._language}.bin")])
            return _Fit(tokens, _ngram_counts(arpa))

    def write(
        self,
        root: Path,
        name: str,
        version: str,
        training_data: Sequence[str] = (),
        tables: Mapping[str, object] | None = None,
    ) -> ModelFolder:
        return write_model(
            root,
            name=name,
            version=version,
            kind=KIND,
            languages=[self._language],
            files={LANGUAGE_MODEL: f"{self._language}.bin", VOCABULARY: f"{self._language}.vocabulary"},
            normaliser="dqs",
            licence="Apache-2.0 (n-gram statistics; the texts keep the licences below)",
            training_data=training_data,
            tables=tables,
        )


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        # The last line names the fault; none of these programs prints text of the corpus.
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConfigError(f"{Path(command[0]).name} failed: {lines[-1]}")


def _ngram_counts(arpa: Path) -> tuple[int, ...]:
    counts: list[int] = []
    with arpa.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if line.startswith("ngram "):
                counts.append(int(line.partition("=")[2]))
            elif counts:
                break
    return tuple(counts)


def _batches(texts: Iterable[str]) -> Iterator[TextBatch]:
    part: list[bytes] = []
    size = 0
    for text in texts:
        part.append(text.encode("utf-8", errors="replace"))
        size += len(part[-1])
        if size >= _BATCH_BYTES:
            yield TextBatch.from_bytes(part)
            part, size = [], 0
    if part:
        yield TextBatch.from_bytes(part)


def choose_vocabulary(texts: Iterable[str], recipe: Recipe) -> list[str]:
    """Chooses the tokens of a language model.

    Words come by frequency; pieces by the characters that they would cover in the words left out;
    characters if they occur three times or more.

    Args:
        texts: the training text.
        recipe: sizes.

    Returns:
        Tokens without repetition, words first, as `Vocabulary` takes them.
    """
    words, characters = _count(texts)
    chosen = sorted(
        (
            word
            for word, count in words.items()
            if count >= recipe.word_count
            and 2 <= len(word) <= _LONGEST_WORD
            and not any(character.isdigit() for character in word)
        ),
        key=lambda word: (-words[word], word),
    )[: recipe.words]
    known = set(chosen)
    cover: Counter[str] = Counter()
    for word, count in words.items():
        if count < 2 or not 2 <= len(word) <= 2 * _LONGEST_WORD or word in known:
            continue
        # Bounded, or else a few frequent names would take all pieces.
        weight = min(count, 20)
        for start in range(len(word)):
            if word[start].isdigit():
                continue
            for end in range(start + 2, min(len(word), start + LONGEST_PIECE - 2) + 1):
                if word[end - 1].isdigit():
                    break
                cover[word[start:end]] += weight
    pieces = sorted(cover, key=lambda piece: (-cover[piece] * (len(piece) - 1), piece))[: recipe.pieces]
    seen = [chr(code) for code in np.flatnonzero(characters >= 3).tolist() if code > 32]
    letters = [character for character in seen if character.isalnum() or character == "_"]
    han = [chr(code) for code in _HAN_BLOCK] if recipe.han else []
    variants = _variants() if recipe.han else []
    tokens = [*chosen, *(PIECE_MARK + piece for piece in (*pieces, *letters)), *sorted({*seen, *han}), *variants]
    return [token for token in dict.fromkeys(tokens) if not any(character.isspace() for character in token)]


def _is_variant(entry: str) -> bool:
    return len(entry) == 3 and entry.startswith(VARIANT_MARK)


def _variants() -> list[str]:
    """Entries that have traditional characters read as simplified ones."""
    return [VARIANT_MARK + traditional + simplified for traditional, simplified in simplified_characters()]


def _count(texts: Iterable[str]) -> tuple[Counter[str], NDArray[np.int64]]:
    words: Counter[str] = Counter()
    characters = np.zeros(0x110000, dtype=np.int64)
    for batch in _batches(texts):
        _, first, counts = np.unique(batch.word_hash, return_index=True, return_counts=True)
        folded = batch.folded.tobytes().decode("utf-32-le", errors="replace")
        starts, ends = batch.word_start[first].tolist(), batch.word_end[first].tolist()
        for start, end, count in zip(starts, ends, counts.tolist(), strict=True):
            words[folded[start:end]] += count
        characters += np.bincount(batch.folded, minlength=characters.size)
    return words, characters


@dataclass(frozen=True, slots=True)
class _Sample:
    """Scores of one source's texts cut to one length: float64[k] log10 perplexity, int64[k] tokens."""

    source: str
    weight: float
    characters: int
    log10_perplexity: NDArray[np.float64]
    tokens: NDArray[np.int64]
    by_document: bool = False


def _held_out_samples(model: PerplexityModel, source: _Source, recipe: Recipe, seed: int) -> list[_Sample]:
    weight = recipe.domain_shares.get(source.domain, 1.0)
    texts = _long_texts(source.texts, CUT_CHARACTERS[-1], _REFERENCE_TEXTS_PER_SOURCE, seed)
    samples: list[_Sample] = []
    for characters in CUT_CHARACTERS:
        batch = TextBatch.from_bytes([text[:characters].encode("utf-8", errors="replace") for text in texts])
        log10, tokens = model.log10_probability(batch, np.arange(len(batch)))
        scored = tokens >= MINIMUM_TOKENS
        samples.append(_Sample(source.name, weight, characters, -log10[scored] / tokens[scored], tokens[scored]))
    return samples


def _long_texts(texts: Sequence[str], characters: int, most: int, seed: int) -> list[str]:
    """Joins short documents, so that every length is measured on the same texts."""
    long_texts: list[str] = []
    open_text = ""
    for at in np.random.default_rng(seed).permutation(len(texts)).tolist():
        open_text = f"{open_text}\n{texts[at]}" if open_text else texts[at]
        if len(open_text) >= characters:
            long_texts.append(open_text[:characters])
            open_text = ""
            if len(long_texts) == most:
                break
    return long_texts or ([open_text] if open_text else [])


def _reference_table(samples: Sequence[_Sample]) -> dict[str, object]:
    """Quantiles per length over all sources, a source's weight spread over its texts."""
    tokens: list[float] = []
    rows: list[list[float]] = []
    for characters in CUT_CHARACTERS:
        band = [sample for sample in samples if sample.characters == characters and sample.tokens.size]
        if not band:
            continue
        values = np.concatenate([sample.log10_perplexity for sample in band])
        weights = np.concatenate([np.full(sample.tokens.size, sample.weight / sample.tokens.size) for sample in band])
        lengths = np.concatenate([np.log(sample.tokens) for sample in band])
        row = _weighted_quantiles(values, weights, np.array(PERCENTS) / 100.0)
        length = round(float(np.exp(np.average(lengths, weights=weights))), 2)
        if tokens and length < 1.05 * tokens[-1]:
            continue  # the texts end before this cut
        tokens.append(length)
        # Rounded upwards in steps, so that equal neighbours still rise.
        rows.append([round(float(value) + 1e-4 * at, 5) for at, value in enumerate(row)])
    if not tokens:
        return {}
    return {"reference": {"tokens": tokens, "percents": list(PERCENTS), "log10_perplexity": rows}}


def _weighted_quantiles(
    values: NDArray[np.float64], weights: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order]) - 0.5 * weights[order]
    return np.interp(shares, cumulative / weights.sum(), values[order])


def _median(samples: Sequence[_Sample]) -> float:
    """Median log10 perplexity of texts of about 1,000 characters; NaN without any."""
    values = [sample.log10_perplexity for sample in samples if sample.characters == 1000]
    joined = np.concatenate(values) if values else np.empty(0)
    return float(np.median(joined)) if joined.size else float("nan")


def _card(
    report: PerplexityReport, language: str, recipe: Recipe, seed: int, excluded: Sequence[str], measured: str
) -> str:
    pruned = ", ".join(
        f"{order}-grams seen {count} times or less" for order, count in enumerate(recipe.prune, 1) if count
    )
    counts = ", ".join(f"{count:,} {order}-grams" for order, count in enumerate(report.ngrams, 1))
    by_document = [source.source for source in report.sources if source.by_document]
    alone = f"; of {', '.join(by_document)} without half of the documents only" if by_document else ""
    shares = "".join(f"; {share:g} of that for {domain}" for domain, share in recipe.domain_shares.items())
    rows = "\n".join(
        f"| {source.source} | {source.licence} | {source.documents:,} | {source.characters:,} "
        f"| {'' if np.isnan(source.held_out_perplexity) else format(source.held_out_perplexity, '.0f')} |"
        for source in report.sources
    )
    ngrams = f"{report.tokens:,} tokens in training; {counts}" + (f";\n  left out: {pruned}." if pruned else ".")
    simplified = (
        "* Traditional characters are read as simplified ones, by OpenCC's table (Apache-2.0).\n" if recipe.han else ""
    )
    left_out = f" Left out on request: {', '.join(excluded)}." if excluded else ""
    weights = [f"{domain} {share:g}" for domain, share in recipe.domain_shares.items()]
    same_weight = f"same weight ({', '.join(weights)})" if weights else "same weight"
    unclear = [
        source.source for source in report.sources if "unspecified" in source.licence or "unclear" in source.licence
    ]
    unclear_note = (
        f"\nOf {', '.join(unclear)} the licence is unspecified or unclear: the model holds counts\n"
        "of n-grams that occur at least twice, and no text.\n"
        if unclear
        else ""
    )
    return f"""# {report.model.name}, version {report.model.version}

An interpolated Kneser-Ney {recipe.order}-gram model ({language}), made by `dqs train perplexity` with KenLM's lmplz.
It answers how unusual a text looks beside ordinary edited text of its language.

* Normaliser `dqs`: NFKC, lower case; words, pieces of unknown words, characters, bytes (`dqs/text/vocabulary.py`).
{simplified}* {ngrams}
* KenLM probing table, {report.file_bytes / 1e6:.1f} MB. Seed {seed}.{left_out}
* At most {recipe.source_characters:,} characters of one source{shares}.

## Training data and held-out results

Held-out perplexity is the median over texts of about 1,000 characters, by a model trained without that source
and others of its fold{alone}.
The reference of the percentiles consists of these scores,
every source with the {same_weight}: 50 is what a clean source that the model has never seen may expect.

| source | licence as stated | documents | characters | held-out perplexity |
|---|---|---:|---:|---:|
{rows}
{unclear_note}{measured}
## What it must not be used for

* Judging people, authors, dialects or learners' language: it measures distance from its training text, nothing else.
* Telling machine-made text from human text, or true from false: fluent text scores well whatever it says.
* Comparing perplexities between languages, models or versions. Percentiles may be compared, roughly.
* Verse, dialogue, chat, code, tables, lists and specialist language score as unusual without being bad;
  repeated phrases and lines of digits score as usual without being good. Use it beside other signals.
* Texts of fewer than {MINIMUM_TOKENS} tokens: they get no score.
"""


def _measured(path: Path, language: str) -> str:
    """The card's section of figures from models that never saw the sources they are measured on."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        own = figures["languages"][language]
        kinds = "\n".join(
            f"| {kind} | {row['pairs']} | {row['worse']:.1%} "
            f"| {row['median_clean']:.0f} | {row['median_corrupted']:.0f} "
            f"| {row['above']['95']:.1%} | {row['above']['99']:.1%} |"
            for kind, row in own["corruptions"].items()
        )
        cuts = "; ".join(f"{cut}: {median:.1f}" for cut, median in own["percentile_medians"].items())
        above = own["clean_above"]
        date, folds = figures["date"], figures["folds"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} holds no figures for {language}: make it by tests.bench.perplexity") from error
    return f"""
## Corrupted text, by models that have not seen the source

`python -m tests.bench.perplexity --data DIR`, {date}, every source left out once in {folds} folds. "Worse": the
corrupted twin has the higher perplexity; then medians of both, and the share of corrupted twins above a percentile.

| kind | pairs | worse | clean | corrupted | above 95 | above 99 |
|---|---:|---:|---:|---:|---:|---:|
{kinds}
| clean twins | | | | | {above["95"]:.1%} | {above["99"]:.1%} |

Median percentile of clean text of unseen sources by length in characters:
{cuts}.
Number tables, logs and repeated or cut text look usual to an n-gram model: other signals must find them.
"""
