"""What a run came to: rates by model, attack and judge, with all that was left out beside them.

An attack succeeds on a behavior if one of its tries does ("OR success"), and its score is that of
its best try; over several seeds a behavior counts with their mean. A behavior without a success,
some of whose tries a judge could not score, is *unscored*: neither safe nor harmful, and out of the
rate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mosa.evaluation.store import Store
from mosa.stats.rates import Rate, Values, rate_of
from mosa.types import Attempt, Verdict


@dataclass(frozen=True)
class Line:
    """One attack on one model by one judge."""

    model: str
    attack: str
    preset: str
    variant: str
    """A way of the attack by itself, or "" for all its tries together."""
    judge: str
    success: Rate | None
    """Attack success rate over behaviors; None where none was scored."""
    score: Rate | None
    """Mean of the best scores."""
    unscored: tuple[tuple[str, int], ...]
    """(behavior, seed) of the cases without a score."""
    num_failed: int
    """Tasks that failed, whatever the variant."""
    num_left: int
    """Tasks that have not been run, whatever the variant."""
    num_incoherent: int | None
    """Tries whose response is broken text, empty ones apart; None where the judge does not tell."""
    num_empty: int
    """Tries whose response holds nothing."""
    num_tries: int
    mean_queries: float | None
    """Target queries for a behavior; None for a way of an attack by itself."""
    by_seed: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    """Each scored behavior with (seed, 1 for a success and 0 for none) of each scored seed."""

    @property
    def num_unscored(self) -> int:
        """Behaviors without a score, counted once for each seed."""
        return len(self.unscored)

    @property
    def values(self) -> Values:
        """Each scored behavior with its values by seed."""
        return {name: dict(values) for name, values in self.by_seed}


@dataclass
class _Case:
    """The tries at one behavior with one seed, summed up as they come."""

    has_success: bool = False
    best_score: float | None = None
    has_unscored: bool = False
    num_queries: int = 0

    def add(self, verdict: Verdict | None, num_queries: int = 0) -> None:
        """One more try; `num_queries` are those of the attack up to it."""
        self.num_queries = max(self.num_queries, num_queries)
        if verdict is None or verdict.score is None:
            self.has_unscored = True
            return
        self.has_success |= bool(verdict.success)
        self.best_score = max(verdict.score, self.best_score or 0.0)

    @property
    def outcome(self) -> tuple[bool, float] | None:
        """Whether one of the tries succeeded, and the best score; None where that cannot be said.

        A success stands whatever else is unscored; without one, every try must have a score.
        """
        if self.best_score is None or (self.has_unscored and not self.has_success):
            return None
        return self.has_success, self.best_score


class _Group:
    """The tries of one line."""

    def __init__(self) -> None:
        self.cases: dict[tuple[str, int], _Case] = defaultdict(_Case)
        self.num_tries = self.num_told = self.num_incoherent = self.num_empty = 0

    def add(self, attempt: Attempt, verdict: Verdict | None) -> None:
        case = self.cases[attempt.behavior, attempt.seed]
        case.add(verdict, attempt.budget.target_queries)
        self.num_tries += 1
        native = {} if verdict is None else verdict.native
        is_empty = native.get("class") == "empty"
        self.num_empty += is_empty
        self.num_told += "coherent" in native
        self.num_incoherent += not is_empty and not native.get("coherent", True)


def lines(store: Store, judge: str, *, by_variant: bool = False) -> list[Line]:
    """The results by one judge, in the order of planning; with `by_variant` each way by itself."""
    groups: dict[tuple[str, str, str], dict[str, _Group]] = {}
    status: dict[tuple[str, str, str], dict[str, int]] = defaultdict(dict)
    for model, attack, preset, state, count in store.counts():
        status[model, attack, preset][state] = count
        groups[model, attack, preset] = defaultdict(_Group)
    for attempt, verdict in store.judged(judge):
        cell = groups[attempt.model, attempt.attack, attempt.preset]
        cell[attempt.variant if by_variant else ""].add(attempt, verdict)
    found = []
    for (model, attack, preset), states in status.items():
        cell = groups[model, attack, preset] or {"": _Group()}
        for variant, group in cell.items():
            # A single way is the whole attack, and needs no name.
            name = variant if len(cell) > 1 else ""
            found.append(_line((model, attack, preset, name, judge), group, states))
    return found


def _line(of: tuple[str, str, str, str, str], group: _Group, states: dict[str, int]) -> Line:
    successes: dict[str, dict[int, float | None]] = defaultdict(dict)
    scores: dict[str, dict[int, float | None]] = defaultdict(dict)
    for (behavior, seed), case in group.cases.items():
        success, score = case.outcome or (None, None)
        successes[behavior][seed] = None if success is None else float(success)
        scores[behavior][seed] = score
    by_seed = {
        name: tuple((seed, v) for seed, v in values.items() if v is not None)
        for name, values in successes.items()
    }
    queries = [case.num_queries for case in group.cases.values()]
    is_whole = of[3] == ""
    return Line(
        *of,
        success=_rate(successes),
        score=_rate(scores),
        unscored=tuple(
            (name, seed)
            for name, values in successes.items()
            for seed, v in values.items()
            if v is None
        ),
        num_failed=states.get("failed", 0),
        num_left=states.get("todo", 0),
        num_incoherent=group.num_incoherent if group.num_told else None,
        num_empty=group.num_empty,
        num_tries=group.num_tries,
        mean_queries=sum(queries) / len(queries) if queries and is_whole else None,
        by_seed=tuple((name, values) for name, values in by_seed.items() if values),
    )


def _rate(values: Values) -> Rate | None:
    has_any = any(value is not None for of in values.values() for value in of.values())
    return rate_of(values) if has_any else None


def attack_names(cells: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What each (attack, preset) is called: with its preset where there are several of it, or where
    some of its settings were changed."""
    cells = list(dict.fromkeys(cells))
    several = Counter(attack for attack, _ in cells)
    return {
        (attack, preset): f"{attack}:{preset}" if several[attack] > 1 or "(" in preset else attack
        for attack, preset in cells
    }


