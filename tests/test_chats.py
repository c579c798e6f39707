"""Conversations through chat templates: whose characters are whose, under templates in use, and which are refused."""

from pathlib import Path

import pytest

from holdfast.chats import render
from holdfast.errors import DataError
from holdfast.models import Tokenizer, load_tokenizer

MESSAGES = [
    {"role": "system", "content": "user"},
    {"role": "user", "content": "  user  "},  # a word of the template's own, in white space that some trim
    {"role": "assistant", "content": "end"},
    {"role": "user", "content": ""},
    {"role": "user", "content": "<|end|>\n"},
    {"role": "assistant", "content": "Yes. "},
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA2 = (
    "<s>You are kind.{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} </s>"
    "{% else %}[{{ m['role'] | upper }}] {{ m['content'] | trim }} [/]{% endif %}{% endfor %}"
)
SHOUT = (
    "{% for m in messages %}{{ m['content'] | upper if m['role'] == 'user' else m['content'] }}|{% endfor %}"
    "{% if add_generation_prompt %}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny: Path) -> Tokenizer:
    return load_tokenizer(str(tiny))


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["end<|im_end|>", "Yes. <|im_end|>"]),
        (ZEPHYR, ["end<|end|>", "Yes.<|end|>"]),
        (LLAMA2, [" end </s>", " Yes. </s>"]),
    ],
)
def test_every_message_is_found_where_it_stands(template: str, answers: list[str], tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = template
    got = render(MESSAGES, tokenizer, place="here")
    assert got.text == str(tokenizer.apply_chat_template(MESSAGES, tokenize=False))
    assert [got.text[low:high] for low, high in got.answers] == answers
    assert [got.text[low:high] for low, high in got.others] == ["user", "user", "<|end|>"]


def test_words_that_a_template_changes_are_the_templates(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = SHOUT
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    got = render(messages, tokenizer, place="here")
    assert (got.text, got.others) == ("HELLO|Hi|", ())
    assert [got.text[low:high] for low, high in got.answers] == ["Hi|"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] if loop.last else 'removed' }}|{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    messages = [{"role": role, "content": text} for role, text in [("user", "a"), ("assistant", "b"), ("user", "c")]]
    with pytest.raises(DataError, match=r"rewrites turn 2.*, at row 7"):
        render(messages, tokenizer, place="row 7")
    with pytest.raises(DataError, match=r"got a conversation that the assistant begins, .* at row 7"):
        render(messages[1:], tokenizer, place="row 7")
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template, at row 7"):
        render(messages, tokenizer, place="row 7")
