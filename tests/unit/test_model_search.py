"""Split-and-merge search: its small problems are parts of the bound, and it repairs what iterations cannot."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from coordinator.evaluation import ami
from coordinator.model import Relations, Source, factor, loadings, pairs, search, support, variational, vmf
from coordinator.model.loadings import Loadings
from coordinator.model.pairs import Relatedness
from coordinator.model.posterior import Posterior
from coordinator.model.variational import Parameters, Problem

CPU = torch.device("cpu")


def _unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def _problem(matrix, n_clusters, prior=None, similar=None, weight=1.0):
    """One source that holds every code."""
    n = len(matrix)
    view = factor.compress(Source("a", np.arange(n), matrix))
    data, where = loadings.to_device([view], factor.patterns([view], n), CPU)
    return Problem(
        data=data,
        where=where,
        prior=prior,
        whole=support.whole(support.allowed(prior, n, n_clusters, n_clusters), CPU),
        n_clusters=n_clusters,
        most=n_clusters,
        similar=None if similar is None else pairs.similar_on(similar, n, CPU),
        similarity_weight=weight,
        related=None,
        relatedness_weight=0.0,
    )


def _graphs(similar, n):
    if similar is None:
        return None
    positive, negative = similar.matrices(n)
    return positive, sp.csr_array(positive + negative)


def _some_pairs(rng, n, m):
    i = rng.integers(n, size=m)
    j = (i + 1 + rng.integers(n - 1, size=m)) % n
    return Relations(np.c_[i, j], rng.random(m) < 0.5)


def _labels(state):
    q = state.belief.q
    return np.asarray(q.support.pattern.to_scipy(q.responsibilities).argmax(axis=1)).reshape(-1)


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("with_pairs", [False, True])
def test_the_value_of_a_small_problem_is_its_part_of_the_whole_bound(rng, with_pairs, with_prior):
    """Equal loadings in all directions, so that u'A u is constant on the sphere and evidence is exact."""
    n, k, d, p, inside = 40, 6, 4, 7, 20
    similar = _some_pairs(rng, n, 120) if with_pairs else None
    prior = None
    if with_prior:
        prior = sp.csr_array(_unit(rng.random((n, k)) + 0.1) ** 2)
    problem = _problem(rng.standard_normal((n, p)), k, prior, similar, weight=0.7)
    parameters = Parameters(
        loadings=Loadings((torch.from_numpy(2.0 * np.linalg.qr(rng.standard_normal((p, d)))[0]),), (0.5,)),
        centers=torch.from_numpy(_unit(rng.standard_normal((k, d)))),
        kappa=8.0,
        freedom=5.0,
        link=(-1.0, 3.0),
        relatedness=Relatedness(torch.zeros((d, d), dtype=torch.float64), 0.0),
    )
    # The first codes are in the first three clusters, the others in the others.
    r = rng.random((n, k)) + 0.05
    r[:inside, 3:] = r[inside:, :3] = 0.0
    r /= r.sum(axis=1, keepdims=True)
    _, evidence = loadings.evidence(problem.data, problem.where, parameters.loadings)
    pull = parameters.kappa * parameters.centers
    q = Posterior(evidence, pull, problem.whole, torch.from_numpy(r.reshape(-1)))
    state = variational.state_of(problem, parameters, q)
    around = search.surroundings(problem, state, _graphs(similar, n))
    rows, columns = np.arange(inside), [0, 1, 2]
    refits = [
        search.refit(around, rows, columns, around.centers[columns], 0),
        search.refit(around, rows, columns, around.centers[columns], 4),
        search.refit(around, rows, columns, _unit(rng.standard_normal((3, d))), 6),
    ]
    bounds = [
        search._applied(problem, state, around, [search.Move(0.0, columns, rows, refit)]).bound
        for refit in refits
    ]
    values = [refit.value for refit in refits]
    assert np.ptp(values) > 1.0
    np.testing.assert_allclose(np.diff(bounds), np.diff(values), atol=1e-3)


def test_more_steps_never_lower_the_value_of_a_small_problem(rng):
    n, k, d = 30, 4, 3
    similar = _some_pairs(rng, n, 60)
    problem = _problem(rng.standard_normal((n, 6)), k, None, similar)
    state = variational.start(problem, _unit(rng.standard_normal((n, d))), k, "average", 0)
    around = search.surroundings(problem, state, _graphs(similar, n))
    start = _unit(rng.standard_normal((3, d)))
    values = [search.refit(around, np.arange(n), [0, 1, 2], start, steps).value for steps in range(6)]
    assert np.diff(values).min() >= 0.0


