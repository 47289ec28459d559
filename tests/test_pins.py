"""What must not move while the package is rebuilt: records, resumes, JSON, tables, predictions.

A change that is meant is written down by ``python scripts/pin.py``; its difference is reviewed.
"""

import pytest
from pins import pinned


@pytest.mark.parametrize("name", pinned.PINS)
def test_nothing_pinned_has_moved(name):
    found = pinned.check(name, pinned.value(name))
    assert not found, (
        f"{len(found)} differences in {name!r}; if meant: python scripts/pin.py {name}\n"
        + pinned.report(found, 30)
    )


def test_a_moved_row_is_named():
    golden = [
        {"mechanism": "full-math", "seq_len": 8, "seconds": 1.0, "bound": "memory"},
        {"mechanism": "low-rank", "seq_len": 8, "seconds": 2.0, "bound": "memory"},
    ]

    def told(now):
        return [text for _, text in pinned.differences(golden, now, "rows")]

    within = [golden[0] | {"seconds": 1.0 + 5e-7}, golden[1]]
    assert told(within) == []
    assert told([golden[0] | {"seconds": 1.0 + 2e-6}, golden[1]]) == [
        "rows[full-math,8].seconds: 1.0 -> 1.000002 (2e-06)"
    ]
    assert told(golden[::-1]) == ["rows: rows in another order from row 0: now low-rank,8"]
    assert told(golden[:1]) == ["rows[low-rank,8]: row gone"]
    assert told([golden[0] | {"bound": "compute"}, golden[1]]) == [
        'rows[full-math,8].bound: "memory" -> "compute"'
    ]
    swapped = {key: golden[0][key] for key in reversed(golden[0])}
    assert "order of keys" in told([swapped, golden[1]])[0]
