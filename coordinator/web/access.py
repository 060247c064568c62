"""Who asks, and what they may do: tokens, sessions of browsers, a proxy's header, and roles.

Endpoints and pages use four things of here:

- `require("reviewer")`: a dependency that gives the `Person`, or refuses;
- `current_person(request)`: the `Person`, or None for somebody who has not signed in and may not read;
- `csrf_token(request)`: what every form of a page carries in a hidden field named `csrf`, and every request of a script in the
  header `X-CSRF-Token`. It is checked for all routes of the application wherever a cookie or a proxy signed the person in;
- `POST /login` (form: `token`, `next`) and `POST /logout`: begin and end the session of a browser; `next` is a path of this
  service. `GET /login` is the page's; it is asked for with `?next=PATH`, or `?failed=1` after a wrong token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import RedirectResponse

from coordinator.tables import utc_now
from coordinator.web.limits import Buckets
from coordinator.web.problems import ServiceError
from coordinator.web.sessions import Sessions
from coordinator.web.settings import ROLES, Role
from coordinator.web.tokens import KnownTokens

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = (
    "/login",
    "/logout",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/static/",
    "/favicon.ico",
    "/fhir/metadata",
)
"""What somebody may ask for without signing in; those that end with / with all below them."""


@dataclass(frozen=True)
class Person:
    """Somebody who uses the service.

    Attributes:
        name: as their token or the proxy names them; "anonymous" for readers who need not sign in.
        role: what they may do.
    """

    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether this person's role is `role` or a higher one."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class Access:
    """What a request says of who sent it.

    Attributes:
        person: None for nobody.
        how: what named the person.
        address: of the sender, behind proxies that are trusted.
        https: whether it came encrypted to this service or to a trusted proxy.
        secret: what the person's CSRF token is made from; "" where none is needed.
    """

    person: Person | None
    how: Literal["token", "cookie", "proxy", "anonymous", ""]
    address: str
    https: bool
    secret: str = ""


def access_of(request: Request) -> Access:
    """What the request says of who sent it."""
    found: Access = request.state.access
    return found


def current_person(request: Request) -> Person | None:
    """Who asks; None if nobody signed in, and reading needs it."""
    return access_of(request).person


def require(role: Role) -> Callable[[Request], Awaitable[Person]]:
    """A dependency that gives the person who asks, if they may do what `role` may.

    Its error is 401 for somebody who has not signed in, 403 for somebody with a lower role.
    """

    # async: FastAPI would send a plain function to another thread and wait for it.
    async def person(request: Request) -> Person:
        found = current_person(request)
        if found is None:
            raise not_signed_in()
        if not found.may(role):
            raise ServiceError(
                403,
                f"This needs the role {role}",
                why=f"{found.name} has the role {found.role}",
                do="Ask the coordinator for a token with that role",
            )
        return found

    return person


def not_signed_in(why: str = "") -> ServiceError:
    """401."""
    return ServiceError(
        401,
        "You have not signed in",
        why=why,
        do="Send the header Authorization: Bearer TOKEN, or sign in at /login; the coordinator gives tokens",
        headers={"WWW-Authenticate": 'Bearer realm="smile"'},
    )


def csrf_token(request: Request) -> str:
    """What a form of a page sends back as `csrf`: proof that a page of this service made it."""
    sessions: Sessions = request.app.state.sessions
    return sessions.csrf(access_of(request).secret)


async def guard(request: Request) -> None:
    """Refuse strangers, and requests that a page of another site made in a browser; every route of the application has it."""
    access = access_of(request)
    if request.method not in SAFE:
        _same_origin(request)
        if access.how in {"cookie", "proxy"} and request.url.path != "/login":
            await _check_csrf(request)
    if access.person is None and not _is_open(request.url.path):
        raise not_signed_in()
    if access.person is not None and access.person.role == "monitor":
        _only_watches(request.url.path)


def _only_watches(path: str) -> None:
    # Here, for all routes that there are and will be: most ask for nothing but somebody who has signed in.
    if path != "/metrics" and not _is_open(path):
        raise ServiceError(
            403,
            "A monitor reads /metrics and nothing else",
            do="Ask the coordinator for a token with the role analyst",
        )


def _is_open(path: str) -> bool:
    return any(path == p or (p.endswith("/") and path.startswith(p)) for p in OPEN_PATHS)


def _same_origin(request: Request) -> None:
    """A browser says where a request comes from; other programs say nothing, and need a token."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    host = request.headers.get("host", "")
    foreign = site is not None and site not in {"same-origin", "none"}
    if foreign or (origin is not None and origin.partition("://")[2] != host):
        raise ServiceError(
            403, "This request was made by another site's page", do="Use the page or the API of this service"
        )


async def _check_csrf(request: Request) -> None:
    given = request.headers.get("x-csrf-token", "")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not given and kind in {"application/x-www-form-urlencoded", "multipart/form-data"}:
        value = (await request.form()).get("csrf", "")
        given = value if isinstance(value, str) else ""
    sessions: Sessions = request.app.state.sessions
    if not sessions.csrf_holds(given, access_of(request).secret):
        raise ServiceError(
            403,
            "The form does not carry this session's proof",
            why="it is older than the session, or another site's page made it",
            do="Load the page again",
        )


# --- Signing in ----------------------------------------------------------------------------------------

router = APIRouter()


@router.post("/login", include_in_schema=False)
def login(
    request: Request,
    token: Annotated[str, Form(max_length=200)],
    next: Annotated[str, Form(max_length=2000)] = "/",  # noqa: A002 - the field's name
) -> RedirectResponse:
    """Begin a session: the browser gets a cookie that is good for this token while the token holds."""
    access, state = access_of(request), request.app.state
    logins: Buckets = state.logins
    if wait := logins.take(access.address):
        raise too_many(wait, "attempts to sign in from this address")
    known: KnownTokens = state.tokens.now()
    found = known.of(token.strip(), utc_now())
    target = local_path(next)
    if found is None:
        # The page says so; the token is in no address, and so in no log.
        return RedirectResponse("/login?failed=1", status_code=303)
    response = RedirectResponse(target, status_code=303)
    sessions: Sessions = state.sessions
    sessions.begin(response, found, https=access.https)
    return response


@router.post("/logout", include_in_schema=False)
def logout(request: Request) -> RedirectResponse:
    """End the session of this browser."""
    response = RedirectResponse("/login", status_code=303)
    sessions: Sessions = request.app.state.sessions
    sessions.end(response)
    return response


def local_path(target: str) -> str:
    """A path of this service, or / in place of anything else."""
    # Browsers read a backslash as a slash, so //other.example hides behind /\other.example too.
    plain = target.startswith("/") and not target.startswith(("//", "/\\"))
    return target if plain and target.isprintable() and target.isascii() else "/"


def too_many(wait: int, what: str) -> ServiceError:
    """429."""
    return ServiceError(
        429,
        f"Too many {what}",
        do=f"Try again in {wait} s",
        headers={"Retry-After": str(wait)},
    )


PersonDependency = Annotated[Person, Depends(require("analyst"))]
ReviewerDependency = Annotated[Person, Depends(require("reviewer"))]
CoordinatorDependency = Annotated[Person, Depends(require("coordinator"))]
