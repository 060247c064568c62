"""`coordinator enroll`, `sites`, `withdraw` and `keys`: who takes part, and with which keys."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator import cli_certificate, rounds, setup
from coordinator.cli_options import HERE, FingerprintOption, HomeOption, JsonOption
from coordinator.config import Home
from coordinator.nodes import deny_nodes, introduce_nodes, read_change, settle_nodes, take_change
from coordinator.store import Store, Submission
from protocol.console import out, print_json, progress, table
from protocol.errors import UsageError
from protocol.keys import key_file_public
from protocol.messages import Enrolment, Invitation
from protocol.signed import parse

if TYPE_CHECKING:
    from coordinator.replacing import Replaced

keys_app = typer.Typer(no_args_is_help=True, help="Follow sites' new keys; change the coordinator's own.")
_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M"]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: coordinator enroll enrolment-north.json --home hub")(enroll)
    app.command(epilog="Example: coordinator sites --home hub")(sites)
    app.command(
        epilog='Example: coordinator withdraw north --because "the board ended its consent" --home hub'
    )(withdraw)
    app.add_typer(keys_app, name="keys")
    app.add_typer(cli_certificate.app, name="certificate")


def enroll(
    files: Annotated[list[Path], typer.Argument(help="Enrolment files from the sites.")],
    home: HomeOption = HERE,
    fingerprint: FingerprintOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Let a site in that has withdrawn, with new keys.")
    ] = False,
    replaces: Annotated[
        bool,
        typer.Option(
            "--replaces", help="The site's machine is lost: take its new one, and revoke the old one's keys."
        ),
    ] = False,
    lost_since: Annotated[
        datetime | None,
        typer.Option(
            formats=_TIMES, help="With --replaces, UTC: the old machine may be in other hands since then."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Let sites in, after comparing the fingerprint that each told you by another way; write a welcome for each."""
    if lost_since is not None and not replaces:
        raise UsageError("--lost-since needs --replaces", do="See coordinator enroll --help")
    hub = Home(home)
    store = Store(hub.database_url)
    enrolments = [setup.read_enrolment(hub, path) for path in files]
    done = []
    for enrolment in enrolments:
        seen = enrolment.keys.fingerprint
        _compare(f"Site {enrolment.site}", seen, fingerprint)
        found = _replace(hub, store, enrolment, lost_since) if replaces else None
        if found is None:
            setup.enrol(store, enrolment, again=again)
        head = found.ledger_head if found else ""
        welcome = setup.write_welcome(hub, store, enrolment.site, ledger_head=head)
        facts: dict[str, Any] = {"site": enrolment.site, "fingerprint": seen, "welcome": str(welcome)}
        if found is not None:
            facts["refused_releases"] = _doubtful(found.doubtful)
            facts["version_to_deliver"] = found.sealed_again or None
        done.append(facts)
        if not json:
            _say_enrolled(hub, store, enrolment.site, welcome, found)
    introduce_nodes(hub, store)
    if json:
        print_json(done)


def _replace(hub: Home, store: Store, enrolment: Enrolment, lost_since: datetime | None) -> Replaced:
    from coordinator import replacing  # noqa: PLC0415 - scikit-learn takes a second to import

    since = lost_since.replace(tzinfo=UTC) if lost_since else None
    found = replacing.replace(hub, store, enrolment, now=datetime.now(UTC), lost_since=since)
    settle_nodes(hub, store)
    return found


def _doubtful(submissions: Iterable[Submission]) -> list[dict[str, Any]]:
    return [{"round": d.round, "received": d.received} for d in submissions]


def _say_enrolled(hub: Home, store: Store, site: str, welcome: Path, found: Replaced | None) -> None:
    out.print(f"Enrolled {site}{' in place of its lost machine' if found else ''}.")
    out.print(
        f"Send it {welcome}: it runs site-agent enroll --confirm {welcome.name}, and compares your fingerprint "
        f"[bold]{hub.keys.public().fingerprint}[/]."
    )
    if found is None:
        return
    for each in found.doubtful:
        out.print(
            f"[yellow]Round {each.round}: the release that came {each.received:%Y-%m-%d %H:%M} UTC counts no more; it "
            "came after the machine was lost. Fit and publish the round again.[/]"
        )
    if found.sealed_again:
        name = next(v.round for v in store.versions() if v.version == found.sealed_again)
        out.print(
            f"Version {found.sealed_again} is sealed for it again: coordinator round deliver {name} --home {hub.folder}"
        )


