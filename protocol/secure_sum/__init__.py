"""Secure sum: the coordinator learns the sum of the sites' integer vectors, and no site's own.

Double masking of Bonawitz et al. 2017 (Practical secure aggregation for
privacy-preserving machine learning, CCS, section 4), over integers modulo 2^64. Pure
functions and frozen messages; who sends what when is the caller's:

====================  ==================================================  ======================
step                  a site                                              the coordinator
====================  ==================================================  ======================
participants          `join`: checks and signs the list of all sites      sends all signatures
advertise             `advertise`: two ephemeral X25519 keys              sends all keys
share                 `deal_shares`: seed and mask key, Shamir-shared     sends all shares
masked vector         `mask`: x + self-mask + pairwise masks              `received_list`
received list         `sign_received`: one list, for good                 sends all signatures
unmask                `reveal`: one share a site, by that list            `aggregate`
====================  ==================================================  ======================

A site may drop out after any step. As long as `threshold` sites, and no fewer than the
floor of three, go on, the sum is exactly that of the sites on the received list.

What is promised, for sites and a coordinator that follow the protocol (semi-honest): the
coordinator and any coalition of c sites learn the sum of the received list, and what follows
from it and their own vectors; nothing else, while c < 2t - n for n sites and threshold t
(any c for n = 3). **The coordinator together with all sites but one always learns the last
site's vector**: it is the sum less what they know. No protocol for sums can prevent that.

A malicious coordinator *can*: stop the sum, leave out up to n - t sites of its choice,
publish a false total, and keep what it saw. It *cannot*, within that bound on c: add a site or
swap a key (every site checks the signed list against its own enrolled keys, and signs its
ephemeral keys); show sites different keys, shares or lists and go unnoticed (each step binds
a digest of the step before, and nothing is revealed unless t sites signed one list); get both
the seed and the mask key of a site (a site reveals one, under the one list that it signed);
replay an earlier sum (every message names the digest of its list, which a site joins once);
or subtract sums over the same data to single out one or two sites (`SumLedger`).

A malicious site can add any vector it likes, or make a sum fail: wrong shares are traced to who
sent them, wrong vectors are not, since nobody sees them. Sums are not differentially private.
"""

from protocol.secure_sum.aggregate import SecureSum, Transcript, aggregate, received_list
from protocol.secure_sum.fixed import from_fixed, largest_value, to_fixed
from protocol.secure_sum.ledger import SumEntry, SumLedger, singled_out
from protocol.secure_sum.messages import (
    MIN_SITES,
    Consent,
    KeyAdvert,
    MaskedVector,
    Participant,
    ParticipantList,
    ReceivedList,
    ReceivedSignature,
    Shares,
    SumSubject,
    Unmasking,
    check_consents,
    commit,
    threshold,
)
from protocol.secure_sum.site import advertise, deal_shares, join, mask, reveal, sign_received
from protocol.secure_sum.state import Secrets, SiteSum

__all__ = [
    "MIN_SITES",
    "Consent",
    "KeyAdvert",
    "MaskedVector",
    "Participant",
    "ParticipantList",
    "ReceivedList",
    "ReceivedSignature",
    "Secrets",
    "SecureSum",
    "Shares",
    "SiteSum",
    "SumEntry",
    "SumLedger",
    "SumSubject",
    "Transcript",
    "Unmasking",
    "advertise",
    "aggregate",
    "check_consents",
    "commit",
    "deal_shares",
    "from_fixed",
    "join",
    "largest_value",
    "mask",
    "received_list",
    "reveal",
    "sign_received",
    "singled_out",
    "threshold",
    "to_fixed",
]
