"""Addresses that a member (or anything a member names) may be reached at: the guard against SSRF.

Three steps, each enough against a different trick. `check_url` refuses what an address may not say (scheme, user,
port, odd notations of IP addresses). `allowed` refuses where a name may not lead: every address found for it must be
global, IPv4 inside IPv6 unwrapped. And whoever connects, connects to just the addresses that were checked
(`GuardedResolver` for aiohttp, `SafeSession` for requests), so a name that changes its mind in between (DNS rebinding)
gains nothing. Redirects are never followed, proxies and other settings from the environment never used.

In development, plain http and loopback addresses are allowed as well, and nothing else (contract section 2).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import certifi
import idna
import requests
import urllib3
from aiohttp.abc import AbstractResolver, ResolveResult
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from hie.core.errors import BadRequest

PRODUCTION_PORTS = frozenset({443, 4443, 8443, 9443, 10443})
"""Ports at which FHIR servers listen with TLS; a member cannot have the exchange knock at others."""

Lookup = Callable[[str, int], Sequence[str]]
"""Addresses of a host name; raises OSError when there are none. Blocks."""

_DEFAULT_PORT = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@|-]|%[0-9A-Fa-f]{2})*)*")
_LOCAL_SUFFIXES = ("localhost", "local", "internal", "localdomain", "home.arpa", "onion")
_LOOKUP_THREADS = 32
_CHUNK = 65_536


# -- what an address may say


def check_url(url: str, *, development: bool) -> str:
    """The normalised base URL of a member's server: lower-case host, no default port, no trailing slash.

    Raises BadRequest with a sentence that says what to change; it does not repeat the address.
    """
    parts = _split(url)
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise BadRequest("The address must not have a query (?) or a fragment (#): give the base address only.")
    return _origin(parts, development) + _path(parts.path).rstrip("/")


def check_link(url: str, *, development: bool) -> str:
    """Like `check_url` for an address that is fetched as it stands (token, keys, metadata): a query is allowed."""
    parts = _split(url)
    if parts.fragment or "#" in url:
        raise BadRequest("The address must not have a fragment (#).")
    query = f"?{parts.query}" if parts.query else ""
    if not query.isascii():
        raise BadRequest("The address holds a character that must be percent-encoded.")
    return _origin(parts, development) + _path(parts.path) + query


def within(url: str, base_url: str) -> bool:
    """Whether `url` (absolute) stays inside the registered `base_url` (normalised): same origin, path below it."""
    try:
        parts, base = _split(url), urlsplit(base_url)
        same_origin = _origin(parts, True) == _origin(base, True)
        path = _path(parts.path)
    except BadRequest:
        return False
    return same_origin and (path == base.path or path.startswith(base.path + "/"))


def _split(url: str) -> SplitResult:
    if len(url) > 2048:
        raise BadRequest("The address is longer than 2,048 characters.")
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise BadRequest("The address holds a space, a backslash or a control character.")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise BadRequest("The address is not a URL.") from None
    if "@" in parts.netloc:
        raise BadRequest("The address must not hold a user name or password; use the auth settings.")
    return parts


def _origin(parts: SplitResult, development: bool) -> str:
    scheme = parts.scheme
    if scheme not in (("http", "https") if development else ("https",)):
        raise BadRequest("The address must start with https://.")
    host = _host(parts.hostname or "", development)
    port = parts.port or (_DEFAULT_PORT[scheme] if parts.port is None else 0)
    if port < 1 or (not development and port not in PRODUCTION_PORTS):
        allowed = ", ".join(str(p) for p in sorted(PRODUCTION_PORTS))
        raise BadRequest(f"The port of the address is not allowed; use one of {allowed}.")
    return f"{scheme}://{host}" + ("" if port == _DEFAULT_PORT[scheme] else f":{port}")


def _host(host: str, development: bool) -> str:
    """The host in its one canonical form; IP addresses are checked here, names when they are resolved."""
    if ":" in host:
        return f"[{_literal(host, development)}]"
    try:
        name = idna.encode(host, uts46=True, std3_rules=True).decode("ascii").lower().rstrip(".")
    except (idna.IDNAError, UnicodeError):
        raise BadRequest("The host of the address is not a valid name.") from None
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):  # every resolver reads this as an IPv4 address, in whatever notation
        return str(_literal(name, development))
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadRequest("The host of the address is not a valid name.")
    if not development and any(name == s or name.endswith("." + s) for s in _LOCAL_SUFFIXES):
        raise BadRequest("The host of the address is a name for local use only.")
    return name


def _literal(text: str, development: bool) -> IPv4Address | IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise BadRequest("The host of the address is a number that is not an IP address as usually written.") from None
    if not allowed(text, development=development):
        raise BadRequest("The host of the address is not a public address.")
    return address


def _path(path: str) -> str:
    decoded = unquote(path)
    if not _PATH.fullmatch(path) or path.count("/") != decoded.count("/") or "\\" in decoded or "\0" in decoded:
        raise BadRequest("The path of the address holds a character that is not allowed.")
    if any(segment in (".", "..") for segment in decoded.split("/")) or "//" in path:
        raise BadRequest("The path of the address must not hold '.', '..' or empty segments.")
    return path


# -- where a name may lead


def allowed(address: str, *, development: bool) -> bool:
    """Whether the exchange may connect to this IP address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return False
        inner = _inner(ip)
        if inner is not None:
            return allowed(str(inner), development=development)
        if development and ip == IPv6Address("::1"):
            return True
        return ip in _GLOBAL_UNICAST and ip.is_global
    if development and ip.is_loopback:
        return True
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _inner(ip: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a mapped, 6to4 or NAT64 address leads to."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFF_FFFF)
    return None


class AddressRefused(OSError):
    """The name leads to an address that the exchange does not connect to."""


def system_lookup(host: str, port: int) -> Sequence[str]:
    """The operating system's answer."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def resolve(host: str, port: int, *, development: bool, lookup: Lookup = system_lookup) -> list[str]:
    """The addresses to connect to; raises AddressRefused unless every one found is allowed, OSError if none is."""
    addresses = list(lookup(host, port))
    if not addresses:
        raise OSError("the name has no address")
    if not all(allowed(address, development=development) for address in addresses):
        raise AddressRefused("the name leads to an address that is not public")
    return addresses


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """TLS 1.2 or later, verified against the system's authorities and those of certifi."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    return context


# -- aiohttp


class GuardedResolver(AbstractResolver):
    """Resolves once, checks every address, and hands aiohttp just those to connect to.

    It has threads of its own: a name server that hangs cannot take those of the event loop.
    """

    def __init__(self, *, development: bool, lookup: Lookup = system_lookup) -> None:
        self._development = development
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="hie-resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: resolve(host, port, development=self._development, lookup=self._lookup)
        )
        return [_resolved(host, address, port) for address in found]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _resolved(host: str, address: str, port: int) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=socket.AF_INET6 if ":" in address else socket.AF_INET,
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


