"""How one row is printed: nothing of it steers a terminal, no secret is shown, JSON stays JSON."""

import json

from mmrag_batch.masking import MASK, mask_all
from mmrag_batch.report.explanation import WIDTH, Asked, Explanation, Sent, as_text, facts_of

SECRET = "hf_" + 24 * "a"


def explained(text: str, *, row_id: str = "7") -> Explanation:
    return Explanation(
        output="out.csv",
        table="out.csv",
        row=7,
        line=9,
        id=row_id,
        bundle="my-bundle",
        notes=(text,),
        question=Asked(text, None, (), None, ()),
        top_k=3,
        documents=(),
        unranked=None,
        prompt=Sent((text,), (), 12, 64, 0, 1, is_rendered=True),
        unsent=None,
        answer=None,
        before=None,
        next=None,
    )


def test_control_characters_are_shown_and_have_no_effect() -> None:
    said = as_text(explained("red\x1b[2J\u202e\r", row_id="\x1b[1m"))
    assert not set(said) & set("\x1b\u202e\r")
    assert "red\\x1b[2J\\u202e\\r" in said


def test_secrets_are_masked_before_lines_are_cut() -> None:
    row = explained(f'{"word " * 17}{SECRET} token="{SECRET}" key="x\\"')
    assert SECRET[:12] not in as_text(row)
    values = json.loads(json.dumps(mask_all(facts_of(row))))
    assert SECRET not in values["prompt"]["text"]
    assert MASK in values["question"]["text"]


def test_lines_are_no_longer_than_a_terminal_is_wide() -> None:
    said = as_text(explained("a word or two and " * 40 + "\n\n" + "x" * 300))
    prompt = said.partition("Prompt:")[2]
    assert max(map(len, prompt.splitlines())) <= WIDTH
    assert "\n  |\n" in prompt
    assert prompt.count("\n    x") == 3
