"""The table of cases in the docs says what the tests prove, and nothing else."""

from tests.faults.table import PAGE, UNPROVEN, cases, parts_of, proofs, table


def test_every_test_of_a_case_names_a_case_that_there_is() -> None:
    assert len(cases()) == 136
    assert proofs().keys() <= cases().keys()


def test_a_case_is_proven_or_there_is_a_reason() -> None:
    assert cases().keys() - proofs().keys() == UNPROVEN.keys()


def test_the_page_holds_the_table_of_the_tests() -> None:
    """If it does not: python tests/faults/table.py"""
    _, written, after = parts_of(PAGE.read_text(encoding="utf-8"))
    assert written == table()
    assert after == "\n"
