"""`site-agent preview`, `diff` and `approve`: what would leave, shown to people and signed by them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from protocol.console import out, print_json, progress, table
from protocol.errors import FederationError, UsageError
from protocol.messages import ReleaseManifest
from site_agent.agent import Agent
from site_agent.cli_options import (
    HERE,
    HomeOption,
    JsonOption,
    MemoryOption,
    PassphraseFileOption,
    ThreadsOption,
    passphrase,
)
from site_agent.cli_views import show_made, show_views
from site_agent.config import Home
from site_agent.difference import Difference, Moved, difference
from site_agent.resources import resources
from site_agent.signers import standing

_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Add the three commands."""
    app.command(epilog="Example: site-agent preview --home north --names")(preview)
    app.command(epilog="Example: site-agent diff --home north")(diff)
    app.command(epilog="Example: site-agent approve --home north --by a-meier --digest 3f9a77c1d2e4b5a6")(
        approve
    )


def preview(
    home: HomeOption = HERE,
    names: Annotated[
        bool, typer.Option("--names", help="List every released code, not the first twenty.")
    ] = False,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Prepare the next release and show everything that would leave; nothing leaves."""
    agent = Agent(Home(home))
    machine = resources(agent.home.config.machine, memory=memory, threads=threads)
    with progress("preview", quiet=json) as step:
        prepared = agent.preview(step, machine)
    manifest = prepared.release.manifest
    size, changed = len(agent.outbox.prepared().data), _difference(agent)
    if json:
        print_json(
            {
                "manifest_digest": manifest.digest,
                "bytes": size,
                "skipped_rows": prepared.skipped,
                "rows": prepared.n_rows,
                "difference": changed.short(),
                "encoded_names": dict(prepared.encoded),
                "views_left_out": prepared.notes,
            }
            | {"manifest": manifest.model_dump(mode="json")}
        )
        return
    _show_manifest(manifest, size, all_names=names)
    show_made(prepared, all_names=names)
    for reason, count in prepared.skipped.items():
        out.print(f"[yellow]{count:,} rows were skipped: {reason}[/]")
    if prepared.changed:
        out.print(f"Patients whose events have changed since the last release: {prepared.changed}")
    if prepared.names_undecided:
        out.print(
            f"{prepared.names_undecided:,} descriptions wait in {home / 'names-to-review.csv'} for a person's yes or no",
            markup=False,
        )
    out.print(f"\n{changed.short()}")
    if not (changed.first or changed.same):
        out.print("Everything that changed: site-agent diff")
    signers = standing(agent.ledger.verify()).signers
    if not signers:
        out.print(f"Nobody may approve yet: site-agent signer add NAME --home {home}")
    by = next(iter(signers)) if len(signers) == 1 else "NAME"
    out.print(
        f"Nothing has left. To approve: site-agent approve --home {home} --by {by} --digest {manifest.digest[:16]}"
    )


def diff(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show what changed between the prepared release and the one that was sealed last."""
    found = _difference(Agent(Home(home)))
    if json:
        print_json(found.as_json())
        return
    out.print(found.short())
    if not (found.first or found.same):
        _show_difference(found)


def approve(
    home: HomeOption = HERE,
    digest: Annotated[
        str, typer.Option(help="The manifest digest that preview printed, at least 16 digits.")
    ] = "",
    by: Annotated[str, typer.Option(help="Who signs; may be left out if there is one signer.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needs --digest.")] = False,
    passphrase_file: PassphraseFileOption = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the approval back instead.")] = False,
    json: JsonOption = False,
) -> None:
    """Sign the prepared release with a signer's key; only these bytes can be sealed afterwards."""
    agent = Agent(Home(home))
    if revoke:
        _revoke(agent, by or _only_signer(agent), as_json=json)
        return
    prepared = agent.outbox.prepared()
    manifest = prepared.release.manifest
    if digest and (len(digest) < 16 or not manifest.digest.startswith(digest)):
        raise UsageError(
            f"The prepared release is {manifest.digest[:16]}, not {digest}",
            do="Run site-agent preview and look again",
        )
    if yes and not digest:
        raise UsageError("--yes needs --digest", why="a yes is to one release, by name")
    signer = by or _only_signer(agent)
    given = passphrase(passphrase_file, f"Passphrase of {signer}")
    if not yes:
        _show_manifest(manifest, len(prepared.data), all_names=False)
        out.print(_difference(agent).short())
        if not typer.confirm(f"May this leave the site? {signer} signs {manifest.digest[:16]}"):
            raise FederationError(
                "Not approved", do="Nothing will leave; run preview again when you are ready"
            )
    approvals = agent.approve(signer, manifest.digest, given)
    needed = agent.home.config.approval.signers
    if json:
        names = sorted(approvals)
        print_json({"manifest_digest": manifest.digest, "approved_by": names, "needed": needed})
        return
    out.print(f"Approved by {', '.join(sorted(approvals))}: {manifest.digest}.")
    missing = needed - len(approvals)
    if missing > 0:
        out.print(f"{missing} more signer{'s' * (missing > 1)} must approve it before it can be sealed.")
    else:
        out.print("It is sealed and sent when the coordinator calls.")


def _revoke(agent: Agent, by: str, *, as_json: bool) -> None:
    rounds = agent.revoke(by)
    if as_json:
        print_json({"revoked": by, "rounds": rounds})
        return
    out.print(f"The approval by {by} is taken back.")
    if rounds:
        out.print(
            f"The sealed release of {', '.join(rounds)} is withdrawn from the exchange folder. If the coordinator has "
            "fetched it before, only the coordinator can delete it."
        )


def _only_signer(agent: Agent) -> str:
    signers = standing(agent.ledger.verify()).signers
    if len(signers) == 1:
        return next(iter(signers))
    if not signers:
        raise UsageError("Nobody may approve a release yet", do="Run site-agent signer add first")
    raise UsageError("--by is missing", why=f"the signers are {', '.join(sorted(signers))}")


def _difference(agent: Agent) -> Difference:
    prepared, sealed = agent.outbox.prepared(), agent.outbox.last_sealed()
    sizes = (len(sealed.data) if sealed else 0, len(prepared.data))
    return difference(sealed.release if sealed else None, prepared.release, sizes=sizes)


def _show_difference(found: Difference) -> None:
    """All of it; long lists with their first entries."""
    before, after = (f"release {n}" for n in found.sequence)
    rows: list[list[Any]] = [["bytes", f"{found.bytes[0]:,}", f"{found.bytes[1]:,}"]]
    rows += [[name, _plain(old), _plain(new)] for name, (old, new) in found.statistics.items()]
    rows += [[name, _plain(old), _plain(new)] for name, (old, new) in found.rules.items()]
    rows += [[f"dimensions of {m.view}", *map(str, m.dims)] for m in found.moved if m.dims[0] != m.dims[1]]
    table("What changed", ["fact", before, after], rows)
    _show_list("Codes that leave for the first time", found.codes_added)
    _show_list("Codes that are not released any more", found.codes_removed)
    _show_list("Anchors more", found.anchors_added)
    _show_list("Anchors fewer", found.anchors_removed)
    counts = [f"{code} {old:,} -> {new:,}" for code, (old, new) in found.patients.items()]
    _show_list("Patient counts (rounded) that changed", counts)
    for moved in found.moved:
        _show_moved(moved)


def _show_moved(moved: Moved) -> None:
    out.print(
        f"Vectors of {moved.view}: {moved.codes:,} codes in both releases; median cosine {moved.median:.3f} once the "
        "older ones are rotated onto the newer ones."
    )
    _show_list("Vectors that moved", [f"{code} {cosine:.3f}" for code, cosine in moved.far])


def _show_list(title: str, items: list[str] | tuple[str, ...]) -> None:
    if items:
        more = "" if len(items) <= _SHOWN else f"; the first {_SHOWN}, all with --json"
        out.print(f"{title}: {len(items):,}{more}")
        out.print("  " + ", ".join(items[:_SHOWN]), markup=False)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value[:16] or "none"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


def _descriptions(manifest: ReleaseManifest) -> str:
    s = manifest.statistics
    if not manifest.descriptions:
        return "none"
    return f"{s.names_released:,}; {s.names_withheld:,} withheld"


def _show_manifest(manifest: ReleaseManifest, size: int, *, all_names: bool) -> None:
    """Everything of a release on one screen; with `all_names`, every code and anchor too."""
    from site_agent.gate import pair_floor  # noqa: PLC0415 - the libraries of counting take 100 MB

    s, p = manifest.statistics, manifest.policy
    facts: list[list[Any]] = [
        ["site, release", f"{manifest.site}, {manifest.sequence}"],
        ["patients (rounded)", f"{s.patients:,}"],
        ["codes released", f"{s.codes_released:,} of {s.codes_seen:,} seen"],
        ["patients that a pair needs", pair_floor(p, s.patients)],
        [f"codes withheld: fewer than {p.min_code_patients} patients", f"{s.codes_suppressed:,}"],
        [f"codes withheld: no pair with {p.min_pair_patients} patients", f"{s.codes_without_pairs:,}"],
        ["pairs used, not released themselves", f"{s.pairs_released:,}"],
        [f"pairs withheld: fewer than {p.min_pair_patients} patients", f"{s.pairs_suppressed:,}"],
        ["share of co-occurrences kept", f"{s.mass_kept:.0%}"],
        ["smallest patient count of a code (rounded)", f"{s.smallest_code_patients:,}"],
        ["fewest patients behind a pair in use", f"{s.smallest_pair_patients:,}"],
        ["anchors (local code = standard code)", f"{len(manifest.anchors):,}"],
        ["descriptions", _descriptions(manifest)],
        ["dimensions allowed", f"{p.max_dim:,}"],
        ["bytes in all", f"{size:,}"],
        ["manifest digest", manifest.digest],
    ]
    table("What would leave", ["fact", "value"], facts)
    show_views(manifest)
    rows = [[a.name, a.dtype, " x ".join(map(str, a.shape)), a.sha256[:16]] for a in manifest.arrays]
    table("Every array", ["name", "type", "shape", "sha256 begins"], rows)
    shown = manifest.codes if all_names else manifest.codes[:20]
    out.print(
        f"Every name: {len(manifest.codes):,} codes, in order" + ("" if all_names else "; the first twenty:")
    )
    texts = [t for t in manifest.descriptions if t]
    named = zip(shown, manifest.descriptions or [""] * len(shown), strict=False)
    out.print("  " + ", ".join(f"{c} ({t})" if t else c for c, t in named), markup=False)
    if texts:
        out.print(f"{len(texts):,} descriptions leave with their codes; --names lists all of them.")
    anchors = manifest.anchors if all_names else manifest.anchors[:5]
    if anchors:
        out.print(f"Anchors: {len(manifest.anchors):,}" + ("" if all_names else "; the first five:"))
        out.print("  " + ", ".join(f"{manifest.codes[a.row]} = {a.standard}" for a in anchors), markup=False)
    if not all_names:
        out.print("The whole list: site-agent preview --names, or --json")
