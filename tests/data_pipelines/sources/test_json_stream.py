"""Elements of JSON lists, whatever the size of what is read at a time."""

import json

import pytest

from data_pipelines.sources import json_stream

LIST = [1, -2.5, "a ] b , [", {"x": [1, 2, {"y": None}]}, [], [[3]], True, 12345678901]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
@pytest.mark.parametrize("indent", [None, 1])
def test_elements_are_those_of_the_list(tmp_path, chunk, indent):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(LIST, indent=indent))
    assert list(json_stream.elements(path, chunk=chunk)) == LIST
    path.write_text("[]")
    assert list(json_stream.elements(path, chunk=chunk)) == []


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_a_list_in_an_object_is_found_by_its_key(tmp_path, chunk):
    path = tmp_path / "object.json"
    content = {"info": {"a": "b" * 200}, "images": [{"id": 1}], "annotations": LIST}
    path.write_text(json.dumps(content))
    assert list(json_stream.elements(path, "annotations", chunk=chunk)) == LIST
    assert list(json_stream.elements(path, "images", chunk=chunk)) == [{"id": 1}]
    with pytest.raises(ValueError, match="no list 'categories'"):
        list(json_stream.elements(path, "categories", chunk=chunk))


@pytest.mark.parametrize("kept", [5, 30, -1])
def test_a_truncated_file_says_in_which_element_it_ends(tmp_path, kept):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(LIST)[:kept])
    with pytest.raises(ValueError, match=r"ends inside its element \d"):
        list(json_stream.elements(path))
    path.write_text('{"not": "a list"}')
    with pytest.raises(ValueError, match="no list in it"):
        list(json_stream.elements(path))
