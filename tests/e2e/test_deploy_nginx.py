"""nginx as deploy/nginx configures it, in front of the running services: a real node passes, all else stays shut."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("flwr")

from coordinator.certificates import make_ca_and_server
from coordinator.config import Home
from coordinator.flower.bundle import bundle_digest
from coordinator.flower.services import Services
from coordinator.store import Store
from coordinator.web.serving import WebService
from coordinator.web.settings import WebSettings
from coordinator.web.tokens import Tokens
from protocol.processes import free_port
from site_agent.flower.node import Node, NodeConfig, new_node_key
from tests.systemd_unit import DEPLOY
from tests.web import small_home

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (apt-get install nginx-light)"),
]

STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
PATIENCE = 120.0


def until(what: str, condition: Callable[[], bool], log: Callable[[], str] = str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen; {log()}"
        time.sleep(0.1)


def configured(name: str, places: Mapping[str, str]) -> str:
    """A file of deploy/nginx with the addresses and paths of this test; each must stand in it."""
    text = (DEPLOY / "nginx" / name).read_text()
    for place, here in places.items():
        assert place in text, place
        text = text.replace(place, here)
    return text


@contextmanager
def nginx(folder: Path, text: str, *, ports: tuple[int, ...]) -> Iterator[Path]:
    """A running nginx; what it reads of `text` is as the file in deploy, inside Debian's frame around it."""
    folder.mkdir()
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temp = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    if "\nstream {" in text:
        frame = f"load_module {STREAM};\nevents {{}}\n{text}"
    else:
        frame = f"events {{}}\nhttp {{\n{temp}access_log {folder}/access.log;\n{text}}}\n"
    own = f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nworker_processes 1;\n"
    (folder / "nginx.conf").write_text(own + frame)
    argv = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    checked = subprocess.run([*argv, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(argv)
    try:
        until(
            "nginx",
            lambda: process.poll() is None and all(_listens(p) for p in ports),
            (folder / "error.log").read_text,
        )
        yield folder
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- What sites dial -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    found = Services(tmp_path_factory.mktemp("hub") / "flower", hosts=["localhost"])
    found.start()
    yield found
    found.stop()


@pytest.mark.parametrize("name", ["fleet-stream.conf", "fleet.conf"])
def test_a_node_connects_through_nginx_and_nothing_else_does(
    name: str, services: Services, tmp_path: Path
) -> None:
    if "stream" in name and not STREAM.exists():
        pytest.skip("needs libnginx-mod-stream")
    port, behind = free_port(), services.fleet_port
    places = {"192.0.2.10:9443": f"127.0.0.1:{port}", "127.0.0.1:9443": f"127.0.0.1:{behind}"}
    if name == "fleet.conf":
        places |= {"/var/lib/smile-hub/hub/flower/tls/": f"{services.files.ca.parent}/"}
    with nginx(tmp_path / "nginx", configured(name, places), ports=(port,)) as running:
        site = name.replace(".conf", "")
        new_node_key(tmp_path / "node.key")
        node_id = services.register(site, tmp_path / "node.key.pub")
        node = Node(
            NodeConfig(
                site=site,
                address=f"localhost:{port}",
                ca=services.files.ca,
                key=tmp_path / "node.key",
                work=tmp_path / "flower",
                exchange=tmp_path / "exchange",
                allowed_bundles=(bundle_digest(services.bundle),),
            )
        )
        node.start()
        try:
            until(
                "the node online", lambda: node_id in services.online(), lambda: node.keepers[0].log_tail(9)
            )
        finally:
            node.stop()
        for target, expected in (
            ("/v1/control/start-run", 404),
            ("/v1/runtime/acquire-task", 404),
            ("/v1/fleet/../control/start-run", 404),
            ("/v1/fleet/%2e%2e/control/start-run", 404),
            ("/v1/fleet//activate-node", 404),
            ("/v1/fleet/activate-node?x=1", 404),
            ("/v1/fleet/register-node", 404),
            ("/health", 404),
            ("/", 404),
        ):
            assert asked(services, port, target) == expected, target
        assert asked(services, port, "/v1/fleet/push-messages", bytes(9000)) == 413
        assert asked(services, port, "/v1/fleet/push-object", bytes(7 << 20)) == 413
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://localhost:{port}/", trust_env=False)  # no public authority signed it
        if name == "fleet.conf":
            log = (running / "access.log").read_text()
            assert '"POST /v1/fleet/activate-node HTTP/1.1" 200' in log


def asked(services: Services, port: int, target: str, body: bytes = b"") -> int:
    """The answer to a request whose target goes out as it is written here."""
    trust = ssl.create_default_context(cafile=services.files.ca)
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall(head + body[:100_000])
        return int(line.recv(100).split()[1])


# --- What people use -----------------------------------------------------------------------------------

NAME = "X-Forwarded-Email"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return small_home(tmp_path_factory.mktemp("home"), codes=100, versions=1)


@contextmanager
def page(home: Home, folder: Path, text: str | None = None, header: str = NAME) -> Iterator[httpx.Client]:
    """The web service behind nginx, and a client that reaches nginx; `text` in place of web.conf."""
    settings = WebSettings(
        port=0,
        hosts=("map.example.org",),
        trusted_proxies=("127.0.0.3",),
        identity_header=header,
        role_of={"*": "coordinator"},
    )
    folder.mkdir()
    authority = make_ca_and_server(folder / "tls", ["map.example.org"])
    service = WebService(Home(home.folder), settings=settings)
    service.start()
    secure, plain = free_port(), free_port()
    places = {
        "listen 443": f"listen 127.0.0.1:{secure}",
        "listen 80": f"listen 127.0.0.1:{plain}",
        "/etc/ssl/map.example.org.pem": str(authority.server),
        "/etc/ssl/private/map.example.org.key": str(authority.server_key),
        "127.0.0.1:8480": f"127.0.0.1:{service.port}",
    }
    conf = text or configured("web.conf", {})
    for place, here in places.items():
        assert place in conf
        conf = conf.replace(place, here)
    try:
        with (
            nginx(folder / "nginx", conf, ports=(secure, plain)),
            httpx.Client(
                base_url=f"https://localhost:{secure}",
                verify=ssl.create_default_context(cafile=authority.ca),
                headers={"Host": "map.example.org"},
                trust_env=False,
                timeout=60,
            ) as client,
        ):
            client.headers["X-Test-Plain"] = str(plain)
            yield client
    finally:
        service.stop()


def test_the_web_service_answers_through_nginx(home: Home, tmp_path: Path) -> None:
    token = Tokens(Store(home.database_url)).add("nina", "analyst")
    with page(home, tmp_path / "page") as client:
        assert client.get("/readyz").status_code == 200
        assert client.get("/api/v1/releases").status_code == 401
        answer = client.get("/api/v1/releases", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert answer.headers["strict-transport-security"]  # the service knows that TLS was used
        assert "nginx/" not in answer.headers["server"]
        plain = client.headers["X-Test-Plain"]
        moved = httpx.get(
            f"http://127.0.0.1:{plain}/x?y=1", headers={"Host": "map.example.org"}, trust_env=False
        )
        assert (moved.status_code, moved.headers["location"]) == (301, "https://map.example.org/x?y=1")
        assert client.post("/api/v1/decisions", content=bytes(2 << 20)).status_code == 413
        assert client.get("/readyz", headers={"Host": "other.example"}).status_code == 421


def stripped() -> list[str]:
    """The headers that web.conf takes from every request."""
    return re.findall(r'proxy_set_header (\S+) "";', (DEPLOY / "nginx" / "web.conf").read_text())


def test_nobody_can_name_himself(home: Home, tmp_path: Path) -> None:
    names = [n for n in stripped() if n not in {"Connection", "Forwarded", "X-Forwarded-Host"}]
    assert NAME in names
    for header in names:
        with page(home, tmp_path / header, header=header) as client:
            for spelling in (header, header.lower(), header.upper(), header.replace("-", "_")):
                answer = client.get("/api/v1/releases", headers={spelling: "carla@coordination.example"})
                assert answer.status_code == 401, spelling
            twice = [("Host", "map.example.org"), (header, "a@b.example"), (header, "c@d.example")]
            assert client.get("/api/v1/releases", headers=twice).status_code == 401


def test_a_file_that_does_not_take_the_header_away_would_let_anybody_in(home: Home, tmp_path: Path) -> None:
    """So the test above can fail; and who is let in by the identity provider's line is let in."""
    text = configured("web.conf", {f'proxy_set_header {NAME} "";': ""})
    with page(home, tmp_path / "open", text) as client:
        assert client.get("/api/v1/releases", headers={NAME: "mallory@x.example"}).status_code == 200
    named = configured(
        "web.conf", {f'proxy_set_header {NAME} "";': f'proxy_set_header {NAME} "ada@north.example";'}
    )
    with page(home, tmp_path / "named", named) as client:
        assert client.get("/api/v1/releases", headers={NAME: "mallory@x.example"}).status_code == 200


def test_the_service_believes_no_other_address_than_nginx(home: Home, tmp_path: Path) -> None:
    text = configured("web.conf", {"proxy_bind 127.0.0.3;": "", f'proxy_set_header {NAME} "";': ""})
    with page(home, tmp_path / "elsewhere", text) as client:
        answer = client.get("/api/v1/releases", headers={NAME: "mallory@x.example"})
        assert answer.status_code == 401
        assert "believed from trusted proxies only" in answer.text


def test_too_many_requests_are_refused_before_the_service(home: Home, tmp_path: Path) -> None:
    text = configured("web.conf", {"rate=30r/s": "rate=1r/m", "burst=150": "burst=2"})
    with page(home, tmp_path / "many", text) as client:
        seen = [client.get("/healthz").status_code for _ in range(5)]
    assert seen == [200, 200, 200, 429, 429]
