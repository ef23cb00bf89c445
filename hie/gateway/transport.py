"""HTTP to the members: every question of one query at once, inside one deadline.

Each process runs one asyncio loop in a thread of its own, started on first use and so after the server's fork; callers
stay plain threads that wait for the answers. Each member has connections of its own, so one that hangs holds up no
other. A deadline bounds everything: names, connects, reads, pages, parsing; whatever has not arrived by then is a
`timeout`, and what had arrived is kept.

What a member may do to us is bounded (contract law L6): bytes after decompression, entries, pages, nesting; `next`
links stay inside the registered base URL; redirects are not followed. Where it may make us connect to is `guard`'s
rule. Its own text (error bodies, outcomes) is dropped here; nothing is logged but member ids and status codes.

Retries: none, but one at once where a kept-alive connection turns out to be closed before a byte of the answer. A
member that failed five queries in a row (timeout, unreachable, refused with 401/403/429, 5xx) is not asked for ten
seconds (`breaker`); one query counts once, however many questions it asks, and a member that answers any of them is
well. Breakers and tokens belong to the process; a changed base URL starts afresh.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import ClientHandlerType
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from hie.core.errors import BadRequest
from hie.core.fhir import FHIR_JSON, Resource
from hie.gateway import member_pages
from hie.gateway.breaker import Breaker
from hie.gateway.guard import GuardedResolver, Lookup, check_link, check_url, system_lookup, tls_context
from hie.gateway.member_auth import (
    AuthIncomplete,
    SigningKey,
    Token,
    TokenUnusable,
    parse_token,
    static_authorization,
    token_request,
)
from hie.gateway.member_pages import JSON_TYPES, Unusable

if TYPE_CHECKING:
    from hie.gateway.directory import Auth

MAX_BODY_BYTES = 5_000_000
"""One body, after decompression."""
MAX_MEMBER_BYTES = 16_000_000
"""All bodies of one member in one query."""
MAX_ENTRIES = 2_000
MAX_PAGES = 20
PAGE_SIZE = 200
"""`_count` asked for, since servers' own default is often 20 and some give no further pages."""
CONNECTIONS_PER_MEMBER = 64
FAIR_SECONDS = 0.25
"""A timeout of a query that had less time than this says nothing about the member."""

_GRACE_SECONDS = 0.05
_MAX_TOKEN_BYTES = 65_536
_CHUNK = 65_536
_GONE = (404, 410)
_REFUSING = (401, 403, 429)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemberQuery:
    """One question to one member: a search (`path` is a type) or a read (`path` is Type/id)."""

    member_id: str
    base_url: str
    auth: Auth = field(repr=False)
    path: str
    params: tuple[tuple[str, str], ...] = field(repr=False)
    request_id: str

    def __post_init__(self) -> None:
        resource_type, _, resource_id = self.path.partition("/")
        if not resource_type.isalpha() or ("/" in self.path and not member_pages.valid_id(resource_id)):
            raise ValueError("a member query's path is Type or Type/id")


@dataclass(frozen=True)
class Failure:
    """How an answer falls short, as a code of the source-status system (contract section 3)."""

    status: str
    """timeout | unreachable | error | invalid | truncated | open-circuit"""
    absent: bool = field(default=False, compare=False)
    """The member answered a search with 404: its server has no such resource type (FHIR R4 3.1.0.9)."""


@dataclass(frozen=True)
class MemberAnswer:
    """What a member gave. With a failure, `resources` is what could be had all the same, often nothing."""

    member_id: str
    resources: tuple[Resource, ...]
    failure: Failure | None
    elapsed_ms: float


