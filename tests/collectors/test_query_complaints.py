"""What the engine says of a text that is not PromQL: where the error is, and the words of Prometheus 2.42."""

from __future__ import annotations

import pytest

from collectors.query import QueryError, parse

# As a real Prometheus answered each.
COMPLAINTS = [
    ("sum(", "1:5: parse error: unclosed left parenthesis"),
    ("sum(x", "1:6: parse error: unclosed left parenthesis"),
    ("up{", "1:4: parse error: unexpected end of input inside braces"),
    ("up{a", "1:5: parse error: unexpected end of input inside braces"),
    ("up{a=", "1:6: parse error: unexpected end of input inside braces"),
    ('up{a="b"', "1:9: parse error: unexpected end of input inside braces"),
    ('up{a="b",', "1:10: parse error: unexpected end of input inside braces"),
    ('up{a="b" c="d"}', '1:10: parse error: unexpected identifier "c" in label matching, expected "," or "}"'),
    ('up{a=~"("}', "1:4: parse error: error parsing regexp: missing closing ): `^(?:()$`"),
    ("up)", "1:4: parse error: unexpected right parenthesis ')'"),
    ("foo bar", '1:5: parse error: unexpected identifier "bar"'),
    ("foo 5", '1:5: parse error: unexpected number "5"'),
    ("1 +", "1:4: parse error: unexpected end of input"),
    ("1 + )", "1:6: parse error: unexpected right parenthesis ')'"),
    ("(1", "1:3: parse error: unclosed left parenthesis"),
    ("rate(x)", '1:6: parse error: expected type range vector in call to function "rate", got instant vector'),
    ("rate(x[5m], 1)", '1:1: parse error: expected 1 argument(s) in call to "rate", got 2'),
    ("rate()", '1:1: parse error: expected 1 argument(s) in call to "rate", got 0'),
    ("rate(x[5m]", "1:11: parse error: unclosed left parenthesis"),
    ("rate(x[5m)", '1:10: parse error: unexpected ")" in subquery or range, expected ":" or "]"'),
    ("rate(x[5m", "1:10: parse error: unclosed left parenthesis"),
    ("x[5q]", '1:3: parse error: bad duration syntax: "5"'),
    ("x[", "1:3: parse error: missing unit character in duration"),
    ("x[5m:", "1:6: parse error: unclosed left bracket"),
    ("x[5m:1m", "1:8: parse error: unclosed left bracket"),
    ("x[5m:1m:2m]", "1:8: parse error: unexpected colon ':'"),
    ("sum(1)", "1:5: parse error: expected type instant vector in aggregation expression, got scalar"),
    ("sum()", "1:1: parse error: no arguments for aggregate expression provided"),
    ("sum(x, y)", "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 1, got 2"),
    ("sum by (a x", '1:11: parse error: unexpected identifier "x" in grouping opts, expected "," or ")"'),
    ("sum by a (x)", '1:8: parse error: unexpected identifier "a" in grouping opts, expected "("'),
    ("sum by (1) (x)", '1:9: parse error: unexpected number "1" in grouping opts, expected label'),
    ("sum x", '1:5: parse error: unexpected identifier "x"'),
    ("topk(x)", "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 2, got 1"),
    ("topk(x, x)", "1:6: parse error: expected type scalar in aggregation parameter, got instant vector"),
    ('quantile("a", x)', "1:10: parse error: expected type scalar in aggregation parameter, got string"),
    ("count_values(1, x)", "1:14: parse error: expected type string in aggregation parameter, got scalar"),
    ("nonsense(x)", '1:1: parse error: unknown function with name "nonsense"'),
    ("x and 1", '1:1: parse error: set operator "and" not allowed in binary scalar expression'),
    ("1 and 2", '1:1: parse error: set operator "and" not allowed in binary scalar expression'),
    ("1 > 2", "1:3: parse error: comparisons between scalars must use BOOL modifier"),
    ("x + bool y", "1:3: parse error: bool modifier can only be used on comparison operators"),
    ("{}", "1:1: parse error: vector selector must contain at least one non-empty matcher"),
    ('{a=~".*"}', "1:1: parse error: vector selector must contain at least one non-empty matcher"),
    ('x{__name__="y"}', '1:1: parse error: metric name must not be set twice: "x" or "y"'),
    ('"a" + 1', "1:1: parse error: binary expression must contain only scalar and instant vector types"),
    ("x[5m] + 1", "1:1: parse error: binary expression must contain only scalar and instant vector types"),
    ("x offset", "1:9: parse error: unexpected end of input in offset, expected duration"),
    ("x offset 5m offset 5m", "1:1: parse error: offset may not be set multiple times"),
    ("x @", "1:4: parse error: unexpected end of input in @, expected timestamp"),
    ("x @ y", '1:5: parse error: unexpected identifier "y" in @, expected timestamp'),
    ("x[5m] @ 5 [1m]", "1:11: parse error: ranges only allowed for vector selectors"),
    ("(x + 1)[5m]", "1:8: parse error: ranges only allowed for vector selectors"),
    ("1[5m:1m]", "1:1: parse error: subquery is only allowed on instant vector, got scalar instead"),
    ('"abc', "1:1: parse error: unterminated quoted string"),
    ("'abc", "1:1: parse error: unterminated quoted string"),
    ("`abc", "1:1: parse error: unterminated raw string"),
    ("x ~ y", "1:3: parse error: unexpected character: '~'"),
    ("x =~ y", "1:3: parse error: unexpected character after '=': '~'"),
    ("x = y", '1:3: parse error: unexpected "="'),
    ("x ! y", "1:3: parse error: unexpected character after '!': ' '"),
    ("x !~ y", "1:3: parse error: unexpected character after '!': '~'"),
    ("$", "1:1: parse error: unexpected character: '$'"),
    ("x{$}", "1:3: parse error: unexpected character inside braces: '$'"),
    ('x{!a="b"}', "1:3: parse error: unexpected character after '!' inside braces: 'a'"),
    ("x{{}", "1:3: parse error: unexpected left brace '{'"),
    ("x on (a) y", "1:3: parse error: unexpected <on>"),
    ("x and on (a) group_left y", '1:1: parse error: no grouping allowed for "and" operation'),
    ("x + on (a) group_left (a) y", '1:3: parse error: label "a" must not occur in ON and GROUP clause at once'),
    ("1 + on (a) x", "1:1: parse error: vector matching only allowed between instant vectors"),
    ('label_replace(x, "a", "b", "c")', '1:1: parse error: expected 5 argument(s) in call to "label_replace", got 4'),
    ("label_join(x)", '1:1: parse error: expected at least 3 argument(s) in call to "label_join", got 1'),
    ("round(x, 1, 2)", '1:1: parse error: expected at most 2 argument(s) in call to "round", got 3'),
    ("vector(x)", '1:8: parse error: expected type scalar in call to function "vector", got instant vector'),
    ("scalar(1)", '1:8: parse error: expected type instant vector in call to function "scalar", got scalar'),
    ("time(1)", '1:1: parse error: expected 0 argument(s) in call to "time", got 1'),
    ("x[5m][5m]", "1:6: parse error: ranges only allowed for vector selectors"),
    ("rate(sum(x)[5m])", "1:12: parse error: ranges only allowed for vector selectors"),
    ("by (a)", '1:4: parse error: unexpected "("'),
    ("offset 5m", '1:8: parse error: unexpected duration "5m"'),
    ("5m5x", '1:1: parse error: bad number or duration syntax: "5m5"'),
    ('x{a="b"}{c="d"}', '1:9: parse error: unexpected "{"'),
    ('x{a="b"}[5m] foo', '1:14: parse error: unexpected identifier "foo"'),
    ("sum(rate(x[5m])) by (a) by (b)", "1:25: parse error: unexpected <by>"),
    ("a:b(x)", '1:4: parse error: unexpected "("'),
    ("absent(x[5m])", '1:8: parse error: expected type instant vector in call to function "absent", got range vector'),
    ("round(x,)", "1:8: parse error: trailing commas not allowed in function call args"),
    ("1 2", '1:3: parse error: unexpected number "2"'),
    ("rate(x[0s])", "1:8: parse error: duration must be greater than 0"),
    ("x[5m:0s]", "1:6: parse error: duration must be greater than 0"),
    ("x[30m1h]", '1:3: parse error: not a valid duration string: "30m1h"'),
    ("x offset 300y", "1:10: parse error: duration out of range"),
    ("x + 1e400", '1:5: parse error: error parsing number: strconv.ParseFloat: parsing "1e400": value out of range'),
    ("x @ Inf", "1:1: parse error: timestamp out of bounds for @ modifier: +Inf"),
    ("1 + x @ NaN", "1:5: parse error: timestamp out of bounds for @ modifier: NaN"),
    ("x @ 1e20", "1:1: parse error: timestamp out of bounds for @ modifier: 100000000000000000000.000000"),
    ("bool", "1:1: parse error: unexpected <bool>"),
    ("x + group_left", "1:5: parse error: unexpected <group_left>"),
]


@pytest.mark.parametrize(("expr", "complaint"), COMPLAINTS)
def test_an_error_says_where_it_is_in_the_words_of_prometheus(expr: str, complaint: str) -> None:
    with pytest.raises(QueryError) as caught:
        parse(expr)

    assert caught.value.kind == "bad_data"
    assert str(caught.value) == complaint


def test_lines_are_counted() -> None:
    with pytest.raises(QueryError) as caught:
        parse("sum(\n  rate(x[5m])\n) +\n  nonsense(y)")

    assert str(caught.value) == '4:3: parse error: unknown function with name "nonsense"'


@pytest.mark.parametrize("expr", ["", "  ", "# nothing"])
def test_an_empty_expression_is_named(expr: str) -> None:
    with pytest.raises(QueryError, match="parse error: no expression found"):
        parse(expr)
