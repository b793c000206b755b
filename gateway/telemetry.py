"""Logs by structlog: one line an event, for people (console) or machines (JSON). Never a token."""

from __future__ import annotations

import logging
import sys
import warnings
from io import StringIO
from typing import Any, Literal, NamedTuple, TextIO

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from jwt.warnings import InsecureKeyLengthWarning


def configure_logs(log_format: Literal["console", "json"], level: str) -> None:
    """Set structlog up for this process, and bring the standard library's loggers to the same lines.

    An application that the gateway is attached to configures its own logs, and does not call this.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            _for_people,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_write_failure),
        ]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Calls below the level do nothing at all, which is what most connections cost in a quiet log.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # aiohttp's access log writes the request line, and with it a token in ?token=.
    logging.getLogger("aiohttp.access").disabled = True
    # Said once by the gateway, in words for whoever set it.
    warnings.simplefilter("ignore", InsecureKeyLengthWarning)
    logging.getLogger("aiohttp.server").addFilter(_is_no_clients_mistake)


class _Quoted(NamedTuple):
    """A text that the console is to show as Python writes it."""

    text: str

    def __repr__(self) -> str:
        return repr(self.text)


def _for_people(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Let nothing that a client chose, such as their user id, move the terminal, turn its writing, or begin a line."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = _inert(value) if name == "event" else _Quoted(value)
    return event


def _write_failure(to: TextIO, failure: Any) -> None:
    """Write a traceback, without the values of variables: a token may be among them."""
    traceback = StringIO()
    structlog.dev.plain_traceback(traceback, failure)
    to.write(f"\n  {_inert(traceback.getvalue().strip())}")


def _inert(text: str) -> str:
    """A text whose further lines are indented, and in which what is not printable is shown as Python writes it."""
    return "\n  ".join(line if line.isprintable() else repr(line)[1:-1] for line in text.splitlines())


def _is_no_clients_mistake(record: logging.LogRecord) -> bool:
    """Whether to keep a line: aiohttp logs what was no HTTP as a failure, with a traceback."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)
