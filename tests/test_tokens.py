"""Tokens: what they become, and that nothing else comes in with them."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcppc.actions import tokens
from tcppc.actions.tokens import EXAMPLE, TOKENS, TokenError, Values


def test_each_token_has_an_example() -> None:
    line = " ".join(f"[{name}]" for name in TOKENS)
    assert EXAMPLE.expand(line, quoted=False).split() == [example for _, example in TOKENS.values()]


@pytest.mark.parametrize("text", ["[ -f x ] && echo [A-Z]*", "echo [[SRC_IP]]", "plain", "${X[1]} [x]", "[A]"])
def test_a_shell_s_own_brackets_are_left(text: str) -> None:
    tokens.check(text)
    assert EXAMPLE.expand(text, quoted=True) == text.replace("[SRC_IP]", "198.51.100.7")


@pytest.mark.parametrize("text", ["[SRC_PI]", "x [NOPE] y", "[SRC__IP]"])
def test_an_unknown_token_is_told(text: str) -> None:
    with pytest.raises(TokenError, match="there is no token"):
        tokens.check(text)


@given(st.sampled_from(sorted(set(TOKENS) - {"SENSOR"})), st.text(max_size=20))
def test_a_value_is_an_address_number_or_name_or_refused(name: str, value: str) -> None:
    try:
        values = Values({name: value})
    except TokenError:
        return
    assert shlex.split(values.expand(f"x[{name}]", quoted=True)) == [f"x{value}"]
    assert values.arguments(f"[{name}]")[2] == value


@given(st.text(alphabet=st.characters(blacklist_characters="\0"), min_size=1, max_size=20))
def test_a_sensor_s_name_is_one_word_for_the_shell(name: str) -> None:
    values = Values({"SENSOR": name})
    assert shlex.split(values.expand("a [SENSOR] b", quoted=True)) == ["a", name, "b"]
    assert values.arguments(["[SENSOR]", "x"]) == [name, "x"]
