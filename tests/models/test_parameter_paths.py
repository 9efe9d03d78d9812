"""No variable of a smoke model changes its name or shape unseen."""

import make_parameter_paths as lists
import pytest


@pytest.mark.parametrize("family, variant", lists.CASES)
def test_variables_are_those_of_the_committed_list(family, variant):
    found = lists.variables(family, variant).splitlines()
    listed = lists.file_of(family, variant).read_text().splitlines()
    assert sorted(set(found) - set(listed)) == sorted(set(listed) - set(found)) == []


def test_every_list_belongs_to_a_model():
    files = {lists.file_of(*case) for case in lists.CASES}
    assert set(lists.LISTS.iterdir()) == files
