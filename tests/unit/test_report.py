"""The report page: what it says, that hostile text is harmless in it, and that it asks the network for nothing."""

import dataclasses
import itertools
import re
import warnings
from collections import Counter
from datetime import date
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.recogniser.verdict import Audit, Recognised
from coordinator.report import figures
from coordinator.report.data import (
    CodeTable,
    FitFacts,
    Floors,
    Quality,
    QualityRow,
    ReportData,
    SiteFacts,
    SiteRelease,
    clusters_to_review,
    summarise,
)
from coordinator.report.page import render
from coordinator.report.text import safe_text, share

VOID = {"meta", "link", "br", "col", "img", "input", "hr"}
RELEASE = SiteRelease(
    n_patients=12_340,
    codes_seen=100,
    codes_released=61,
    codes_suppressed=37,
    codes_without_pairs=2,
    pairs_released=900,
    pairs_suppressed=1_100,
    mass_kept=0.57,
    anchors=8,
    embedding_dim=64,
    bytes_sent=215_000,
)
HOSTILE = (
    "<script>alert(1)</script>",
    "=cmd()|'/c calc'!A0",
    "\u202egnp.exe\u202c\u200b\u200f",
    "x" * 100_000,
    "]]>--></style></title></svg><img src=http://evil.example/x onerror=alert(1)>",
    '" onload="alert(1)" x="',
    "$\\frac{$ 100 %",
    "心不全 שלום",
    "nul\x00 escape\x1b[31m surrogate\ud800",
    "{{ 7 * 7 }}{% raw %}",
)


def code_table(n: int = 60, n_sites: int = 3, seed: int = 1) -> CodeTable:
    rng = np.random.default_rng(seed)
    member = rng.random((n, n_sites)) < 0.5
    member[np.arange(n), rng.integers(n_sites, size=n)] = True
    cluster = rng.integers(n // 4, size=n)
    target = np.array([f"ICD10CM:A{k:02d}" if k % 5 else "" for k in cluster], dtype=object)
    return CodeTable(
        curie=np.array([f"ICD10CM:B{i:03d}" for i in range(n)], dtype=object),
        title=np.array([f"Title of code {i}" for i in range(n)], dtype=object),
        member=member,
        category=np.array(
            [("Circulatory", "Respiratory", "Digestive")[k % 3] for k in cluster], dtype=object
        ),
        cluster=cluster,
        posterior=rng.random(n),
        xy=rng.normal(size=(n, 2)),
        anchored=rng.random(n) < 0.2,
        target=target,
        target_title=np.array([f"Target {t}" if t else "" for t in target], dtype=object),
    )


def report(**changes: object) -> ReportData:
    sites = tuple(
        SiteFacts(name, "ICD10CM", "condition", release=RELEASE, key_fingerprint="ab" * 32)
        for name in ("north", "south", "west")
    )
    data = ReportData(
        study="cardio-codes",
        version=3,
        created=date(2025, 11, 21),
        study_digest="0123456789abcdef" * 4,
        counting_rule="Pairs of one patient within 30 days.",
        floors=Floors(code_patients=20, pair_patients=11, margin_rounding=5),
        fit=FitFacts(
            dim=24, n_clusters=40, kappa=31.4, iterations=9, history=-1e6 + 1e5 * np.sqrt(np.arange(9.0))
        ),
        sites=sites,
        codes=code_table(),
        quality=Quality(
            "Scored: 40 codes kept out.", (QualityRow("SMILE", 40, 0.61, 0.01, 0.34, 0.02, published=True),)
        ),
    )
    return dataclasses.replace(data, **changes)  # type: ignore[arg-type]


AUDIT = Audit(
    (
        Recognised("released", "kernel", 0.704, 0.032, 0.11, 185, 390),
        Recognised("aligned", "linear", 0.001, -0.002, 0.053, 185, 390),
    )
)


def no_codes() -> CodeTable:
    table = code_table()
    return CodeTable(**{field.name: getattr(table, field.name)[:0] for field in dataclasses.fields(table)})


def with_refusal() -> ReportData:
    data = report()
    member = data.codes.member.copy()
    member[:, 1] = False
    refused = SiteFacts(
        "south", "ICD10CM", "condition", state="refused", detail="The officer did not approve."
    )
    return dataclasses.replace(
        data,
        sites=(data.sites[0], refused, data.sites[2]),
        codes=dataclasses.replace(data.codes, member=member),
    )


def hostile() -> ReportData:
    """Every text field of the report, in turn, holds something that does not belong on a page."""
    data = with_refusal()
    n = len(data.codes.curie)
    bad = {
        field: np.array([HOSTILE[(i + shift) % len(HOSTILE)] for i in range(n)], dtype=object)
        for shift, field in enumerate(("curie", "title", "category", "target", "target_title"))
    }
    sites = tuple(
        dataclasses.replace(
            site,
            name=HOSTILE[k],
            code_system=HOSTILE[k + 1],
            category=HOSTILE[k + 2],
            state=HOSTILE[4] if site.release is None else site.state,
            detail=HOSTILE[k + 3],
            key_fingerprint=HOSTILE[k + 4],
        )
        for k, site in enumerate(data.sites)
    )
    return dataclasses.replace(
        data,
        study=HOSTILE[4],
        study_digest=HOSTILE[3],
        counting_rule=HOSTILE[5],
        map_method=HOSTILE[0],
        sites=sites,
        codes=dataclasses.replace(data.codes, **bad),
        fit=dataclasses.replace(data.fit, warnings=HOSTILE * 3, history=np.array([np.nan, 1.0, np.inf, 2.0])),
        quality=Quality(HOSTILE[4], tuple(QualityRow(text, 5, 0.5) for text in HOSTILE)),
    )


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(report()))


