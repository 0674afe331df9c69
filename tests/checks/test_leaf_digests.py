from ckptrun.checks.leaf_digests import differing


def test_a_leaf_differs_that_has_another_digest_or_none_at_all() -> None:
    expected = {"model.a": "1", "model.b": "2", "model.gone": "3", "model.without": None}
    got = {"model.new": "6", "model.without": "5", "model.b": "4", "model.a": "1"}
    assert differing(expected, got) == ["model.b", "model.new", "model.without"]
