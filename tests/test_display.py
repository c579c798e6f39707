"""Text made safe to show."""

import pytest

from holdfast.display import BIDI_CONTROLS, visible


@pytest.mark.parametrize("character", BIDI_CONTROLS + "\x00\x1b\x85\u2028\u2029\ud800\ufffe\uffff\ufdd0")
def test_no_character_acts_unseen(character):
    assert visible(f"a{character}b") == f"a\\u{ord(character):04x}b"


@pytest.mark.parametrize("harmless", ["שלום", "مرحبا", "日本語", "e\u0301", "\U0001f9a6", "a\tb\nc"])
def test_letters_of_every_script_stay_as_they_are(harmless):
    assert visible(harmless) == harmless
