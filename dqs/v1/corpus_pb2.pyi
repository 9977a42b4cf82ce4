from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileRewrite(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILE_REWRITE_UNSPECIFIED: _ClassVar[FileRewrite]
    FILE_REWRITE_STARTED: _ClassVar[FileRewrite]
    FILE_REWRITE_NO_FILE: _ClassVar[FileRewrite]
    FILE_REWRITE_REFUSED: _ClassVar[FileRewrite]
    FILE_REWRITE_LATER: _ClassVar[FileRewrite]

class DocumentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOCUMENT_STATE_UNSPECIFIED: _ClassVar[DocumentState]
    DOCUMENT_STATE_UNKNOWN: _ClassVar[DocumentState]
    DOCUMENT_STATE_KEPT: _ClassVar[DocumentState]
    DOCUMENT_STATE_EXACT_DUPLICATE: _ClassVar[DocumentState]
    DOCUMENT_STATE_NEAR_DUPLICATE: _ClassVar[DocumentState]
    DOCUMENT_STATE_NOT_KEPT: _ClassVar[DocumentState]
FILE_REWRITE_UNSPECIFIED: FileRewrite
FILE_REWRITE_STARTED: FileRewrite
FILE_REWRITE_NO_FILE: FileRewrite
FILE_REWRITE_REFUSED: FileRewrite
FILE_REWRITE_LATER: FileRewrite
DOCUMENT_STATE_UNSPECIFIED: DocumentState
DOCUMENT_STATE_UNKNOWN: DocumentState
DOCUMENT_STATE_KEPT: DocumentState
DOCUMENT_STATE_EXACT_DUPLICATE: DocumentState
DOCUMENT_STATE_NEAR_DUPLICATE: DocumentState
DOCUMENT_STATE_NOT_KEPT: DocumentState

class CorpusParameters(_message.Message):
    __slots__ = ("bands", "rows", "bins", "threshold", "normaliser", "seed", "format", "shingle_tokens")
    BANDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NORMALISER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHINGLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    bands: int
    rows: int
    bins: int
    threshold: float
    normaliser: str
    seed: int
    format: int
    shingle_tokens: int
    def __init__(self, bands: _Optional[int] = ..., rows: _Optional[int] = ..., bins: _Optional[int] = ..., threshold: _Optional[float] = ..., normaliser: _Optional[str] = ..., seed: _Optional[int] = ..., format: _Optional[int] = ..., shingle_tokens: _Optional[int] = ...) -> None: ...

class CorpusOptions(_message.Message):
    __slots__ = ("window_documents", "window_seconds", "retry_seconds", "retry_documents", "line_slots")
    WINDOW_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RETRY_DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    LINE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    window_documents: int
    window_seconds: float
    retry_seconds: float
    retry_documents: int
    line_slots: int
    def __init__(self, window_documents: _Optional[int] = ..., window_seconds: _Optional[float] = ..., retry_seconds: _Optional[float] = ..., retry_documents: _Optional[int] = ..., line_slots: _Optional[int] = ...) -> None: ...

class CreateCorpusRequest(_message.Message):
    __slots__ = ("corpus", "threshold", "normaliser", "options")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    NORMALISER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    threshold: float
    normaliser: str
    options: CorpusOptions
    def __init__(self, corpus: _Optional[str] = ..., threshold: _Optional[float] = ..., normaliser: _Optional[str] = ..., options: _Optional[_Union[CorpusOptions, _Mapping]] = ...) -> None: ...

class CreateCorpusResponse(_message.Message):
    __slots__ = ("created", "parameters", "options")
    CREATED_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    created: bool
    parameters: CorpusParameters
    options: CorpusOptions
    def __init__(self, created: bool = ..., parameters: _Optional[_Union[CorpusParameters, _Mapping]] = ..., options: _Optional[_Union[CorpusOptions, _Mapping]] = ...) -> None: ...

class ConfigureCorpusRequest(_message.Message):
    __slots__ = ("corpus", "options")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    options: CorpusOptions
    def __init__(self, corpus: _Optional[str] = ..., options: _Optional[_Union[CorpusOptions, _Mapping]] = ...) -> None: ...

class ConfigureCorpusResponse(_message.Message):
    __slots__ = ("options",)
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    options: CorpusOptions
    def __init__(self, options: _Optional[_Union[CorpusOptions, _Mapping]] = ...) -> None: ...

class ListCorporaRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListCorporaResponse(_message.Message):
    __slots__ = ("corpora",)
    CORPORA_FIELD_NUMBER: _ClassVar[int]
    corpora: _containers.RepeatedCompositeFieldContainer[CorpusEntry]
    def __init__(self, corpora: _Optional[_Iterable[_Union[CorpusEntry, _Mapping]]] = ...) -> None: ...

class CorpusEntry(_message.Message):
    __slots__ = ("corpus", "documents", "bytes", "created_seconds")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    documents: int
    bytes: int
    created_seconds: int
    def __init__(self, corpus: _Optional[str] = ..., documents: _Optional[int] = ..., bytes: _Optional[int] = ..., created_seconds: _Optional[int] = ...) -> None: ...

class GetCorpusRequest(_message.Message):
    __slots__ = ("corpus", "measure")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    measure: bool
    def __init__(self, corpus: _Optional[str] = ..., measure: bool = ...) -> None: ...

class GetCorpusResponse(_message.Message):
    __slots__ = ("corpus", "parameters", "options", "created_seconds", "documents", "sketched", "retries", "buckets", "lines", "line_slots", "counters", "bytes")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    CREATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    SKETCHED_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    BUCKETS_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    LINE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    parameters: CorpusParameters
    options: CorpusOptions
    created_seconds: int
    documents: int
    sketched: int
    retries: int
    buckets: int
    lines: int
    line_slots: int
    counters: CorpusCounters
    bytes: CorpusBytes
    def __init__(self, corpus: _Optional[str] = ..., parameters: _Optional[_Union[CorpusParameters, _Mapping]] = ..., options: _Optional[_Union[CorpusOptions, _Mapping]] = ..., created_seconds: _Optional[int] = ..., documents: _Optional[int] = ..., sketched: _Optional[int] = ..., retries: _Optional[int] = ..., buckets: _Optional[int] = ..., lines: _Optional[int] = ..., line_slots: _Optional[int] = ..., counters: _Optional[_Union[CorpusCounters, _Mapping]] = ..., bytes: _Optional[_Union[CorpusBytes, _Mapping]] = ...) -> None: ...

class CorpusCounters(_message.Message):
    __slots__ = ("asked", "exact", "near", "retried", "reused", "replaced", "deleted", "expired", "imported", "hit_rate")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    NEAR_FIELD_NUMBER: _ClassVar[int]
    RETRIED_FIELD_NUMBER: _ClassVar[int]
    REUSED_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    HIT_RATE_FIELD_NUMBER: _ClassVar[int]
    asked: int
    exact: int
    near: int
    retried: int
    reused: int
    replaced: int
    deleted: int
    expired: int
    imported: int
    hit_rate: float
    def __init__(self, asked: _Optional[int] = ..., exact: _Optional[int] = ..., near: _Optional[int] = ..., retried: _Optional[int] = ..., reused: _Optional[int] = ..., replaced: _Optional[int] = ..., deleted: _Optional[int] = ..., expired: _Optional[int] = ..., imported: _Optional[int] = ..., hit_rate: _Optional[float] = ...) -> None: ...

class CorpusBytes(_message.Message):
    __slots__ = ("total", "lsh", "record", "id", "retries", "lines", "lsh_per_document_and_band", "sampled_fields")
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    LSH_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    LSH_PER_DOCUMENT_AND_BAND_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELDS_FIELD_NUMBER: _ClassVar[int]
    total: int
    lsh: int
    record: int
    id: int
    retries: int
    lines: int
    lsh_per_document_and_band: float
    sampled_fields: int
    def __init__(self, total: _Optional[int] = ..., lsh: _Optional[int] = ..., record: _Optional[int] = ..., id: _Optional[int] = ..., retries: _Optional[int] = ..., lines: _Optional[int] = ..., lsh_per_document_and_band: _Optional[float] = ..., sampled_fields: _Optional[int] = ...) -> None: ...

class DropCorpusRequest(_message.Message):
    __slots__ = ("corpus", "rewrite_files")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    REWRITE_FILES_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    rewrite_files: bool
    def __init__(self, corpus: _Optional[str] = ..., rewrite_files: bool = ...) -> None: ...

class DropCorpusResponse(_message.Message):
    __slots__ = ("file_rewrite", "file_rewrite_message")
    FILE_REWRITE_FIELD_NUMBER: _ClassVar[int]
    FILE_REWRITE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    file_rewrite: FileRewrite
    file_rewrite_message: str
    def __init__(self, file_rewrite: _Optional[_Union[FileRewrite, str]] = ..., file_rewrite_message: _Optional[str] = ...) -> None: ...

class FindDocumentsRequest(_message.Message):
    __slots__ = ("corpus", "ids")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, corpus: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ...) -> None: ...

