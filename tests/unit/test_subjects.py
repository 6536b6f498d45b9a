"""The rules of NATS subjects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.actors.errors import DeclarationError
from understudy.actors.subjects import (
    check_filter,
    covers,
    is_plain,
    matches,
    overlap,
    specificity,
    without_covered,
)

# Few letters and short subjects, so that random ones often meet.
subjects = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
) | st.just(">")


def all_subjects() -> list[str]:
    found = [""]
    every = []
    for _ in range(5):
        found = [f"{head}.{token}".lstrip(".") for head in found for token in "abc"]
        every += found
    return every


EVERY = all_subjects()


@given(patterns, subjects)
def test_matching_agrees_with_the_server_rule_token_by_token(pattern: str, subject: str) -> None:
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        expected = len(tokens) >= len(wanted) and all(
            one in ("*", other) for one, other in zip(wanted[:-1], tokens, strict=False)
        )
    else:
        expected = len(tokens) == len(wanted) and all(
            one in ("*", other) for one, other in zip(wanted, tokens, strict=True)
        )
    assert matches(pattern, subject) == expected


@given(patterns, patterns)
def test_covering_and_overlapping_mean_what_they_say_for_every_short_subject(one: str, other: str) -> None:
    in_one = {subject for subject in EVERY if matches(one, subject)}
    in_other = {subject for subject in EVERY if matches(other, subject)}
    assert covers(one, other) == (in_other <= in_one)
    assert overlap(one, other) == bool(in_one & in_other)
    assert overlap(one, other) == overlap(other, one)


@given(st.lists(patterns, min_size=1, max_size=5))
def test_leaving_out_covered_filters_loses_nothing_and_leaves_none_covered(filters: list[str]) -> None:
    kept = without_covered(tuple(filters))
    for subject in EVERY[:120]:
        assert any(matches(one, subject) for one in kept) == any(matches(one, subject) for one in filters)
    assert not any(covers(one, other) for one in kept for other in kept if one != other)


@given(st.lists(patterns, min_size=1, max_size=4, unique=True), subjects)
def test_two_filters_that_match_one_subject_are_never_equally_specific(
    filters: list[str], subject: str
) -> None:
    keys = [specificity(one) for one in filters if matches(one, subject)]
    assert len(set(keys)) == len(keys)


def test_a_literal_is_more_specific_than_a_star_and_a_star_than_the_rest() -> None:
    filters = [">", "*.b", "a.>", "a.*", "a.b"]
    assert sorted(filters, key=specificity) == ["a.b", "a.*", "a.>", "*.b", ">"]


@pytest.mark.parametrize(
    ("subject", "problem"),
    [
        ("a..b", "a token between dots is empty"),
        (".a", "a token between dots is empty"),
        ("a.>.b", "'>' must be the last token"),
        ("a.b*", "in 'b*' the wildcard must be a token of its own"),
        ("a b", "white space and control characters aren't allowed"),
        ("a\r\nb", "white space and control characters aren't allowed"),
        ("a\u2028b", "white space and control characters aren't allowed"),
    ],
)
def test_an_invalid_subject_is_refused_with_its_fault(subject: str, problem: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        check_filter(subject, "here")
    assert str(caught.value) == f"here: the subject {subject!r} is not valid: {problem}"


def test_an_overlong_subject_is_refused() -> None:
    with pytest.raises(DeclarationError) as caught:
        check_filter("a" * 1001, "here")
    assert str(caught.value) == "here: the subject has 1001 characters; the most is 1000"


@pytest.mark.parametrize("subject", ["a", "a.b", "a.*", ">", "a.>", "*.*", "größe.ä", "$KV.x.>"])
def test_valid_filters_pass(subject: str) -> None:
    assert check_filter(subject, "here") == subject


@given(st.text())
def test_a_plain_token_never_changes_the_shape_of_a_subject(token: str) -> None:
    if is_plain(token):
        assert check_filter(f"a.{token}.b", "here").count(".") == 2
