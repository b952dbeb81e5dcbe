"""One user's ranking before and after what that user liked: the loop closed, seen from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cuckooflow.pipelines.demo.exposures import Exposures
from cuckooflow.pipelines.demo.feedback import LIKE, DemoEvents

#: Films that are ranked: half of them nearest to the user's likes by genre, half farthest.
CANDIDATES = 10
#: They are taken from the films that were shown most often.
POPULAR = 150
#: Where in the replay the story may happen, as shares of its lines.
EARLIEST, LATEST = 0.78, 0.93
#: A sitting: likes of one user that follow each other within this time.
SITTING_S = 3600


@dataclass(frozen=True)
class Story:
    """A user who comes for the first time, likes films, and leaves.

    Attributes:
        user: row of the users.
        first_us: when the user's first impression arrives, event time, microseconds.
        last_like_us: arrival of the last like of this sitting.
        liked_rows: the impressions that were liked, rows of the exposures, in order.
        liked: rows of the items that were liked, in order.
        candidates: rows of the items to rank: often shown, but never to this user; the first half has the
            genres that the user likes more than others do, the second half those liked less.
    """

    user: int
    first_us: int
    last_like_us: int
    liked_rows: tuple[int, ...]
    liked: tuple[int, ...]
    candidates: tuple[int, ...]

    def liked_keys(self, shown: Exposures) -> set[tuple[str, str]]:
        """(request, item) of the impressions that were liked, as the logs name them."""
        items = shown.items["item_id"]
        return {
            (f"r{shown.request[row]}", str(items[int(shown.item[row])].as_py())) for row in self.liked_rows
        }


@dataclass(frozen=True)
class Ranking:
    """The candidates' scores at one moment.

    Attributes:
        version: of the model that gave them.
        at_us: when, microseconds since the epoch.
        scores: one for each candidate, in the story's order.
    """

    version: int
    at_us: int
    scores: tuple[float, ...]

    def places(self) -> list[int]:
        """Each candidate's place, 1 for the best."""
        order = np.argsort(-np.array(self.scores), kind="stable")
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(1, len(order) + 1)
        return [int(place) for place in places]


@dataclass(frozen=True)
class Told:
    """A story with both rankings.

    Attributes:
        seconds: from the append of the last like to the first look at which the new ranking was served.
    """

    story: Story
    before: Ranking
    after: Ranking
    seconds: float

    def rows(self, shown: Exposures) -> list[tuple[str, str, float, float, int, int]]:
        """(title, genres, score before, score after, place before, place after), best one after first."""
        items = shown.items
        rows = [
            (
                str(items["title"][item].as_py()),
                ", ".join(items["genres"][item].as_py()),
                before,
                after,
                place_before,
                place_after,
            )
            for item, before, after, place_before, place_after in zip(
                self.story.candidates,
                self.before.scores,
                self.after.scores,
                self.before.places(),
                self.after.places(),
                strict=True,
            )
        ]
        return sorted(rows, key=lambda row: row[5])

    def liked_titles(self, shown: Exposures) -> list[str]:
        """What the user liked."""
        return [str(shown.items["title"][item].as_py()) for item in self.story.liked]


def choose_story(shown: Exposures, events: DemoEvents, window_us: int) -> Story:
    """The newcomer with the most likes in a first sitting, late in the replay.

    Raises:
        ValueError: nobody comes for the first time in that part.
    """
    n = len(shown)
    first_row = np.full(len(shown.users), -1)
    users, rows = np.unique(shown.user, return_index=True)
    first_row[users] = rows
    low, high = int(EARLIEST * n), int(LATEST * n)
    since_first = shown.time_s - shown.time_s[first_row[shown.user]]
    sitting = shown.liked & (since_first <= SITTING_S)
    likes = np.bincount(shown.user[sitting], minlength=len(shown.users))
    likes[(first_row < low) | (first_row >= high)] = -1
    user = int(np.argmax(likes))
    if likes[user] < 1:
        raise ValueError(
            f"expected a newcomer between {EARLIEST:.0%} and {LATEST:.0%} of the replay, found none"
        )

    liked_rows = np.flatnonzero(sitting & (shown.user == user))
    arrivals = events.actions.arrival_us[
        np.isin(events.actions.impression, liked_rows) & (events.actions.action == LIKE)
    ]
    last_impression_us = 1_000_000 * int(shown.time_s[liked_rows[-1]])
    # Transport that took hours is not waited for: those likes are late, and examples of their own.
    prompt = arrivals[arrivals <= last_impression_us + window_us]
    seen = np.unique(shown.item[shown.user == user])
    before = shown.item[: first_row[user]]
    popular = np.argsort(-np.bincount(before, minlength=len(shown.items)), kind="stable")
    unseen = popular[~np.isin(popular, seen)][:POPULAR]
    by_taste = unseen[np.argsort(-_taste(shown, liked_rows)[unseen], kind="stable")]
    half = CANDIDATES // 2
    candidates = np.concatenate([by_taste[:half], by_taste[max(half, len(by_taste) - half) :]])
    return Story(
        user=user,
        first_us=1_000_000 * int(shown.time_s[first_row[user]]),
        last_like_us=int(prompt.max(initial=last_impression_us)),
        liked_rows=tuple(int(row) for row in liked_rows),
        liked=tuple(int(item) for item in shown.item[liked_rows]),
        candidates=tuple(int(item) for item in candidates),
    )


def _taste(shown: Exposures, liked_rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(items,) how much more often an item's genres are among these likes than among everybody's.

    The mean, over the item's genres, of the logarithm of the ratio; of the events alone, no model asked.
    """
    genres = sorted({genre for listed in shown.items["genres"].to_pylist() for genre in listed})
    number = {genre: at for at, genre in enumerate(genres)}
    has = np.zeros((len(shown.items), len(genres)))
    for item, listed in enumerate(shown.items["genres"].to_pylist()):
        has[item, [number[genre] for genre in listed]] = 1
    here = has[shown.item[liked_rows]].mean(axis=0)
    everywhere = has[shown.item[shown.liked]].mean(axis=0)
    ratio = np.log((here + 0.01) / (everywhere + 0.01))
    taste: npt.NDArray[np.float64] = (has @ ratio) / np.maximum(has.sum(axis=1), 1)
    return taste


def instances(shown: Exposures, story: Story) -> list[dict[str, Any]]:
    """What the scorer is asked: the candidates with the user's and their own features."""
    user = shown.users.slice(story.user, 1).to_pylist()[0]
    asked = []
    for position, item in enumerate(story.candidates):
        film = shown.items.slice(item, 1).to_pylist()[0]
        del film["title"]
        asked.append({**user, **film, "position": position})
    return asked
