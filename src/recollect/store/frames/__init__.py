"""Frames: the self-describing, checksummed containers in which entries of a store are kept."""

from recollect.store.frames.container import (
    Buffer,
    Frame,
    Section,
    head_bytes,
    nbytes,
    pack,
    unpack,
)
from recollect.store.frames.header import FrameHeader
from recollect.store.frames.layers import decode_layer, encode_layers, find_codec
from recollect.store.frames.states import check_state, pack_state, read_state

__all__ = [
    "Buffer",
    "Frame",
    "FrameHeader",
    "Section",
    "check_state",
    "decode_layer",
    "encode_layers",
    "find_codec",
    "head_bytes",
    "nbytes",
    "pack",
    "pack_state",
    "read_state",
    "unpack",
]
