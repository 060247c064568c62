"""The simulation experiment: what it runs, that it goes on where it stopped, and what it writes."""

from __future__ import annotations

import csv
import dataclasses
import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.evaluation import ami
from coordinator.simulation import experiment, methods
from coordinator.simulation.experiment import SMALL, Design, Job
from coordinator.simulation.figure import draw_experiment
from coordinator.simulation.generate import simulate_paper
from coordinator.simulation.methods import METHODS, PAIRS, SMILE, Measured, cluster_means
from coordinator.simulation.results import RESULTS, ResultFile, as_records, summarise, write_summary
from protocol.errors import FederationError, UsageError

FAST = ("SVD + k-means", "true U + k-means")
TINY = Design(n_clusters=10, n_codes=80, dim=4, columns=12)


def timeless(found: list[Measured]) -> list[Measured]:
    """Without times, and with nan as a number that equals itself."""
    return [dataclasses.replace(m, seconds=0.0, kappa=float(np.nan_to_num(m.kappa))) for m in found]


def test_the_generator_follows_the_protocol():
    simulation = simulate_paper(3, n_codes=200, n_clusters=20, n_sources=4, columns=30)
    held = [len(s.codes) for s in simulation.sources]
    assert held == [200, 160, 160, 160]
    assert len({tuple(s.codes) for s in simulation.sources}) == 4
    all_pairs = 200 * 199 / 2
    labels = simulation.similar.labels
    assert labels.sum() <= 0.025 * all_pairs
    assert (~labels).sum() == int(0.035 * all_pairs)
    row = simulation.prior.toarray()
    assert np.allclose(row.sum(axis=1), 1.0)
    anchors = ~simulation.scored
    assert np.array_equal(row[anchors].argmax(axis=1), simulation.labels[anchors])
    assert row[anchors].max(axis=1).min() == 1.0
    # Negatives are the hard ones: their cosines in source 1 exceed those of most pairs.
    x = simulation.sources[0].matrix
    cosine = np.sum(
        x[simulation.similar.pairs[~labels][:, 0]] * x[simulation.similar.pairs[~labels][:, 1]], axis=1
    )
    assert cosine.min() > np.quantile((x @ x.T)[np.triu_indices(200, 1)], 0.9)


def test_equal_seeds_give_equal_data_and_others_do_not():
    one, same, other = (simulate_paper(seed, n_codes=60, n_clusters=6, columns=12) for seed in (5, 5, 6))
    assert np.array_equal(one.sources[1].matrix, same.sources[1].matrix)
    assert np.array_equal(one.related.pairs, same.related.pairs)
    assert not np.array_equal(one.labels, other.labels)


def test_a_replication_is_the_same_each_time():
    job = Job(TINY, 4)
    first = experiment.replicate(job, FAST)
    assert timeless(first) == timeless(experiment.replicate(job, FAST))
    assert [m.method for m in first] == list(FAST)
    assert timeless(first) != timeless(experiment.replicate(Job(TINY, 5), FAST))


def test_processes_change_nothing():
    todo = [(Job(TINY, seed), FAST) for seed in (0, 1)]
    alone: dict[Job, list[Measured]] = {}
    together: dict[Job, list[Measured]] = {}
    experiment.run(todo, done=lambda job, found: alone.__setitem__(job, timeless(found)))
    experiment.run(todo, processes=2, done=lambda job, found: together.__setitem__(job, timeless(found)))
    assert alone.keys() == together.keys()
    for job, found in alone.items():
        for one, other in zip(found, together[job], strict=True):
            assert one.ami == pytest.approx(other.ami, abs=0.02)
            assert one.accuracy_u == pytest.approx(other.accuracy_u, abs=1e-9)


def test_a_killed_process_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    def killed(*_: object, **__: object) -> None:
        raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(experiment.ProcessPoolExecutor, "submit", killed)
    with pytest.raises(FederationError, match=r"was killed.*memory.*fewer --jobs"):
        experiment.run([(Job(TINY, 0), FAST)], processes=2, done=lambda *_: None)


def test_the_oracle_has_the_truth_and_smile_all_columns():
    (smile,) = experiment.replicate(Job(SMALL, 0), (SMILE,))
    oracle, svd = experiment.replicate(Job(SMALL, 0), ("true U + average linkage", "SVD + average linkage"))
    assert oracle.accuracy_u == pytest.approx(1.0)
    assert svd.accuracy_u < smile.accuracy_u < 1.0
    assert np.isnan(svd.kappa)
    assert 5.0 < smile.kappa < 80.0
    assert smile.error == ""
    assert smile.accuracy_centers > svd.accuracy_centers


