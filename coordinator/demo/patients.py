"""Patients of one hospital: what they have, and when it is written down.

A patient has a few topics, by age, sex and the tendency of topics to go together. Care is a series of episodes,
each with one topic and up to four visits within a month. An acute diagnosis belongs to its episode; a chronic one
stays with the patient, is written again at later visits with its topic, and now and then at others.

All draws are vectorised over a batch of patients; a batch has its own random stream, so memory stays bounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coordinator.demo.medicine import N_COMPANIONS, N_TOPICS, Flags, Floats, Hospital, Ints, Medicine

FIRST_DAY = np.datetime64("2015-01-01")
N_DAYS = 3653
"""2015 to 2024; days are counted from `FIRST_DAY`."""
BACKGROUND = 0.12
"""Share of diagnoses that have nothing to do with the episode's topic."""
MAX_TOPICS = 7
MAX_VISITS = 4
REPEAT_ACUTE = 0.4
"""Chance that a later visit of the same episode repeats an acute diagnosis."""
REPEAT_CHRONIC = 0.5
"""Chance that a later visit with the same topic repeats a chronic diagnosis."""


@dataclass(frozen=True)
class Batch:
    """Diagnoses as recorded; row i says that a patient had a concept on a day. Sorted, no row twice.

    Attributes:
        patient: int64 (m,), from 0 within the batch.
        day: int64 (m,), days after `FIRST_DAY`.
        concept: int64 (m,).
        draw: float64 (m,) in [0, 1), equal for all records of one patient's concept; it decides
            which of two codes these records keep to.
    """

    patient: Ints
    day: Ints
    concept: Ints
    draw: Floats


@dataclass(frozen=True)
class _Episodes:
    """Episodes of care, patient by patient, and their visits, episode by episode; the first visit is on `start`."""

    patient: Ints  # (e,)
    sex: Ints  # (e,)
    topic: Ints  # (e,)
    start: Ints  # (e,)
    n_visits: Ints  # (e,)
    of_visit: Ints  # (v,), the episode
    day: Ints  # (v,)


@dataclass(frozen=True)
class _Items:
    """Diagnoses made in episodes; `topic` is N_TOPICS for one that has nothing to do with the episode."""

    episode: Ints
    topic: Ints
    concept: Ints


def draw_patients(medicine: Medicine, hospital: Hospital, n_patients: int, rng: np.random.Generator) -> Batch:
    """Draw a batch of patients of one hospital; every patient has at least one record."""
    care = _draw_episodes(medicine, hospital, n_patients, rng)
    items = _draw_items(medicine, hospital, care, rng)
    made, its_visit = _in_episode(medicine.chronic, care, items, rng)
    known, later_visit = _carried(medicine.chronic, hospital.carry, care, items, rng)
    visit = np.concatenate([its_visit, later_visit])
    concept = items.concept[np.concatenate([made, known])]
    return _batch(care.patient[care.of_visit[visit]], care.day[visit], concept, rng)


def _draw_episodes(
    medicine: Medicine, hospital: Hospital, n_patients: int, rng: np.random.Generator
) -> _Episodes:
    sex = (rng.random(n_patients) < 0.46).astype(np.int64)
    topics, weights = _patient_topics(medicine, hospital, sex, rng)
    # Gamma intensity: a few patients make many of the records.
    n_episodes = 1 + rng.poisson((hospital.episodes - 1) * rng.gamma(2.0, 0.5, n_patients))
    patient = np.repeat(np.arange(n_patients), n_episodes)
    entry = rng.integers(0, N_DAYS - 365, n_patients)[patient]
    start = entry + (rng.random(len(patient)) * (N_DAYS - 31 - entry)).astype(np.int64)
    n_visits = np.minimum(rng.geometric(0.6, len(patient)), MAX_VISITS)
    of_visit, number = _expand(n_visits)
    return _Episodes(
        patient=patient,
        sex=sex[patient],
        topic=topics[patient, _pick(weights[patient], rng)],
        start=start,
        n_visits=n_visits,
        of_visit=of_visit,
        day=start[of_visit] + np.where(number == 0, 0, rng.integers(1, 31, len(of_visit))),
    )


