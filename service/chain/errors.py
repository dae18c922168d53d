"""What is wrong with a configuration, said so that it can be put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Problem:
    """One fault: line in the file (0 = the whole file), element (``<gadget> 'Recon'``) and text."""

    line: int
    place: str
    text: str


class ConfigError(ValueError):
    """A configuration cannot be used. The text has one line a problem: file, line, element, cause and remedy."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = sorted(set(problems))
        super().__init__("\n".join(self._line(problem) for problem in self.problems))

    def _line(self, problem: Problem) -> str:
        where = f"{self.source}:{problem.line}" if problem.line else self.source
        return ": ".join(part for part in (where, problem.place, problem.text) if part)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the nearest right one, or all if there are few."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, 1) or [n for n in names if n.lower() == name.lower()]
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return ""
    return f"; known: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
