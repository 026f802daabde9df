"""The table of planted faults fits the engine: each text that it changes is there, just once."""

import collections

import pytest
from mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_the_text_that_a_mutation_changes_is_there_once(mutation):
    text = (ROOT / "deltajax" / mutation.file).read_text()
    assert mutation.planted(text) != text
    for node in mutation.likely():
        file, _, test = node.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text() if test else (ROOT / file).exists()


def test_mutations_have_names_of_their_own():
    assert max(collections.Counter(m.name for m in MUTATIONS).values()) == 1
