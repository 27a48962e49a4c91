"""Chat templates come with model files, so from strangers: rendered in Jinja's sandbox, on a budget.

The sandbox keeps a template from reaching Python; the budget keeps it from eating the node: loop turns,
calls, the size of every made string and of the whole output are counted, and the clock is looked at.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from jinja2 import Template, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.ext import loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from p2pnode.errors import TemplateError
from p2pnode.limits import (
    TEMPLATE_OUTPUT_BYTES_MAX,
    TEMPLATE_RENDER_TIMEOUT_S,
    TEMPLATE_SOURCE_BYTES_MAX,
    TEMPLATE_STEPS_MAX,
)

_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"})
_INTEGER_BITS_MAX = 256
_FORMAT_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{4,}|\*)")


@dataclass(slots=True)
class Budget:
    steps_left: int
    output_left: int
    deadline_s: float

    def step(self, count: int = 1) -> None:
        self.steps_left -= count
        if self.steps_left < 0:
            raise TemplateError("the model's chat template does too much work", hint="use another template")
        if time.monotonic() > self.deadline_s:
            raise TemplateError("the model's chat template takes too long", hint="use another template")

    def sized(self, value: Any) -> Any:
        if isinstance(value, str | list | tuple | dict) and len(value) > TEMPLATE_OUTPUT_BYTES_MAX:
            raise TemplateError(
                "the model's chat template makes too long a text", hint="use another template"
            )
        return value


_BUDGET: ContextVar[Budget] = ContextVar("budget")


def _counted(iterable: Iterable[Any]) -> list[Any]:
    budget = _BUDGET.get()
    items = []
    for item in iterable:
        budget.step()
        items.append(item)
    return items


def _finalize(value: Any) -> Any:
    budget = _BUDGET.get(None)
    if budget is None:  # constant parts are folded when the template is compiled
        return value
    if isinstance(value, Namespace | LoopContext):
        raise TemplateError("the model's chat template prints an object of its own")
    text = value if isinstance(value, str) else str(_weighed(value))
    budget.output_left -= len(text)
    if budget.output_left < 0:
        raise TemplateError("the model's chat template makes too long a text", hint="use another template")
    return text


def _joined(parts: Iterable[Any]) -> str:
    return "".join(_finalize(part) for part in parts)


def _raise_exception(message: object) -> None:
    raise TemplateError(f"the model's chat template refuses this conversation: {str(message)[:300]}")


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    if indent is not None and indent > 16:
        raise TemplateError("the model's chat template asks for too wide an indent")
    _weighed(value)
    # the models were trained on plain json.dumps, not on jinja's HTML-safe variant
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(str(pattern)[:100])


class _Environment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, with every way to make work or text counted."""

    intercepted_binops = frozenset({"*", "**", "+", "%", "//", "/", "-"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "_counted")
        _count_made_values(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        if operator == "*" and (_is_sequence(left) or _is_sequence(right)):
            sequence, count = (left, right) if _is_sequence(left) else (right, left)
            if not isinstance(count, int) or len(sequence) * count > TEMPLATE_OUTPUT_BYTES_MAX:
                raise TemplateError("the model's chat template repeats a text too often")
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _INTEGER_BITS_MAX:
                raise TemplateError("the model's chat template calculates with too large numbers")
        if operator == "%" and isinstance(left, str) and _FORMAT_WIDTH.search(left):
            raise TemplateError("the model's chat template asks for too wide a text")
        return budget.sized(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        if getattr(obj, "__name__", "") == "replace":
            _check_replacement(getattr(obj, "__self__", ""), *args)
        result = budget.sized(super().call(context, obj, *args, **kwargs))
        return _weighed(result) if obj is dict else result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _PADDING_METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is not None:
            raise TemplateError("the model's chat template uses str.format, which is not supported here")


def _check_replacement(text: Any, *args: Any) -> None:
    new = args[1] if len(args) > 1 else ""
    old = args[0] if args else ""
    if all(isinstance(part, str) for part in (text, old, new)):
        times = len(text) + 1 if not old else text.count(old)
        if len(text) + times * len(new) > TEMPLATE_OUTPUT_BYTES_MAX:
            raise TemplateError("the model's chat template makes too long a text")


def _is_sequence(value: Any) -> bool:
    return isinstance(value, str | bytes | list | tuple)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


def _count_made_values(node: nodes.Node) -> None:
    """Send every `a ~ b` and every list, tuple or dict the template makes through a counting filter."""
    for field_name, value in list(node.iter_fields()):
        children = value if isinstance(value, list) else [value]
        for position, child in enumerate(children):
            if not isinstance(child, nodes.Node):
                continue
            _count_made_values(child)
            counted = _counting_filter(child)
            if counted is None:
                continue
            if isinstance(value, list):
                value[position] = counted
            else:
                setattr(node, field_name, counted)


def _counting_filter(node: nodes.Node) -> nodes.Filter | None:
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")
    if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filtered(node, "_weighed")
    return None


def _weighed(value: Any) -> Any:
    """The value, after paying for everything reachable in it: shared parts count each time."""
    budget = _BUDGET.get()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        budget.step()
        if isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return value


def _join(value: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    items = [item[attribute] if attribute is not None else item for item in _counted(value)]
    texts = [str(item) for item in items]
    if sum(map(len, texts)) + len(separator) * len(texts) > TEMPLATE_OUTPUT_BYTES_MAX:
        raise TemplateError("the model's chat template makes too long a text")
    return separator.join(texts)


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    _check_replacement(str(text), old, new)
    return str(text).replace(old, new, count)


def _indent(text: str, width: int = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, int) or width > 64:
        raise TemplateError("the model's chat template asks for too wide an indent")
    lines = str(text).split("\n")
    return "\n".join(
        (" " * width if (index or first) and (line or blank) else "") + line
        for index, line in enumerate(lines)
    )


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_finalize, optimized=False
    )
    for name in (
        "center",
        "format",
        "wordwrap",
        "filesizeformat",
        "pprint",
        "random",
        "xmlattr",
        "urlize",
        "slice",
    ):
        environment.filters.pop(name, None)
    environment.filters.pop("batch", None)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.filters.update(
        tojson=_tojson,
        join=_join,
        replace=_replace,
        indent=_indent,
        _counted=_counted,
        _joined=_joined,
        _weighed=_weighed,
    )
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


_ENVIRONMENT = _environment()


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return _ENVIRONMENT.from_string(source)


def render(source: str, variables: Mapping[str, Any], timeout_s: float = TEMPLATE_RENDER_TIMEOUT_S) -> str:
    """Render a chat template; TemplateError for anything it does wrong.

    Cost: at most TEMPLATE_STEPS_MAX steps; call it in a thread.
    """
    if len(source) > TEMPLATE_SOURCE_BYTES_MAX:
        raise TemplateError("the model's chat template is too long", hint="use another template")
    budget = Budget(TEMPLATE_STEPS_MAX, TEMPLATE_OUTPUT_BYTES_MAX, time.monotonic() + timeout_s)
    token = _BUDGET.set(budget)
    try:
        parts: list[str] = []
        length = 0
        for part in _compiled(source).generate(**variables):
            length += len(part)
            budget.step()
            if length > TEMPLATE_OUTPUT_BYTES_MAX:
                raise TemplateError("the model's chat template makes too long a text")
            parts.append(part)
        return "".join(parts)
    except TemplateError:
        raise
    except JinjaError as error:
        raise TemplateError(f"the model's chat template does not work: {str(error)[:300]}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise TemplateError(f"the model's chat template failed: {type(error).__name__}") from error
    finally:
        _BUDGET.reset(token)
