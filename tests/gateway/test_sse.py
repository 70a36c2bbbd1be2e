"""Server-sent events: cut anywhere, every event comes out whole and with its bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect.errors import GatewayError
from recollect.gateway.sse import SSEParser, write_event

STREAM = (
    ": ping\n\n"
    'data: {"a": "ü👋"}\n\n'
    "event: delta\r\ndata: one\r\ndata: two\r\n\r\n"
    "id: 7\rdata:three\r\r"
    "data\n\n"
    "data: [DONE]\n\n"
).encode()
EVENTS = [
    ("", ""),
    ("", '{"a": "ü👋"}'),
    ("delta", "one\ntwo"),
    ("", "three"),
    ("", ""),
    ("", "[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_where_the_network_cuts(cuts):
    parser, events = SSEParser(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        events += parser.feed(STREAM[start:end])
    assert [(event.kind, event.data) for event in events] == EVENTS
    assert b"".join(event.raw for event in events) == STREAM
    assert parser.pending == b""


def test_what_has_not_ended_is_no_event():
    parser = SSEParser()
    assert list(parser.feed(b"data: half\n")) == []
    assert parser.pending == b"data: half\n"


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])))
def test_written_events_read_back(text):
    (event,) = SSEParser().feed(write_event(text.encode(), "kind"))
    assert (event.kind, event.data) == ("kind", text)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(GatewayError, match="not UTF-8"):
        list(SSEParser().feed(b"data: \xff\n\n"))


def test_an_endless_event_is_refused():
    with pytest.raises(GatewayError, match="longer than 8 bytes"):
        list(SSEParser(limit=8).feed(b"data: 123456789"))
