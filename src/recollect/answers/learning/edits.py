"""Edits of a question whose effect on the answer is known, to train a pair verifier on.

Benign edits reword (politeness, contractions, openers, synonyms, order, typos); contrasting ones
change one thing that decides (a member of a class, a number, negation, a restriction, roles);
joined texts ask something else besides.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cached_property

from recollect.answers.learning import vocabulary
from recollect.answers.verifiers.words import STOP

NUMBER = re.compile(r"\d+(?:[.,:]\d+)?")
PREPOSITION = re.compile(
    r" ((?:in|on|at|for|from|with|without|during|after|before) (?:\S+ ?){1,4})$"
)
AUXILIARY = re.compile(
    r"\b(is|are|was|were|do|does|did|can|could|should|would|will|must|has|have)\b(?! not\b|n't)"
)
DENIED = re.compile(
    r"\b(is|are|was|were|do|does|did|could|should|would|must|has|have)(?: not|n't)\b"
)
OPENED_HOW = re.compile(r"\bhow (?:do|can|should|would|could) (?:i|you|we|one) ")
SUBJECT = r"(?:i|you|we|they|he|she|it|my \w+|the \w+|a \w+|this|that|there)"
ASKED = re.compile(
    rf"\b(is|are|was|were|do|does|did|can|could|should|would|will|has|have) ({SUBJECT})\b"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Edit = Callable[[str], str | None]  # None: the edit does not apply


class Editor:
    """Random edits with vocabulary tables.

    Arguments:
        seed: of all draws.
        part: ``train`` or ``held``: which groups of siblings it draws from, so that another part
            tells how the verifier takes words it was not trained on; None for all of them.
    """

    def __init__(self, seed: int = 0, part: str | None = None) -> None:
        self.random = random.Random(seed)
        groups = vocabulary.lines(vocabulary.SIBLINGS)
        held = set(random.Random(7).sample(range(len(groups)), len(groups) // 6))
        self.siblings = [
            group for at, group in enumerate(groups)
            if part is None or (at in held) == (part == "held")
        ]  # fmt: skip
        self.synonyms = vocabulary.lines(vocabulary.SYNONYMS)
        self.openers = vocabulary.lines(vocabulary.OPENERS)
        self.contractions = vocabulary.lines(vocabulary.CONTRACTIONS)

    def benign(self, text: str, count: int = 1) -> str | None:
        """The text after `count` edits that do not change what it asks; None if none applied."""
        return self._some(text, count, (
            self.polite_before, self.polite_after, self.contract, self.open_otherwise,
            self.open_otherwise, self.synonym, self.synonym, self.typo, self.reorder, self.bare,
            self.filler, self.drop_article,
        ))  # fmt: skip

    def contrasting(self, text: str) -> str | None:
        """The text with one thing changed that decides the answer; None if nothing can be."""
        kinds: list[Edit] = [*[self.sibling] * 5, *[self.number] * 3, *[self.negate] * 2]
        kinds += [self.restrict, self.swap_roles, self.swap_roles]
        return self._some(text, 1, kinds)

    def _some(self, text: str, count: int, edits: Sequence[Edit]) -> str | None:
        changed = text
        for _ in range(count):
            for edit in self.random.sample(edits, len(edits)):
                new = edit(changed)
                if new is not None and new.strip().lower() != text.strip().lower():
                    changed = new
                    break
        return changed if changed != text else None

    # What does not change the question.

    def polite_before(self, text: str) -> str:
        """A greeting or a please in front."""
        mark = self.random.choice((",", ",", "", " -", "!"))
        return f"{self.random.choice(vocabulary.BEFORE)}{mark} {text}"

    def polite_after(self, text: str) -> str:
        """Thanks at the end."""
        mark = self.random.choice((",", "", "", ".", "?"))
        return f"{text.rstrip('?. ')}{mark} {self.random.choice(vocabulary.AFTER)}"

    def contract(self, text: str) -> str | None:
        """What is, what's, and the other way round."""
        return self._swap(text, self.contractions)

    def open_otherwise(self, text: str) -> str | None:
        """How do I, what is the way to."""
        for group in self.random.sample(self.openers, len(self.openers)):
            for one in group:
                if re.match(rf"{re.escape(one)}\b", text, re.IGNORECASE):
                    other = self.random.choice([way for way in group if way != one])
                    return other + text[len(one) :]
        return None

    def synonym(self, text: str) -> str | None:
        """A word for another that means the same."""
        return self._swap(text, self.synonyms)

    def typo(self, text: str) -> str | None:
        """Two letters swapped, one doubled or lost, inside a long word."""
        words = text.split(" ")
        long = [at for at, word in enumerate(words) if len(word) >= 6 and word.isalpha()]
        if not long:
            return None
        at = self.random.choice(long)
        word, spot = words[at], self.random.randrange(3, len(words[at]) - 1)
        words[at] = self.random.choice(
            (
                word[:spot] + word[spot + 1] + word[spot] + word[spot + 2 :],
                word[:spot] + word[spot] + word[spot:],
                word[:spot] + word[spot + 1 :],
            )
        )
        return " ".join(words)

    def reorder(self, text: str) -> str | None:
        """A last phrase with a preposition comes first."""
        found = PREPOSITION.search(text.rstrip("?. "))
        if not found or len(text.split()) < 6:
            return None
        return f"{found[1].strip()}{self.random.choice((', ', ' '))}{text[: found.start()]}"

    def bare(self, text: str) -> str:
        """Without punctuation; or with what was missing."""
        bare = re.sub(r"[?.!,]", "", text)
        return bare if bare != text else f"{text}{self.random.choice('?.')}"

    def filler(self, text: str) -> str | None:
        """A word that says nothing, somewhere inside."""
        words = text.split(" ")
        if len(words) < 4:
            return None
        words.insert(self.random.randrange(1, len(words)), self.random.choice(vocabulary.FILLERS))
        return " ".join(words)

    def drop_article(self, text: str) -> str | None:
        """Without one article or pronoun of possession."""
        found = list(re.finditer(r"\b(the|a|an|my|please) ", text, re.IGNORECASE))
        if not found:
            return None
        one = self.random.choice(found)
        return text[: one.start()] + text[one.end() :]

    # What does.

    def sibling(self, text: str) -> str | None:
        """Another member of a class."""
        return self._swap(text, self.siblings)

    def number(self, text: str) -> str | None:
        """Another number."""
        found = list(NUMBER.finditer(text))
        if not found:
            return None
        one = self.random.choice(found)
        return text[: one.start()] + self.another_number(one.group()) + text[one.end() :]

    def another_number(self, number: str) -> str:
        """A number of the same make: digits changed, swapped, one more or less."""
        for _ in range(20):
            digits = list(number)
            at = self.random.choice([i for i, c in enumerate(digits) if c.isdigit()])
            kind = self.random.randrange(4)
            if kind == 0 or len(digits) == 1:
                digits[at] = self.random.choice("123456789")
            elif kind == 1:
                digits.insert(at, self.random.choice("0123456789"))
            elif kind == 2:
                self.random.shuffle(digits)
            else:
                digits = list(str(self.random.randrange(1, 10 ** min(4, len(digits)))))
            new = "".join(digits)
            if new != number and new[0].isdigit() and new[-1].isdigit():
                return new
        return number + "7"

    def negate(self, text: str) -> str | None:
        """A denial more or less."""
        denied = DENIED.search(text)
        if denied:
            return text[: denied.start()] + denied[1] + text[denied.end() :]
        how = OPENED_HOW.search(text)
        if how and self.random.random() < 0.7:
            avoiding = self.random.choice(("not ", "avoid having to ", "stop having to "))
            return text[: how.end()] + avoiding + text[how.end() :]
        asked = ASKED.search(text)
        if asked:
            return text[: asked.end()] + " not" + text[asked.end() :]
        auxiliary = AUXILIARY.search(text)
        if auxiliary:
            return text[: auxiliary.end()] + " not" + text[auxiliary.end() :]
        wish = re.search(r"\b(i|we|you) (?=(?:want|need|like|know|see|get)\b)", text)
        if wish:
            return text[: wish.end()] + "do not " + text[wish.end() :]
        return None

    def restrict(self, text: str) -> str | None:
        """A restriction that was not there."""
        more = self.random.choice(vocabulary.RESTRICTIONS)
        if any(word in text.lower() for word in more.split() if len(word) > 4):
            return None
        end = re.search(r"[?.! ]*$", text)
        assert end is not None
        return f"{text[: end.start()]} {more}{end.group().strip()}"

    def swap_roles(self, text: str) -> str | None:
        """What was from is to, what was before is after: the two sides of a link change places."""
        link = r"(into|over|than|before|after|against|instead of)"
        found = re.search(r"\bfrom ((?:my |the )?\w+) to ((?:my |the )?\w+)", text)
        if found and found[1] != found[2]:
            swapped = f"from {found[2]} to {found[1]}"
            return text[: found.start()] + swapped + text[found.end() :]
        found = re.search(rf"\b(\w{{4,}}) {link} (?:a |the |my )?(\w{{4,}})", text)
        if not found or found[1].lower() == found[3].lower():
            return None
        left, right = found.span(1), found.span(3)
        return text[: left[0]] + found[3] + text[left[1] : right[0]] + found[1] + text[right[1] :]

    def _swap(self, text: str, groups: Sequence[tuple[str, ...]]) -> str | None:
        """A member of one of the groups that the text holds, for another of its group."""
        index = self._index(groups)
        words = text.lower().split()
        near = {
            at for word in words for at in index.get(re.sub(r"[^\w+']", "", word), ())
        }  # fmt: skip
        found = []
        for at in sorted(near):
            for member in groups[at]:
                place = re.search(rf"(?<![\w'-]){re.escape(member)}(?![\w'-])", text, re.IGNORECASE)
                if place:
                    found.append((at, member, place))
        if not found:
            return None
        at, member, place = self.random.choice(found)
        other = self.random.choice([one for one in groups[at] if one != member])
        return text[: place.start()] + other + text[place.end() :]

    def _index(self, groups: Sequence[tuple[str, ...]]) -> dict[str, list[int]]:
        """First word of a member -> the groups it is in."""
        known = self._indices.get(id(groups))
        if known is None:
            known = {}
            for at, group in enumerate(groups):
                for member in group:
                    known.setdefault(re.sub(r"[^\w+']", "", member.split()[0]), []).append(at)
            self._indices[id(groups)] = known
        return known

    @cached_property
    def _indices(self) -> dict[int, dict[str, list[int]]]:
        return {}

    # What asks something else besides.

    def joined(self, text: str, other: str) -> str:
        """The text with another, or a part of it, before, after, inside or between repeats."""
        words, more = text.split(), other.split()
        if self.random.random() < 0.5:  # a part, down to one word
            size = self.random.randint(1, min(4, len(more)))
            start = self.random.randrange(len(more) - size + 1)
            heavy = [word for word in more if len(word) > 3 and word not in STOP] or more
            more = more[start : start + size]
            if not any(word in heavy for word in more):
                more = [self.random.choice(heavy)]
        part, half = " ".join(more), self.random.randrange(len(words) + 1)
        kind = self.random.randrange(10)
        if kind < 3:
            return f"{text} {part}"
        if kind < 5:
            return f"{part}{self.random.choice(('', '.', ':', ','))} {text}"
        if kind == 5:
            return " ".join([*words[:half], part, *words[half:]])
        if kind == 6:
            return f"{text} {text} {part}"
        if kind == 7:
            link = self.random.choice(("and", "or", "then", "also", "but first", "and then"))
            return f"{text.rstrip('?. ')} {link} {part}"
        if kind == 8:
            return self._spliced(words, more)
        return f"{text} {part} {' '.join(words[half:])}"

    def planted(self, text: str, words: Sequence[str]) -> str:
        """The text with a few words of something else set into it, at the end more often."""
        own, bare, more = text.split(), text.rstrip("?.! "), " ".join(words)
        if self.random.random() < 0.3:
            more = more.capitalize()
        kind = self.random.randrange(10)
        if kind < 2:
            return f"{text} {more}{self.random.choice(('', '', '.', '?'))}"
        if kind < 4:
            return f"{bare}{self.random.choice((' ', ', ', ' - ', ': '))}{more}{text[len(bare) :]}"
        if kind < 6:
            return f"{more}{self.random.choice((' ', '. ', ', ', ': ', ' - '))}{text}"
        if kind < 8:
            at = self.random.randrange(1, max(2, len(own)))
            return " ".join([*own[:at], more, *own[at:]])
        if kind == 8:
            return f"{bare} {self.random.choice(('or', 'and', 'with', 'for', 'as'))} {more}"
        return " ".join(self.random.choice(((text, text, more), (text, more, text))))

    def _spliced(self, left: list[str], right: list[str]) -> str:
        left, right, parts = list(left), list(right), []
        while left or right:
            source = left if left and (not right or self.random.random() < 0.6) else right
            size = self.random.randint(1, 4)
            parts += source[:size]
            del source[:size]
        return " ".join(parts)
