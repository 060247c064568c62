"""The recogniser and the audit: what they find where the truth is known."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, matthews_corrcoef

from coordinator.model import Source
from coordinator.recogniser.audit import LEAST_GROUPS, MOST_VECTORS, audit_alignment, recognise_site
from coordinator.recogniser.logistic import fit_logistic
from coordinator.recogniser.scores import correlation, presence_scores
from coordinator.recogniser.sums import Sums, draw_sums, replace_by_noise, unit_tables
from coordinator.recogniser.verdict import Audit, Recognised, audit_from
from tests.synthetic import unit_rows

labels = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40)


@settings(deadline=None)  # scikit-learn is slow on a busy machine
@given(labels)
def test_correlation_is_that_of_scikit_learn(pairs):
    true, said = np.array(pairs).T
    assert correlation(true, said, 3) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)


@settings(deadline=None)  # scikit-learn is slow on a busy machine
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_presence_scores_are_those_of_scikit_learn(pairs):
    present, said = np.array(pairs).T
    found = presence_scores(present[:, None], said[:, None])[0]
    assert found.f1_present == pytest.approx(f1_score(present, said, zero_division=0))
    assert found.f1_absent == pytest.approx(f1_score(~present, ~said, zero_division=0))
    if 0 < present.sum() < len(present):
        assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(present, said))


def test_scores_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="both be"):
        presence_scores(np.ones((3, 2), dtype=bool), np.ones((3, 1), dtype=bool))


def test_sums_are_sums_of_the_sources_that_are_said_to_be_in():
    tables = [np.eye(4)[:2] * 1.0, np.eye(4)[2:] * 10.0]
    found = draw_sums(tables, 500, 3, np.random.default_rng(0))
    assert found.vectors.shape == (500, 4)
    assert (found.present == np.c_[found.vectors[:, :2].any(axis=1), found.vectors[:, 2:].any(axis=1)]).all()
    assert ((found.vectors[:, :2].sum(axis=1) + found.vectors[:, 2:].sum(axis=1) / 10) == 3).all()
    assert (draw_sums(tables, 50, 1, np.random.default_rng(0)).present.sum(axis=1) == 1).all()
    mixed = draw_sums(tables, 600, 3, np.random.default_rng(0), fewest=1)
    assert (mixed.present == np.c_[mixed.vectors[:, :2].any(axis=1), mixed.vectors[:, 2:].any(axis=1)]).all()
    terms = mixed.vectors[:, :2].sum(axis=1) + mixed.vectors[:, 2:].sum(axis=1) / 10
    assert np.unique(terms, return_counts=True)[1].min() > 150
    for refused in ({"terms": 0}, {"terms": 2, "fewest": 3}):
        with pytest.raises(ValueError, match="one term or more"):
            draw_sums(tables, 5, rng=np.random.default_rng(0), **refused)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_noise_replaces_the_share_it_was_told_to(share):
    rng = np.random.default_rng(0)
    sums = Sums(rng.standard_normal((40, 20)) + 5.0, np.ones((40, 2), dtype=bool))
    noisy = replace_by_noise(sums, share, rng)
    assert ((noisy.vectors != sums.vectors).sum(axis=1) == round(20 * share)).all()
    assert abs(noisy.vectors.mean() - 5.0) < 0.2
    with pytest.raises(ValueError, match="share of noise"):
        replace_by_noise(sums, 1.1, rng)


def test_sources_are_cut_to_one_width_and_length():
    rng = np.random.default_rng(0)
    found = unit_tables([rng.standard_normal((5, 7)), 9 * rng.standard_normal((4, 6))])
    assert [t.shape for t in found] == [(5, 6), (4, 6)]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(found), axis=1), 1.0)
    with pytest.raises(ValueError, match="two sources"):
        unit_tables([rng.standard_normal((5, 7))])


def tables(rng: np.random.Generator, shift: float) -> list[np.ndarray]:
    """Three sources in 16 dimensions, each shifted its own way."""
    return list(unit_tables([unit_rows(rng, 80, 16) + shift * np.eye(16)[s] for s in range(3)]))


def test_logistic_baseline_finds_shifted_sources_and_nothing_where_there_is_none():
    rng = np.random.default_rng(0)
    mccs = []
    for shift in (2.0, 0.0):
        both = tables(rng, shift)
        learn, ask = [t[:60] for t in both], [t[60:] for t in both]
        fitted = fit_logistic(draw_sums(learn, 2000, 3, rng))
        sums = draw_sums(ask, 1000, 3, rng)
        mccs.append(np.mean([s.mcc for s in presence_scores(sums.present, fitted.says(sums.vectors))]))
    assert mccs[0] > 0.8
    assert abs(mccs[1]) < 0.2


def test_logistic_baseline_needs_sums_with_and_without_each_source():
    with pytest.raises(ValueError, match="some of the sums"):
        fit_logistic(Sums(np.ones((4, 2)), np.array([[True, True]] * 4)))


def test_network_learns_what_a_plane_cannot_and_is_the_same_every_time():
    torch = pytest.importorskip("torch")
    from coordinator.recogniser.network import Training, fit_network

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    # The sources differ in the axes that they spread along, and in nothing that a plane could cut.
    spread = [np.r_[np.full(4, 3.0), np.ones(4)], np.r_[np.ones(4), np.full(4, 3.0)]]
    both = unit_tables([rng.standard_normal((400, 8)) * s for s in spread])
    learn, ask = [t[:300] for t in both], [t[300:] for t in both]
    training = Training(
        isolation=100, composite=100, terms=2, fewest=1, noise=0.1, width=32, depth=2, batch=128
    )
    first, again = fit_network(learn, training), fit_network(learn, training)
    sums = draw_sums(ask, 1000, 1, rng)
    said = first.says(sums.vectors)
    assert (said == again.says(sums.vectors)).all()
    alone, together = first.losses[:100], first.losses[100:]
    assert np.mean(alone[-20:]) < np.mean(alone[:20])
    assert np.mean(together[-20:]) < np.mean(together[:20])
    network = presence_scores(sums.present, said)[0].mcc
    line = fit_logistic(draw_sums(learn, 1000, 1, rng))
    assert network > presence_scores(sums.present, line.says(sums.vectors))[0].mcc + 0.3


def sites(
    rng: np.random.Generator, trace: float, n: int = 80, shared: int = 60
) -> tuple[list[Source], np.ndarray, np.ndarray]:
    """Two sites that share codes, in turned axes; a published embedding in which `trace` stretches one site's codes."""
    truth = unit_rows(rng, n, 6)
    rows = [np.arange(shared + 10), np.r_[np.arange(shared), np.arange(shared + 10, n)]]
    made = []
    for s, own in enumerate(rows):
        turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        made.append(
            Source(f"{s}/cooccurrence", own, truth[own] @ turn + 0.05 * rng.standard_normal((len(own), 6)))
        )
    labels = np.arange(n)
    return made, truth, labels