class Transport:
    """Asks members. One object for a process and all its threads; survives a fork."""

    def __init__(
        self,
        *,
        development: bool,
        signing_key: SigningKey | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        lookup: Lookup = system_lookup,
    ) -> None:
        """`signing_key` is needed for members with oauth2. `monotonic` is the breakers' clock, `lookup` the DNS."""
        self._development = development
        self._signing_key = signing_key
        self._monotonic = monotonic
        self._lookup = lookup
        self._loops: dict[int, _Loop] = {}

    def ask(self, queries: Sequence[MemberQuery], deadline_at: float) -> list[MemberAnswer]:
        """The answers to all queries, in their order, by `deadline_at` (`time.monotonic()` seconds). Never raises
        for anything a member does."""
        exchanges = [_Exchange(query) for query in queries]
        ready = [exchange for exchange in exchanges if exchange.ready(self._development)]
        remaining = deadline_at - time.monotonic()
        if ready and remaining > 0:
            future = asyncio.run_coroutine_threadsafe(self._loop().ask(ready, deadline_at), self.start())
            try:
                future.result(timeout=remaining + _GRACE_SECONDS)
            except (TimeoutError, CancelledError):  # the loop is late or closing; the exchanges tell what has arrived
                future.cancel()
        return [exchange.answer() for exchange in exchanges]

    def read(self, query: MemberQuery, deadline_at: float) -> MemberAnswer:
        """One resource; a member that does not have it (404, 410) gives no resources and no failure."""
        return self.ask([query], deadline_at)[0]

    def clear(self, member_id: str) -> None:
        """Forget what this process knows of a member: its breaker and its tokens."""
        if os.getpid() in self._loops:
            loop = self._loop()
            self.start().call_soon_threadsafe(loop.forget, member_id)

    def start(self) -> asyncio.AbstractEventLoop:
        """Start this process's loop now instead of with the first query."""
        return self._loop().start()

    def close(self) -> None:
        """Close this process's connections and stop its loop; a later `ask` would start a new one."""
        loop = self._loops.pop(os.getpid(), None)
        if loop is not None:
            loop.stop()

    def _loop(self) -> _Loop:
        """By process id: after a fork the child makes its own and leaves the parent's sockets alone."""
        pid = os.getpid()
        return self._loops.get(pid) or self._loops.setdefault(
            pid, _Loop(self._development, self._signing_key, self._monotonic, self._lookup)
        )


