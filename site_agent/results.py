"""A published release on its way in: verified, opened and unpacked."""

from __future__ import annotations

import shutil
from pathlib import Path

from protocol.bundle import unpack_bundle
from protocol.envelope import read_header, read_sealed
from protocol.errors import EnvelopeError
from protocol.messages import PublishedManifest
from site_agent.config import Home
from site_agent.keys import coordinator_keys, opening_keys
from site_agent.state import load_state, save_state


def open_result(home: Home, path: Path) -> PublishedManifest:
    """Unpack one result into `results/vN`; the state changes last.

    Args:
        home: of the site.
        path: the sealed file.

    Raises:
        EnvelopeError: altered, sealed or addressed to someone else, or older than what has arrived.
        ProtocolError: its content is not what its manifest says.
    """
    trust, state, head = coordinator_keys(home), load_state(home.folder), read_header(path)
    # The header that was verified with the bytes that were opened: the file lies where Flower writes.
    header, plain = read_sealed(
        path, keys=opening_keys(home, head.recipient_key), signer=trust.key(head.signer_key)
    )
    expected = ("result", home.study.id, home.study.digest, home.config.site)
    if (header.kind, header.consortium, header.study_digest, header.site) != expected:
        raise EnvelopeError("The result is for another study or site than ours")
    if header.sequence < state.result_version or (
        header.sequence == state.result_version and header.content != state.result_digest
    ):
        raise EnvelopeError(
            f"The result has version {header.sequence}, but {state.result_version} has arrived before",
            why="it is stale, or was replayed",
        )
    target = home.folder / "results" / f"v{header.sequence}"
    manifest = unpack_bundle(plain, target, trust=trust, content=header.content)
    if manifest.version != header.sequence:
        shutil.rmtree(target)
        raise EnvelopeError(
            f"The result was sealed as version {header.sequence}, and says that it is another"
        )
    update = {"result_version": manifest.version, "result_digest": manifest.digest}
    save_state(home.folder, state.model_copy(update=update))
    return manifest
