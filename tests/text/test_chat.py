"""Chat templates, against transformers' apply_chat_template on the same template and messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizer_files import CHATML, write_tokenizer

from orcinus.errors import CheckpointError, InvalidRequest
from orcinus.text.chat import ChatTemplate
from orcinus.text.tokenizer import Tokenizer

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

STRICT_TURNS = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% else %}
        {% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {% endif %}
{% endfor %}"""

THINKING = """{%- set ns = namespace(last=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' %}{% continue %}{% endif -%}
    {%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif -%}
    {{ '<|' ~ message.role ~ '|>' ~ (message.content or '') ~ '\\n' }}
    {%- for call in message.tool_calls or [] -%}
        {{ call.function | tojson(indent=2) }}
    {%- endfor -%}
{%- endfor -%}
{{ ns.last }}{{ dict(a=1) | tojson }}
{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""

TURNS = [{"role": "user", "content": ' Say <b>hi</b> & "bye" '}, {"role": "assistant", "content": "hi 🦊\n"}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    TURNS[:1],
    [*TURNS, {"role": "user", "content": "again"}],
    [{"role": "system", "content": "Be kind."}, *TURNS],
    [
        *TURNS,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": {"ü": [1, None]}}}],
        },
        {"role": "tool", "content": '{"x": 1}', "tool_call_id": "1"},
    ],
]
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = write_tokenizer(tmp_path_factory.mktemp("chat"))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **SPECIAL)


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "three", "system", "tool"])
@pytest.mark.parametrize(
    "source", [CHATML, LLAMA3, STRICT_TURNS, THINKING], ids=["chatml", "llama3", "strict", "thinking"]
)
def test_rendering_equals_apply_chat_template(
    reference: Any, source: str, messages: list[dict[str, Any]], generation_prompt: bool
) -> None:
    def expected() -> str:
        return reference.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=generation_prompt
        )

    template = ChatTemplate(source, SPECIAL)
    try:
        text = expected()
    except (jinja2.TemplateError, TypeError):
        with pytest.raises(InvalidRequest):
            template.render(messages, add_generation_prompt=generation_prompt)
    else:
        assert template.render(messages, add_generation_prompt=generation_prompt) == text


def test_some_template_of_the_oracle_refuses_and_some_renders_each_conversation(reference: Any) -> None:
    template = ChatTemplate(STRICT_TURNS, SPECIAL)
    assert template.render(CONVERSATIONS[1]).startswith("<|endoftext|>")
    with pytest.raises(InvalidRequest, match="roles must alternate") as refused:
        template.render(CONVERSATIONS[2])
    assert refused.value.param == "messages"


def test_variables_of_the_template_can_be_set_and_others_are_refused(reference: Any) -> None:
    template = ChatTemplate(THINKING, SPECIAL)
    expected = reference.apply_chat_template(
        TURNS, chat_template=THINKING, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert template.render(TURNS, variables={"enable_thinking": False}) == expected
    assert "<think>" in expected
    for name in ("messages", "bos_token", "nonsense", "raise_exception"):
        with pytest.raises(InvalidRequest, match="no variable"):
            template.render(TURNS, variables={name: 1})


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ namespace(__class__=1) }}",
        "{{ messages[0]['content'].format.__globals__.x }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ range(10**9) | length }}",
        "{{ raise_exception('no') }}",
        "{{ messages[99].content.x }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% include 'secret' %}",
    ],
)
def test_a_template_that_misbehaves_ends_its_own_request_without_telling_internals(source: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ChatTemplate(source, SPECIAL).render(TURNS)
    assert refused.value.param == "messages"
    assert len(refused.value.message) < 400
    assert "__" not in refused.value.message


def test_a_source_that_is_no_template_fails_at_start() -> None:
    with pytest.raises(CheckpointError, match="chat template"):
        ChatTemplate("{% if %}", SPECIAL)


def test_the_template_file_wins_over_the_configuration_and_named_ones_give_their_default(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = {
        "chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}],
        "bos_token": "<|x|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    named = Tokenizer.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("F")
    filed = Tokenizer.load(tmp_path)
    assert named is not None
    assert filed is not None
    assert (named.chat_template, named.bos_token, named.bos_id, named.eos_id) == ("D", "<|x|>", None, None)
    assert filed.chat_template == "F"
    assert Tokenizer.load(tmp_path / "nothing") is None


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_broken_file_is_named(tmp_path: Path, file: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / file).write_bytes(b'{"bos_token": 7}\xff')
    with pytest.raises(CheckpointError, match=file):
        Tokenizer.load(tmp_path)