def test_rivals_are_told_the_anchors(monkeypatch: pytest.MonkeyPatch):
    simulation = simulate_paper(1, n_codes=80, n_clusters=10, columns=12, dim=4)
    seen: list[tuple[int, int]] = []

    def told(points, n_clusters, seed):
        seen.append((len(points), n_clusters))
        return np.arange(len(points)) % n_clusters

    monkeypatch.setitem(methods.CLUSTERINGS, "k-means", told)
    (found,) = methods.measure(simulation, ("true U + k-means",), 0)
    free = simulation.labels[simulation.scored]
    assert seen == [(len(free), len(np.unique(free)))]
    assert found.ami == pytest.approx(ami(free, np.arange(len(free)) % len(np.unique(free))))


def test_pairs_alone_group_codes_without_any_source():
    simulation = simulate_paper(1, n_codes=200, n_clusters=20, columns=12, dim=4)
    nothing = [dataclasses.replace(s, matrix=0.0 * s.matrix) for s in simulation.sources]
    (found,) = methods.measure(dataclasses.replace(simulation, sources=tuple(nothing)), (PAIRS,), 0)
    assert found.error == ""
    assert found.ami > 0.2
    assert np.isnan([found.accuracy_u, found.accuracy_centers, found.kappa]).all()
    wrong = dataclasses.replace(simulation.similar, labels=~simulation.similar.labels)
    (turned,) = methods.measure(dataclasses.replace(simulation, similar=wrong), (PAIRS,), 0)
    assert turned.ami < found.ami - 0.1
    (without,) = methods.measure(dataclasses.replace(simulation, similar=None), (PAIRS,), 0)
    assert without.ami == pytest.approx(0.0, abs=1e-9)


def test_the_plug_in_fit_holds_a_kappa_of_its_grid():
    (found,) = experiment.replicate(Job(TINY, 0), ("SMILE plug-in",))
    assert found.error == ""
    assert found.kappa in {10.0, 20.0, 50.0, 100.0, 200.0}
    assert found.ami > 0.1