def _patient_topics(
    medicine: Medicine, hospital: Hospital, sex: Ints, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """Topics of each patient (m, MAX_TOPICS) and their weights, 0 beyond a patient's own number of topics."""
    m = len(sex)
    age = np.clip(rng.normal(hospital.mean_age, 17, m), 18, 97)
    score = np.log(hospital.topic_share) + np.log(hospital.suits[sex] + 1e-12)
    score += np.where(sex == 0, 1, -1)[:, None] * medicine.sex_lean
    score -= (age[:, None] - medicine.peak_age) ** 2 / (2 * 22**2)
    score += 1.2 * rng.standard_normal((m, medicine.direction.shape[1])) @ medicine.direction.T
    topics = np.argsort(-(score + rng.gumbel(size=score.shape)), axis=1)[:, :MAX_TOPICS]
    n_topics = np.minimum(2 + rng.poisson(age / 30, m), MAX_TOPICS)
    weights = rng.gamma(1.0, 1.0, topics.shape) * (np.arange(MAX_TOPICS) < n_topics[:, None])
    return topics, weights


def _draw_items(medicine: Medicine, hospital: Hospital, care: _Episodes, rng: np.random.Generator) -> _Items:
    """Diagnoses of each episode: at least one, from its topic or the background, some with a companion."""
    n_items = 1 + rng.poisson(hospital.items, len(care.patient))
    episode = np.repeat(np.arange(len(n_items)), n_items)
    topic = np.where(rng.random(len(episode)) < BACKGROUND, N_TOPICS, care.topic[episode])
    concept = _draw_concepts(hospital, care.sex[episode] * (N_TOPICS + 1) + topic, rng)

    chance = np.cumsum(hospital.companion_chance, axis=1)
    number = (chance[concept] <= rng.random((len(concept), 1))).sum(axis=1)
    source = np.flatnonzero(number < N_COMPANIONS)
    companion = medicine.companions[concept[source], number[source]]
    possible = medicine.sexes[companion, care.sex[episode[source]]]
    source, companion = source[possible], companion[possible]
    return _Items(
        episode=np.concatenate([episode, episode[source]]),
        topic=np.concatenate([topic, topic[source]]),
        concept=np.concatenate([concept, companion]),
    )


def _draw_concepts(hospital: Hospital, table: Ints, rng: np.random.Generator) -> Ints:
    """One diagnosis from each named row of the cumulative loadings, by inversion."""
    rows, n = hospital.cumulative.shape
    # Row r shifted to (r, r + 1] makes all rows one sorted array, and all draws one binary search.
    flat = (hospital.cumulative + np.arange(rows)[:, None]).ravel()
    found = np.searchsorted(flat, table + rng.random(len(table)), side="right")
    drawn: Ints = np.minimum(found - table * n, n - 1)
    return drawn


def _in_episode(
    chronic: Flags, care: _Episodes, items: _Items, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Records (item, visit) in the item's own episode: at the first visit, and acute ones now and then later."""
    item, number = _expand(care.n_visits[items.episode])
    again = ~chronic[items.concept[item]] & (rng.random(len(item)) < REPEAT_ACUTE)
    written = (number == 0) | again
    item, number = item[written], number[written]
    first_visit = np.cumsum(care.n_visits) - care.n_visits
    return item, first_visit[items.episode[item]] + number


def _carried(
    chronic: Flags, carry: float, care: _Episodes, items: _Items, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Records (item, visit) of chronic diagnoses at visits after the day on which they were first made."""
    item = np.flatnonzero(chronic[items.concept])
    patient, since = care.patient[items.episode[item]], care.start[items.episode[item]]
    disease = patient * len(chronic) + items.concept[item]
    order = np.lexsort((since, disease))
    onset = order[np.unique(disease[order], return_index=True)[1]]
    item, patient, since = item[onset], patient[onset], since[onset]

    visit_patient = care.patient[care.of_visit]
    first = np.searchsorted(visit_patient, patient, side="left")
    known, number = _expand(np.searchsorted(visit_patient, patient, side="right") - first)
    visit = first[known] + number
    after = care.day[visit] > since[known]
    item, visit = item[known[after]], visit[after]
    same_topic = items.topic[item] == care.topic[care.of_visit[visit]]
    written = rng.random(len(item)) < np.where(same_topic, REPEAT_CHRONIC, carry)
    return item[written], visit[written]


def _batch(patient: Ints, day: Ints, concept: Ints, rng: np.random.Generator) -> Batch:
    n = int(concept.max()) + 1
    key = distinct((patient * N_DAYS + day) * n + concept)
    patient, day, concept = key // n // N_DAYS, key // n % N_DAYS, key % n
    pairs, of_pair = np.unique(patient * n + concept, return_inverse=True)
    return Batch(patient, day, concept, draw=rng.random(len(pairs))[of_pair])


def distinct(values: Ints) -> Ints:
    """Distinct values in order; numpy's `unique` hashes, which is several times slower on millions of integers."""
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] - 1) > 0]


def _pick(weights: Floats, rng: np.random.Generator) -> Ints:
    """One column for each row, with probability proportional to its weight."""
    cumulative = np.cumsum(weights, axis=1)
    target = rng.random((len(weights), 1)) * cumulative[:, -1:]
    column: Ints = (cumulative <= target).sum(axis=1)
    return column


def _expand(counts: Ints) -> tuple[Ints, Ints]:
    """For counts (2, 3): owners (0, 0, 1, 1, 1) and running numbers (0, 1, 0, 1, 2)."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
