"""`site-agent sums` and `site-agent roster`: a person looks, compares and says yes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from protocol.console import out, print_json, progress, table
from protocol.errors import FederationError, UsageError
from protocol.sums import KINDS
from site_agent.budget import BudgetLedger
from site_agent.cli_options import (
    HERE,
    HomeOption,
    JsonOption,
    MemoryOption,
    PassphraseFileOption,
    ThreadsOption,
    passphrase,
)
from site_agent.cli_questions import show_question
from site_agent.config import Home
from site_agent.ledger import Ledger
from site_agent.resources import resources
from site_agent.signers import standing
from site_agent.sums import roster
from site_agent.sums.approval import approve_sum, approved_by, preview_sum, revoke_sum
from site_agent.sums.folder import SumFolder, SumPreview

sums_app = typer.Typer(
    no_args_is_help=True, help="Sums of counts of which the coordinator learns the total only."
)
roster_app = typer.Typer(no_args_is_help=True, help="The keys of the other sites, which people compare once.")

NameArgument = Annotated[str, typer.Argument(help="The sum's name.")]


# --- Roster --------------------------------------------------------------------------------------------


@roster_app.command("show", epilog="Example: site-agent roster show --home north")
def roster_show(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show the coordinator's list of sites and keys, and in what it differs from the trusted one."""
    site = Home(home)
    offered, pinned = roster.offered(site), roster.trusted(site)
    differences = roster.differences(site, offered)
    if json:
        print_json(
            {
                "fingerprint": offered.fingerprint,
                "trusted": pinned is not None and pinned.digest == offered.digest,
                "sites": {s: k.fingerprint for s, k in sorted(offered.keys.items())},
                "differences": differences,
            }
        )
        return
    table(
        "Sites and keys as the coordinator says",
        ["site", "fingerprint"],
        [[s, k.fingerprint] for s, k in sorted(offered.keys.items())],
    )
    out.print(f"The whole list: [bold]{offered.fingerprint}[/]")
    if not differences:
        out.print("It is the list that was trusted here.")
        return
    for line in differences:
        out.print(f"differs: {line}", markup=False)
    out.print(
        "[bold]Do not take the coordinator's word for it[/]: read all forty digits to people at the other sites,"
    )
    out.print("by telephone numbers that you know yourself. If every one of them sees the same digits:")
    out.print(f'site-agent roster trust "{offered.fingerprint}" --home {home}', markup=False)


@roster_app.command("trust", epilog='Example: site-agent roster trust "3f9a ... 77c1" --home north')
def roster_trust(
    fingerprint: Annotated[
        str, typer.Argument(help="The forty digits that people at the other sites read out.")
    ],
    home: HomeOption = HERE,
    json: JsonOption = False,
) -> None:
    """Pin the coordinator's list of sites and keys, after people compared it; sums are only with these keys."""
    site = Home(home)
    offered = roster.offered(site)
    roster.trust(site, offered, fingerprint)
    if json:
        print_json({"fingerprint": offered.fingerprint, "sites": sorted(offered.keys)})
    else:
        out.print(f"Trusted: {', '.join(sorted(offered.keys))}.")


# --- Sums ----------------------------------------------------------------------------------------------


