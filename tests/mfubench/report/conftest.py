"""What the tests of the reports share: a chart that is drawn again is the one that was drawn before."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import vl_convert


@pytest.fixture(scope="session", autouse=True)
def each_chart_once() -> Iterator[None]:
    """Most pages here hold the same few charts, and drawing is most of what a page takes."""
    drawn: dict[str, str] = {}
    draw = vl_convert.vegalite_to_svg

    def kept(spec: Any, **options: Any) -> str:
        what = json.dumps([spec, options], sort_keys=True)
        if what not in drawn:
            drawn[what] = draw(spec, **options)
        return drawn[what]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", kept)
        yield
