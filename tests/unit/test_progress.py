"""How an export says how far it is."""

from __future__ import annotations

import pytest

from phi3ov.exporter.progress import ExportProgress, Phases


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[ExportProgress]:
    """What the callback gets, with every report sent."""
    monkeypatch.setattr("phi3ov.exporter.progress._REPORT_EVERY_SECONDS", 0.0)
    return []


@pytest.mark.parametrize("sizes", [[0.0, 0.0], [0.0, 5.0, 5.0], [5.0, 0.0], None, []])
def test_items_without_a_size_divide_nothing_by_zero(
    sizes: list[float] | None, sent: list[ExportProgress]
) -> None:
    """The share goes from 0 to 1 whatever the items cost; what is unknown is None."""
    phases = Phases(sent.append)
    phases.begin("compress")
    items = list(range(2 if sizes is None else len(sizes)))
    assert list(phases.follow(items, "pass", sizes)) == items
    shares = [one.done for one in sent[1:]]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    if items:
        assert (shares[-1], sent[-1].remaining_seconds) == (1.0, 0.0)
    assert [one.remaining_seconds is None for one in sent[1:]] == [share == 0 for share in shares]


def test_what_a_callback_raises_is_kept(sent: list[ExportProgress]) -> None:
    """So that whoever called a tool in between can tell it from the tool's own errors."""
    error = ZeroDivisionError("mine")

    def report(progress: ExportProgress) -> None:
        sent.append(progress)
        raise error

    phases = Phases(report)
    with pytest.raises(ZeroDivisionError):
        phases.begin("check")
    with pytest.raises(ZeroDivisionError) as caught:
        phases.raise_callers()
    assert caught.value is error
    Phases(lambda _: None).raise_callers()
