"""What a stream's answer means."""

from __future__ import annotations

import pytest

from understudy.runtime.jetstream.puback import PubAck, Refused, read_answer


def test_an_acknowledgement() -> None:
    """Whatever else the server says in it."""
    assert read_answer(b'{"stream":"ORDERS", "seq":7}') == PubAck("ORDERS", 7)
    answer = b'{"stream":"error","domain":"hub","seq":7,"duplicate":true,"val":"9","error":null}'
    assert read_answer(answer) == PubAck("error", 7, duplicate=True)


def test_a_refusal() -> None:
    """It is quoted, whatever stands beside it."""
    answer = b'{"error":{"code":503,"err_code":10077,"description":"full"},"stream":"ORDERS","seq":0}'
    with pytest.raises(Refused, match="the stream refused it: full") as raised:
        read_answer(answer)
    assert raised.value.code == 10077


@pytest.mark.parametrize("body", [b"", b"+OK", b"{}", b'{"stream":"ORDERS"}', b'{"seq":1}', b'{"error":1}'])
def test_what_is_no_answer_confirms_nothing(body: bytes) -> None:
    """A message that is taken for stored when it isn't would be lost."""
    with pytest.raises(Refused, match="the answer can't be read: ") as raised:
        read_answer(body)
    assert raised.value.code is None
