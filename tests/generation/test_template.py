"""A chat template is a program of strangers: what it costs is bounded, and told."""

import pytest

from mmrag_batch.errors import ConfigError
from mmrag_batch.generation import template as module
from mmrag_batch.generation.template import ChatTemplate

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
TEXT = "{{ bos_token }}{{ messages[0]['content'][0]['text'] }}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
HOSTILE = {
    "loops": (ENDLESS, "takes over"),
    "counts": ("{{ 7 ** (10 ** 8) }}", "takes over"),
    "loops once": ("{% for i in range(10**9) %}{% endfor %}", "range"),
    "recurses": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "nests": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "not a valid template"),
    "divides by zero": ("{{ 1 // 0 }}", "ZeroDivisionError"),
    "names what is not there": ("{{ messages[0].x.y }}", "UndefinedError"),
    "doubles": (DOUBLED + "{{ n.x }}", "memory"),
    "pads": ("{{ 'x'|center(10**9) }}", "memory"),
    "repeats": ("{{ 'x' * 10**9 }}", "memory"),
    "writes": (f"{{{{ 'x' * {module.MAX_WRITTEN + 1} }}}}", "it writes 4,194,305 characters"),
    "reaches out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be applied"),
    "includes": ("{% include '/etc/passwd' %}", "cannot be applied"),
}


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0)  # which is one
    monkeypatch.setattr(module, "MEMORY", 2**28)


@pytest.mark.parametrize("name", HOSTILE)
def test_l02_a_template_that_costs_too_much_is_told(name: str) -> None:
    source, told = HOSTILE[name]
    with pytest.raises(ConfigError, match=told) as caught:
        ChatTemplate(source, {}).apply(MESSAGES)
    assert "chat_template.jinja" in str(caught.value)
    assert len(str(caught.value)) < 700


def test_l02_a_layout_that_is_told_of_costs_no_other() -> None:
    template = ChatTemplate("{% if messages|length > 1 %}" + ENDLESS + "{% endif %}" + TEXT, {})
    for _ in range(2):
        assert template.apply(MESSAGES) == "What?"
        with pytest.raises(ConfigError, match="takes over"):
            template.apply(MESSAGES * 2)


def test_a_template_has_the_variables_of_its_tokenizer() -> None:
    assert ChatTemplate(TEXT, {"bos_token": "<s>"}).apply(MESSAGES) == "<s>What?"


def test_templates_share_a_process() -> None:
    ChatTemplate(TEXT, {}).apply(MESSAGES)
    process = module._PROCESS.process
    ChatTemplate("{# another #}" + TEXT, {}).apply(MESSAGES)
    assert process is not None
    assert module._PROCESS.process is process