def test_a_method_that_fails_is_a_row_with_its_error(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def broken(sources, *, n_codes, dim):
        calls.append(n_codes)
        raise ValueError("no such thing")

    monkeypatch.setitem(methods.EMBEDDINGS, "SVD", broken)
    found = experiment.replicate(Job(TINY, 0), ("SVD + k-means", "SVD + average linkage", "true U + k-means"))
    assert [m.error for m in found] == ["ValueError: no such thing"] * 2 + [""]
    assert len(calls) == 1  # an embedding is made once for all of its clusterings
    assert np.isnan(found[0].ami)
    assert found[2].ami > 0


def test_settings_share_the_common_design():
    chosen = experiment.jobs((1, 2, 3, 4), Design(), range(20))
    assert len(chosen) == len(set(chosen)) == 20 * (4 + 3 + 3 + 2)
    assert [job.seed for job in chosen] == sorted(job.seed for job in chosen)
    for number, setting in experiment.SETTINGS.items():
        values = [value for value, _ in experiment.designs(number, Design())]
        assert values == [float(v) for v in setting.values]
        assert Design() in [design for _, design in experiment.designs(number, Design())]


def test_a_rerun_goes_on_where_it_stopped(tmp_path: Path):
    jobs = experiment.jobs((4,), TINY, range(2))
    file = ResultFile(tmp_path, TINY, (4,))
    todo = file.missing(jobs, FAST)
    assert todo == [(job, FAST) for job in jobs]
    experiment.run(todo[:4], done=file.add)
    again = ResultFile(tmp_path, TINY, (4,))
    assert repr(sorted(again.results.items(), key=repr)) == repr(sorted(file.results.items(), key=repr))
    assert again.missing(jobs, FAST) == todo[4:]
    assert again.missing(jobs[:1], (*FAST, "SVD + average linkage")) == [
        (jobs[0], ("SVD + average linkage",))
    ]
    experiment.run(again.missing(jobs, FAST), done=again.add)
    assert again.missing(jobs, FAST) == []
    table = pq.read_table(tmp_path / RESULTS)
    assert table.num_rows == 3 * 2 * 2
    keys = list(zip(*(table[c].to_pylist() for c in ("value", "seed", "method")), strict=True))
    assert len(set(keys)) == len(keys)
    # One setting's replications serve another's: the common design is in both.
    both = ResultFile(tmp_path, TINY, (1,))
    lacking = both.missing(experiment.jobs((1,), TINY, range(2)), FAST)
    assert {job.design.n_sources for job, _ in lacking} == {1, 2, 4}


def test_another_experiment_is_not_mixed_in(tmp_path: Path):
    file = ResultFile(tmp_path, TINY, (4,))
    file.add(Job(TINY, 0), [Measured(FAST[0])])
    with pytest.raises(UsageError, match=r"another experiment.*n_codes.*same options"):
        ResultFile(tmp_path, SMALL, (4,))
    (tmp_path / RESULTS).write_bytes(b"not parquet")
    with pytest.raises(UsageError, match="cannot be used"):
        ResultFile(tmp_path, TINY, (4,))
    pq.write_table(pa.table({"a": [1]}), tmp_path / RESULTS)
    with pytest.raises(UsageError, match="not written by this command"):
        ResultFile(tmp_path, TINY, (4,))


def results(scores: dict[tuple[int, str], float]) -> experiment.Results:
    return {
        (Job(TINY, seed), method): Measured(method, 0.5, 0.5, score, 20.0, 1.0)
        for (seed, method), score in scores.items()
    }


def test_the_lead_is_paired_by_seed():
    rival = "SVD + k-means"
    given = results({(0, SMILE): 0.9, (1, SMILE): 0.6, (2, SMILE): 0.8, (0, rival): 0.8, (1, rival): 0.5})
    given[Job(TINY, 2), rival] = Measured(rival, error="ValueError: no")
    lines = summarise(experiment.rows(given, (4,), TINY))
    ours, theirs = lines
    assert [line.method for line in lines] == [SMILE, rival]
    assert (theirs.replications, theirs.failed) == (2, 1)
    assert theirs.figures["ami"].mean == pytest.approx(0.65)
    assert theirs.lead["ami"].mean == pytest.approx(0.1)
    assert theirs.lead["ami"].error == pytest.approx(0.0, abs=1e-12)
    assert ours.lead == {}
    assert ours.figures["ami"].error == pytest.approx(np.std([0.9, 0.6, 0.8], ddof=1) / np.sqrt(3))


def test_summary_and_figure_of_results_with_gaps(tmp_path: Path):
    given = results({(0, SMILE): 0.9, (0, "SVD + k-means"): 0.8})
    given[Job(TINY, 0), PAIRS] = Measured(PAIRS, ami=0.7, seconds=1.0)
    given[Job(TINY, 0), "AJIVE + k-means"] = Measured("AJIVE + k-means", error="FitError: no")
    lines = summarise(experiment.rows(given, (1, 4), TINY))
    write_summary(tmp_path, lines)
    records = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [r["method"] for r in records] == [SMILE, PAIRS, "SVD + k-means", "AJIVE + k-means"] * 2
    assert [r["smile_lead_ami"] for r in records[:3]] == ["", "0.2", "0.1"]
    assert records[1]["accuracy_u"] == records[3]["ami"] == records[2]["ami_se"] == ""
    json.dumps(as_records(lines), allow_nan=False)
    png, svg = draw_experiment(tmp_path, lines)
    assert png.read_bytes().startswith(b"\x89PNG")
    for words in ("accuracy of centers", "number of sources S", "SMILE", "pairs alone", "AJIVE", "k-means"):
        assert words in svg.read_text(encoding="utf-8")
    first = svg.read_bytes()
    draw_experiment(tmp_path, lines)
    assert svg.read_bytes() == first


def test_cluster_means_are_in_label_order():
    means = cluster_means(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), np.array([9, 2, 2]))
    assert means.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", METHODS),
        ("smile", (SMILE,)),
        ("SVD, SMILE", (SMILE, *(m for m in METHODS if m.startswith("SVD")))),
    ],
)
def test_methods_by_name(text: str, expected: tuple[str, ...]):
    assert experiment.chosen_methods(text) == expected


@pytest.mark.parametrize("text", ["SMILES", "", "SVD + dbscan", "SMILE,nothing"])
def test_an_unknown_method_is_refused_with_the_known_ones(text: str):
    with pytest.raises(UsageError, match=r"method.*SVD \+ k-means"):
        experiment.chosen_methods(text)


@pytest.mark.parametrize("text", ["5", "", "1;2", "one", "0"])
def test_an_unknown_setting_is_refused(text: str):
    with pytest.raises(UsageError, match=r"no setting.*--settings 1,3"):
        experiment.chosen_settings(text)
    assert experiment.chosen_settings("3, 1,3") == (1, 3)


def test_the_command_twice(tmp_path: Path):
    words = ["simulate", "--output", str(tmp_path), "--quick", "--settings", "4", "--replications", "2"]
    words += ["--methods", ",".join(FAST)]
    first = CliRunner().invoke(app, [*words, "--json"])
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert {Path(f).name for f in report["files"]} == {
        "results.parquet",
        "summary.csv",
        "figure.png",
        "figure.svg",
    }
    assert len(report["summary"]) == 3 * 2
    assert report["errors"] == []
    before = pq.read_table(tmp_path / RESULTS)
    second = CliRunner().invoke(app, words)
    assert second.exit_code == 0, second.output
    assert "Setting 4" in second.stdout
    assert pq.read_table(tmp_path / RESULTS).equals(before)  # nothing ran again: the times are the same
