"""Forms in which keys and values are held when they are not held as they are.

A codec is one file with one class that answers `base.Packed`: how tokens get in (`append`), how
they get out (`decode_tile`), what they weigh (`nbytes`), and how the whole is copied and saved. To
add one (low rank, polar, fp8 …):

1. write ``codecs/<name>.py``: functions for the mathematics (encode and decode plain tensors), and
   a `Packed` subclass that only stores what those return;
2. it works at once: `kernels.packed_attention` decodes a tile at a time for any codec;
3. where that is too slow, give it a fused kernel beside the others in ``core/kernels``, and a test
   that it agrees with decode-then-attend.
"""

from recollect.core.codecs.affine import PackedKV
from recollect.core.codecs.base import Packed, Tile

__all__ = ["Packed", "PackedKV", "Tile"]
