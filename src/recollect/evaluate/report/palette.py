"""Colours and marks: every recipe has one of each, so that colour alone never carries meaning.

Colours are CSS variables, defined once for light and once for dark, in pages and in pictures.
"""

from __future__ import annotations

# (light, dark): told apart in the common forms of colour blindness, 3:1 or more on either ground.
SERIES = (
    ("#0b6bb0", "#5fb4f2"),
    ("#c8500a", "#ff9a52"),
    ("#0a7d5c", "#3ccf9f"),
    ("#b0428a", "#f08fc8"),
    ("#7a6400", "#e3c745"),
    ("#6a48c4", "#b39bff"),
    ("#00798c", "#56d3e4"),
    ("#9b2335", "#ff8191"),
    ("#4d6b18", "#a9d158"),
    ("#5c5c66", "#b4b4c2"),
)

GROUND = {
    "ink": ("#1c2230", "#e8ebf2"),
    "soft": ("#5a6477", "#a3adbf"),
    "line": ("#d9dee8", "#333c4e"),
    "paper": ("#ffffff", "#171c27"),
    "page": ("#f4f6fa", "#0f131b"),
    "tint": ("#eaf1fb", "#1d2a40"),
    "accent": ("#0b6bb0", "#5fb4f2"),
}

# One path per mark, around (0, 0), of about equal area.
MARKS = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0 -8.4 0Z",
    "M-3.8-3.8h7.6v7.6h-7.6Z",
    "M0-5.2L4.9 3.6H-4.9Z",
    "M0-5.4L5.4 0L0 5.4L-5.4 0Z",
    "M0 5.2L4.9-3.6H-4.9Z",
    "M-1.6-5h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4Z",
    "M0-5.2L5 -1.6L3.1 4.2H-3.1L-5-1.6Z",
    "M-5-2.6L-2.6-5L0-2.4L2.6-5L5-2.6L2.4 0L5 2.6L2.6 5L0 2.4L-2.6 5L-5 2.6L-2.4 0Z",
)


def mark(number: int) -> str:
    """Path of the mark of the series of that number."""
    return MARKS[number % len(MARKS)]


def colour(number: int) -> str:
    """CSS colour of the series of that number."""
    return f"var(--s{number % len(SERIES)})"


def css(root: str = ":root") -> str:
    """The variables, for light and dark."""

    def block(index: int) -> str:
        names = {**{f"s{n}": pair for n, pair in enumerate(SERIES)}, **GROUND}
        return "".join(f"--{name}:{pair[index]};" for name, pair in names.items())

    return (
        f"{root}{{color-scheme:light dark;{block(0)}}}"
        f"@media(prefers-color-scheme:dark){{{root}{{{block(1)}}}}}"
    )
