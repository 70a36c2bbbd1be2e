"""Which ranges of an arena are free: size classes with a bitmap, neighbours joined on return."""

from __future__ import annotations

ALIGN = 64
LOOK = 8  # free ranges of the right class that are tried for size


class FreeSpace:
    """Ranges of ``[0, size)``, aligned to 64 bytes. Taking and returning one is O(1).

    Good fit in two levels, after Masmano et al. 2004 (TLSF): classes are powers of two split in 16.
    """

    def __init__(self, size: int) -> None:
        self._size_at: dict[int, int] = {}  # start of a free range -> its size
        self._start_of: dict[int, int] = {}  # its end -> its start
        self._classes: dict[int, dict[int, None]] = {}  # class -> starts, in order of return
        self._bitmap = 0
        self._add(0, size // ALIGN * ALIGN)

    def take(self, nbytes: int) -> int | None:
        """The start of a range of `nbytes`, or None when no free range is long enough."""
        nbytes = _rounded(nbytes)
        start = self._find(nbytes)
        if start is None:
            return None
        size = self._remove(start)
        if size > nbytes:
            self._add(start + nbytes, size - nbytes)
        return start

    def give(self, start: int, nbytes: int) -> None:
        """Return a range that was taken."""
        size = _rounded(nbytes)
        if start + size in self._size_at:
            size += self._remove(start + size)
        if start in self._start_of:
            start = self._start_of[start]
            size += self._remove(start)
        self._add(start, size)

    def _find(self, nbytes: int) -> int | None:
        own = _class(nbytes)
        near = self._classes.get(own, {})
        for start, _ in zip(near, range(LOOK), strict=False):
            if self._size_at[start] >= nbytes:
                return start
        larger = self._bitmap >> (own + 1)
        if larger:
            first = own + (larger & -larger).bit_length()
            return next(iter(self._classes[first]))
        return next((start for start in near if self._size_at[start] >= nbytes), None)

    def _add(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_of[start + size] = start
        number = _class(size)
        self._classes.setdefault(number, {})[start] = None
        self._bitmap |= 1 << number

    def _remove(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_of[start + size]
        number = _class(size)
        del self._classes[number][start]
        if not self._classes[number]:
            del self._classes[number]
            self._bitmap &= ~(1 << number)
        return size


def _rounded(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGN) * ALIGN


def _class(size: int) -> int:
    """16 classes for every power of two; a larger size never has a smaller class."""
    units = size // ALIGN
    length = units.bit_length()
    return 16 * length + ((units << 5 >> length) & 15)
