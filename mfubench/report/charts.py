"""Charts as SVG, in a page or a file: no script, no network, a title and a description that are read out."""

import json
import re
from functools import lru_cache
from xml.etree import ElementTree

from .blocks import Chart

SVG = "http://www.w3.org/2000/svg"
NUMBER = re.compile(r"-?\d+\.\d{2,}")
ROUNDED = {"d", "transform", "x", "x2", "y", "y2"}  # whose numbers need no more than a tenth of a pixel
# A file is shown on pages of all colours, and knows none of theirs.
PAPER, INK = "#ffffff", "#1b2430"
DROPPED = ("aria-hidden", "aria-roledescription", "role", "pointer-events", "class")


def why_not() -> str:
    """Why no chart can be drawn on this machine; nothing where they can be."""
    try:
        import altair  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        return str(error)
    return ""


def svg(chart: Chart, name: str) -> str:
    """``chart`` as an SVG element whose ids begin with ``name``."""
    return ElementTree.tostring(_element(chart, name), encoding="unicode")


def picture(chart: Chart) -> str:
    """``chart`` as a file of its own, dark on white."""
    root = _element(chart, "chart")
    root.set("color", INK)
    root.insert(2, ElementTree.Element(f"{{{SVG}}}rect", {"width": "100%", "height": "100%", "fill": PAPER}))
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _element(chart: Chart, name: str) -> ElementTree.Element:
    from .specs import spec

    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(_drawn(json.dumps(spec(chart.figure))))
    for element in root.iter():
        _trim(element)
    root.attrib.pop("version", None)
    root.attrib |= {"class": "chart", "role": "img", "aria-labelledby": f"{name}-title {name}-about"}
    root.insert(0, _text("title", chart.title, id=f"{name}-title"))
    root.insert(1, _text("desc", chart.summary, id=f"{name}-about"))
    return root


@lru_cache(maxsize=64)  # a report has each chart twice, in its page and in a file
def _drawn(spec: str) -> str:
    import vl_convert

    return vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])


def _trim(element: ElementTree.Element) -> None:
    """Let a mark say what it is when pointed at, and drop what a page has no use for."""
    about = element.attrib.pop("aria-label", None)
    for name in DROPPED:
        element.attrib.pop(name, None)
    for name in ROUNDED.intersection(element.attrib):
        element.set(name, NUMBER.sub(lambda found: f"{float(found[0]):.1f}", element.attrib[name]))
    for child in [child for child in element if child.get("display") == "none"]:
        element.remove(child)
    if about and element.tag == f"{{{SVG}}}path":
        element.append(_text("title", about))


def _text(tag: str, text: str, **attributes: str) -> ElementTree.Element:
    element = ElementTree.Element(f"{{{SVG}}}{tag}", attributes)
    element.text = text
    return element
