"""Laws of the SMILE fit: what must not change it, and what holds of every fit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.special import ive

from coordinator.evaluation import ami
from coordinator.model import Relations, Source, fit_smile, smile
from coordinator.simulation.generate import simulate_paper, simulate_sites
from protocol.errors import FitError
from tests.rivals import accuracy

RULES = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Case:
    """Data to fit, and how."""

    sources: tuple[Source, ...]
    n: int
    k: int
    dim: int
    similar: Relations | None = None
    related: Relations | None = None
    prior: csr_array | None = None

    def fit(self, **options):
        return fit_smile(
            self.sources,
            n_codes=self.n,
            n_clusters=self.k,
            dim=self.dim,
            similar=self.similar,
            related=self.related,
            prior=self.prior,
            **({"starts": ("average",), "rounds": 2} | options),
        )


def _sites():
    made = simulate_sites(3, n_concepts=25, dim=5, columns=12, kappa=150.0, noise=0.3, shared=0.4)
    return Case(made.sources, made.n_codes, made.n_clusters, 5)


def _paper(n=120, k=20, seed=1, **options):
    """Anchors, similar and related pairs."""
    made = simulate_paper(seed, n_codes=n, n_clusters=k, columns=15, dim=4, **({"kappa": 40.0} | options))
    return Case(made.sources, n, k, 4, made.similar, made.related, made.prior)


def _anchored():
    """Sites with a third of the codes in known clusters."""
    made = simulate_sites(3, n_concepts=25, dim=5, columns=12, kappa=150.0, noise=0.3, shared=0.4)
    prior = np.full((made.n_codes, made.n_clusters), 1.0 / made.n_clusters)
    anchors = np.random.default_rng(0).choice(made.n_codes, size=made.n_codes // 3, replace=False)
    prior[anchors] = np.eye(made.n_clusters)[made.labels[anchors]]
    return Case(made.sources, made.n_codes, made.n_clusters, 5, prior=csr_array(prior))


CASES = {"sites": _sites(), "anchored": _anchored(), "pairs": _paper()}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    """A case and its fit."""
    chosen = CASES[request.param]
    return chosen, chosen.fit()


def _same(fit, reference, order=None):
    order = np.arange(len(reference.labels)) if order is None else order
    gram, wanted = fit.embedding @ fit.embedding.T, reference.embedding @ reference.embedding.T
    np.testing.assert_allclose(gram[np.ix_(order, order)], wanted, atol=1e-5)
    together = fit.labels[order][:, None] == fit.labels[order]
    np.testing.assert_array_equal(together, reference.labels[:, None] == reference.labels)
    np.testing.assert_allclose(fit.posterior[order], reference.posterior, atol=1e-5)
    assert fit.kappa == pytest.approx(reference.kappa, rel=1e-5)
    assert fit.history[-1] == pytest.approx(reference.history[-1], rel=1e-8)
    pairs = np.c_[np.arange(len(order) - 1), np.arange(1, len(order))]
    np.testing.assert_allclose(
        fit.relatedness_score(order[pairs]), reference.relatedness_score(pairs), atol=1e-4
    )


@RULES
@given(seed=st.integers(0, 10_000))
def test_a_rotation_of_each_sources_columns_changes_nothing(case, seed):
    data, reference = case
    rng = np.random.default_rng(seed)
    turned = []
    for s in data.sources:
        columns = s.matrix.shape[1]
        turn = np.linalg.qr(rng.standard_normal((columns, columns)))[0]
        turned.append(Source(s.name, s.codes, s.matrix @ turn))
    _same(replace(data, sources=tuple(turned)).fit(), reference)


@RULES
@given(seed=st.integers(0, 10_000))
def test_the_order_of_codes_rows_sources_and_pairs_changes_nothing(case, seed):
    data, reference = case
    rng = np.random.default_rng(seed)
    order = rng.permutation(data.n)
    moved = []
    for s in rng.permutation(len(data.sources)):
        source = data.sources[s]
        rows = rng.permutation(len(source.codes))
        moved.append(Source(source.name, order[source.codes[rows]], source.matrix[rows]))

    def listed(relations):
        if relations is None:
            return None
        rows = rng.permutation(len(relations.pairs))
        ends = order[relations.pairs[rows]]
        turn = rng.random(len(rows)) < 0.5
        return Relations(np.where(turn[:, None], ends[:, ::-1], ends), relations.labels[rows])

    prior = None if data.prior is None else csr_array(data.prior.toarray()[np.argsort(order)])
    other = replace(
        data, sources=tuple(moved), similar=listed(data.similar), related=listed(data.related), prior=prior
    )
    _same(other.fit(), reference, order)


@RULES
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("name", ["anchored", "pairs"])
def test_renaming_clusters_renames_the_answer(name, seed):
    data = CASES[name]
    rename = np.random.default_rng(seed).permutation(data.k)
    plain = data.fit()
    renamed = replace(data, prior=csr_array(data.prior.toarray()[:, np.argsort(rename)])).fit()
    _same(renamed, plain)
    anchors = np.diff(data.prior.indptr) == 1
    assert anchors.any()
    np.testing.assert_array_equal(renamed.labels[anchors], rename[plain.labels[anchors]])


@RULES
@given(
    seed=st.integers(0, 10_000),
    clusters=st.integers(1, 40),
    noise=st.floats(0.05, 3.0),
    shared=st.floats(0.2, 0.9),
)
def test_every_fit_keeps_its_promises(seed, clusters, noise, shared):
    simulation = simulate_sites(seed, n_concepts=20, dim=5, columns=8, kappa=40.0, noise=noise, shared=shared)
    n = simulation.n_codes
    data = Case(simulation.sources, n, min(clusters, n), 5)
    options = {"seed": seed, "starts": None, "rounds": 3}
    fit = data.fit(**options)
    np.testing.assert_allclose(np.linalg.norm(fit.embedding, axis=1), 1.0)
    np.testing.assert_allclose(np.linalg.norm(fit.centers, axis=1), 1.0)
    assert ((fit.posterior > 0.0) & (fit.posterior <= 1.0 + 1e-12)).all()
    np.testing.assert_allclose(fit.responsibilities.sum(axis=1), 1.0)
    _never_falls(fit.history)
    assert all(s2 > 0.0 for s2 in fit.noise)


@settings(RULES, max_examples=6)
@given(
    seed=st.integers(0, 10_000),
    kappa=st.floats(5.0, 200.0),
    similarity=st.sampled_from([0.1, 1.0, 5.0]),
    relatedness=st.sampled_from([0.1, 0.3, 3.0]),
    known=st.booleans(),
    most=st.sampled_from([3, 64]),
)
def test_no_accepted_step_lowers_the_bound(seed, kappa, similarity, relatedness, known, most):
    data = _paper(80, 10, seed, kappa=kappa)
    fit = (data if known else replace(data, prior=None)).fit(
        similarity_weight=similarity, relatedness_weight=relatedness, most=most, tol=0.0, iterations=25
    )
    assert len(fit.history) > 5
    _never_falls(fit.history)


def _never_falls(history):
    """At the maximum, the last digits are rounded."""
    assert np.diff(history).min(initial=0.0) >= -1e-12 * abs(history[-1])


@pytest.mark.parametrize("name", ["anchored", "pairs"])
def test_the_same_seed_gives_the_same_bits(name):
    one, two = (CASES[name].fit(seed=7, starts=("k-means", "spherical"), rounds=1) for _ in range(2))
    for field in ("embedding", "centers", "labels", "posterior", "relatedness"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))
    assert (one.responsibilities != two.responsibilities).nnz == 0
    assert one.kappa == two.kappa
    assert one.history == two.history
    assert one.noise == two.noise


def _captured(monkeypatch, data, **options):
    """A fit, and the problem and the last state that it was made from."""
    kept, result = [], smile._result

    def keep(problem, state, *rest):
        kept.append((problem, state))
        return result(problem, state, *rest)

    monkeypatch.setattr(smile, "_result", keep)
    return data.fit(**options), *kept[0]


def _log_normalizer(dim, kappa):
    v = 0.5 * dim - 1.0
    return v * np.log(kappa) - (v + 1.0) * np.log(2.0 * np.pi) - np.log(ive(v, kappa)) - kappa


def _log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def _component_moments(q, i, k):
    """Of q(u_i | k): the natural parameter, its length, E[u] and E[u u']."""
    eta = q.evidence.numpy()[i] + q.pull.numpy()[k]
    length, dim = np.linalg.norm(eta), len(eta)
    a = ive(0.5 * dim, length) / ive(0.5 * dim - 1.0, length)
    mean = a * eta / length
    second = a / length * np.eye(dim) + (1.0 - dim * a / length) * np.outer(eta, eta) / length**2
    return eta, length, mean, second


def _bound_by_loops(data, problem, state, weights):
    """The evidence lower bound, term by term as the documentation of `fit_smile` has it."""
    p, q = state.parameters, state.belief.q
    r = q.support.pattern.to_scipy(q.responsibilities).toarray()
    np.testing.assert_allclose(r.sum(axis=1), 1.0)
    centers, constant = p.centers.numpy(), _log_normalizer(data.dim, p.kappa)
    prior = np.full((data.n, data.k), 1.0 / data.k) if data.prior is None else data.prior.toarray()
    mean, second = np.zeros((data.n, data.dim)), np.zeros((data.n, data.dim, data.dim))
    total = -p.freedom * (constant + p.kappa)
    for i, k in np.argwhere(r > 0.0):
        eta, length, one, spread = _component_moments(q, i, k)
        mean[i] += r[i, k] * one
        second[i] += r[i, k] * spread
        total += r[i, k] * (np.log(prior[i, k]) + constant + p.kappa * centers[k] @ one)
        total -= r[i, k] * (np.log(r[i, k]) + _log_normalizer(data.dim, length) + eta @ one)
    for s, source in enumerate(data.sources):
        b, s2 = p.loadings.matrices[s].numpy(), p.loadings.noise[s]
        for row, score, code in zip(source.matrix, problem.data[s].scores.numpy(), source.codes, strict=True):
            square = row @ row - 2.0 * score @ b @ mean[code] + np.trace(b.T @ b @ second[code])
            total -= 0.5 * (len(row) * np.log(2.0 * np.pi * s2) + square / s2)
    if data.similar is not None:
        a, slope = p.link
        value = -0.005 * (a**2 + slope**2)
        for (i, j), y in zip(data.similar.pairs, data.similar.labels, strict=True):
            for k in np.flatnonzero(r[i]):
                logit = a + slope * centers @ centers[k]
                value += r[i, k] * (r[j] @ _log_sigmoid(logit if y else -logit))
        total += weights[0] * value
    if data.related is not None:
        matrix = p.relatedness.matrix.numpy()
        value = -0.5 * np.sum(matrix**2)
        for (i, j), y in zip(data.related.pairs, data.related.labels, strict=True):
            logit = p.relatedness.intercept + mean[i] @ matrix @ mean[j]
            value += _log_sigmoid(logit if y else -logit)
        total += weights[1] * value
    return total


@pytest.mark.parametrize("iterations", [1, 6])
@pytest.mark.parametrize(
    "name", ["sites", "anchored", "few candidates", "pairs", "pairs, few candidates", "axes left out"]
)
def test_the_reported_bound_is_the_exact_bound_of_what_is_returned(monkeypatch, name, iterations):
    few = {"most": 3} if "few" in name else {}
    made = {
        "sites": CASES["sites"],
        "anchored": CASES["anchored"],
        "few candidates": CASES["sites"],
        "pairs": _paper(60, 8),
        "pairs, few candidates": replace(_paper(60, 8), prior=None),
        "axes left out": _wide(),
    }[name]
    weights = (0.7, 0.4)
    fit, problem, state = _captured(
        monkeypatch,
        made,
        similarity_weight=weights[0],
        relatedness_weight=weights[1],
        iterations=iterations,
        exponent=1.0,
        rounds=iterations // 6,
        **few,
    )
    assert (problem.whole is None) == bool(few)
    assert fit.history[-1] == state.bound
    assert state.bound == pytest.approx(_bound_by_loops(made, problem, state, weights), rel=1e-9)
    # Up to the sign of an axis, the fit's embedding is the direction of the state's posterior means.
    mean = state.belief.moments.mean.numpy()
    np.testing.assert_allclose(np.sum(fit.embedding * mean, axis=1), np.linalg.norm(mean, axis=1))
    np.testing.assert_array_equal(fit.centers, state.parameters.centers.numpy())


def _wide():
    """More columns than the axes that are kept."""
    made = simulate_paper(2, n_codes=60, n_clusters=6, columns=50, dim=3, kappa=20.0)
    return Case(made.sources, 60, 6, 3)


def test_axes_are_left_out_where_there_are_many(monkeypatch):
    _, problem, _ = _captured(monkeypatch, _wide(), iterations=1)
    for source, data in zip(_wide().sources, problem.data, strict=True):
        assert data.scores.shape[1] < source.matrix.shape[1]
        assert float(torch.sum(data.scores**2)) < data.energy
        assert data.energy == pytest.approx(float(np.sum(source.matrix**2)))


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_source_of_pure_noise_does_no_harm(scale):
    lost = []
    for seed in range(4):
        made = simulate_paper(seed, n_codes=150, n_clusters=15, columns=30, dim=5, kappa=40.0)
        matrix = np.random.default_rng(seed).standard_normal((150, 30)) * scale / np.sqrt(30.0)
        with_noise = (Source("noise", np.arange(150), matrix), *made.sources)
        plain, noisy = (Case(s, 150, 15, 5).fit(rounds=1) for s in (made.sources, with_noise))
        assert noisy.noise[0] > 0.9 * scale**2 / 30.0
        lost.append(
            (
                accuracy(plain.embedding, made.embedding) - accuracy(noisy.embedding, made.embedding),
                ami(made.labels, plain.labels) - ami(made.labels, noisy.labels),
            )
        )
    accuracy_lost, ami_lost = np.mean(lost, axis=0)
    assert accuracy_lost < 0.005
    assert ami_lost < 0.02


@pytest.mark.parametrize("with_pairs", [False, True])
def test_a_few_candidates_a_code_reach_nearly_the_bound_of_all_clusters(with_pairs):
    made = _paper(200, 40, 1, kappa=60.0)
    data = replace(made, prior=None) if with_pairs else Case(made.sources, 200, 40, 4)
    whole, few, fewest = (data.fit(most=most, rounds=0, tol=1e-5) for most in (40, 8, 2))
    assert few.history[-1] == pytest.approx(whole.history[-1], abs=1e-4 * data.n)
    assert ami(whole.labels, few.labels) > 0.98
    # Two are too few: the choice of candidates does matter here.
    assert fewest.history[-1] < whole.history[-1] - 0.005 * data.n


def test_a_code_that_no_source_holds_is_refused_with_its_name():
    data = CASES["sites"]
    names = [f"code {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(data.n)] + ["LOINC 2345-7"]
    with pytest.raises(FitError, match="LOINC 2345-7"):
        replace(data, n=data.n + 1).fit(names=names)
    assert data.fit(names=names[:-1], iterations=1, rounds=0).labels.shape == (data.n,)


def test_a_code_that_no_source_holds_is_refused_by_its_row_where_there_are_no_names():
    data = CASES["sites"]
    with pytest.raises(FitError, match=f"row {data.n}"):
        replace(data, n=data.n + 1).fit()


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "no such device"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(FitError, match="no device"):
        CASES["sites"].fit(device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(FitError, match="no device 'cuda'"):
        CASES["sites"].fit(device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("most", [64, 5])
def test_a_fit_on_cuda_is_the_fit_on_the_cpu(case, most):
    data, _ = case
    _same(data.fit(device="cuda", most=most), data.fit(device="cpu", most=most))