def sites(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """List the study's sites: enrolled or withdrawn, fingerprint, contact, last accepted release."""
    hub = Home(home)
    store = Store(hub.database_url)
    enrolled = {s.name: s for s in store.sites()}
    found: list[dict[str, Any]] = []
    for name in hub.study.sites:
        site = enrolled.get(name)
        found.append(
            {
                "site": name,
                "enrolled": site is not None and site.withdrawn is None,
                "withdrawn": site.withdrawn.replace(tzinfo=UTC) if site and site.withdrawn else None,
                "fingerprint": site.public_keys.fingerprint if site else "",
                "key_version": max(site.known.version, 1) if site else None,
                "contact": site.contact if site else "",
                "accepted_release": site.accepted_sequence if site and site.accepted_sequence else None,
            }
        )
    if json:
        print_json(found)
        return
    rows = [
        [
            f["site"],
            f"withdrawn {f['withdrawn']:%Y-%m-%d}"
            if f["withdrawn"]
            else "enrolled"
            if f["enrolled"]
            else "no",
            f["fingerprint"],
            f["key_version"] or "",
            f["contact"],
            f["accepted_release"] or "none",
        ]
        for f in found
    ]
    columns = ["site", "enrolled", "fingerprint", "key version", "contact", "last accepted release"]
    table("Sites", columns, rows)


def withdraw(
    site: Annotated[str, typer.Argument(help="The site that leaves the study.")],
    because: Annotated[str, typer.Option(help="Why; every later version tells it to all sites.")] = "",
    home: HomeOption = HERE,
    erase_versions: Annotated[
        bool,
        typer.Option(
            "--erase-versions", help="Erase the published versions that hold the site, but for a mark."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Take a site out for good: revoke its keys, erase its data, fit and publish the map again without it."""
    from coordinator import withdrawal  # noqa: PLC0415 - scikit-learn takes a second to import

    hub = Home(home)
    if json and not yes:
        raise UsageError("--json needs --yes", why="a script cannot be asked")
    store = Store(hub.database_url)
    with rounds.exclusive(hub):
        found = withdrawal.unfinished(store, site)
        if found is None:
            planned = withdrawal.plan(hub, store, site, erase_versions=erase_versions)
            withdrawal.check_reason(because)
            if not yes:
                _show_plan(planned, erase_versions=erase_versions)
                if not typer.confirm(f"Take {site} out? This cannot be undone."):
                    raise UsageError(f"Site {site} was not withdrawn", do="Nothing was changed")
            found = withdrawal.begin(
                hub, store, planned, reason=because, erase_versions=erase_versions, now=datetime.now(UTC)
            )
        elif not json:
            out.print(
                f"The withdrawal of {site} was interrupted after step {found.step!r}: going on with it."
            )
        deny_nodes(hub, store)
        found = withdrawal.unfinished(store, site) or found
        with progress("withdraw", quiet=json) as step:
            steps = len(withdrawal.STEPS)
            done = withdrawal.carry_out(
                hub, store, found, tell=lambda s: step(s, withdrawal.STEPS.index(s) / steps)
            )
    denied = next(w.node_denied for w in store.withdrawals() if w.id == done.id)
    facts = {
        "site": site,
        "withdrawn": done.at.replace(tzinfo=UTC),
        "reason": done.reason,
        "rounds": list(done.rounds),
        "sums": list(done.sums),
        "withdrawn_versions": list(done.versions),
        "erased_bytes": done.erased_bytes,
        "node_shut_out": denied,
        "new_version": done.new_version or None,
        "outcome": done.outcome,
    }
    if json:
        print_json(facts)
        return
    table(
        f"Site {site} has withdrawn",
        ["fact", "value"],
        [[k, _words(v)] for k, v in facts.items() if k != "site"],
    )
    if not denied:
        out.print("Its Flower node is shut out when coordinator serve runs next; no round calls it.")
    if done.new_version:
        out.print(
            f"Next: coordinator round deliver {done.refit_round} --home {home}, so that the sites have "
            f"version {done.new_version} in place of the withdrawn ones"
        )


@keys_app.command("trust", epilog="Example: coordinator keys trust key-list-north.json --home hub")
def trust(
    files: Annotated[list[Path], typer.Argument(help="Key lists from sites that have changed their keys.")],
    home: HomeOption = HERE,
    fingerprint: FingerprintOption = None,
    json: JsonOption = False,
) -> None:
    """Follow sites to their new keys, after comparing the new fingerprints; write receipts for the sites."""
    hub = Home(home)
    store = Store(hub.database_url)
    found = [setup.read_new_keys(store, path) for path in files]
    done: list[dict[str, Any]] = []
    for site, verified in found:
        seen = verified.current.fingerprint
        if verified.known != site.known:
            _compare(f"Site {site.name}", seen, fingerprint)
        doubtful = store.follow_keys(site.name, verified, now=datetime.now(UTC))
        receipt = setup.receipt_for(hub, verified)
        done.append(
            {
                "site": site.name,
                "fingerprint": seen,
                "version": verified.known.version,
                "receipt": str(receipt),
                "refused_releases": [{"round": d.round, "received": d.received} for d in doubtful],
            }
        )
        if json:
            continue
        out.print(f"Site {site.name} has keys of version {verified.known.version}. Send it {receipt}.")
        for each in doubtful:
            out.print(
                f"[yellow]Round {each.round}: the release that came {each.received:%Y-%m-%d %H:%M} UTC counts no "
                "more; it came after the key was lost. Fit and publish the round again.[/]"
            )
    if json:
        print_json(done)


@keys_app.command("trust-node", epilog="Example: coordinator keys trust-node node-key-north.json --home hub")
def trust_node(
    files: Annotated[
        list[Path], typer.Argument(help="node-key-SITE.json from site-agent keys new-node-key.")
    ],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Take sites' new Flower keys, which the sites' own keys have signed, and shut their old nodes out."""
    hub = Home(home)
    store = Store(hub.database_url)
    changes = [read_change(hub, store, path) for path in files]
    for change in changes:
        take_change(store, change)
    out_now = settle_nodes(hub, store)
    if json:
        print_json([{"site": c.site, "old_node_shut_out": c.site in out_now} for c in changes])
        return
    for change in changes:
        when = "is shut out" if change.site in out_now else "is shut out when coordinator serve runs next"
        out.print(f"Site {change.site} has a new node key; its old node {when}.")


@keys_app.command("rotate", epilog="Example: coordinator keys rotate --home hub")
def rotate(
    home: HomeOption = HERE,
    lost_since: Annotated[
        datetime | None,
        typer.Option(
            formats=_TIMES, help="UTC; the present keys may be in other hands since then: revoke them."
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take new keys for the coordinator, and write the list that every site must take in."""
    from coordinator import keychange  # noqa: PLC0415

    hub = Home(home)
    hub.identity.settle()
    since = lost_since.replace(tzinfo=UTC) if lost_since else None
    after, path = keychange.rotate(hub, now=datetime.now(UTC).replace(microsecond=0), lost_since=since)
    seen = after.keys.public().fingerprint
    if json:
        print_json({"fingerprint": seen, "file": str(path)})
        return
    out.print(f"The coordinator's new fingerprint is [bold]{seen}[/].")
    out.print(
        f"Give every site {path} and tell it the fingerprint by telephone: it runs site-agent keys trust {path.name}."
    )
    out.print(
        f"{after.folder / 'invitation.json'} names the new keys: give it to analysts and to sites that join."
    )


@keys_app.command("show", epilog="Example: coordinator keys show --home hub")
def show(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """The coordinator's fingerprint, the version of its keys, and whether a passphrase protects them."""
    hub = Home(home)
    listed = hub.identity.key_list()
    invited = parse((hub.folder / "invitation.json").read_bytes(), Invitation).keys
    facts = {
        "fingerprint": invited.fingerprint,
        "version": len(listed.versions) if listed else 1,
        "protected": key_file_public(hub.identity.key) is not None,
    }
    if json:
        print_json(facts)
    else:
        table("Keys of the coordinator", ["fact", "value"], [[k, _words(v)] for k, v in facts.items()])


def _compare(whose: str, seen: str, told: list[str] | None) -> None:
    """A person has compared the fingerprint, now or before.

    Raises:
        UsageError: it is another one, or the answer is no.
    """
    if told and seen.replace(" ", "") not in {f.replace(" ", "").lower() for f in told}:
        raise UsageError(
            f"{whose} has fingerprint {seen}, which is none of those given",
            do="Ask the site by telephone; do not take it if the two differ",
        )
    if not told and not typer.confirm(f"{whose} has fingerprint {seen}. Did the site tell you the same?"):
        raise UsageError(f"{whose} was not taken in", do="Ask the site by telephone")


def _show_plan(planned: Any, *, erase_versions: bool) -> None:
    versions = ", ".join(map(str, planned.versions)) or "none"
    if not planned.refit_round or not planned.versions:
        after = "no version held the site" if not planned.versions else "none"
    elif planned.refits:
        after = f"round {planned.refit_round} is fitted with {planned.remaining} sites and published"
    else:
        after = f"none: {planned.remaining} sites remain, the study needs {planned.needed}"
    rows = [
        ["its keys", "are revoked; nothing of it is taken in any more"],
        ["rounds that get a new key", ", ".join(planned.rounds) or "none"],
        ["sums that are erased", ", ".join(planned.sums) or "none"],
        ["files and folders that are erased", f"{len(planned.files)}, {planned.bytes:,} bytes"],
        ["versions that are " + ("erased" if erase_versions else "marked as withdrawn"), versions],
        ["new version", after],
    ]
    table(f"If {planned.site} leaves", ["what", "then"], rows)
    if planned.versions and not erase_versions:
        out.print("The files of the withdrawn versions stay, marked; --erase-versions erases them.")
    out.print(
        "Copies that sites and analysts hold of these versions cannot be called back: ask for their deletion."
    )


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M} UTC"
    return f"{value:,}" if isinstance(value, int) and value > 999 else str(value or "none")
