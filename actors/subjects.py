"""The rules of NATS subjects: what is valid, what matches, what covers and overlaps what.

A subject is tokens joined by dots. In a filter `*` stands for one token and a `>` at the end for one or more.
"""

from understudy.actors.errors import DeclarationError, EncodeError

# The server closes a connection that sends a line of more than 4 KiB; a subject is only a part of that.
MAX_SUBJECT_LENGTH = 1000


def check_filter(subject: object, where: str) -> str:
    """Returns `subject` if it is a valid filter, else raises DeclarationError."""
    if not isinstance(subject, str) or not subject:
        raise DeclarationError(f'{where}: the subject is {subject!r}; give a text such as "orders.placed"')
    if len(subject) > MAX_SUBJECT_LENGTH:
        raise DeclarationError(f"{where}: the subject has {len(subject)} characters; the most is 1000")
    tokens = subject.split(".")
    for index, part in enumerate(tokens):
        problem = ""
        if not part:
            problem = "a token between dots is empty"
        elif part == ">" and index < len(tokens) - 1:
            problem = "'>' must be the last token"
        elif part not in ("*", ">") and ("*" in part or ">" in part):
            problem = f"in {part!r} the wildcard must be a token of its own"
        elif part not in ("*", ">") and not is_plain(part):
            problem = "white space and control characters aren't allowed"
        if problem:
            raise DeclarationError(f"{where}: the subject {subject!r} is not valid: {problem}")
    return subject


def is_plain(token: str) -> bool:
    """Whether `token` can be one literal token of a subject."""
    # isprintable is false for control characters and for every white space but the blank.
    return bool(token) and token.isprintable() and not any(mark in token for mark in " .*>")


def check_literal(subject: object) -> str:
    """Returns `subject` if events can be published to it, else raises EncodeError."""
    if not isinstance(subject, str) or not subject:
        raise EncodeError(f'the subject is {subject!r}; give a text such as "orders.placed"')
    if len(subject) > MAX_SUBJECT_LENGTH:
        raise EncodeError(f"the subject has {len(subject)} characters; the most is {MAX_SUBJECT_LENGTH}")
    if not all(map(is_plain, subject.split("."))):
        raise EncodeError(
            f"nothing can be published to the subject {subject!r}: its tokens must not be empty nor hold "
            f"'*', '>', white space or control characters"
        )
    return subject


def matches(pattern: str, subject: str) -> bool:
    """Whether a literal subject fits the filter `pattern`."""
    return covers(pattern, subject)


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that fits the filter `narrow` fits the filter `wide` too."""
    wide_tokens, narrow_tokens = wide.split("."), narrow.split(".")
    for index, part in enumerate(wide_tokens):
        if index >= len(narrow_tokens):
            return False
        if part == ">":
            return True
        other = narrow_tokens[index]
        if other == ">" or part not in ("*", other):
            return False
    return len(wide_tokens) == len(narrow_tokens)


def overlap(one: str, other: str) -> bool:
    """Whether some subject fits both filters."""
    one_tokens, other_tokens = one.split("."), other.split(".")
    for left, right in zip(one_tokens, other_tokens, strict=False):
        if ">" in (left, right):
            return True
        if left != right and "*" not in (left, right):
            return False
    return len(one_tokens) == len(other_tokens)


def specificity(pattern: str) -> tuple[int, ...]:
    """A sort key that puts the most specific filter first: a literal before `*` before `>`, left to right."""
    ranks = {"*": 1, ">": 2}
    return tuple(ranks.get(token, 0) for token in pattern.split("."))


def without_covered(filters: tuple[str, ...]) -> tuple[str, ...]:
    """The filters that together match the same, in order, each once and none that another one covers.

    The server refuses a consumer of which one filter covers another (10138).
    """
    unique = tuple(dict.fromkeys(filters))
    return tuple(one for one in unique if not any(other != one and covers(other, one) for other in unique))
