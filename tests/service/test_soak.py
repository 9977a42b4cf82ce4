"""Half a minute of mixed load; `make soak` runs it for an hour."""

from __future__ import annotations

import pytest

from tests.bench.soak import soak

MAX_GROWTH_MB = 120.0
"""Over the second half; what a leak of a document in a thousand would pass many times over in an hour, not here."""


@pytest.mark.timeout(600)
def test_half_a_minute_of_mixed_load_loses_nothing_and_holds_memory() -> None:
    figures = soak(30.0, least=1000, rest=4.0)  # leaves room for the tests beside it

    assert figures["wrong"] == []
    assert figures["clean_request"]
    assert figures["documents"] >= 1000
    assert figures["resident_mb_last"] - figures["resident_mb_first"] < MAX_GROWTH_MB
    assert figures["files_last"] < figures["files_first"] + 50
    assert figures["threads_last"] < figures["threads_first"] + 20
