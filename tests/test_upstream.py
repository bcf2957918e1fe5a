"""transformers' own common tests pass on every architecture of the registry.

They are downloaded once for each version of transformers (`upstream/source.py`). Offline they are skipped, but where
the environment says `CI=true` their absence is a failure.
"""

import os
from unittest import SkipTest

import pytest
import upstream
from upstream.rows import ROWS

from hf_mmunify.registry import ARCHITECTURES


CASES, UNAVAILABLE = {}, None
try:
    upstream.download()
except upstream.SourceUnavailable as error:
    UNAVAILABLE = str(error)
else:
    from upstream.cases import cases

    CASES = cases()
    globals().update(CASES)


def test_they_are_at_hand():
    if UNAVAILABLE and os.environ.get("CI") == "true":
        pytest.fail(UNAVAILABLE)
    if UNAVAILABLE:
        pytest.skip(UNAVAILABLE)
    assert CASES


@pytest.mark.skipif(not CASES, reason="see test_they_are_at_hand")
def test_every_row_names_what_there_is():
    assert ROWS.keys() <= ARCHITECTURES.keys()
    for model_type, row in ROWS.items():
        made = [case for case in CASES.values() if case.model_type == model_type]
        tests = {name for case in made for name in dir(case)}
        assert row.also.keys() <= tests
        assert row.skips.keys() <= tests | {f"{name}[{case.subject.__name__}]" for case in made for name in dir(case)}


@pytest.mark.skipif(not CASES, reason="see test_they_are_at_hand")
def test_a_skip_that_nobody_justified_is_a_failure():
    for case in CASES.values():
        with pytest.raises(AssertionError, match="Upstream skips"):
            case("skipTest").skipTest("it rains")


@pytest.mark.skipif(not CASES, reason="see test_they_are_at_hand")
def test_a_skip_may_name_one_class_of_an_architecture():
    test = "test_init_weights_can_init_buffers"
    assert test not in CASES["AlbefForQuestionAnsweringTest"].skips()
    assert "queue" in CASES["AlbefForPreTrainingTest"].skips()[test]


@pytest.mark.skipif(not CASES, reason="see test_they_are_at_hand")
def test_a_skip_that_is_no_longer_needed_is_a_failure():
    from upstream.cases import skipped

    def fails(self):
        with self.subTest(rain=True):
            self.fail("wet")

    case = CASES["AlbefModelTest"]("skipTest")
    with pytest.raises(SkipTest, match="it rains"):
        skipped(fails, "it rains")(case)
    with pytest.raises(AssertionError, match=r"take skipTest of AlbefModel out of `skips` \(it rains\)"):
        skipped(lambda self: None, "it rains")(case)
