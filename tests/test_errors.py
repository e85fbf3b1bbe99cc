from radgaze.errors import InputError, nearest


def test_nearest_offers_close_names() -> None:
    assert nearest("resnet5O", ["resnet50", "resnet101", "vit"]).startswith("did you mean 'resnet50'")


def test_nearest_lists_all_when_nothing_is_close() -> None:
    assert nearest("zzz", ["b", "a"]) == "choose one of a, b"


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_nearest_stays_on_one_line() -> None:
    assert nearest("zzz", ["a\nb"]) == r"choose one of 'a\nb'"