@sums_app.command("list", epilog="Example: site-agent sums list --home north")
def sums_list(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show the sums that the coordinator proposed, and what each waits for."""
    site = Home(home)
    found = [_facts(site, name) for name in SumFolder(site.folder / "sums").names()]
    if json:
        print_json(found)
    else:
        table(
            "Sums",
            ["sum", "statistic", "codes", "state", "approved by"],
            [[f["sum"], f["statistic"], f["codes"], f["state"], ", ".join(f["approved_by"])] for f in found],
        )


@sums_app.command("preview", epilog="Example: site-agent sums preview margins-1 --home north")
def sums_preview(
    name: NameArgument,
    home: HomeOption = HERE,
    memory: MemoryOption = "",
    threads: ThreadsOption = 0,
    json: JsonOption = False,
) -> None:
    """Count what a sum asks for and show what would go into it; nothing leaves."""
    site = Home(home)
    with progress("sum", quiet=json) as step:
        preview = preview_sum(
            site,
            name,
            machine=resources(site.config.machine, memory=memory, threads=threads),
            progress=step,
        )
    if json:
        print_json({"digest": preview.digest} | preview.model_dump(mode="json"))
        return
    _show(site, name, preview)
    out.print(
        f"\nNothing has left. To approve: site-agent sums approve {name} --digest {preview.digest[:16]} --home {home}"
    )


@sums_app.command(
    "approve", epilog="Example: site-agent sums approve margins-1 --digest 3f9a77c1d2e4b5a6 --home north"
)
def sums_approve(
    name: NameArgument,
    home: HomeOption = HERE,
    digest: Annotated[
        str, typer.Option(help="The digest that sums preview printed, at least 16 digits.")
    ] = "",
    by: Annotated[str, typer.Option(help="Who signs; may be left out if there is one signer.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needs --digest.")] = False,
    passphrase_file: PassphraseFileOption = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take the approval back instead.")] = False,
    json: JsonOption = False,
) -> None:
    """Sign what sums preview showed with a signer's key; the agent answers the sum's steps from then on."""
    site = Home(home)
    signer = by or _only_signer(site)
    if revoke:
        revoke_sum(site, name, signer)
        if json:
            print_json({"revoked": signer, "sum": name})
        else:
            out.print(
                f"The approval by {signer} is taken back; a vector that was masked before may be in the sum."
            )
        return
    preview = SumFolder(site.folder / "sums").preview(name)
    if preview is None:
        raise UsageError(
            f"Nothing is counted for sum {name!r}", do=f"Run site-agent sums preview {name} first"
        )
    if yes and not digest:
        raise UsageError("--yes needs --digest", why="a yes is to one sum of one vector, by name")
    given = passphrase(passphrase_file, f"Passphrase of {signer}")
    if not yes:
        _show(site, name, preview)
        if not typer.confirm(f"May this enter the sum? {signer} signs {preview.digest[:16]}"):
            raise FederationError(
                "Not approved", do="Nothing will leave; run sums preview again when you are ready"
            )
    have = approve_sum(site, name, digest or preview.digest, signer, given)
    needed = site.config.approval.signers
    if json:
        print_json({"digest": preview.digest, "approved_by": have, "needed": needed})
        return
    out.print(f"Approved by {', '.join(have)}: {preview.digest}.")
    if len(have) < needed:
        out.print(f"{needed - len(have)} more must approve it.")
    else:
        out.print("The agent answers when the coordinator runs the sum.")


def _facts(site: Home, name: str) -> dict[str, Any]:
    folder = SumFolder(site.folder / "sums")
    proposal, preview = folder.proposal(name), folder.preview(name)
    counted = preview is not None and preview.proposal == proposal.digest
    have = (
        approved_by(Ledger(site.folder / "ledger.jsonl").verify(), preview.digest)
        if preview and counted
        else ()
    )
    if folder.pooled(name) is not None:
        state = "finished"
    elif not counted:
        state = "to be counted"
    else:
        state = "approved" if len(have) >= site.config.approval.signers else "to be approved"
    return {
        "sum": name,
        "statistic": proposal.statistic,
        "codes": len(proposal.vocabulary),
        "state": state,
        "approved_by": have,
    }


@sums_app.command("budget", epilog="Example: site-agent sums budget --home north")
def sums_budget(home: HomeOption = HERE, json: JsonOption = False) -> None:
    """Show what differentially private sums have cost this site's patients, and what is left."""
    site = Home(home)
    rule, budget = site.study.differential_privacy, BudgetLedger(site.folder / "budget.jsonl")
    entries = Ledger(budget.path).verify()
    spent = budget.spent(rule.delta)
    if json:
        charges = [{"time": e.time, **e.facts} for e in entries]
        facts = {"enabled": rule.enabled, "epsilon": rule.epsilon, "delta": rule.delta, "spent": spent}
        print_json(facts | {"charges": charges})
        return
    if not rule.enabled:
        out.print("The study adds no noise to sums: nothing here is differentially private.")
    rows = [
        [
            e.time,
            e.facts["statistic"],
            str(e.facts["session"])[:16],
            f"{float(e.facts['noise_multiplier']):.3f}",
        ]
        for e in entries
    ]
    table("Charges", ["time", "statistic", "sum's list of sites", "noise multiplier"], rows)
    out.print(f"Spent: epsilon {spent:.3f} of {rule.epsilon:g} at delta {rule.delta:g}")


def _show(site: Home, name: str, preview: SumPreview) -> None:
    if preview.answer is not None:
        show_question(site, name, preview)
        return
    proposal = SumFolder(site.folder / "sums").proposal(name)
    kind = KINDS[proposal.statistic]
    if preview.policy is None:
        floors = "enter as they are (the study says so)"
    elif kind.pair_floor:
        floors = (
            f"enter as zero: codes below {preview.policy.min_code_patients} patients, "
            f"pairs below {preview.policy.min_pair_patients}"
        )
    else:
        floors = f"codes below {preview.policy.min_code_patients} patients enter as zero; all pairs of the others count"
    facts: list[list[Any]] = [
        ["sum, statistic", f"{name}: {kind.what}"],
        [
            "who learns what",
            "the coordinator: the total of all sites; all sites but this one together: this one's",
        ],
        ["what the total reveals", kind.reveals or "itself only"],
        ["sites", f"{', '.join(sorted(proposal.roster.keys))}; at least {preview.minimum} of them"],
        ["codes of the vocabulary", f"{preview.codes:,}"],
        ["cells, of which not zero here", f"{preview.subject.cells:,}, {preview.nonzero:,}"],
        ["largest cell", f"{preview.largest:,}"],
        ["small counts", floors],
        ["codes, pairs set to zero for it", f"{preview.withheld_codes:,}, {preview.withheld_pairs:,}"],
        ["codes of this site outside the vocabulary", f"{preview.other_codes:,}, in no sum"],
        ["noise", "added before masking" if preview.noise else "none: no differential privacy is claimed"],
        ["vocabulary digest", preview.vocabulary_digest],
        ["data digest", preview.data],
        ["digest to approve", preview.digest],
    ]
    table("What would enter the sum", ["fact", "value"], facts)


def _only_signer(site: Home) -> str:
    signers = standing(Ledger(site.folder / "ledger.jsonl").verify()).signers
    if len(signers) == 1:
        return next(iter(signers))
    if not signers:
        raise UsageError("Nobody may approve a sum yet", do="Run site-agent signer add first")
    raise UsageError("--by is missing", why=f"the signers are {', '.join(sorted(signers))}")