class FindDocumentsResponse(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: _containers.RepeatedCompositeFieldContainer[FoundDocument]
    def __init__(self, documents: _Optional[_Iterable[_Union[FoundDocument, _Mapping]]] = ...) -> None: ...

class FoundDocument(_message.Message):
    __slots__ = ("id", "state", "seconds", "duplicate_of")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_OF_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: DocumentState
    seconds: int
    duplicate_of: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[DocumentState, str]] = ..., seconds: _Optional[int] = ..., duplicate_of: _Optional[str] = ...) -> None: ...

class DeleteDocumentsRequest(_message.Message):
    __slots__ = ("corpus", "ids", "rewrite_files")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    REWRITE_FILES_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    rewrite_files: bool
    def __init__(self, corpus: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., rewrite_files: bool = ...) -> None: ...

class DeleteDocumentsResponse(_message.Message):
    __slots__ = ("known", "file_rewrite", "file_rewrite_message")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    FILE_REWRITE_FIELD_NUMBER: _ClassVar[int]
    FILE_REWRITE_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    known: int
    file_rewrite: FileRewrite
    file_rewrite_message: str
    def __init__(self, known: _Optional[int] = ..., file_rewrite: _Optional[_Union[FileRewrite, str]] = ..., file_rewrite_message: _Optional[str] = ...) -> None: ...

