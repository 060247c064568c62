"""Agreement between sites, what a release is worth, held changes, and the bound in the fit."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cli_checks import accepted_sites, lines
from coordinator.model import Source
from coordinator.model.factor import compress
from coordinator.model.twostage import latent_means
from coordinator.poisoning.agreement import Agreement, Rater, correlation, judge_rows, profiles, robust_scores
from coordinator.poisoning.influence import drift, hold, speaking, without
from coordinator.poisoning.reliability import reliability
from coordinator.poisoning.screen import screen
from coordinator.poisoning.verdict import screening_from
from coordinator.union import build_union, sources
from protocol.errors import UsageError
from protocol.messages import SiteSummary
from protocol.release import CODE_PATIENTS, VerifiedRelease
from tests.synthetic import release, study, unit_rows, verified

Array = np.ndarray[Any, np.dtype[np.float64]]
N, D = 120, 12
CODES = [f"ICD10CM:A{i:03d}" for i in range(N)]


def turned(rng: np.random.Generator, x: Array, noise: float = 0.0) -> Array:
    """The same codes in rotated coordinates, with noise."""
    turn = np.linalg.qr(rng.standard_normal((x.shape[1], x.shape[1])))[0]
    y = x @ turn + noise * unit_rows(rng, *x.shape)
    return np.asarray(y / np.linalg.norm(y, axis=1, keepdims=True))


def consortium(noise: float = 0.4, **changed: Array) -> list[VerifiedRelease]:
    """Three sites that all hold the same standard codes; `changed` replaces a site's rows."""
    rng = np.random.default_rng(3)
    truth = unit_rows(rng, N, D)
    found = []
    for site in ("north", "lake", "south"):
        rows = turned(rng, truth, noise)
        found.append(verified(release(site, CODES, changed.get(site, rows))))
    return found


def honest(site: str) -> Array:
    return next(r for r in consortium() if r.manifest.site == site).views()[0].matrix.astype(np.float64)


# --- Agreement -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.0, 2.0))
def test_rotation_and_exchange_change_no_agreement(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    one = unit_rows(rng, 40, 6)
    other = turned(rng, one, noise)
    r, error = correlation(one, other)
    assert correlation(turned(rng, one), other)[0] == pytest.approx(r, abs=1e-9)
    assert correlation(other, one) == pytest.approx((r, error), abs=1e-9)
    np.testing.assert_allclose(profiles(turned(rng, one), other), profiles(one, other), atol=1e-9)


def test_agreement_of_the_same_of_noise_and_of_a_constant() -> None:
    rng = np.random.default_rng(0)
    one = unit_rows(rng, 200, 20)
    assert correlation(one, turned(rng, one))[0] == pytest.approx(1.0)
    r, error = correlation(one, unit_rows(rng, 200, 20))
    assert abs(r) < 4 * error
    assert correlation(one, np.tile(one[:1], (200, 1)))[0] == 0.0


def test_profiles_are_the_correlations_written_out() -> None:
    rng = np.random.default_rng(1)
    one, other = unit_rows(rng, 30, 5), unit_rows(rng, 30, 5)
    off = ~np.eye(30, dtype=bool)
    expected = [np.corrcoef((one @ one[i])[off[i]], (other @ other[i])[off[i]])[0, 1] for i in range(30)]
    np.testing.assert_allclose(profiles(one, other), expected, atol=1e-12)


def test_a_moved_row_scores_lowest_and_the_others_are_left_alone() -> None:
    rng = np.random.default_rng(2)
    truth = unit_rows(rng, 80, 10)
    rows = np.arange(80)
    raters = [Rater(s, rows, turned(rng, truth, 0.3)) for s in range(3)]
    raters[1].vectors[7] = unit_rows(rng, 1, 10)[0]
    score = robust_scores(judge_rows(raters, 1, 80).r)
    assert np.argmin(score) == 7
    assert score[7] < -5
    # The honest sites see the same row through a median in which the third site outvotes nobody alone.
    assert np.sum(score < -2.5) <= 3
    assert (judge_rows(raters, 1, 80).witnesses == 2).all()


# --- Worth ---------------------------------------------------------------------------------------------


def exact_pairs(rho: list[float], error: float = 0.02) -> list[Agreement]:
    return [
        Agreement(a, b, rho[a] * rho[b], error, 100) for a in range(len(rho)) for b in range(a + 1, len(rho))
    ]


def test_sites_of_unlike_size_are_each_worth_their_patients() -> None:
    patients = [500, 2000, 8000, 3000]
    rho = [float(np.sqrt(n / (n + 3600))) for n in patients]
    found = reliability(exact_pairs(rho), patients)
    np.testing.assert_allclose(found.worth, 1.0, atol=0.1)
    assert found.half == pytest.approx(3600, rel=0.1)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_of_three_sites_the_one_that_two_contradict_is_blamed(bad: int) -> None:
    rho = [0.76, 0.76, 0.76]
    rho[bad] = 0.2
    worth = reliability(exact_pairs(rho), [5000] * 3).worth
    assert worth[bad] < 0.2
    assert np.delete(worth, bad).min() > 0.8


def test_one_pair_tells_nobody_apart() -> None:
    assert np.isnan(reliability([Agreement(0, 1, 0.1, 0.02, 100)], [5000, 5000]).worth).all()


# --- Verdicts ------------------------------------------------------------------------------------------


def verdict_of(releases: list[VerifiedRelease], site: str, **options: Any) -> Any:
    return next(v for v in screen(releases, standard="ICD10CM", **options).sites if v.site == site)


def test_honest_sites_are_ok() -> None:
    found = screen(consortium(), standard="ICD10CM")
    assert [v.state for v in found.sites] == ["ok"] * 3
    assert not any(v.doubtful for v in found.sites)
    assert all(v.shared == N for v in found.sites)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: np.where(np.arange(m.size).reshape(m.shape) == 5, np.nan, m), "not numbers"),
        (lambda m: np.where(np.arange(m.size).reshape(m.shape) == 5, np.inf, m), "not numbers"),
        (lambda m: 0.0 * m, "unit length"),
        (lambda m: 3.0 * m, "unit length"),
        (lambda m: np.tile(m[:1], (len(m), 1)), "one place"),
        (lambda m: np.roll(m, 1, axis=0), "agrees with none"),
        (lambda m: unit_rows(np.random.default_rng(9), *m.shape), "agrees with none"),
    ],
)
def test_a_broken_release_is_rejected_with_its_reason(change: Any, reason: str) -> None:
    releases = consortium(lake=change(honest("lake")))
    found = screen(releases, standard="ICD10CM")
    states = {v.site: v.state for v in found.sites}
    assert states == {"north": "ok", "lake": "rejected", "south": "ok"}
    verdict = verdict_of(releases, "lake")
    assert reason in " ".join(verdict.reasons)
    assert verdict.do
    assert [r.manifest.site for r in found.kept(releases)] == ["north", "south"]


