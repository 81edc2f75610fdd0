"""What Triton's interpreter cannot run is proved in the emulator."""

from tests.house.tree import CODE, TESTS, imported, named

FORMS = [path for path in CODE if path.stem.endswith("_sm90")]


def test_every_form_in_gluon_is_emulated_by_a_test() -> None:
    tested = [set(imported(path)) for path in TESTS]
    proved = {name for names in tested if "tests.kernels.gluon" in names for name in names}
    assert FORMS
    for path in FORMS:
        module = ".".join(path.relative_to(path.parents[2]).with_suffix("").parts)
        assert module in proved, f"no test that imports tests.kernels.gluon imports {named(path)}"