class ExportCorpusRequest(_message.Message):
    __slots__ = ("corpus",)
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    def __init__(self, corpus: _Optional[str] = ...) -> None: ...

class ExportCorpusResponse(_message.Message):
    __slots__ = ("header", "documents")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    header: ExportHeader
    documents: StoredDocuments
    def __init__(self, header: _Optional[_Union[ExportHeader, _Mapping]] = ..., documents: _Optional[_Union[StoredDocuments, _Mapping]] = ...) -> None: ...

class ExportHeader(_message.Message):
    __slots__ = ("parameters", "options", "export_id", "dqs_version", "documents")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    DQS_VERSION_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    parameters: CorpusParameters
    options: CorpusOptions
    export_id: str
    dqs_version: str
    documents: int
    def __init__(self, parameters: _Optional[_Union[CorpusParameters, _Mapping]] = ..., options: _Optional[_Union[CorpusOptions, _Mapping]] = ..., export_id: _Optional[str] = ..., dqs_version: _Optional[str] = ..., documents: _Optional[int] = ...) -> None: ...

class StoredDocuments(_message.Message):
    __slots__ = ("ids", "seconds", "text_hashes", "lines_seen", "has_sketch", "bands", "sketches")
    IDS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_HASHES_FIELD_NUMBER: _ClassVar[int]
    LINES_SEEN_FIELD_NUMBER: _ClassVar[int]
    HAS_SKETCH_FIELD_NUMBER: _ClassVar[int]
    BANDS_FIELD_NUMBER: _ClassVar[int]
    SKETCHES_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[bytes]
    seconds: _containers.RepeatedScalarFieldContainer[int]
    text_hashes: bytes
    lines_seen: bytes
    has_sketch: bytes
    bands: bytes
    sketches: bytes
    def __init__(self, ids: _Optional[_Iterable[bytes]] = ..., seconds: _Optional[_Iterable[int]] = ..., text_hashes: _Optional[bytes] = ..., lines_seen: _Optional[bytes] = ..., has_sketch: _Optional[bytes] = ..., bands: _Optional[bytes] = ..., sketches: _Optional[bytes] = ...) -> None: ...

class ImportCorpusRequest(_message.Message):
    __slots__ = ("header", "documents", "end")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    header: ImportHeader
    documents: StoredDocuments
    end: ImportEnd
    def __init__(self, header: _Optional[_Union[ImportHeader, _Mapping]] = ..., documents: _Optional[_Union[StoredDocuments, _Mapping]] = ..., end: _Optional[_Union[ImportEnd, _Mapping]] = ...) -> None: ...

class ImportEnd(_message.Message):
    __slots__ = ("documents",)
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    documents: int
    def __init__(self, documents: _Optional[int] = ...) -> None: ...

class ImportHeader(_message.Message):
    __slots__ = ("corpus", "exported")
    CORPUS_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_FIELD_NUMBER: _ClassVar[int]
    corpus: str
    exported: ExportHeader
    def __init__(self, corpus: _Optional[str] = ..., exported: _Optional[_Union[ExportHeader, _Mapping]] = ...) -> None: ...

class ImportCorpusResponse(_message.Message):
    __slots__ = ("imported", "known", "conflicts")
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    CONFLICTS_FIELD_NUMBER: _ClassVar[int]
    imported: int
    known: int
    conflicts: int
    def __init__(self, imported: _Optional[int] = ..., known: _Optional[int] = ..., conflicts: _Optional[int] = ...) -> None: ...