def test_rotated_axes_are_harmless() -> None:
    found = consortium(lake=turned(np.random.default_rng(8), honest("lake")))
    assert verdict_of(found, "lake").state == "ok"


def test_one_hijacked_code_of_three_holders_is_left_out_at_the_liar() -> None:
    rows = honest("lake")
    rows[7] = rows[40]
    releases = consortium(lake=rows)
    found = screen(releases, standard="ICD10CM")
    verdicts = {v.site: v for v in found.sites}
    assert [(d.code, d.done) for d in verdicts["lake"].doubtful] == [(CODES[7], "row not used")]
    assert not verdicts["north"].doubtful
    used = found.admitted(releases)
    assert [len(r.views()[0].rows) for r in used] == [N, N - 1, N]
    # The lists of codes stay: only the row's evidence is gone.
    assert used[1].manifest.codes == releases[1].manifest.codes


def test_a_reviewer_overrides_what_can_be_measured_and_the_reason_is_kept() -> None:
    releases = consortium(lake=np.roll(honest("lake"), 1, axis=0))
    found = screen(releases, standard="ICD10CM", accepted={"lake": "another coding since May"})
    verdict = next(v for v in found.sites if v.site == "lake")
    assert (verdict.state, verdict.left_out, verdict.accepted) == (
        "rejected",
        False,
        "another coding since May",
    )
    assert len(found.kept(releases)) == 3
    assert any("another coding since May" in line for line in lines(verdict))


def test_of_two_copies_the_one_with_that_past_is_believed() -> None:
    rng = np.random.default_rng(5)
    found = screen(consortium(south=turned(rng, honest("lake"))), standard="ICD10CM")
    assert {v.site: v.state for v in found.sites} == {"north": "ok", "lake": "rejected", "south": "rejected"}
    assert "those of lake" in found.sites[2].reasons[0]
    copy = consortium(south=turned(rng, honest("lake")))
    told = screen(copy, standard="ICD10CM", earlier=consortium())
    assert {v.site: v.state for v in told.sites} == {"north": "ok", "lake": "doubtful", "south": "rejected"}


