"""What a driver does not keep of the common contract is said, with a reason, and shown in docs/isolation.md."""

from __future__ import annotations

import pytest

from tests.runtime import contract_table
from tests.runtime.contract import DriverContract


def test_the_page_has_what_holds_for_which_driver() -> None:
    assert contract_table.table() in contract_table.PAGE.read_text(), "run `make docs`"


def test_nothing_is_left_out_without_a_reason() -> None:
    class Some(DriverContract, left_out={"test_mail_is_refused": "it has no network"}):
        pass

    assert Some.left_out == {"test_mail_is_refused": "it has no network"} and Some.test_mail_is_refused is None
    with pytest.raises(TypeError, match="leaves out test_mail_is_refused"):
        type("Silent", (DriverContract,), {"test_mail_is_refused": None})
    for left_out in ({"test_mail_is_refused": " "}, {"test_that_is_not_there": "it is not there"}):
        with pytest.raises(TypeError, match="each must be a test here, and have a reason"):

            class Wrong(DriverContract, left_out=left_out):
                pass
