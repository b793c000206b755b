"""A team's page that shows who is online, in React and in Vue, without a build step.

Run it:  .venv/bin/python examples/team/team.py     and open http://127.0.0.1:8080 in two windows, one of them private
Another port:  PORT=8081 .venv/bin/python examples/team/team.py
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from pathlib import Path

import jwt
from aiohttp import web

from gateway import Gateway, Settings

EXAMPLES = Path(__file__).resolve().parent.parent
INSTALLED = EXAMPLES.parent / "node_modules"
SECRET = web.AppKey("secret", str)
TTL = 3600
"""Seconds that a token is good for."""

PEOPLE = {"alice": "Alice Adler", "bob": "Bob Brandt", "carol": "Carol Chen", "dave": "Dave Diaz"}
"""Names by id: an application has these in its database."""

MODULES = {
    "vue.js": "vue/dist/vue.esm-browser.prod.js",
    "react.js": "react/cjs/react.production.js",
    "react-dom.js": "react-dom/cjs/react-dom.production.js",
    "react-dom-client.js": "react-dom/cjs/react-dom-client.production.js",
    "scheduler.js": "scheduler/cjs/scheduler.production.js",
}
"""What the import maps of the pages name, as npm installs it."""


async def people(_request: web.Request) -> web.Response:
    """Tell who is on the team."""
    return web.json_response([{"id": user_id, "name": name} for user_id, name in PEOPLE.items()])


async def token(request: web.Request) -> web.Response:
    """Give a visitor the token of whom they say they are. A real application would look at their session here."""
    user_id = request.query.get("user", "")
    if user_id not in PEOPLE:
        raise web.HTTPForbidden(text="that is nobody of the team")
    claims = {"sub": user_id, "name": PEOPLE[user_id], "exp": int(time.time()) + TTL}
    return web.Response(text=jwt.encode(claims, request.app[SECRET]))


async def module(request: web.Request) -> web.Response:
    """Serve what npm has installed, as a module that browsers take."""
    path = INSTALLED / MODULES.get(request.match_info["name"], "")
    if not path.is_file():
        raise web.HTTPNotFound(text="it is not installed: npm ci")
    source = path.read_text(encoding="utf-8")
    text = as_module(source) if path.parent.name == "cjs" else source
    return web.Response(text=text, content_type="text/javascript")


def as_module(source: str) -> str:
    """Make a module of one of CommonJS, which React comes as. In an application a bundler does that."""
    needed = sorted(set(re.findall(r'\brequire\("([\w-]+)"\)', source)))
    names = sorted(set(re.findall(r"^exports\.(\w+) =", source, re.MULTILINE)))
    imports = "".join(f"import _{number} from {json.dumps(name)};\n" for number, name in enumerate(needed))
    found = ", ".join(f"{json.dumps(name)}: _{number}" for number, name in enumerate(needed))
    return (
        f"{imports}const module = {{ exports: {{}} }};\n"
        f"((exports, require) => {{\n{source}\n}})(module.exports, (name) => ({{ {found} }})[name]);\n"
        f"export default module.exports;\nexport const {{ {', '.join(names)} }} = module.exports;\n"
    )


def page(framework: str) -> web.RouteDef:
    """Route to the page in one of the two."""

    async def show(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(EXAMPLES / framework / "index.html")

    return web.get(f"/{framework}", show)


async def choose(_request: web.Request) -> web.Response:
    """Show the way to both."""
    text = (
        '<!doctype html><title>Team</title><p>The team\'s page <a href="/react">in React</a>, <a href="/vue">in Vue</a>'
    )
    return web.Response(text=text, content_type="text/html")


def create_app(settings: Settings) -> web.Application:
    """Make the application: its own routes, and the gateway's."""
    if settings.jwt_secret is None:
        raise ValueError("the team's page signs its users' tokens itself: set JWT_SECRET")
    app = web.Application()
    app[SECRET] = settings.jwt_secret.get_secret_value()
    app.router.add_get("/", choose)
    app.router.add_get("/people", people)
    app.router.add_get("/token", token)
    app.router.add_get("/modules/{name}", module)
    app.router.add_routes([page("react"), page("vue")])
    for folder in ("team", "react", "vue"):
        app.router.add_static(f"/examples/{folder}", EXAMPLES / folder)
    Gateway(settings).attach(app)
    return app


if __name__ == "__main__":
    os.environ.setdefault("JWT_SECRET", secrets.token_hex(32))  # for this run; whoever is in has to come in again
    web.run_app(create_app(Settings()), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")), access_log=None)
