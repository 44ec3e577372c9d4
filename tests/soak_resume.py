"""What takes minutes: twenty kills at random instants, also while saving.

Left out unless asked for: `make soak`.
"""

import pytest
from test_resume import killed_run_equals_uninterrupted

pytestmark = pytest.mark.soak


def test_twenty_kills_leave_no_trace(tmp_path):
    killed_run_equals_uninterrupted(tmp_path, kills=20, steps=300)
