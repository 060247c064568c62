"""The next release held against all that may have left before: by what rules, and of how many changed patients."""

from __future__ import annotations

import json
from collections.abc import Sequence

from site_agent.changes import Fingerprints, changed_patients
from site_agent.config import Home
from site_agent.gate import Difference, KeptCounts, foreign_systems, refuse, too_little, too_similar
from site_agent.released import Remembered, Rules


def counting_rules(home: Home) -> Rules:
    """What decides how events become counts: the study's rule, and how the site's configuration reads codes.

    Where the data lie, and what a roll-up file or a vocabulary holds, is no part of it: those change from month to month.
    """
    data = home.config.data.model_dump(
        mode="json", include={"kind", "system", "systems", "domains", "columns", "rollup"}
    )
    data["rollup"]["file"] = bool(data["rollup"]["file"])
    rules = {f"counting.{k}": str(v) for k, v in home.study.counting.model_dump(mode="json").items()}
    return rules | {f"data.{k}": json.dumps(v, sort_keys=True) for k, v in data.items()}


def differences_from(earlier: Sequence[Remembered], patients: Fingerprints, rules: Rules) -> list[Difference]:
    """How the data differ from those of every release that may have left, oldest first.

    Not only from those of the last one: data that go back to an earlier state could be subtracted from that.
    """
    found = []
    for release in earlier:
        before, then = release.fingerprints(), release.rules()
        other = tuple(
            f"{k}: {then.get(k, 'none')} then, {rules.get(k, 'none')} now"
            for k in sorted(then.keys() | rules.keys())
            if then.get(k) != rules.get(k)
        )
        # Other rules give every patient other codes; the days stay what they were.
        pair = (before.days, patients.days) if other else (before.whole, patients.whole)
        found.append(Difference(release.number, changed_patients(*pair), other))
    return found


def check_before_embedding(
    home: Home, kept: KeptCounts, codes: tuple[str, ...], differences: Sequence[Difference], forgotten: str
) -> None:
    """Return only if the gate has nothing against a release that is known before it is embedded.

    Args:
        home: the site.
        kept: its counts after suppression.
        codes: CURIEs of the rows of the counts.
        differences: from every release that may have left.
        forgotten: digest of the release that the coordinator has accepted, if this site does not remember it.

    Raises:
        GateError: with every reason.
    """
    study, policy = home.study, home.policy()
    little, near = too_little(kept, policy, study), too_similar(differences, policy)
    foreign = foreign_systems(kept, codes, study, home.config.site)
    lost = []
    if forgotten:
        lost.append(
            f"the coordinator has release {forgotten[:16]}, and this site has no record of what that was made of: a new "
            "one could be subtracted from it"
        )
    steps = {
        "Bring more patients or a longer period; the floors cannot be lowered here": little,
        "Prepare the next release when more patients' events have changed; the last one stays valid": near,
        "Correct data.system or data.systems in site.toml, or the study": foreign,
        f"Restore {home.folder / 'released'} from a backup, or have a signer decide: site-agent lost-memory": lost,
    }
    refuse([*little, *near, *foreign, *lost], ". ".join(do for do, reasons in steps.items() if reasons))
