"""Chat templates: what they may use, what they may not, and what is used when there is none."""

from __future__ import annotations

import pytest

from p2pnode.api.chat_template import TEMPLATES, detect_family, flatten_content, render_chat
from p2pnode.api.template_sandbox import render
from p2pnode.errors import RequestError, TemplateError
from p2pnode.limits import TEMPLATE_SOURCE_BYTES_MAX

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatml", "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"),
        ("llama2", "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello</s>[INST] Bye [/INST]"),
        ("llama3", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("mistral", "<s>[INST] Be kind.\n\nHi [/INST] Hello</s>[INST] Bye [/INST]"),
        ("gemma", "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"),
        ("alpaca", "### Instruction:\nBye\n\n### Response:\n"),
        ("plain", "Be kind.\nHi\nHello\nBye"),
    ],
)
def test_families(family: str, expected: str) -> None:
    """Each family's format is the one its models were trained on."""
    variables = {"messages": MESSAGES, "bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    assert render(TEMPLATES[family], variables).endswith(expected)  # type: ignore[index]


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"eos_token": "<|im_end|>"}, "chatml"),
        ({"eos_token": "<|eot_id|>"}, "llama3"),
        ({"eos_token": "<end_of_turn>"}, "gemma"),
        ({"name": "Mixtral 8x7B", "eos_token": "</s>"}, "mistral"),
        ({"model": "llama-2-7b-chat"}, "llama2"),
        ({"name": "Vicuna"}, "alpaca"),
        ({"architecture": "gemma2"}, "gemma"),
        ({"architecture": "qwen2"}, "chatml"),
        ({"architecture": "llama"}, "plain"),
        ({}, "plain"),
    ],
)
def test_detection(metadata: dict, family: str) -> None:
    assert detect_family(metadata) == family


def test_stops_and_beginning() -> None:
    """A detected family brings its stop texts; the tokenizer's own BOS is not written twice."""
    prompt, stops = render_chat({"eos_token": "<|eot_id|>", "bos_token": "<B>", "add_bos": True}, MESSAGES)
    assert stops == ("<|eot_id|>",)
    assert prompt.startswith("<|start_header_id|>system")
    prompt, stops = render_chat({"chat_template": "{{ bos_token }}{{ x }}"}, MESSAGES, extra={"x": 5})
    assert (prompt, stops) == ("5", ())


def test_what_templates_use() -> None:
    """The constructs of templates in the wild work."""
    source = (
        "{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- if loop.first -%}[{%- endif -%}"
        "{%- if m['role'] == 'user' -%}{%- set ns.found = true -%}{{- m.content | trim -}}{%- endif -%}"
        "{%- if loop.index0 == 1 -%}{%- continue -%}{%- endif -%}{%- endfor -%}]{{- ns.found -}}"
        "{%- macro twice(x) -%}{{ x }}{{ x }}{%- endmacro -%}{{- twice('a') -}}"
        "{{- {'k': [1, 'ü']} | tojson }}{{ [1, 2][::-1] }}{{ 'x,y'.split(',') | join('-') }}{{ 7 // 2 * 2 % 5 }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'ab' in 'cab' }}"
        "{{ strftime_now('%Y') | length }}{{ 'a' ~ 1 ~ none }}{{ 'line' | indent(2, true) }}"
        "{{ 'a.b'.replace('.', '') }}"
        "{% for k, v in {'p': 1} | dictsort %}{{ k }}{{ v }}{% endfor %}{{ dict(a=1).a }}{{ '%s!' % 'x' }}"
    )
    expected = '[HiBye]Trueaa{"k": [1, "ü"]}[2, 1]x-y12True4a1None  lineabp11x!'
    assert render(source, {"messages": MESSAGES}) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ [1] * 10**9 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(200) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(200) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(200) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% for i in range(200) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=1) %}{% for i in range(9) %}{% set ns.x = namespace(a=ns.x) %}{% endfor %}{{ ns.x }}",
        "{% set y %}{% for i in range(9999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaa' * 100 }}{% endfor %}{% endset %}",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(1) }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '%*d' % (99999999, 1) }}",
        "{{ '{:>99999999}'.format(1) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ 'aaaaaaaaaa'.replace('', 'b' * 1000000) }}",
        "{{ 'aaaaaaaaaa' | replace('a', 'b' * 1000000) }}",
        "{{ [('b' * 1000000)] * 9 | join }}",
        "{{ ['a' * 1000000, 'b'] | join('c' * 8000000) }}",
        "{{ 'x' | indent(10**9) }}",
        "{{ {} | tojson(indent=10**9) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% include 'secret' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ missing.field }}",
        "{{ 1 / 0 }}",
        "{%",
        "x" * (TEMPLATE_SOURCE_BYTES_MAX + 1),
    ],
)
def test_hostile_templates(source: str) -> None:
    """Whatever a template from a stranger tries, it is one condition, quickly."""
    with pytest.raises(TemplateError):
        render(source, {"messages": [dict(message) for message in MESSAGES]}, timeout_s=2.0)


def test_time_is_bounded() -> None:
    """A template that is slow in small steps is ended by the clock."""
    with pytest.raises(TemplateError, match="too long"):
        render("{% for i in range(9999) %}{{ i }}{% endfor %}", {}, timeout_s=-1.0)


def test_content_parts() -> None:
    """Text parts are joined; other parts are refused by name."""
    assert flatten_content(None) == ""
    assert flatten_content([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]) == "ab"
    assert flatten_content([{"type": "refusal", "refusal": "no"}]) == "no"
    with pytest.raises(RequestError, match="image_url"):
        flatten_content([{"type": "image_url"}])
    with pytest.raises(RequestError, match="int"):
        flatten_content([5])
