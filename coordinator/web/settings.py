"""How the web service listens, and whom it lets in."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Role = Literal["monitor", "analyst", "reviewer", "coordinator"]
ROLES: tuple[Role, ...] = ("monitor", "analyst", "reviewer", "coordinator")
"""From `analyst` on, each may do what those before it may; a `monitor` is a program that reads /metrics and nothing else."""


class WebSettings(BaseModel):
    """The table `[web]` of `coordinator.toml`: the service that readers and reviewers use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1", description="Interface on which the web service listens.")
    port: int = Field(8480, ge=0, le=65535, description="Its port; 0 takes a free one.")
    certificate: str = Field(
        "", description="PEM file of the TLS certificate chain, from the home folder. Empty: no TLS."
    )
    key: str = Field("", description="PEM file of its private key.")
    hosts: tuple[str, ...] = Field(
        (),
        description="Names under which readers reach the service, such as map.example.org; another name is refused. "
        "This machine's loopback names and `listen` always count.",
    )
    anonymous: Literal["", "analyst"] = Field(
        "", description="What somebody may do who has not signed in. Empty: nothing."
    )
    identity_header: str = Field(
        "",
        pattern=r"^$|^[A-Za-z][A-Za-z0-9-]{0,63}$",
        description="Header in which a proxy that signs people in names them. Empty: none is believed.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses, or networks as 10.0.0.0/24, of the proxies that are believed."
    )
    role_of: dict[str, Role] = Field(
        {},
        description='Name in that header -> role; `"*"` stands for everybody else. Who has none is refused.',
    )
    session_hours: float = Field(
        12.0, gt=0, le=168, description="Hours after which a browser has to sign in again."
    )
    requests_per_second: float = Field(
        30.0, gt=0, le=100_000, description="Requests that a person may send on average."
    )
    burst: int = Field(150, ge=1, le=1_000_000, description="Requests that a person may send at once.")
    logins_per_minute: float = Field(
        6.0, gt=0, le=10_000, description="Attempts to sign in from one address, and wrong tokens from it."
    )
    body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="Size of a request's body at most.")
    request_seconds: float = Field(
        30.0, gt=0, le=3600, description="Seconds in which a request has to arrive, and to be answered."
    )
    vocabulary: str = Field(
        "",
        description="Folder of the OMOP vocabularies from Athena, from the home folder; the formats stcm, crm and usagi need it.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network)
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together")
        if self.identity_header and not self.trusted_proxies:
            raise ValueError("identity_header needs trusted_proxies: anybody could send the header")
        if self.identity_header.lower() in {"authorization", "cookie", "host"}:
            raise ValueError("identity_header has a meaning of its own; take one such as X-Forwarded-User")
        return self