def test_a_flood_of_codes_is_rejected() -> None:
    rng = np.random.default_rng(6)
    releases = consortium()
    many = [*CODES, *(f"SOUTH:{i}" for i in range(8 * N))]
    rows = np.vstack([honest("south"), unit_rows(rng, 8 * N, D)])
    releases[2] = verified(release("south", many, rows))
    assert "the other sites 120 in the median" in " ".join(verdict_of(releases, "south").reasons)


def test_a_screening_survives_its_file() -> None:
    rows = honest("lake")
    rows[7] = rows[40]
    found = screen(consortium(lake=rows), standard="ICD10CM", earlier=consortium())
    assert screening_from(found.facts()) == found


def test_a_site_that_was_left_out_is_refused_in_what_is_published() -> None:
    found = screen(consortium(lake=0.0 * honest("lake")), standard="ICD10CM")
    said = found.explained(
        [SiteSummary(site="north", state="received"), SiteSummary(site="lake", state="received")]
    )
    assert [s.state for s in said] == ["received", "refused"]
    assert "unit length" in said[1].detail


# --- Held changes --------------------------------------------------------------------------------------


def alone(**changed: Array) -> list[VerifiedRelease]:
    """North alone holds the standard codes; the others anchor codes of their own to them."""
    rng = np.random.default_rng(4)
    truth = unit_rows(rng, N, D)
    found = [verified(release("north", CODES, changed.get("north", turned(rng, truth, 0.3))))]
    for site, prefix in (("lake", "ICD9CM"), ("south", "SOUTH")):
        own = [f"{prefix}:{i}" for i in range(N)]
        rows = changed.get(site, turned(rng, truth, 0.3))
        found.append(verified(release(site, own, rows, anchors=dict(zip(own, CODES, strict=True)))))
    return found


def test_what_one_site_alone_moves_is_held_as_it_was() -> None:
    before = alone()
    rows = before[0].views()[0].matrix.astype(np.float64)
    rng = np.random.default_rng(1)
    moved = turned(rng, rows, 0.4)
    now = alone(north=moved)
    found = screen(now, standard="ICD10CM", earlier=before)
    assert {(h.site, h.done) for h in found.held} == {("north", "last release's row used")}
    assert len(found.held) == N
    used = found.admitted(now, before)[0].views()[0].matrix.astype(np.float64)
    assert correlation(used, rows)[0] == pytest.approx(1.0, abs=1e-5)
    accepted = screen(now, standard="ICD10CM", earlier=before, accepted={"north": "reviewed"})
    assert not accepted.held


def flooded(releases: list[VerifiedRelease], times: int) -> list[VerifiedRelease]:
    """North with so many times the codes, the new ones beside its own."""
    rows = np.vstack([releases[0].views()[0].matrix] * times).astype(np.float64)
    codes = [f"{code}{'X' * k}" for k in range(times) for code in CODES]
    return [verified(release("north", codes, rows)), *releases[1:]]


def test_a_flood_of_new_standard_codes_waits_for_a_reviewer() -> None:
    before = alone()
    now = flooded(before, 3)
    found = screen(now, standard="ICD10CM", earlier=before)
    new = [h for h in found.held if h.done == "new code not used"]
    assert {h.code for h in new} == set(now[0].manifest.codes) - set(CODES)
    used = found.admitted(now, before)[0]
    assert used.manifest.codes == tuple(CODES)
    assert len(used.arrays[CODE_PATIENTS]) == N
    assert used.views()[0].rows.tolist() == list(range(N))
    accepted = screen(now, standard="ICD10CM", earlier=before, accepted={"north": "they added drugs"})
    assert accepted.admitted(now, before)[0].manifest.codes == now[0].manifest.codes


def test_some_new_standard_codes_are_nothing_to_hold() -> None:
    before = alone()
    grown = list(flooded(before, 2))
    assert not [
        h for h in screen(grown, standard="ICD10CM", earlier=before).held if h.done == "new code not used"
    ]


def test_the_same_release_moves_nothing() -> None:
    assert not screen(alone(), standard="ICD10CM", earlier=alone()).held


def test_two_sites_may_move_a_standard_code() -> None:
    before = consortium()
    one, two = honest("north"), honest("lake")
    one[7], two[7] = one[40], two[40]
    single = screen(consortium(north=one), standard="ICD10CM", earlier=before)
    assert [(h.code, h.site, h.done) for h in single.held] == [(CODES[7], "north", "row not used")]
    assert not screen(consortium(north=one, lake=two), standard="ICD10CM", earlier=before).held