CASES = {
    "plain": report,
    "no quality": lambda: report(quality=None),
    "refusal": with_refusal,
    "audit": lambda: report(audit=AUDIT),
    "hostile": hostile,
    "one picture": lambda: report(codes=code_table(figures.MOST_VECTOR_POINTS + 1)),
    "nothing mapped": lambda: report(codes=no_codes()),
}


@pytest.mark.parametrize("case", CASES)
def test_page_is_well_formed_and_asks_the_network_for_nothing(case):
    text = render(CASES[case]())
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "foreignobject"}
    ids = Counter(attrs["id"] for _, attrs in page.elements if "id" in attrs)
    assert max(ids.values()) == 1
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("href", "src", "xlink:href", "action", "poster", "srcset"):
            target = attrs.get(name)
            if target is not None:
                assert target.startswith(("#", "data:")), (tag, name, target[:80])
                if target.startswith("#"):
                    assert target[1:] in ids
        for name in ("style", "clip-path", "fill"):
            assert all(u in ids for u in re.findall(r"url\(#([^)]*)\)", attrs.get(name) or ""))
            assert not re.search(r"url\((?!#)", attrs.get(name) or "")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_same_data_same_page():
    assert render(report()) == render(report())


def test_reader_settings_of_matplotlib_do_not_reach_the_page():
    import matplotlib as mpl

    plain = render(report())
    with mpl.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.labelpad": 40}):
        assert render(report()) == plain
        assert mpl.rcParams["font.size"] == 30


def test_answer_comes_first(page):
    data = report()
    summary = summarise(data)
    assert (
        f"60 codes of 3 sites were mapped into {summary.n_clusters} clusters; of the {summary.n_free} codes that "
        f"the fit placed, {share(summary.expected)} are expected to be right."
    ) in page.text
    assert "0.610 ± 0.010" in page.text
    assert "Quality is not known here" not in page.text
    assert "01234567 89abcdef" in page.text


