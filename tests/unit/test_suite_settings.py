"""Settings of suites: choices, refusals, sizes of pictures, splits of seeds."""

from types import ModuleType

import pytest

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.suites.maniskill import catalog as maniskill_catalog
from simplevla.suites.metaworld import catalog as metaworld_catalog
from simplevla.suites.settings import choose, image_side, refuse, split_seeds


def test_a_choice_is_one_of_the_options_and_the_first_if_nothing_is_said() -> None:
    options = ("stock", "fast", "lite")
    assert choose(SuiteConfig(), "LIBERO", "visuals", options, "visual modes") == "stock"
    assert choose(SuiteConfig(visuals="lite"), "LIBERO", "visuals", options, "visual modes") == "lite"
    with pytest.raises(UserError, match=r"suite\.visuals is 'new'; LIBERO has the visual modes stock, fast and lite"):
        choose(SuiteConfig(visuals="new"), "LIBERO", "visuals", options, "visual modes")


def test_a_setting_that_means_nothing_is_refused() -> None:
    refuse(SuiteConfig(visuals="lite"), "tabletop", "stepping")
    with pytest.raises(UserError, match=r"suite\.stepping is 'fast'; tabletop has no choice of stepping, leave it out"):
        refuse(SuiteConfig(stepping="fast"), "tabletop", "visuals", "stepping")


def test_pictures_have_at_least_sixteen_pixels() -> None:
    assert image_side(SuiteConfig(), 128) == 128
    assert image_side(SuiteConfig(image_size=16), 128) == 16
    with pytest.raises(UserError, match=r"suite\.image_size is 15; expected at least 16 pixels"):
        image_side(SuiteConfig(image_size=15), 128)


@pytest.mark.parametrize("catalog", [maniskill_catalog, metaworld_catalog])
def test_splits_share_no_seed(catalog: ModuleType) -> None:
    train, test = (split_seeds(split, catalog.TRAIN_STATES, catalog.TEST_STATES) for split in ("train", "test"))
    assert train == list(range(100))
    assert test == list(range(100, 150))
    with pytest.raises(UserError, match="split is 'validation'; expected 'train' or 'test'"):
        split_seeds("validation", 100, 50)
