"""The page of `hwm play` for everybody: fingers, gamepad, keyboard alone, small screens, light and dark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")

from tests.interact.pages import DESKTOP, NEEDS, PHONE, page_of, wait

pytestmark = NEEDS


# ---------------------------------------------------------------------- hands and eyes
def test_a_gamepad(browser: Any, address: str) -> None:
    init = """
        const buttons = Array.from({length: 16}, () => ({pressed: false, value: 0}));
        window.pad = {axes: [0, 0, 0, 0], buttons, connected: true};
        navigator.getGamepads = () => [window.pad];
    """
    with page_of(browser, address, init) as page:
        page.evaluate("() => { dispatchEvent(new Event('gamepadconnected')); }")
        page.evaluate("() => { pad.axes[1] = -1; pad.axes[0] = 0.6; pad.buttons[5] = {pressed: true, value: 1}; }")
        wait(page, "hwm.applied.LINEAR_VELOCITY > 0.85 && hwm.n > 5")
        velocity, arm = page.evaluate("[hwm.wanted.ANGULAR_VELOCITY, hwm.wanted.RIGHT_SHOULDER_PITCH]")
        assert -1 < velocity < -0.5  # as far as the stick is tilted
        page.evaluate("() => { pad.axes = [0.1, 0.05, 0, 0]; pad.buttons[5] = {pressed: false, value: 0}; }")
        wait(page, "hwm.idle")
        assert page.evaluate("hwm.applied.RIGHT_SHOULDER_PITCH") < max(arm, -1.0)
        page.evaluate("() => { pad.buttons[9] = {pressed: true, value: 1}; }")
        wait(page, "hwm.paused")


def test_a_phone(browser: Any, address: str, tmp_path: Path) -> None:
    for scheme in ("light", "dark"):
        with page_of(browser, address, **PHONE, color_scheme=scheme) as page:
            page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
            page.screenshot(path=tmp_path / f"phone_{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            assert not page.locator("#keys-left").is_visible()
            stick = page.locator("#stick-one")
            stick.scroll_into_view_if_needed()
            box = stick.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x, y - box["height"] / 2, steps=3)
            wait(page, "hwm.applied.LINEAR_VELOCITY > 0.8")
            page.mouse.up()
            wait(page, "hwm.idle && hwm.applied.LINEAR_VELOCITY === 0")
            page.get_by_role("button", name="Left hand").tap()
            wait(page, "hwm.applied.LEFT_HAND_CLOSURE > 0.4 || hwm.wanted.LEFT_HAND_CLOSURE === 0")


TABBABLE = """() => {
    const seen = (one) => one.checkVisibility({visibilityProperty: true}) && !one.disabled && one.tabIndex >= 0;
    const all = [...document.querySelectorAll('a[href], button, input, summary, select, textarea')].filter(seen);
    const chosen = (one) => one.type !== 'radio' || one.checked;  // of a group, the tab key reaches one
    return all.filter(chosen).map((one, i) => {
        one.dataset.tab = i;
        return (one.ariaLabel || one.labels?.[0]?.textContent || one.textContent).trim();
    });
}"""
FOCUS = """() => {
    const one = document.activeElement;
    const ring = (other) => other && getComputedStyle(other).outlineStyle !== 'none';
    return [one.dataset.tab ?? null, ring(one) || ring(one.nextElementSibling) || ring(one.closest('label'))];
}"""


def test_the_tab_key_reaches_everything_and_shows_where_it_is(page: Any) -> None:
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    names = page.evaluate(TABBABLE)
    assert len(names) > 60
    assert all(names), names
    reached = set()
    for _ in range(len(names) + 3):
        page.keyboard.press("Tab")
        tab, marked = page.evaluate(FOCUS)
        if tab is not None:
            assert marked, names[int(tab)]
            reached.add(int(tab))
    assert {names[i] for i in range(len(names)) if i not in reached} == set()
    page.locator("#undo").focus()
    page.keyboard.down("w")  # letters drive wherever the focus is, but for boxes that one writes in
    wait(page, "hwm.wanted.LINEAR_VELOCITY > 0.5")
    page.keyboard.down("Shift")
    wait(page, "hwm.applied.LINEAR_VELOCITY > 0.89")
    page.keyboard.up("Shift")
    wait(page, "hwm.applied.LINEAR_VELOCITY < 0.6")
    page.keyboard.up("w")
    page.get_by_label("Drive: forward (W)").focus()
    page.keyboard.down("Enter")
    wait(page, "hwm.wanted.LINEAR_VELOCITY > 0.5")
    page.keyboard.up("Enter")
    wait(page, "hwm.idle")
    n = page.evaluate("hwm.n")
    page.get_by_label("Seed", exact=True).focus()
    page.keyboard.type("3w")
    page.wait_for_timeout(300)
    assert page.evaluate("hwm.n") == n


CONTRAST = """() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (colour) => {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data].map((c) => c / 255);
    };
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
    const behind = (one) => {
        const colour = rgba(getComputedStyle(one).backgroundColor);
        return colour[3] === 1 ? colour : behind(one.parentElement);
    };
    const text = (one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const left_out = 'figure, .fixed, .over';  // on pictures, disabled, invisible
    const all = [...document.querySelectorAll('header *, #stage *, #panel *')];
    return all.filter((one) => one.checkVisibility() && text(one) && !one.closest(left_out)).map((one) => {
        const [ink, ground] = [light(rgba(getComputedStyle(one).color)), light(behind(one))];
        return [Math.max(ink, ground) / Math.min(ink, ground), one.textContent.trim().slice(0, 40)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Any, address: str, scheme: str, tmp_path: Path) -> None:
    with page_of(browser, address, **DESKTOP, color_scheme=scheme, reduced_motion="reduce") as page:
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
        page.screenshot(path=tmp_path / f"{scheme}.png")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")
        contrasts = page.evaluate(CONTRAST)
        assert len(contrasts) > 60
        assert [c for c in contrasts if c[0] < 4.5] == []
        assert page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
        page.keyboard.press("?")
        assert page.get_by_role("dialog", name="All keys").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#legend").is_visible()


# ---------------------------------------------------------------------- other worlds, other times
