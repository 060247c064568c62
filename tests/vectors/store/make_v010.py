"""Fill an empty database with rows in every table, by the code of v0.1.0.

Run with that tag's checkout in front of the path, then dump the database::

    git worktree add /tmp/v010 v0.1.0
    PYTHONPATH=/tmp/v010 python tests/vectors/store/make_v010.py sqlite:////tmp/v010.db
    sqlite3 /tmp/v010.db .dump > tests/vectors/store/v0.1.0.sql
    PYTHONPATH=/tmp/v010 python tests/vectors/store/make_v010.py postgresql+psycopg://user@host/empty
    pg_dump --inserts --no-owner --no-privileges ... > tests/vectors/store/v0.1.0.postgresql.sql
"""

import sys
from datetime import datetime, timedelta

from coordinator.store import Delivery, Published, Round, Site, SiteKey, Store, Submission, Withdrawal
from coordinator.tables import AccessToken, ReviewHead, ReviewRecord

store = Store(sys.argv[1])
start = datetime(2026, 7, 1, 12, 30, 15, 123456)
sites = ("lake", "north", "south", "west")
with store.begin() as session:
    for number, name in enumerate(sites):
        at = start + timedelta(days=number)
        left = start + timedelta(days=90) if name == "west" else None
        session.add(
            Site(
                name=name,
                keys=f'{{"suite":"mlkem768-x25519","signing":"{name}","sealing":"é{number}"}}',
                node_key=f"ecdsa-sha2-nistp384 AAAA{name}",
                contact=f"Jürgen O'Neil <it@{name}.example>",
                enrolled=at,
                accepted_sequence=2 - (name == "west"),
                accepted_digest=f"{number}" * 64,
                result_digest="r" * 64,
                known_keys="" if number else '{"party":"lake","first":"0"}',
                withdrawn=left,
            )
        )
        session.flush()
        session.add(
            SiteKey(digest=f"{number}" * 64, site=name, keys="{}", since=at, until=left, revoked=left)
        )
    states = ("delivered", "published", "fitted", "closed", "open")
    for number, state in enumerate(states):
        opened = start + timedelta(days=30 * number)
        call = bytes(range(256)) if number == 0 else b'{"round":"' + state.encode() + b'"}'
        session.add(
            Round(
                name=f"r{number}", state=state, call=call, opened=opened, expires=opened + timedelta(days=30)
            )
        )
    session.flush()
    for number in range(3):
        for name in sites:
            state = (
                "withdrawn" if name == "west" else "refused" if (name, number) == ("south", 2) else "accepted"
            )
            session.add(
                Submission(
                    round=f"r{number}",
                    site=name,
                    state=state,
                    detail="It's stale; “quoted”" if state == "refused" else "",
                    sequence=number + 1,
                    manifest_digest="a" * 64,
                    envelope_digest="b" * 64,
                    ledger_head="c" * 64,
                    signer="0" * 64,
                    received=start + timedelta(days=30 * number, seconds=1),
                )
            )
    for number in (0, 1):
        left = start + timedelta(days=90) if number == 0 else None
        session.add(
            Published(
                version=number + 1,
                round=f"r{number}",
                manifest_digest="d" * 64,
                fitted_with=" ".join(sites),
                created=start,
                withdrawn=left,
                erased=number == 0,
            )
        )
    session.flush()
    for name in sites[:3]:
        session.add(Delivery(version=1, site=name, receipt=f'{{"site":"{name}"}}', received=start))
    for number in (1, 2, 3):
        session.add(ReviewRecord(number=number, signed=b'{"number":%d}\x00\xff' % number))
    session.add(ReviewHead(id=1, number=3, digest="e" * 64))
    session.add(AccessToken(name="ada@north", role="reviewer", digest="f" * 64, created=start, expires=None))
    session.add(
        AccessToken(name="bob", role="analyst", digest="9" * 64, created=start, expires=start, revoked=start)
    )
    session.add(
        Withdrawal(
            site="west",
            reason="the ethics board ended its consent",
            at=start + timedelta(days=90),
            node_key="ecdsa-sha2-nistp384 AAAAwest",
            node_denied=True,
            erase_versions=True,
            affected_rounds="r0 r1",
            affected_sums="m1",
            affected_versions="1",
            affected_fits="r0",
            reviewed='{"r0":{"north":"looked at"}}',
            refit_round="r1",
            step="published",
            erased_bytes=2_000_000_000,
            new_version=2,
            outcome="",
        )
    )