def test_a_null_of_permuted_sites_covers_vectors_without_a_trace():
    """The site is one of the 5 % beyond the limit about as often as that says."""
    above = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        code = np.repeat(rng.standard_normal((40, 4)), 2, axis=0)
        x = code + 0.3 * rng.standard_normal((80, 4))
        mcc, null = recognise_site(
            x,
            np.tile([0, 1], 40),
            np.repeat(np.arange(40), 2),
            recogniser="kernel",
            seed=seed,
            permutations=39,
        )
        above += mcc > np.quantile(null, 0.95)
    assert above <= 7  # binomial of 40 with 5 %: more in two of a thousand runs


@pytest.mark.parametrize("recogniser", ["linear", "kernel"])
def test_a_trace_in_place_is_recognised(recogniser):
    rng = np.random.default_rng(0)
    site = np.tile([0, 1, 2], 60)
    x = np.repeat(rng.standard_normal((60, 5)), 3, axis=0) + 2.5 * np.eye(5)[site]
    mcc, null = recognise_site(x, site, np.repeat(np.arange(60), 3), recogniser=recogniser, permutations=39)
    assert mcc > 0.5
    assert mcc > null.max()


def test_a_trace_in_spread_is_recognised_by_the_kernel_alone():
    rng = np.random.default_rng(0)
    site = np.tile([0, 1], 150)
    x = rng.standard_normal((300, 4)) * np.where(site == 0, 1.0, 4.0)[:, None]
    group = np.repeat(np.arange(150), 2)
    found = {r: recognise_site(x, site, group, recogniser=r, permutations=39) for r in ("linear", "kernel")}
    assert found["kernel"][0] > found["kernel"][1].max() + 0.3
    assert found["linear"][0] < found["kernel"][0] - 0.3


