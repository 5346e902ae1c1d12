"""Values laid over each other keep the place of what is left of them."""

from armd_scale.config.yaml_source import RecipeSource


def test_a_path_is_placed_by_the_nearest_mapping_around_it() -> None:
    document = RecipeSource(values={}, origins={"a": "f:1", "a.b": "f:2"})
    assert document.origin_of("a.b.c", "f") == "f:2"
    assert document.origin_of("a.x", "f") == "f:1"
    assert document.origin_of("z", "f") == "f"


def test_mappings_are_merged_and_lists_replaced() -> None:
    lower = RecipeSource(
        values={"a": {"b": 1, "c": [1, {"d": 2}]}},
        origins={"a": "low:1", "a.b": "low:2", "a.c": "low:3", "a.c.1.d": "low:4"},
    )
    upper = RecipeSource(
        values={"a": {"c": [5]}}, origins={"a": "up:1", "a.c": "up:2", "a.c.0": "up:2"}
    )
    lower.merge_from(upper)
    assert lower.values == {"a": {"b": 1, "c": [5]}}
    places = {"a.b": "low:2", "a.c": "up:2", "a.c.0": "up:2", "a.c.1.d": "up:2"}
    assert {path: lower.origin_of(path, "") for path in places} == places


def test_orders_are_replaced_with_all_their_places() -> None:
    lower = RecipeSource(
        values={"order": {"policy": "groups", "sizes": [2]}},
        origins={"order": "low:1", "order.policy": "low:2", "order.sizes": "low:3"},
    )
    lower.merge_from(RecipeSource(values={"order": {"policy": "l2r"}}, origins={"order": "up:1"}))
    assert lower.values == {"order": {"policy": "l2r"}}
    assert lower.origin_of("order.sizes", "") == "up:1"


def test_overrides_make_the_mappings_they_need() -> None:
    document = RecipeSource(values={"a": None, "l": [{"x": 1}]}, origins={})
    document.override("a.b.c", 3, "here")
    document.override("l.0.x", 4, "there")
    assert document.values == {"a": {"b": {"c": 3}}, "l": [{"x": 4}]}
    assert document.origin_of("a.b", "") == "here"
    assert document.origin_of("l.0.x", "") == "there"
