"""The console over fakes, and a browser-like client that signs in as somebody."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from hie.gateway.directory import User
from tests.console.fakes import PASSWORD, Console, make_console


class Visitor:
    """A client that carries the CSRF token of the page it read last, as a browser's form does."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.token = ""

    def get(self, path: str, **more: object) -> TestResponse:
        return self._kept(self.client.get(path, **more))  # type: ignore[arg-type]

    def post(self, path: str, **form: str) -> TestResponse:
        return self._kept(self.client.post(path, data={"csrf_token": self.token, **form}))

    def sign_in(self, user: User, password: str = PASSWORD, **more: str) -> TestResponse:
        self.get("/sign-in")
        response = self.post("/sign-in", email=user.email, password=password, **more)
        if response.status_code == 303:
            self.get("/")
        return response

    def _kept(self, response: TestResponse) -> TestResponse:
        html = response.text if response.mimetype == "text/html" else ""
        found = re.search(r'name="csrf_token" value="([^"]+)"', html)
        if found:
            self.token = found[1]
        return response


@pytest.fixture
def console() -> Console:
    return make_console()


@pytest.fixture
def visitor(console: Console) -> Iterator[Visitor]:
    with console.app.test_client() as client:
        yield Visitor(client)


@pytest.fixture
def as_(visitor: Visitor) -> Callable[[User], Visitor]:
    def sign_in(user: User) -> Visitor:
        assert visitor.sign_in(user).status_code == 303
        return visitor

    return sign_in