# -- requests


class FetchProblem(StrEnum):
    """Why nothing was fetched."""

    REFUSED = "refused"
    """The guard does not let the exchange go there."""
    DNS = "dns"
    TLS = "tls"
    CONNECT = "connect"
    TIMEOUT = "timeout"
    TOO_LARGE = "too-large"
    PROTOCOL = "protocol"


class FetchFailed(Exception):
    """A fetch that gave no response. Its text is ours, never the other side's."""

    def __init__(self, problem: FetchProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True)
class Fetched:
    """A whole response, redirects and errors included: the caller looks at `status`."""

    status: int
    headers: Mapping[str, str]
    """Case-insensitive."""
    body: bytes

    @property
    def content_type(self) -> str:
        """The media type without parameters, lower-case."""
        return self.headers.get("Content-Type", "").split(";")[0].strip().lower()


class SafeSession:
    """Bounded HTTP for the control plane: metadata, token endpoints, key sets. Safe to share between threads.

    Each fetch goes to checked, pinned addresses, ends within its total time however the other side drips, and holds
    no more than its bytes after decompression. Nothing is retried and no redirect is followed.
    """

    def __init__(self, *, development: bool, lookup: Lookup = system_lookup) -> None:
        self._development = development
        self._lookup = lookup

    def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        max_bytes: int = 1_000_000,
        timeout_total: float = 5.0,
    ) -> Fetched:
        """The response of `url`. Raises BadRequest for an address that is not allowed, FetchFailed otherwise."""
        url = check_link(url, development=self._development)
        attempt = _Attempt(time.monotonic() + timeout_total, self._development, self._lookup)
        with attempt, requests.Session() as session:
            session.trust_env = False
            session.headers.clear()
            session.headers.update({"User-Agent": "hie", "Accept-Encoding": "gzip"})
            session.mount("https://", _PinnedAdapter())
            session.mount("http://", _PinnedAdapter())
            try:
                with session.request(
                    method,
                    url,
                    headers=headers,
                    data=form,
                    timeout=max(timeout_total, 0.001),
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    body = _read(response, max_bytes)
                    attempt.require_time()  # a connection that was cut reads like one that ended
                    return Fetched(response.status_code, response.headers, body)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise attempt.explain(error) from None


def safe_session(development: bool) -> SafeSession:
    """The session for fetches that are not a member's charts."""
    return SafeSession(development=development)


def _read(response: requests.Response, max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(_CHUNK):
        body += chunk
        if len(body) > max_bytes:
            raise FetchFailed(FetchProblem.TOO_LARGE, f"The answer is larger than {max_bytes} bytes.")
    return bytes(body)


_TLS_REASONS = {
    9: "The certificate is not valid yet.",
    10: "The certificate has expired.",
    18: "The certificate is signed by itself, not by an authority that the exchange trusts.",
    19: "The certificate's authority is not one that the exchange trusts.",
    20: "The certificate's authority is unknown, or the server does not send its intermediate certificates.",
    21: "The server does not send its intermediate certificates.",
    62: "The certificate is for another host name.",
    64: "The certificate is for another host name.",
}
"""By OpenSSL's verify codes (X509_V_ERR_*)."""


def _tls_reason(error: BaseException) -> str:
    pending: list[object] = [error]
    for _ in range(16):  # requests wraps urllib3, which wraps ssl
        if not pending:
            break
        found = pending.pop()
        if isinstance(found, ssl.SSLCertVerificationError):
            return _TLS_REASONS.get(found.verify_code, "The certificate could not be verified.")
        if isinstance(found, BaseException):
            pending += [*found.args, found.__cause__, found.__context__, getattr(found, "reason", None)]
    return "The TLS connection could not be set up (TLS 1.2 or later is needed)."


class _Attempt:
    """One fetch in progress: it opens the connections, and cuts them when the time is over.

    A socket's timeout is per read, so one byte a second outlives any; shutting the socket down from outside does not.
    """

    def __init__(self, deadline_at: float, development: bool, lookup: Lookup) -> None:
        self._deadline_at = deadline_at
        self._development = development
        self._lookup = lookup
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(max(0.0, deadline_at - time.monotonic()), self._cut)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._token = _current.set(self)
        self._timer.start()

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _tb: TracebackType | None) -> None:
        _current.reset(self._token)
        self._timer.cancel()
        with self._lock:
            for watched in self._sockets:
                watched.close()
            self._sockets.clear()

    def connect(self, host: str, port: int) -> socket.socket:
        """A connection to one of the host's checked addresses."""
        try:
            addresses = self._addresses(host, port)
        except AddressRefused:
            raise FetchFailed(FetchProblem.REFUSED, "The host name leads to an address that is not public.") from None
        except TimeoutError:
            raise FetchFailed(FetchProblem.TIMEOUT, "The host name was not resolved in time.") from None
        except OSError:
            raise FetchFailed(FetchProblem.DNS, "The host name could not be resolved.") from None
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                connected = socket.create_connection((address, port), timeout=max(0.001, self._remaining() / left))
            except OSError:
                if left == 1:
                    raise
                continue
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.settimeout(max(0.001, self._remaining()))
            self._watch(connected)
            return connected
        raise OSError("the name has no address")

    def require_time(self) -> None:
        """Raises unless the time is not over yet."""
        if self._over.is_set() or self._remaining() <= 0:
            raise FetchFailed(FetchProblem.TIMEOUT, "There was no complete answer in time.")

    def explain(self, error: Exception) -> FetchFailed:
        """The failure in our own words."""
        if self._over.is_set() or isinstance(error, (requests.Timeout, TimeoutError)) or self._remaining() <= 0:
            return FetchFailed(FetchProblem.TIMEOUT, "There was no complete answer in time.")
        if isinstance(error, requests.exceptions.SSLError):
            return FetchFailed(FetchProblem.TLS, _tls_reason(error))
        if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            return FetchFailed(FetchProblem.CONNECT, "The connection was refused or broken off.")
        return FetchFailed(FetchProblem.PROTOCOL, "The answer is not valid HTTP.")

    def _addresses(self, host: str, port: int) -> list[str]:
        """Resolve in a thread of its own, since a lookup cannot be interrupted."""
        answer: SimpleQueue[list[str] | Exception] = SimpleQueue()

        def ask() -> None:
            try:
                answer.put(resolve(host, port, development=self._development, lookup=self._lookup))
            except Exception as error:  # noqa: BLE001 (handed to the asking thread, which raises it)
                answer.put(error)

        threading.Thread(target=ask, daemon=True, name="hie-lookup").start()
        try:
            found = answer.get(timeout=max(0.0, self._remaining()))
        except Empty:
            raise TimeoutError("the name was not resolved in time") from None
        if isinstance(found, Exception):
            raise found
        return found

    def _remaining(self) -> float:
        return self._deadline_at - time.monotonic()

    def _watch(self, connected: socket.socket) -> None:
        with self._lock:  # a duplicate, because TLS takes the original socket over
            self._sockets.append(connected.dup())

    def _cut(self) -> None:
        self._over.set()
        with self._lock:
            for watched in self._sockets:
                try:
                    watched.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # already gone


_current: ContextVar[_Attempt] = ContextVar("hie_fetch")


class _PinnedHTTPConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _current.get().connect(self.host, self.port or 80)


class _PinnedHTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _current.get().connect(self.host, self.port or 443)


class _PinnedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _PinnedHTTPConnection


class _PinnedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _PinnedHTTPSConnection


class _PinnedAdapter(HTTPAdapter):
    def __init__(self) -> None:
        super().__init__(
            pool_connections=1, pool_maxsize=1, max_retries=urllib3.Retry(0, respect_retry_after_header=False)
        )

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **_settings: Any) -> None:
        self.poolmanager = urllib3.PoolManager(connections, maxsize=maxsize, block=block, ssl_context=tls_context())
        self.poolmanager.pool_classes_by_scheme = {"http": _PinnedHTTPPool, "https": _PinnedHTTPSPool}
