"""`p2pnode chat`: a conversation in the terminal. Enter sends, Alt-Enter breaks the line, Space or Ctrl-C stops."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2pnode.cli import complete
from p2pnode.cli.chat_session import ChatSession
from p2pnode.cli.output import Number, connect, node_options, one_line
from p2pnode.cli.progress import ProgressLine
from p2pnode.cli.run import MODES, summary
from p2pnode.config import default_data_dir
from p2pnode.errors import P2PNodeError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_POLL_S = 0.03
_END = object()


@click.command()
@click.argument("model", shell_complete=complete.models, required=False)
@click.option("--system", default="", metavar="TEXT", help="Instruction before the conversation.")
@click.option("--mode", type=click.Choice(MODES), default="auto", show_default=True, help="How to compute.")
@click.option("--temperature", type=Number(0, 10), metavar="T", help="0 is greedy.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Longest answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End answers before this text.")
@node_options
def chat(
    model: str | None,
    system: str,
    mode: str,
    temperature: float | None,
    max_tokens: int | None,
    stop: tuple[str, ...],
    data: Path | None,
    api: str | None,
    as_json: bool,
) -> int:
    """Talk with MODEL; /help lists the commands.

    From a pipe, each line is one turn; with --json the whole conversation is one document at the end.
    """
    session = ChatSession(connect(data, api), model=model, mode=mode, system=system, stop=list(stop))
    if temperature is not None:
        session.settings["temperature"] = temperature
    if max_tokens is not None:
        session.settings["max_tokens"] = max_tokens
    session.node.get("/health")
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return piped(session, as_json=as_json)
    return interactive(session, (data or default_data_dir({})) / "chat_history")


def piped(session: ChatSession, *, as_json: bool) -> int:
    from p2pnode.cli.output import print_json

    for line in sys.stdin:
        text = line.strip()
        if not text:
            continue
        if text.startswith("/"):
            said = session.command(text)
            if session.is_over:
                break
            if not as_json:
                click.echo(said)
            continue
        for event in session.ask(text):
            if event.get("type") == "text" and not as_json:
                click.echo(event["text"], nl=False)
        if not as_json:
            click.echo()
    if as_json:
        print_json({"messages": session.messages, "answers": session.answers, "tokens": session.tokens})
    return 0


def interactive(session: ChatSession, history: Path) -> int:
    try:
        prompt = _prompt(history)
    except ImportError:
        click.secho("error: the chat needs prompt_toolkit", fg="red", err=True)
        click.secho(
            "hint:  pip install 'p2pnode[chat]', or pipe lines into p2pnode chat", fg="yellow", err=True
        )
        return 1
    click.secho("/help lists the commands; Space or Ctrl-C stops an answer; Ctrl-D leaves.", dim=True)
    while True:
        try:
            text = prompt.prompt("> ").strip()
            if not text:
                continue
            if text.startswith("/"):
                said = session.command(text)
                if session.is_over:
                    return 0
                click.echo(said)
                continue
        except KeyboardInterrupt:
            continue
        except EOFError:
            return 0
        answer(session, text)


def answer(session: ChatSession, text: str) -> None:
    """Print an answer as it comes until it ends or a key stops it; the session goes on in any case."""
    stopped, line = False, ProgressLine()
    events = Stoppable(session.ask(text))
    try:
        with ExitStack() as stack:
            pressed = stack.enter_context(_keys())
            for event in events.items():
                if event is None:
                    if _wants_stop(pressed):
                        stopped = True
                        break
                    continue
                if event.get("type") == "loading":
                    line.show(event)
                    continue
                line.clear()
                if event.get("type") == "text":
                    sys.stdout.write(event["text"].replace("\n", "\r\n"))
                    sys.stdout.flush()
                elif event.get("type") == "prefill" and event["total"] > 512:
                    sys.stdout.write(f"\rreading {event['done']} of {event['total']} tokens\r")
    except KeyboardInterrupt:
        stopped = True
    except P2PNodeError as error:
        click.secho(f"\nerror: {one_line(error.message)}", fg="red")
    finally:
        line.clear()
        events.stop()
    click.echo()
    click.secho("(stopped)" if stopped else summary(session.last), dim=True)


class Stoppable:
    """Runs an iterator in a thread; None comes whenever it is silent, and stop() lets it end at its next item."""

    def __init__(self, source: Iterator[dict[str, Any]]) -> None:
        self._source = source
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=256)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for item in self._source:
                self._put(item)
                if self._stop.is_set():
                    break
            self._put(_END)
        except P2PNodeError as error:
            self._put(error)
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def items(self) -> Iterator[dict[str, Any] | None]:
        while True:
            try:
                item = self._queue.get(timeout=_POLL_S)
            except queue.Empty:
                yield None
                continue
            yield None
            if item is _END:
                return
            if isinstance(item, P2PNodeError):
                raise item
            yield item

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)


def _prompt(history: Path) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    names = [f"/{name.removeprefix('_do_')}" for name in dir(ChatSession) if name.startswith("_do_")]
    kept = FileHistory(str(history)) if history.parent.is_dir() else InMemoryHistory()
    return PromptSession(history=kept, key_bindings=keys, completer=WordCompleter(names, sentence=True))


def _keys() -> Any:
    """The terminal in raw mode while an answer is written, so that a single key is seen."""
    from prompt_toolkit.input import create_input

    class Keys(ExitStack):
        def __enter__(self) -> Keys:
            self.input = create_input()
            self.enter_context(self.input.raw_mode())
            self.callback(self.input.close)
            return self

    return Keys()


def _wants_stop(keys: Any) -> bool:
    import select

    if not select.select([keys.input.fileno()], [], [], 0)[0]:
        return False
    return any(press.key in ("c-c", " ", "c-d") for press in keys.input.read_keys())
