"""The SuperLink's control API, as the coordinator uses it.

Apart from `coordinator.flower.services`, because a process that only keeps the services running needs no Flower: it
takes 40 MB.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import RunStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from protocol.errors import FederationError, KeyFileError


@dataclass(frozen=True)
class Control:
    """What is asked of a SuperLink; from `control`."""

    client: ControlHttpClient

    def register(self, key: bytes, site: str) -> int:
        """Let a node in; its id."""
        return self.client.RegisterNode(RegisterNodeRequest(public_key=key, name=site)).node_id

    def unregister(self, node_id: int) -> None:
        """Shut a node out for ever."""
        self.client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeInfo]:
        """All nodes that were ever let in."""
        return list(self.client.ListNodes(ListNodesRequest()).nodes_info)

    def start(self, bundle: bytes, config: dict[str, str | int | float]) -> int | None:
        """Start a run of a bundle; its id, or None if Flower gave none."""
        fab = fab_to_proto(Fab(hashlib.sha256(bundle).hexdigest(), bundle, {}))
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto({**config}))
        response = self.client.StartRun(request)
        return response.run_id if response.HasField("run_id") else None

    def stop(self, run_id: int) -> None:
        """End a run."""
        self.client.StopRun(StopRunRequest(run_id=run_id))

    def status(self, run_id: int) -> RunStatus:
        """How far a run is."""
        status: RunStatus = self.client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return status


@contextmanager
def control(port: int, ca: Path, what: str) -> Iterator[Control]:
    """A connection to the SuperLink on this machine, for as long as the `with` lasts.

    Args:
        port: of the loopback interface.
        ca: PEM of the authority of its certificate.
        what: is done with it, for the error: "start a run".

    Raises:
        FederationError: the SuperLink does not answer, or refuses.
    """
    client = _LoopbackControl(
        f"https://127.0.0.1:{port}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        verify=ssl.create_default_context(cafile=ca),
    )
    try:
        yield Control(client)
    except httpx.HTTPStatusError as error:
        known = FlowerError.from_json(error.response.text)
        why = f"[{known.code}] {known.message}" if known else f"HTTP {error.response.status_code}"
        raise FederationError(f"Flower would not {what}", why=why) from None
    except httpx.TransportError as error:
        raise FederationError(
            f"The coordinator's services could not {what}",
            why=str(error),
            do="Is coordinator serve running?",
        ) from None
    finally:
        client.close()


class _LoopbackControl(ControlHttpClient):
    """The control client without the environment's HTTP proxy: its only address is on this machine."""

    def __init__(self, base_url: str, *, verify: ssl.SSLContext, **options: Any) -> None:
        super().__init__(base_url, verify=verify, **options)
        self._client.close()
        self._client = httpx.Client(verify=verify, timeout=30, trust_env=False)


def load_public_key(path: Path) -> bytes:
    """A node's public key, as Flower takes it.

    Raises:
        KeyFileError: the file holds no EC P-384 key in OpenSSH form.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"The node key {path} cannot be read", why=str(error)) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise KeyFileError(f"The node key {path} is no EC P-384 key", do="Make one with site-agent init")
    return public_key_to_bytes(key)
