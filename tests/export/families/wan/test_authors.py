"""What is known of how Wan's authors sample."""

from __future__ import annotations

from flowblending.contracts.graph import LTX_2B, WAN_T2V_1_3B, WAN_T2V_14B
from flowblending.export.families.wan.authors import authors_sampling


def test_the_settings_of_the_authors_code() -> None:
    found = {
        (name, experts): authors_sampling(name, experts=experts)
        for name in (WAN_T2V_14B, WAN_T2V_1_3B)
        for experts in (False, True)
    }
    told = {key: (each.shift, each.steps, each.guidance) for key, each in found.items() if each is not None}
    assert told == {
        (WAN_T2V_14B, False): (5.0, 50, (5.0,)),
        (WAN_T2V_1_3B, False): (8.0, 50, (6.0,)),
        (WAN_T2V_14B, True): (12.0, 40, (4.0, 3.0)),
    }
    assert all(each is None or "github.com/Wan-Video/" in each.source for each in found.values())
    assert authors_sampling(None, experts=False) is authors_sampling(LTX_2B, experts=False) is None