class _Failed(Exception):
    """A query to a member ends with a failure; `sick` counts against the member."""

    def __init__(self, status: str, *, sick: bool = False, absent: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.sick = sick
        self.absent = absent


class _Exchange:
    """One query while it runs: written by the loop, read by the asking thread when the time is over."""

    def __init__(self, query: MemberQuery) -> None:
        self.query = query
        self.base_url = query.base_url
        self.sick = False
        self.absent = False
        self._started = time.monotonic()
        self._elapsed: float | None = None
        self._resources: list[Resource] = []
        self._status: str | None = None

    def ready(self, development: bool) -> bool:
        """Whether the member may be asked at all; an address that is not allowed here is unreachable."""
        try:
            self.base_url = _checked(self.query.base_url, development)
        except BadRequest:
            self.finish("unreachable")
            return False
        return True

    @property
    def url(self) -> URL:
        url = URL(f"{self.base_url}/{self.query.path}")
        if self.is_read:
            return url.with_query(list(self.query.params))
        asked = list(self.query.params)
        if not any(name == "_count" for name, _ in asked):
            asked.append(("_count", str(PAGE_SIZE)))
        return url.with_query(asked)

    @property
    def is_read(self) -> bool:
        return "/" in self.query.path

    def keep(self, resources: Iterable[Resource]) -> None:
        self._resources.extend(resources)

    def finish(self, status: str | None, *, sick: bool = False, absent: bool = False) -> None:
        """The first word stands."""
        if self._elapsed is None:
            self._status, self.sick, self.absent = status, sick, absent
            self._elapsed = time.monotonic() - self._started  # last: the other thread looks at this one

    def answer(self) -> MemberAnswer:
        """What there is now; a query that still runs has timed out."""
        elapsed, status = self._elapsed, self._status
        if elapsed is None:
            elapsed, status = time.monotonic() - self._started, "timeout"
        failure = Failure(status, self.absent) if status else None
        return MemberAnswer(self.query.member_id, tuple(self._resources), failure, round(elapsed * 1000, 1))


class _Asked:
    """What the questions of one query to one member share."""

    def __init__(self, deadline_at: float) -> None:
        self.deadline_at = deadline_at
        self.fair = deadline_at - time.monotonic() >= FAIR_SECONDS
        self.budget = _Budget(MAX_MEMBER_BYTES)
        self.authorization: str | None = None


class _Budget:
    """Bytes that may still come."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _Failed("truncated")


class _Loop:
    """The event loop of one process, and everything that lives in it: sessions, breakers, tokens."""

    def __init__(
        self, development: bool, signing_key: SigningKey | None, monotonic: Callable[[], float], lookup: Lookup
    ) -> None:
        self._development = development
        self._signing_key = signing_key
        self._monotonic = monotonic
        self._lookup = lookup
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._resolver: GuardedResolver | None = None
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self._breakers: dict[str, tuple[str, Breaker]] = {}
        self._tokens: dict[tuple[str, ...], tuple[float, Token]] = {}
        self._token_locks: dict[tuple[str, ...], asyncio.Lock] = {}

    def start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="hie-transport", daemon=True)
                self._thread.start()
            return self._loop

    def stop(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(timeout=5)
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(timeout=5)
            loop.close()

    async def _close(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for session in self._sessions.values():
            await session.close()
        if self._resolver is not None:
            await self._resolver.close()

    def forget(self, member_id: str) -> None:
        self._breakers.pop(member_id, None)
        for key in [key for key in self._tokens if key[0] == member_id]:
            del self._tokens[key]

    # -- one query of a caller

    async def ask(self, exchanges: Sequence[_Exchange], deadline_at: float) -> None:
        members: dict[tuple[str, str, Auth], list[_Exchange]] = {}
        for exchange in exchanges:
            key = (exchange.query.member_id, exchange.base_url, exchange.query.auth)
            members.setdefault(key, []).append(exchange)
        await asyncio.gather(*(self._ask_member(group, _Asked(deadline_at)) for group in members.values()))

    async def _ask_member(self, group: Sequence[_Exchange], asked: _Asked) -> None:
        breaker = self._breaker(group[0])
        if not breaker.allow(self._monotonic()):
            for exchange in group:
                exchange.finish("open-circuit")
            return
        try:
            if await _settle(group, self._authorize(group[0].query, asked), asked):
                await asyncio.gather(*(_settle([one], self._fetch(one, asked), asked) for one in group))
        finally:
            if all(exchange.sick for exchange in group):
                breaker.failed(self._monotonic())
            else:
                breaker.succeeded()

    async def _fetch(self, exchange: _Exchange, asked: _Asked) -> None:
        await (self._read(exchange, asked) if exchange.is_read else self._search(exchange, asked))
        exchange.finish(None)

    async def _search(self, exchange: _Exchange, asked: _Asked) -> None:
        """Every page, as far as the limits go."""
        url = exchange.url
        seen = {str(url)}
        given = matches = 0
        flawed = troubled = False
        while True:
            page = member_pages.page_of(await self._json(exchange, url, asked))
            room = MAX_ENTRIES - given
            exchange.keep(page.resources[:room])
            given += len(page.resources[:room])
            matches += page.matches
            flawed, troubled = flawed or page.flawed, troubled or page.troubled
            if len(page.resources) > room:
                raise _Failed("truncated")
            if page.next_link is None:
                break
            link = member_pages.next_within(page.next_link, exchange.base_url)
            if link is None or link in seen or len(seen) == MAX_PAGES:
                raise _Failed("truncated")
            seen.add(link)
            url = URL(link, encoded=True)
        if flawed:
            raise _Failed("invalid")
        if troubled:
            raise _Failed("truncated" if given else "error")
        if page.total is not None and page.total > matches:
            raise _Failed("truncated")

    async def _read(self, exchange: _Exchange, asked: _Asked) -> None:
        resource_type, resource_id = exchange.query.path.split("/", 1)
        body = await self._json(exchange, exchange.url, asked)
        if body is not None:
            exchange.keep([member_pages.single(body, resource_type, resource_id)])

    # -- one HTTP exchange

    async def _json(self, exchange: _Exchange, url: URL, asked: _Asked) -> Any:
        """The parsed body; None for a resource that is not there."""
        query = exchange.query
        headers = {"Accept": FHIR_JSON, "X-Request-Id": query.request_id}
        if asked.authorization is not None:
            headers["Authorization"] = asked.authorization
        session = self._session(query.member_id)
        async with session.get(url, headers=headers, allow_redirects=False) as response:
            if exchange.is_read and response.status in _GONE:
                return None
            if response.status == 401:
                self._tokens.pop(_token_key(query.member_id, query.auth), None)
            if response.status == 404 and url == exchange.url:
                raise _Failed("error", absent=not exchange.is_read)
            _require_ok(response.status)
            _require_json(response.headers)
            return member_pages.parse(await _body(response, MAX_BODY_BYTES, asked.budget))

    async def _authorize(self, query: MemberQuery, asked: _Asked) -> None:
        """Have the Authorization header ready, once for all questions."""
        if query.auth.type != "oauth2":
            asked.authorization = static_authorization(query.auth)
            return
        key = _token_key(query.member_id, query.auth)
        async with self._token_locks.setdefault(key, asyncio.Lock()):
            until, token = self._tokens.get(key, (0.0, Token("", 0.0)))
            if time.monotonic() >= until:
                token = await self._fetch_token(query.auth, self._session(query.member_id))
                self._tokens[key] = (time.monotonic() + token.life, token)
        asked.authorization = f"Bearer {token.value}"

    async def _fetch_token(self, auth: Auth, session: aiohttp.ClientSession) -> Token:
        address, form = token_request(auth, self._signing_key)
        try:
            url = check_link(address, development=self._development)
        except BadRequest:
            raise _Failed("unreachable", sick=True) from None
        headers = {"Accept": "application/json"}
        async with session.post(URL(url, encoded=True), data=form, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise _Failed("error", sick=True)
            return parse_token(await _body(response, _MAX_TOKEN_BYTES, _Budget(_MAX_TOKEN_BYTES)))

    # -- what is kept

    def _breaker(self, exchange: _Exchange) -> Breaker:
        base_url, breaker = self._breakers.get(exchange.query.member_id, ("", Breaker()))
        if base_url != exchange.base_url:
            breaker = Breaker()
            self._breakers[exchange.query.member_id] = (exchange.base_url, breaker)
        return breaker

    def _session(self, member_id: str) -> aiohttp.ClientSession:
        """The member's own connections, so that a hung member uses up nobody else's. Pooled by host: a new address
        takes effect at once."""
        session = self._sessions.get(member_id)
        if session is None:
            if self._resolver is None:
                self._resolver = GuardedResolver(development=self._development, lookup=self._lookup)
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                ssl=tls_context(),
                limit=CONNECTIONS_PER_MEMBER,
                keepalive_timeout=30,
                ttl_dns_cache=30,
            )
            session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "hie"},
                timeout=aiohttp.ClientTimeout(total=None),  # the deadline bounds all
                trace_configs=[_notice_reuse()],
                middlewares=[_retry_reused_only],
                trust_env=False,
            )
            self._sessions[member_id] = session
        return session


async def _settle(exchanges: Sequence[_Exchange], work: Coroutine[Any, Any, None], asked: _Asked) -> bool:
    """Run `work` inside the deadline; whatever goes wrong becomes the status of `exchanges`. True when nothing did."""
    status, sick, absent = "invalid", False, False
    try:
        async with asyncio.timeout_at(asked.deadline_at):  # the loop's clock is time.monotonic
            await work
        return True
    except _Failed as failed:
        status, sick, absent = failed.status, failed.sick, failed.absent
    except Unusable as unusable:
        status = unusable.status
    except (TimeoutError, asyncio.CancelledError):
        status, sick = "timeout", asked.fair
    except (AuthIncomplete, TokenUnusable):
        status, sick = "error", True
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL):
        pass  # what came is not HTTP
    except (aiohttp.ClientError, OSError) as error:
        if not isinstance(error.__cause__, ContentEncodingError):
            status, sick = "unreachable", True
    except Exception as error:  # noqa: BLE001 (one member's answer must not take the others' away)
        log.warning("member %s: unexpected %s", exchanges[0].query.member_id, type(error).__name__)
    for exchange in exchanges:
        exchange.finish(status, sick=sick, absent=absent)
    return False


@lru_cache(maxsize=1024)
def _checked(base_url: str, development: bool) -> str:
    return check_url(base_url, development=development)


def _token_key(member_id: str, auth: Auth) -> tuple[str, ...]:
    return member_id, auth.token_url or "", auth.client_id or "", auth.scope or ""


def _require_ok(status: int) -> None:
    """A redirect is an error too: it is never followed."""
    if status == 200:
        return
    if 200 < status < 300:
        raise _Failed("invalid")
    raise _Failed("error", sick=status >= 500 or status in _REFUSING)


def _require_json(headers: Mapping[str, str]) -> None:
    if headers.get("Content-Type", "").split(";")[0].strip().lower() not in JSON_TYPES:
        raise _Failed("invalid")


async def _body(response: aiohttp.ClientResponse, limit: int, budget: _Budget) -> bytes:
    """The body after decompression; reading stops at the limit, so memory stays flat whatever is sent."""
    if (response.content_length or 0) > limit:
        raise _Failed("truncated")
    _acknowledge_now(response)
    body = bytearray()
    with _woken_when_closed(response):
        async for chunk in response.content.iter_chunked(_CHUNK):
            body += chunk
            budget.spend(len(chunk))
            if len(body) > limit:
                raise _Failed("truncated")
    return bytes(body)


@contextmanager
def _woken_when_closed(response: aiohttp.ClientResponse) -> Iterator[None]:
    """Fail the reading of a body that is not HTTP. Where a chunk's size is not a number, aiohttp (3.14) closes the
    connection and forgets who reads the body: without this the member would cost the query its whole deadline."""
    content = response.content

    def forgotten() -> bool:
        return not content.is_eof() and content.exception() is None

    def closed(_: asyncio.Future[None]) -> None:
        if forgotten():
            content.set_exception(_Failed("invalid"))

    protocol = response.connection.protocol if response.connection else None
    closing = protocol.closed if protocol is not None else None  # not `if protocol`: it has a length
    if closing is None:  # all has arrived, or the connection went between the head and here
        if forgotten():
            raise _Failed("invalid")
        yield
        return
    closing.remove_done_callback(_retrieve)  # once a connection, however many answers it carries
    closing.add_done_callback(_retrieve)
    closing.add_done_callback(closed)
    try:
        yield
    finally:
        closing.remove_done_callback(closed)


def _retrieve(future: asyncio.Future[None]) -> None:
    """Else asyncio logs that nobody asked how the connection ended."""
    if not future.cancelled():
        future.exception()


def _acknowledge_now(response: aiohttp.ClientResponse) -> None:
    """Spare servers that write head and body apart (Python's http.server is one) the 40 ms in which their second
    write waits for our delayed acknowledgement of the first (Nagle). The kernel forgets the option, so each time."""
    transport = response.connection.transport if response.connection else None
    found = transport.get_extra_info("socket") if transport else None
    if found is not None and hasattr(socket, "TCP_QUICKACK"):
        with suppress(OSError):  # the member may have hung up
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class _ConnectionLost(aiohttp.ClientError):
    """A fresh connection was dropped before the answer began; aiohttp does not retry this."""


_reused: ContextVar[bool] = ContextVar("hie_connection_reused", default=False)


def _notice_reuse() -> aiohttp.TraceConfig:
    async def reused(*_: object) -> None:
        _reused.set(True)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(reused)
    return trace


async def _retry_reused_only(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """aiohttp repeats a GET once when the connection was dropped; let it, but only where the connection was an old one
    (the member may have closed it while it lay idle)."""
    _reused.set(False)
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if _reused.get():
            raise
        raise _ConnectionLost from error
