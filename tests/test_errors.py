import pickle

import pytest

from radgaze.errors import InputError, RadgazeError, StorageError, nearest


def test_nearest_offers_close_names() -> None:
    assert nearest("resnet5O", ["resnet50", "resnet101", "vit"]).startswith("did you mean 'resnet50'")


def test_nearest_lists_all_when_nothing_is_close() -> None:
    assert nearest("zzz", ["b", "a"]) == "choose one of a, b"


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_nearest_stays_on_one_line() -> None:
    assert nearest("zzz", ["a\nb"]) == r"choose one of 'a\nb'"


@pytest.mark.parametrize("kind", [RadgazeError, InputError, StorageError])
def test_an_error_is_one_line_whatever_it_quotes(kind: type[RadgazeError]) -> None:
    error = kind("the file  'a b' says\nthis\r\nand\u2028that")
    assert str(error) == "the file  'a b' says this and that"
    travelled = pickle.loads(pickle.dumps(error))  # as Ray sends it from one process to another
    assert (type(travelled), str(travelled)) == (kind, str(error))
    assert str(kind()) == ""
