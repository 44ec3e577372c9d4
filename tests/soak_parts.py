"""Every cut of a batch on every number of devices trains the same model: minutes, where test_parts.py takes one cut."""

import pytest
from test_parts import KINDS, assert_same, trained, whole

CUTS = [(parts, devices) for parts in (1, 2, 4, 8) for devices in (1, 2, 4) if 1 < parts * devices <= 8]


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_trains_the_same_model(kind):
    for parts, devices in CUTS:
        assert_same(whole(kind), trained(kind, parts, devices))