K, SIZE, DIM = 8, 16, 6


def _mixture(rng, *, kappa=80.0):
    centers = _unit(rng.standard_normal((200, DIM)))
    # Of random directions, those that are far from each other.
    apart = [0]
    while len(apart) < K:
        apart.append(int(np.argmin((centers @ centers[apart].T).max(axis=1))))
    z = np.repeat(np.arange(K), SIZE)
    u = vmf.sample(centers[apart][z], kappa, rng)
    x = u @ rng.standard_normal((DIM, 15)) + 0.3 * rng.standard_normal((len(z), 15))
    return x, u, z, centers[apart]


def _stuck(problem, u, z, merged, cut):
    """A local maximum: true clusters `merged` share one center, and cluster `cut` has two."""
    state = variational.start(problem, u, K, "average", 0)
    centers = np.stack([_unit(u[z == c].sum(axis=0, keepdims=True))[0] for c in range(K)])
    one, other = merged
    centers[one] = _unit((centers[one] + centers[other])[None])[0]
    spread = u[z == cut] - centers[cut]
    side = spread @ np.linalg.svd(spread, full_matrices=False)[2][0] > 0.0
    centers[cut], centers[other] = _unit(
        np.stack([u[z == cut][side].sum(axis=0), u[z == cut][~side].sum(axis=0)])
    )
    parameters = replace(state.parameters, centers=torch.from_numpy(centers))
    q, pull = state.belief.q, parameters.kappa * parameters.centers
    r = variational._responsibilities(q.evidence, pull, q.support, None)
    state = variational.state_of(problem, parameters, Posterior(q.evidence, pull, q.support, r))
    for _ in range(30):
        state = variational.iterate(problem, state, settled=True)
    return state


def _closest(centers):
    """Two true clusters that a mean between them holds together, and one far from both."""
    cosine = centers @ centers.T - 2.0 * np.eye(K)
    one, other = np.unravel_index(int(np.argmax(cosine)), cosine.shape)
    far = int(np.argmin(np.maximum(cosine[one], cosine[other]) + 3.0 * np.isin(np.arange(K), (one, other))))
    return (int(one), int(other)), far


@pytest.mark.parametrize("with_pairs", [False, True])
def test_a_merged_and_a_cut_cluster_are_repaired_and_the_bound_only_rises(rng, with_pairs):
    x, u, z, centers = _mixture(rng)
    similar = None
    if with_pairs:
        listed = _some_pairs(rng, len(z), 300).pairs
        similar = Relations(listed, z[listed[:, 0]] == z[listed[:, 1]])
    problem = _problem(x, K, None, similar, weight=0.3)
    merged, cut = _closest(centers)
    stuck = _stuck(problem, u, z, merged, cut)
    assert ami(z, _labels(stuck)) < 0.95
    found = list(search.improve(problem, stuck, _graphs(similar, len(z)), rounds=5, tries=10))
    bounds = [stuck.bound, *(state.bound for state in found)]
    assert np.diff(bounds).min() > 0.0
    assert ami(z, _labels(found[-1])) == pytest.approx(1.0)
    # What is reported is the bound of the state that is returned.
    last = found[-1]
    assert variational.state_of(problem, last.parameters, last.belief.q).bound == pytest.approx(last.bound)


def test_at_the_best_maximum_nothing_is_moved(rng):
    x, u, _, _ = _mixture(rng)
    problem = _problem(x, K)
    state = variational.start(problem, u, K, "average", 0)
    for _ in range(60):
        state = variational.iterate(problem, state, settled=True)
    for better in search.improve(problem, state, None, rounds=2, tries=10):
        # Nothing but the last digits of the climb is left to gain.
        assert better.bound - state.bound < 0.5
        np.testing.assert_array_equal(_labels(better), _labels(state))


