"""Kill a training process at twenty random instants, also while it saves: not a bit may differ in the end.

Not collected by default: `make soak`.
"""

import pytest
from test_resume import killed_run_equals_uninterrupted


@pytest.mark.soak
def test_twenty_kills_leave_no_trace(tmp_path):
    killed_run_equals_uninterrupted(tmp_path, kills=20, steps=300)