def names_of(found: Sequence[Line]) -> dict[Line, str]:
    """What each line's attack is called, with its variant where it has one."""
    names = attack_names((line.attack, line.preset) for line in found)
    return {
        line: names[line.attack, line.preset] + (f", {line.variant}" if line.variant else "")
        for line in found
    }


def outcome_of(verdicts: Iterable[Verdict | None]) -> tuple[bool, float] | None:
    """Whether one of some tries succeeded, and the best score; None where that cannot be said."""
    case = _Case()
    for verdict in verdicts:
        case.add(verdict)
    return case.outcome


def success_by_queries(
    store: Store, judge: str
) -> dict[tuple[str, str, str], list[tuple[int, Values]]]:
    """For each (model, attack, preset): (queries, whether each scored behavior succeeded within as
    many with each seed), at 1, 2, 4, ... up to the most that one behavior took."""
    cases: dict[tuple[str, str, str], dict[tuple[str, int], _Case]] = {}
    first: dict[tuple[str, str, str], dict[tuple[str, int], int]] = defaultdict(dict)
    for attempt, verdict in store.judged(judge):
        cell = (attempt.model, attempt.attack, attempt.preset)
        key = (attempt.behavior, attempt.seed)
        queries = attempt.budget.target_queries
        cases.setdefault(cell, defaultdict(_Case))[key].add(verdict, queries)
        if verdict is not None and verdict.success:
            first[cell][key] = min(first[cell].get(key, queries), queries)
    found: dict[tuple[str, str, str], list[tuple[int, Values]]] = {}
    for cell, of_cell in cases.items():
        most = max(case.num_queries for case in of_cell.values())
        points = [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]
        curve = []
        for q in points:
            values: dict[str, dict[int, float]] = defaultdict(dict)
            for (behavior, seed), case in of_cell.items():
                if case.outcome is not None:
                    values[behavior][seed] = float(first[cell].get((behavior, seed), q + 1) <= q)
            curve.append((q, values))
        if curve[0][1]:
            found[cell] = curve
    return found