def test_a_move_that_only_the_small_problem_likes_is_not_kept(rng, monkeypatch):
    x, u, _, _ = _mixture(rng)
    problem = _problem(x, K)
    state = variational.start(problem, u, K, "average", 0)
    for _ in range(60):
        state = variational.iterate(problem, state, settled=True)

    def bad(around, tries):
        """Two clusters joined and the spare one sent to nowhere, with a gain that is not there."""
        columns = [0, 1]
        rows = np.concatenate([around.members[c] for c in columns])
        joined = search._joined(around, 0, 1)
        refit = search.refit(around, rows, columns, np.vstack([joined, -joined]), 0)
        return [search.Move(100.0, columns, rows, refit)]

    monkeypatch.setattr(search, "_moves", bad)
    assert list(search.improve(problem, state, None, rounds=3, tries=10)) == []


def _categories(z, of_cluster):
    """Each code may join the clusters of its category."""
    allowed = of_cluster[z][:, None] == of_cluster
    return sp.csr_array(allowed / allowed.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("same_category", [True, False])
def test_clusters_stay_in_their_category(rng, same_category):
    """A cluster to spare helps the codes of its own category, and no others."""
    x, u, z, centers = _mixture(rng)
    merged, cut = _closest(centers)
    category = np.zeros(K, dtype=int)
    others = [c for c in range(K) if c not in (*merged, cut)]
    category[others[:3]] = 1
    if not same_category:
        # Four of each, and the cut cluster's place is not open to the merged ones.
        category[cut] = 1
        category[others[:3]] = [1, 1, 0]
    # The place that is cut away from the merged pair is number merged[1]: it goes with the cut cluster's.
    column = category.copy()
    column[merged[1]] = category[cut]
    allowed = category[z][:, None] == column
    prior = sp.csr_array(allowed / allowed.sum(axis=1, keepdims=True))
    problem = _problem(x, K, prior)
    stuck = _stuck(problem, u, z, merged, cut)
    found = list(search.improve(problem, stuck, None, rounds=5, tries=10))
    states = [stuck, *found]
    assert all(b.bound > a.bound for a, b in zip(states, found, strict=False))
    for state in states:
        np.testing.assert_array_equal(column[_labels(state)], category[z])
    joined = np.isin(z, merged)
    if same_category:
        assert ami(z, _labels(states[-1])) == pytest.approx(1.0)
    else:
        assert len(set(_labels(states[-1])[joined].tolist())) == 1


def test_a_merge_that_the_prior_forbids_is_not_proposed(rng):
    """A code of one category cannot join a cluster of another; its loss must not hide what can be merged."""
    x, u, z, _ = _mixture(rng)
    problem = _problem(x, K, _categories(z, np.arange(K) % 2))
    state = variational.start(problem, u, K, "average", 0)
    around = search.surroundings(problem, state, None)
    cosine = around.centers @ around.centers.T - 2.0 * np.eye(K)
    nearest = {c: [int(j) for j in np.argsort(-cosine[c])[:4]] for c in range(K)}
    label_category = np.array([z[np.flatnonzero(_labels(state) == c)[0]] % 2 for c in range(K)])
    proposed = list(search._merges(around, nearest))
    assert any(label_category[a] == label_category[b] for _, a, b in proposed)
    for change, a, b in proposed:
        assert not np.isnan(change)
        assert np.isfinite(change) == (label_category[a] == label_category[b])


def test_clusters_that_hold_an_anchor_are_left_alone(rng):
    x, u, z, centers = _mixture(rng)
    prior = np.full((len(z), K), 1.0 / K)
    merged, cut = _closest(centers)
    anchored = [c for c in range(K) if c not in (*merged, cut)]
    for c in anchored:
        prior[np.flatnonzero(z == c)[:4]] = np.eye(K)[c]
    problem = _problem(x, K, sp.csr_array(prior))
    stuck = _stuck(problem, u, z, merged, cut)
    around = search.surroundings(problem, stuck, None)
    assert sorted(search._free_clusters(around).tolist()) == sorted([*merged, cut])
    found = list(search.improve(problem, stuck, None, rounds=5, tries=10))
    labels = _labels(found[-1])
    assert ami(z, labels) == pytest.approx(1.0)
    for c in anchored:
        assert (labels[z == c] == c).all()


def test_moves_of_one_round_touch_different_clusters():
    refit = search.Refit(0.0, np.zeros((0, 1)), np.zeros((1, 2)))
    moves = [
        search.Move(gain, columns, np.zeros(0, dtype=np.intp), refit)
        for gain, columns in ((9.0, [0, 1, 2]), (8.0, [2, 3, 4]), (7.0, [3, 4, 5]), (0.1, [6, 7, 8]))
    ]
    assert [move.gain for move in search._disjoint(moves)] == [9.0, 7.0]
