import math

import pytest

from radgaze.cohort import Box
from radgaze.errors import InputError


def test_a_box_is_a_rectangle_with_an_area() -> None:
    box = Box("heart", -3, 2.5, 10, 20)
    assert (box.shape, box.certainty) == ("box", None)
    for corners in [(1, 1, 1, 2), (1, 3, 2, 2), (math.nan, 1, 2, 3), (1, 1, math.inf, 2)]:
        with pytest.raises(InputError, match=r"Box 'heart' is .*expected finite numbers with xmin < xmax"):
            Box("heart", *corners)
    with pytest.raises(InputError, match="shape 'circle'; expected 'box' or 'ellipse'"):
        Box("heart", 1, 1, 2, 2, "circle")