def test_a_release_that_has_nothing_to_do_with_the_last_one_is_rejected() -> None:
    now = alone()
    before = alone(lake=np.roll(now[1].views()[0].matrix.astype(np.float64), 1, axis=0))
    assert "last release" in " ".join(verdict_of(now, "lake", earlier=before).reasons)


def test_new_names_do_not_hide_a_new_release() -> None:
    """A site that renames all of its codes has nothing in common with its last release, and cannot pose as a twin."""
    before, now = alone(), alone()
    renamed = [f"SOUTH:new{i}" for i in range(N)]
    copy = turned(np.random.default_rng(3), now[1].views()[0].matrix.astype(np.float64))
    now[2] = verified(release("south", renamed, copy, anchors=dict(zip(renamed, CODES, strict=True))))
    states = {v.site: v.state for v in screen(now, standard="ICD10CM", earlier=before).sites}
    assert states == {"north": "ok", "lake": "doubtful", "south": "rejected"}


def test_drift_and_hold_do_not_see_a_rotation() -> None:
    now = alone()[0]
    rows = now.views()[0].matrix.astype(np.float64)
    before = verified(release("north", CODES, turned(np.random.default_rng(2), rows)))
    assert drift(now, before).r == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(hold(now, before, set(CODES)).views()[0].matrix, rows, atol=1e-5)


# --- The bound in the fit ------------------------------------------------------------------------------


def test_an_anchor_moves_no_standard_code() -> None:
    """The bound: given the others' loadings, no row of lake's changes the vector of a code that north released."""
    releases = alone()
    union = build_union(releases, standard="ICD10CM")
    data = sources(releases, union)
    speaks = speaking(union, data)
    assert [bool(m.all()) for m in speaks] == [True, False, False]
    assert not speaks[1].any()
    start = unit_rows(np.random.default_rng(0), union.n_rows, 4)
    wild = Source(data[1].name, data[1].codes, unit_rows(np.random.default_rng(7), *data[1].matrix.shape))
    views, altered = [compress(s) for s in data], [compress(s) for s in (data[0], wild, data[2])]
    np.testing.assert_array_equal(
        latent_means(views, start, speaks)[0], latent_means(altered, start, speaks)[0]
    )
    assert np.abs(latent_means(views, start)[0] - latent_means(altered, start)[0]).max() > 0.1


def test_a_code_of_two_sites_is_not_joined_by_one_sites_anchor() -> None:
    rng = np.random.default_rng(0)

    def one(site: str, anchors: dict[str, str]) -> VerifiedRelease:
        return verified(release(site, ["ICD10CM:A", "ICD9CM:1"], unit_rows(rng, 2, 3), anchors=anchors))

    said = {"ICD9CM:1": "ICD10CM:A"}
    single = build_union([one("north", said), one("lake", {})], standard="ICD10CM")
    assert not single.anchored.any()
    assert "anchored by one of them only" in single.warnings[0]
    assert build_union([one("north", said), one("lake", said)], standard="ICD10CM").anchored.any()
    assert build_union(
        [one("north", said), one("lake", {})], standard="ICD10CM", reviewed={"north"}
    ).anchored.any()


def test_without_takes_anchors_and_rows_and_leaves_the_rest() -> None:
    found = without(alone()[1], {"ICD9CM:3"}, {"ICD9CM:5"})
    assert len(found.manifest.anchors) == N - 1
    assert 5 not in found.views()[0].rows
    assert len(found.manifest.codes) == N


def test_acceptance_needs_a_site_of_the_study_and_a_reason() -> None:
    assert accepted_sites(["lake"], "checked by telephone", study()) == {"lake": "checked by telephone"}
    assert accepted_sites(None, "", study()) == {}
    for sites, reason in ((["lake"], " "), (None, "why"), (["elsewhere"], "why")):
        with pytest.raises(UsageError):
            accepted_sites(sites, reason, study())


def test_statistics_cannot_be_read_only_for_a_hostile_site() -> None:
    """A site that understates its patients is not worth more than they are: it is weighed by what it sends."""
    releases = consortium(lake=turned(np.random.default_rng(1), honest("lake"), 1.6))
    loud = verdict_of(releases, "lake")
    shy = [
        r
        if r.manifest.site != "lake"
        else replace(
            r,
            manifest=r.manifest.model_copy(
                update={"statistics": r.manifest.statistics.model_copy(update={"patients": 100})}
            ),
            arrays=MappingProxyType(dict(r.arrays)),
        )
        for r in releases
    ]
    assert loud.worth < verdict_of(shy, "lake").worth