def test_accessible_structure(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.all("html") == [{"lang": "en"}]
    assert all(attrs.get("scope") for attrs in page.all("th"))
    drawings = [attrs for attrs in page.all("svg") if attrs.get("aria-hidden") != "true"]
    assert len(drawings) == 6
    assert all(attrs["role"] == "img" and len(attrs["aria-label"]) > 30 for attrs in drawings)


def test_unknown_quality_is_said():
    text = Page(render(report(quality=None))).text
    assert "Quality is not known here" in text
    assert "coordinator publish --truth" in text


def test_site_recognised_is_said_by_how_much():
    text = Page(render(report(audit=AUDIT))).text
    assert "as released kernel 0.704 0.032 0.110 by 0.594 185" in re.sub(r"\s+", " ", text)
    assert "in the shared space linear 0.001 -0.002 0.053 no 185" in re.sub(r"\s+", " ", text)
    drawn = figures.site_recognised(AUDIT.lines)
    assert "as released, kernel: 0.70, chance up to 0.11" in drawn.alt
    assert "Too few codes are held by several sites to ask" in Page(render(report())).text


def test_refused_site_has_reason_and_no_zero():
    text = render(with_refusal())
    page = Page(text)
    assert "1 of 3 invited sites is not in this release" in page.text
    assert "south (refused): The officer did not approve." in page.text
    row = re.search(r'<tr><th scope="row"><bdi>south</bdi>.*?</tr>', text, re.S)
    assert row is not None
    assert not re.search(r">\s*0\s*<", row[0])
    assert "refused" in row[0]
    data = with_refusal()
    assert "south: no release (refused)" in figures.kept_and_withheld(data.sites).alt
    legend = figures.coverage(data.codes, data.sites).legend
    assert [key.label for key in legend] == ["south: no release (refused)"]


def test_withheld_is_neither_zero_nor_unknown():
    releases = (
        RELEASE,
        dataclasses.replace(RELEASE, codes_suppressed=0, codes_seen=63),
        dataclasses.replace(RELEASE, codes_suppressed=None, mass_kept=None),
    )
    sites = tuple(dataclasses.replace(s, release=r) for s, r in zip(report().sites, releases, strict=True))
    text = render(report(sites=sites))
    cells = re.findall(r'<td class="n (\w*)" data-column="Codes withheld">([^<]*)</td>', text)
    assert cells == [("withheld", "37"), ("nothing", "none"), ("unknown", "not stated")]
    assert summarise(report(sites=sites)).n_withheld == 37
    assert "under 20 patients" in text
    alt = figures.kept_and_withheld(sites).alt
    assert "west: codes not stated, pairs 45 %, co-occurrences not stated" in alt


def test_site_numbers_that_do_not_add_up_are_said():
    odd = dataclasses.replace(report().sites[0], release=dataclasses.replace(RELEASE, codes_seen=999))
    assert "do not add up" in render(report(sites=(odd, *report().sites[1:])))
    assert "do not add up" not in render(report())


@pytest.mark.parametrize("mass", [float("nan"), -0.1, 1.7])
def test_impossible_share_of_a_site_is_not_drawn(mass):
    odd = dataclasses.replace(report().sites[0], release=dataclasses.replace(RELEASE, mass_kept=mass))
    text = render(report(sites=(odd, *report().sites[1:])))
    assert '<td class="n unknown" data-column="Co-occurrences kept">not stated</td>' in text


def test_hostile_text_is_escaped_and_short():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render(hostile())
    page = Page(text)
    assert "<script>alert(1)</script>" in page.text  # as words, not as an element
    assert not page.all("script")
    assert not page.all("img")
    assert "{{ 7 * 7 }}" in page.text
    assert len(text) < 400_000
    assert "x" * 500 not in text
    for character in "\u202e\u202c\u200b\u200f\x00\x1b\ud800":
        assert character not in text
    assert not [words for words in page.words if words.strip().startswith("=")]
    assert text.encode()


@given(st.text(alphabet=st.characters(), max_size=300), st.integers(2, 60))
def test_safe_text_laws(text, limit):
    safe = safe_text(text, limit)
    assert len(safe) <= limit
    assert safe == safe.strip()
    assert safe_text(safe, limit) == safe
    assert not safe.startswith(("=", "+", "-", "@"))
    assert safe.isprintable() or " " in safe
    safe.encode()


def test_safe_text_keeps_ordinary_words():
    assert safe_text("Type 2 diabetes, β-cell (mild)") == "Type 2 diabetes, β-cell (mild)"
    assert safe_text("a\n\tb  c") == "a b c"
    assert safe_text("abcdef", 4) == "abc…"
    assert safe_text("Z" + "\u0301" * 50) == "Z" + "\u0301" * 4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not stated"),
        (float("nan"), "not stated"),
        (0, "0 %"),
        (0.001, "<1 %"),
        (0.999, ">99 %"),
        (1, "100 %"),
    ],
)
def test_share_is_not_rounded_to_nothing_or_all(value, words):
    assert share(value) == words


def review_table(groups: dict[int, list[tuple[float, str, str, bool, int]]]) -> CodeTable:
    """From cluster -> codes as (posterior, category, target, anchored, site)."""
    rows = [(cluster, *row) for cluster, members in groups.items() for row in members]
    n = len(rows)
    member = np.zeros((n, 2), dtype=bool)
    member[np.arange(n), [row[5] for row in rows]] = True
    return CodeTable(
        curie=np.array([f"c:{i:02d}" for i in range(n)]),
        title=np.array([""] * n),
        member=member,
        category=np.array([row[2] for row in rows]),
        cluster=np.array([row[0] for row in rows]),
        posterior=np.array([row[1] for row in rows]),
        xy=np.zeros((n, 2)),
        anchored=np.array([row[4] for row in rows]),
        target=np.array([row[3] for row in rows]),
        target_title=np.array(["title" if row[3] else "" for row in rows]),
    )


