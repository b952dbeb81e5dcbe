"""A feed made up from drifting preferences, for where the real data set cannot be had.

Every user and every film has a place in a small space of tastes. The users' places wander from day to day,
so a model that stopped learning loses ground. A request shows five films of the day; the one that
suits best (with noise) is clicked, and liked if it suits well. Half of the users come in the course of time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cuckooflow.pipelines.demo.exposures import ITEM_SCHEMA, SHOWN, USER_SCHEMA, Exposures

SOURCE = "simulator (nothing here is real: simulated users with drifting preferences)"

_DAY_S = 86_400
#: A newcomer's first requests, and the seconds between them; together less than an hour.
_SITTING, _SITTING_STEP_S = 20, 90
_GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "War", "Western")
_OCCUPATIONS = ("artist", "engineer", "lawyer", "programmer", "student", "writer")


@dataclass(frozen=True)
class SimulatorOptions:
    """What is simulated.

    Attributes:
        requests: each shows five films; default 100,000. Rows, and the demo's time, grow with it.
        users, items: how many there are, default 900 and 1,600.
        days: of event time that the requests are spread over, default 200.
        tastes: dimensions of the space of tastes, default 6.
        drift: standard deviation of a user's step a day, in units of the space's; default 0.1: after a
            hundred days a taste has moved by its own size.
        sharpness: how much better than noise the affinity tells what is clicked, default 2.
        start_s: time of the first request, seconds since the epoch, UTC; default 2001-01-01.
        seed: of everything drawn here.
    """

    requests: int = 100_000
    users: int = 900
    items: int = 1_600
    days: int = 200
    tastes: int = 6
    drift: float = 0.1
    sharpness: float = 2.0
    start_s: int = 978_307_200
    seed: int = 7


def simulate(options: SimulatorOptions = SimulatorOptions()) -> Exposures:
    """Exposures and what came of them, ``5 * options.requests`` rows in order of time."""
    rng = np.random.default_rng(options.seed)
    n = options.requests
    time_s, user = _visits(options, rng)
    item = _distinct_films(n, options, rng)

    films = rng.normal(size=(options.items, options.tastes))
    places = _wander(options, rng)[(time_s - options.start_s) // _DAY_S, user]
    affinity = np.einsum("nt,nst->ns", places, films[item]) / np.sqrt(options.tastes)
    noise = rng.gumbel(size=affinity.shape)
    clicked = np.argmax(options.sharpness * affinity + noise, axis=1)[:, None] == np.arange(SHOWN)
    chance = 1.0 / (1.0 + np.exp(-options.sharpness * (affinity - 0.5)))
    liked = clicked & (rng.random(affinity.shape) < chance)
    return Exposures(
        source=SOURCE,
        request=np.repeat(np.arange(n), SHOWN),
        time_s=np.repeat(time_s, SHOWN),
        position=np.tile(np.arange(SHOWN), n),
        user=np.repeat(user, SHOWN),
        item=item.reshape(-1),
        clicked=clicked.reshape(-1),
        liked=liked.reshape(-1),
        users=_users(options, rng),
        items=_items(films, rng),
    )


def _visits(
    options: SimulatorOptions, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n,) times and (n,) users of the requests, in order of time.

    Half of the users are there from the start. The others come one by one, and begin with a sitting.
    """
    end_s = options.days * _DAY_S
    newcomers = options.users // 2
    came_s = np.zeros(options.users, np.int64)
    came_s[options.users - newcomers :] = np.sort(rng.integers(0, end_s - _DAY_S // 24, newcomers))
    sitting = min(_SITTING, options.requests // (2 * max(1, newcomers)))
    first = np.repeat(np.arange(options.users - newcomers, options.users), sitting)
    first_s = came_s[first] + np.tile(_SITTING_STEP_S * np.arange(sitting), newcomers)
    later_s = rng.integers(0, end_s, options.requests - len(first))
    there = np.searchsorted(came_s, later_s, "right")
    later = (there * rng.random(len(later_s))).astype(np.int64)
    time_s, user = np.concatenate([first_s, later_s]), np.concatenate([first, later])
    order = np.argsort(time_s, kind="stable")
    return options.start_s + time_s[order], user[order]


def _distinct_films(n: int, options: SimulatorOptions, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(n, SHOWN) films, all different within a row: a start, and strides that do not meet."""
    if options.items < 2 * SHOWN:
        raise ValueError(f"items: expected at least {2 * SHOWN}, received {options.items}")
    start = (options.items * rng.random(n) ** 1.5).astype(np.int64)  # some films are shown far more often
    steps = rng.integers(1, options.items // SHOWN, (n, SHOWN))
    steps[:, 0] = 0
    return (start[:, None] + np.cumsum(steps, axis=1)) % options.items


def _wander(options: SimulatorOptions, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(days, users, tastes): where each user stands on each day; of unit variance at any time."""
    keep = np.sqrt(1.0 - options.drift**2)
    places = np.empty((options.days, options.users, options.tastes))
    places[0] = rng.normal(size=places[0].shape)
    for day in range(1, options.days):
        places[day] = keep * places[day - 1] + options.drift * rng.normal(size=places[0].shape)
    return places


def _users(options: SimulatorOptions, rng: np.random.Generator) -> pa.Table:
    columns = {
        "user_id": pa.array([str(number) for number in range(1, options.users + 1)]),
        "age": pa.array(rng.integers(14, 75, options.users)),
        "gender": pa.array(rng.choice(["F", "M"], options.users)),
        "occupation": pa.array(rng.choice(_OCCUPATIONS, options.users)),
    }
    return pa.table(columns, schema=USER_SCHEMA)


def _items(films: npt.NDArray[np.float64], rng: np.random.Generator) -> pa.Table:
    """Genres are the two that lie nearest in the space of tastes, so that they carry a signal."""
    centres = rng.normal(size=(len(_GENRES), films.shape[1]))
    near = np.argsort(-(films @ centres.T), axis=1)[:, :2]
    columns = {
        "item_id": pa.array([str(number) for number in range(1, len(films) + 1)]),
        "title": pa.array([f"Film {number}" for number in range(1, len(films) + 1)]),
        "genres": pa.array([[_GENRES[a], _GENRES[b]] for a, b in near], pa.list_(pa.string())),
        "release_year": pa.array(rng.integers(1950, 2001, len(films))),
    }
    return pa.table(columns, schema=ITEM_SCHEMA)