def test_which_sites_hold_a_code_is_no_trace():
    """Codes of a and b lie elsewhere than those of b and c: a recogniser profits, and so does its null."""
    rng = np.random.default_rng(0)
    pair = np.repeat(np.arange(60) % 2, 2)
    site = np.tile([0, 1], 60) + pair
    x = rng.standard_normal((120, 3)) + 6.0 * pair[:, None]
    mcc, null = recognise_site(x, site, np.repeat(np.arange(60), 2), recogniser="linear", permutations=99)
    assert null.mean() > 0.1
    assert mcc < np.quantile(null, 0.99)


def test_audit_of_sites_that_differ_by_a_rotation_alone():
    made, truth, labels = sites(np.random.default_rng(3), 0.0, n=400, shared=300)
    found = audit_alignment(made, truth, labels, permutations=39)
    by = {(line.kind, line.recogniser): line for line in found.lines}
    assert set(by) == {(k, r) for k in ("released", "aligned") for r in ("linear", "kernel")}
    # One vector of a site says little of a turn where codes fill all directions; brought back, it must say nothing.
    assert by["aligned", "kernel"].mcc < by["aligned", "kernel"].limit + 0.1
    assert all(line.groups == 300 and line.vectors == 600 for line in found.lines)
    assert found == audit_alignment(made, truth, labels, permutations=39)


def test_audit_of_a_published_trace():
    """Codes of one site each, in clusters with the other's, whose vectors were moved by site."""
    rng = np.random.default_rng(0)
    n = 2 * LEAST_GROUPS
    truth = np.repeat(unit_rows(rng, n, 5), 2, axis=0)
    embedding = truth + np.tile([[0.0] * 5, [1.5, 0, 0, 0, 0]], (n, 1))
    own = [Source(f"{s}/cooccurrence", np.arange(s, 2 * n, 2), truth[s::2]) for s in range(2)]
    labels = np.repeat(np.arange(n), 2)
    (linear, kernel) = audit_alignment(own, embedding, labels, permutations=39).lines
    assert (linear.kind, linear.groups, kernel.vectors) == ("published", n, 2 * n)
    assert min(linear.beyond, kernel.beyond) > 0.3
    still = audit_alignment(own, truth, labels, permutations=39)
    assert all(line.beyond == 0 for line in still.lines)


def test_audit_says_nothing_where_too_little_is_shared():
    made, truth, labels = sites(np.random.default_rng(0), 0.0, n=60, shared=LEAST_GROUPS - 1)
    assert audit_alignment(made, truth, labels).lines == ()
    assert audit_alignment(made[:1], truth, labels) == Audit()
    assert Audit().words == ""


def test_audit_of_many_codes_asks_some_of_them():
    made, truth, labels = sites(np.random.default_rng(0), 0.0, n=1200, shared=1000)
    found = audit_alignment(made, truth, labels, permutations=1)
    assert all(line.vectors <= MOST_VECTORS for line in found.lines)
    assert min(line.vectors for line in found.lines) > MOST_VECTORS - 3


def test_audit_in_words_and_back_from_its_file():
    line = Recognised("released", "linear", 0.4, 0.01, 0.1, 50, 100)
    audit = Audit(
        (line, replace(line, recogniser="kernel", mcc=0.8), replace(line, kind="aligned", mcc=0.05))
    )
    assert audit.words == (
        "released 0.80 (kernel; 0.70 beyond chance's 95 %); aligned 0.05 (linear; not beyond chance)"
    )
    assert audit_from(asdict(audit)) == audit
    assert [fact["beyond"] for fact in audit.facts()] == [pytest.approx(0.3), pytest.approx(0.7), 0.0]
