"""From messages to the prompt a model was trained on: its own template, or the family it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from p2pnode.api.template_sandbox import render
from p2pnode.errors import RequestError

Family = Literal["chatml", "llama2", "llama3", "mistral", "gemma", "alpaca", "plain"]

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_INST = (
    "{% set ns = namespace(system='') %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = ns.system ~ m.content ~ '\n\n' %}"
    "{% elif m.role == 'assistant' %}{{ ' ' ~ (m.content | trim) ~ eos_token }}"
    "{% else %}{{ OPEN }}{{ m.content | trim }} [/INST]{% set ns.system = '' %}{% endif %}{% endfor %}"
)
_LLAMA2 = _INST.replace(
    "{{ OPEN }}",
    "[INST] {% if ns.system %}{{ '<<SYS>>\n' ~ (ns.system | trim) ~ '\n<</SYS>>\n\n' }}{% endif %}",
)
_MISTRAL = _INST.replace("{{ OPEN }}", "[INST] {{ ns.system }}")
_ALPACA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}\n\n"
    "{% else %}### Instruction:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
_PLAIN = "{% for m in messages %}{{ m.content }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}"
TEMPLATES: Mapping[Family, str] = {
    "chatml": _CHATML,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "alpaca": _ALPACA,
    "plain": _PLAIN,
}
STOPS: Mapping[Family, tuple[str, ...]] = {
    "chatml": ("<|im_end|>",),
    "llama2": (),
    "llama3": ("<|eot_id|>",),
    "mistral": (),
    "gemma": ("<end_of_turn>",),
    "alpaca": ("### Instruction:",),
    "plain": (),
}


def detect_family(metadata: Mapping[str, Any]) -> Family:
    """The prompt format of a model without a template, from its end token, architecture and name."""
    eos = str(metadata.get("eos_token") or "")
    name = f"{metadata.get('name') or ''} {metadata.get('model') or ''}".lower()
    architecture = str(metadata.get("architecture") or "").lower()
    by_token: dict[str, Family] = {
        "<|im_end|>": "chatml",
        "<|eot_id|>": "llama3",
        "<|end_of_text|>": "llama3",
        "<end_of_turn>": "gemma",
    }
    if eos in by_token:
        return by_token[eos]
    by_name: tuple[tuple[str, Family], ...] = (
        ("alpaca", "alpaca"),
        ("vicuna", "alpaca"),
        ("mixtral", "mistral"),
        ("mistral", "mistral"),
        ("llama-3", "llama3"),
        ("llama3", "llama3"),
        ("llama-2", "llama2"),
        ("llama2", "llama2"),
        ("gemma", "gemma"),
        ("qwen", "chatml"),
    )
    for part, family in by_name:
        if part in name:
            return family
    if architecture.startswith("gemma"):
        return "gemma"
    return "chatml" if architecture.startswith("qwen") else "plain"


def flatten_content(content: Any) -> str:
    """Text of a message's content, which may be a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") not in (
            "text",
            "input_text",
            "output_text",
            "refusal",
        ):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RequestError(
                f"content parts of type {kind!r} are not understood: models here read text only",
                param="messages",
            )
        texts.append(str(part.get("text") or part.get("refusal") or ""))
    return "".join(texts)


def render_chat(
    metadata: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Prompt text and the stop sequences the format needs; the BOS token is left to the tokenizer."""
    template = metadata.get("chat_template")
    stops: tuple[str, ...] = ()
    if not template:
        family = detect_family(metadata)
        template, stops = TEMPLATES[family], STOPS[family]
    bos = str(metadata.get("bos_token") or "")
    variables = {
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": True,
        "bos_token": bos,
        "eos_token": str(metadata.get("eos_token") or ""),
        **({"tools": list(tools)} if tools else {}),
        **(extra or {}),
    }
    prompt = render(str(template), variables)
    if bos and metadata.get("add_bos") and prompt.startswith(bos):
        prompt = prompt[len(bos) :]
    return prompt, stops
