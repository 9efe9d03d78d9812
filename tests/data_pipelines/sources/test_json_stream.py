"""Elements of JSON lists: complete, exact, or an error that says where."""

import json
import random

import pytest

from data_pipelines.sources import json_stream

LIST = [1, -2.5, "a ] b , [", {"x": [1, 2, {"y": None}]}, [], [[3]], True, 12345678901]


@pytest.mark.parametrize("indent", [None, 1])
def test_elements_are_those_of_the_list(tmp_path, indent):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(LIST, indent=indent))
    assert list(json_stream.elements(path)) == LIST
    path.write_text("[]")
    assert list(json_stream.elements(path)) == []


def test_numbers_are_the_doubles_and_integers_of_the_json_module(tmp_path):
    path, draw = tmp_path / "list.json", random.Random(0)
    numbers = [draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300) for _ in range(99)]
    path.write_text(json.dumps([*numbers, 5e-324, 1.0, 1, 2**53 + 1]))
    found = list(json_stream.elements(path))
    assert found == json.loads(path.read_text())
    assert [type(x) for x in found[-3:]] == [float, int, int]


def test_a_list_in_an_object_is_found_by_its_key(tmp_path):
    path = tmp_path / "object.json"
    content = {
        "info": {"annotations": [0], "a": "b" * 200},
        "images": [{"id": 1}],
        "none": [],
        "annotations": LIST,
    }
    path.write_text(json.dumps(content))
    assert list(json_stream.elements(path, "annotations")) == LIST
    assert list(json_stream.elements(path, "images")) == [{"id": 1}]
    assert list(json_stream.elements(path, "none")) == []
    with pytest.raises(ValueError, match="no list 'categories' in it"):
        list(json_stream.elements(path, "categories"))


@pytest.mark.parametrize("kept", [5, 30, -1])
def test_a_truncated_file_says_at_which_element(tmp_path, kept):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(LIST)[:kept])
    with pytest.raises(ValueError, match=r"element \d cannot be read \("):
        list(json_stream.elements(path))
    path.write_text('{"not": "a list"}')
    with pytest.raises(ValueError, match="no list in it"):
        list(json_stream.elements(path))
