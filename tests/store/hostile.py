"""Frames as an adversary would write them, by the million: each seed is one attack.

Half of the attacks damage bytes and must be refused: the checksums cover every byte. The others
forge: they change claims or contents and make all checksums right again, so that what stands
between them and memory is the reader's own checks. These may be accepted, if what is decoded then
has the shape and dtype it claims; anything but a StoreError is a defect.
"""

import functools
import json
import random
from dataclasses import replace

import torch
from xxhash import xxh3_128

from recollect.errors import StoreError
from recollect.store.frames import FrameHeader, decode_layer, encode_layers, pack, unpack
from recollect.store.frames.container import ALIGN, DIGEST_AT, PREFIX

CODECS = ("dense", "int8", "int2", "cachegen-0", "cachegen-3", "state")
NUMBERS = (-1, 0, 1, 3, 7, 33, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 10**30, 0.5, True, None, "7")
WORDS = ("", "dense", "int8", "int4", "cachegen-0", "cachegen-3", "float16", "bfloat16", "int64",
         "bytes", "bool", "pre-rope", "exact", "x" * 99, "\0", 3, [], None)  # fmt: skip
TOKENS = 5


@functools.cache
def originals():
    """A small frame of every codec."""
    draw = torch.Generator().manual_seed(0)
    header = FrameHeader("m", TOKENS)
    found = []
    for codec in CODECS:
        pairs = [
            tuple(torch.randn(2, TOKENS, 8, generator=draw).half() for _ in range(2))
            for _ in range(2)
        ]
        if codec == "state":
            buffers = pack(replace(header, codec="state"), {"a": pairs[0][0], "b": b"raw"})
        else:
            buffers = encode_layers(pairs, header, codec)
        found.append(b"".join(buffers))
    return tuple(found)


def attack(seed):
    """Read one hostile frame: "refused", "intact" or "forged"; asserts on a wrong answer."""
    draw = random.Random(seed)
    original = draw.choice(originals())
    if draw.random() < 0.5:
        data, verdict = damaged(original, draw), "intact"
    else:
        data, verdict = forged(original, draw), "forged"
    try:
        frame = unpack(data, verify=draw.random() < 0.5)
        frame.verify()
        if verdict == "intact":
            assert data in originals(), "damage went unnoticed"
        for layer in range(min(frame.header.layers, 3)):
            k, v = decode_layer(frame, layer)
            assert k.shape[:2] == v.shape[:2]
            assert k.shape[1] == frame.header.tokens
            assert k.dtype == v.dtype
    except StoreError:
        return "refused"
    return verdict


def damaged(original, draw):
    """The bytes of a frame with flips, cuts, insertions, or parts of another frame."""
    data = bytearray(original)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(6):
            case 0 if data:
                data[at % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                del data[at:]
            case 2:
                del data[at : at + draw.randint(1, 64)]
            case 3:
                data[at:at] = draw.randbytes(draw.randint(1, 64))
            case 4:
                other = draw.choice(originals())
                data[at:] = other[at:]
            case _:
                data[at : at + 8] = draw.choice((b"\xff" * 8, bytes(8), b"\0\0\0\0\0\0\0\x80"))
    return bytes(data)


def forged(original, draw):
    """A frame with changed claims or contents whose checksums are right."""
    _, schema, length, _, _ = PREFIX.unpack(original[: PREFIX.size])
    claims = json.loads(original[PREFIX.size : PREFIX.size + length])
    contents, at = [], PREFIX.size + length
    for row in claims["sections"]:
        contents.append(bytearray(original[at : at + row[3] + -row[3] % ALIGN]))
        at += len(contents[-1])
    table = claims["sections"]
    for _ in range(draw.randint(1, 3)):
        forge(claims, contents, draw)
    for row, content in zip(table, contents, strict=False):
        if isinstance(row, list) and len(row) == 5:
            row[4] = xxh3_128(content).hexdigest()
    head = json.dumps(claims).encode()
    head += b" " * (-len(head) % ALIGN)
    body = b"".join(contents)
    total = PREFIX.size + len(head) + len(body)
    prefix = PREFIX.pack(b"RECOLLCT", schema, len(head), total, bytes(16))[:DIGEST_AT]
    digest = xxh3_128(prefix)
    digest.update(head)
    return prefix + digest.digest() + head + body


def forge(claims, contents, draw):
    """One lie."""
    table = claims["sections"]
    row = draw.choice(table) if table else None
    match draw.randrange(9):
        case 0:
            claims[draw.choice(("tokens", "first_position", "layers"))] = draw.choice(NUMBERS)
        case 1:
            name = draw.choice(("model", "codec", "form", "exactness", "facts", "sections"))
            claims[name] = draw.choice(WORDS)
            if name == "sections":
                claims[name] = table  # lists of sections are changed below
        case 2 if isinstance(claims["facts"], dict):
            claims["facts"]["dtype"] = draw.choice(WORDS)
        case 3 if isinstance(claims["facts"], dict):
            shape = [draw.choice(NUMBERS) for _ in range(draw.randint(2, 4))]
            claims["facts"]["shapes"] = draw.choice(([shape, shape], [shape], shape, 7))
        case 4 if row:
            row[2] = [draw.choice(NUMBERS) for _ in range(draw.randint(0, 9))]
        case 5 if row:
            row[draw.randrange(len(row))] = draw.choice((*NUMBERS, *WORDS))
        case 6 if row and len(row) == 5 and type(row[3]) is int:
            change = draw.choice((-1, 1, 64, -64, 2**40))
            row[2], row[3] = [max(0, row[3] + change)], row[3] + change
        case 7:
            draw.choice((table.reverse, table.clear, lambda: table.append([])))()
        case _:
            content = draw.choice(contents) if contents else bytearray()
            for _ in range(draw.randint(1, 4)):
                if content:
                    at = draw.randrange(min(len(content), draw.choice((24, 4096))))
                    content[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