def test_review_order_reasons_and_score():
    table = review_table(
        {
            0: [(0.99, "A", "t:0", False, 0)] * 3,  # nothing to see
            1: [(0.2, "A", "t:1", False, 0), (0.4, "A", "t:1", False, 1), (0.1, "A", "t:1", True, 1)],
            2: [(0.95, "A", "", False, 0), (0.95, "B", "", False, 1), (0.95, "C", "", False, 1)],
            3: [(0.1, "A", "", False, 0)],  # alone: no mapping to check
            4: [(1.0, "A", "t:4", False, 0)] * 10,
        }
    )
    found = clusters_to_review(table, ["north", "south"])
    assert [c.cluster for c in found] == [2, 1, 4]
    spans, doubtful, crowded = found
    assert doubtful.score == pytest.approx(np.log2(4) * (2 * 0.7 + 0.5 / 9))
    assert spans.score == pytest.approx(np.log2(4) * (2 * 0.05 + 2 / 3 + 0.5 / 9 + 1))
    assert crowded.score == pytest.approx(np.log2(11) * 0.5)
    assert doubtful.reasons == ("mean probability 0.30",)
    assert spans.reasons == ("spans 3 categories (A 1; B 1; C 1)", "no standard code")
    assert crowded.reasons == ("10 codes of one site (north)",)
    assert (spans.target, doubtful.target, doubtful.target_title) == ("", "t:1", "title")
    assert [(m.posterior, m.anchored) for m in doubtful.members] == [(0.2, False), (0.4, False), (0.1, True)]
    assert doubtful.members[1].sites == ("south",)


def test_review_is_limited_and_ties_go_by_cluster():
    pair = [(0.1, "A", "t", False, 0), (0.1, "A", "t", False, 1)]
    table = review_table(dict.fromkeys(reversed(range(30)), pair))
    found = clusters_to_review(table, ["a", "b"])
    assert [c.cluster for c in found] == list(range(20))
    few = clusters_to_review(table, ["a", "b"], limit=2, most_members=1)
    assert [(c.cluster, c.n_codes, len(c.members)) for c in few] == [(0, 2, 1), (1, 2, 1)]


def test_codes_of_no_site_are_not_counted():
    table = code_table(8)
    member = table.member.copy()
    member[:3] = False
    data = report(codes=dataclasses.replace(table, member=member))
    assert summarise(data).n_codes == 5
    shown = {m.curie for c in data.reviewed for m in c.members}
    assert not shown & set(table.curie[:3])


def test_map_has_a_tooltip_for_each_point_until_there_are_too_many():
    few = figures.embedding_map(code_table(), report().sites)
    assert few.svg.count("<title>") == 60
    assert "ICD10CM:B007 Title of code 7\n" in few.svg
    many = figures.embedding_map(code_table(figures.MOST_VECTOR_POINTS + 1), report().sites)
    assert many.svg.count("<title>") == 0
    assert "data:image/png;base64," in many.svg


def test_tooltip_belongs_to_its_point():
    table = code_table(40)
    x = np.argsort(np.argsort(table.xy[:, 0]))
    svg = figures.embedding_map(table, report().sites).svg
    found = re.findall(r'<use [^>]*\bx="([\d.]+)"[^>]*><title>ICD10CM:B(\d+)', svg)
    order = [int(i) for _, i in sorted(found, key=lambda hit: float(hit[0]))]
    drawn = np.array([float(at) for at, _ in sorted(found, key=lambda hit: float(hit[0]))])
    assert len(order) == 40
    # Marks less than the drawing's rounding apart may change places.
    assert all(abs(x[i] - k) <= 1 or np.isclose(drawn[k], drawn[x[i]], atol=0.1) for k, i in enumerate(order))


def test_figures_numbers_are_in_their_words():
    table = code_table()
    sizes = np.unique(table.cluster, return_counts=True)[1]
    assert f"; 3: {(sizes == 3).sum()} (" in figures.cluster_sizes(table).alt
    free = table.posterior[~table.anchored]
    assert f"0.9 to 1.0: {(free >= 0.9).sum()}." in figures.posterior_histogram(table).alt
    north = (table.member[:, 0] & (table.category == "Digestive")).sum()
    assert f"Digestive: north {north}," in figures.coverage(table, report().sites).alt


def test_bound_history_needs_two_values():
    assert figures.bound_history(np.array([np.nan, 3.0])) is None
    drawing = figures.bound_history(np.array([0.0, 2.0, 1.0, 4.0]))
    assert drawing is not None
    assert "over 4 iterations" in drawing.alt
    assert "fell 1 times" in drawing.alt


@pytest.mark.parametrize(
    "change",
    [
        {"title": np.array(["one"])},
        {"posterior": np.full(60, 1.2)},
        {"posterior": np.full(60, np.nan)},
        {"xy": np.full((60, 2), np.nan)},
        {"cluster": np.full(60, -1)},
        {"xy": np.zeros((60, 3))},
    ],
)
def test_code_table_refuses_wrong_columns(change):
    with pytest.raises(ValueError, match=r"rows|posterior|xy|cluster"):
        dataclasses.replace(code_table(), **change)


def test_report_data_refuses_members_that_do_not_fit_the_sites():
    with pytest.raises(ValueError, match="columns for 2 sites"):
        report(sites=report().sites[:2])
    with pytest.raises(ValueError, match="south has codes but no release"):
        report(sites=(report().sites[0], with_refusal().sites[1], report().sites[2]))
