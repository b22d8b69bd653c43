"""Says in words what a scene shows, in one of many ways. Knows the scene, not the picture."""

from collections.abc import Mapping, Sequence
from random import Random

from darkroom_train.scenes import Figure, Scene

SHAPE_WORDS: Mapping[str, tuple[str, ...]] = {
    "house": ("house", "house", "cottage"),
    "tree": ("tree",),
    "boat": ("boat", "boat", "sailboat"),
    "star": ("star",),
    "heart": ("heart",),
    "fish": ("fish",),
    "flower": ("flower", "flower", "blossom"),
    "cat": ("cat", "cat", "kitten"),
    "balloon": ("balloon",),
    "mushroom": ("mushroom", "mushroom", "toadstool"),
    "rocket": ("rocket", "rocket", "spaceship"),
    "bird": ("bird",),
    "car": ("car",),
    "umbrella": ("umbrella", "umbrella", "parasol"),
    "cup": ("cup", "cup", "mug"),
    "butterfly": ("butterfly",),
}
PLURALS: Mapping[str, str] = {"fish": "fish", "butterfly": "butterflies"}
COLOR_WORDS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "crimson"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "green": ("green", "green", "green", "emerald"),
    "purple": ("purple", "purple", "purple", "violet"),
    "teal": ("teal", "teal", "turquoise"),
    "gray": ("gray", "grey"),
}
SIZE_WORDS: Mapping[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": (),
    "large": ("large", "big", "huge"),
}
BACKGROUND_WORDS: Mapping[str, tuple[str, ...]] = {
    "sky blue": ("sky blue", "light blue"),
    "rose": ("rose", "rose", "light pink"),
    "silver": ("silver", "light gray"),
    "navy": ("navy", "dark blue"),
    "lavender": ("lavender",),
}
POSITION_WORDS: Mapping[str, tuple[str, ...]] = {
    "center": ("in the center", "in the middle"),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "top left": ("in the top left corner", "at the top left"),
    "top right": ("in the top right corner", "at the top right"),
    "bottom left": ("in the bottom left corner", "at the bottom left"),
    "bottom right": ("in the bottom right corner", "at the bottom right"),
}
# As said of the first figure, and, the figures exchanged, of the second.
RELATION_WORDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left of": (("to the left of", "left of"), ("to the right of", "right of")),
    "above": (("above", "over", "on top of"), ("below", "under", "beneath")),
}
GROUND_WORDS: Mapping[str, tuple[str, ...]] = {
    "hills": ("green hills", "rolling hills", "hills"),
    "sea": ("the sea", "the ocean", "the sea"),
    "desert": ("the desert", "a sandy desert"),
    "mountains": ("the mountains", "mountains", "snowy peaks"),
    "snow": ("a snowy field", "the snow", "a winter field"),
}
TIME_WORDS: Mapping[str, tuple[str, ...]] = {
    "day": ("by day", "on a bright day", "in daylight"),
    "sunset": ("at sunset", "at dusk", "in the evening"),
    "night": ("at night", "by night"),
}
SKY_WORDS: Mapping[str, tuple[str, ...]] = {
    "sun": ("the sun", "a sun"),
    "moon": ("the moon", "a crescent moon"),
    "stars": ("stars",),
    "clouds": ("clouds",),
    "rain": ("rain",),
    "snowfall": ("falling snow", "snowflakes"),
}
STYLE_WORDS: Mapping[str, tuple[str, ...]] = {
    "flat": ("flat style",),
    "outlined": ("with bold outlines", "cartoon style"),
    "paper": ("paper cutout", "papercut style"),
}
NUMBERS: Mapping[int, str] = {1: "one", 2: "two", 3: "three", 4: "four"}
OPENINGS = ("", "", "", "", "a drawing of ", "a picture of ", "an illustration of ")

# How often an attribute is left out where it may be.
DROPPED = 0.25


def caption(scene: Scene, seed: int, *, complete: bool = False) -> str:
    """Describe a scene, the same for the same seed. A `complete` caption leaves out none of what can be scored."""
    return _Speaker(seed, dropped=0.0 if complete else DROPPED).describe(scene)


class _Speaker:
    """One way of speaking, drawn by lot."""

    def __init__(self, seed: int, *, dropped: float) -> None:
        self._lot = Random(f"caption {seed}")  # noqa: S311 - nothing secret
        self._dropped = dropped

    def describe(self, scene: Scene) -> str:
        sentence = {"single": self._single, "pair": self._pair, "group": self._group, "landscape": self._landscape}[
            scene.layout
        ](scene)
        return self._lot.choice(OPENINGS) + sentence + self._style(scene)

    def _single(self, scene: Scene) -> str:
        subject = self._figure(scene.figures[0])
        if scene.position is not None and self._says():
            subject += " " + self._lot.choice(POSITION_WORDS[scene.position])
        return self._on_paper(subject, scene)

    def _pair(self, scene: Scene) -> str:
        first, second = (self._figure(figure) for figure in scene.figures)
        assert scene.relation is not None
        if not self._says():
            return self._on_paper(f"{first} and {second}", scene)
        forward, backward = RELATION_WORDS[scene.relation]
        if self._lot.random() < 0.5:
            return self._on_paper(f"{second} {self._lot.choice(backward)} {first}", scene)
        return self._on_paper(f"{first} {self._lot.choice(forward)} {second}", scene)

    def _group(self, scene: Scene) -> str:
        figure = scene.figures[0]
        word = self._lot.choice(SHAPE_WORDS[figure.shape])
        words = [NUMBERS[len(scene.figures)], *self._color(figure), PLURALS.get(word, word + "s")]
        return self._on_paper(" ".join(words), scene)

    def _landscape(self, scene: Scene) -> str:
        assert scene.ground is not None
        assert scene.time is not None
        place = self._lot.choice(GROUND_WORDS[scene.ground])
        if scene.figures:
            place = " and ".join(self._figure(figure, sized=False) for figure in scene.figures) + self._at(scene, place)
        parts = [place]
        if self._says():
            parts.append(self._lot.choice(TIME_WORDS[scene.time]))
        seen = [self._lot.choice(SKY_WORDS[item]) for item in scene.sky]
        if seen and self._says():
            parts.append("with " + _listed(seen))
        return " ".join(parts)

    def _at(self, scene: Scene, place: str) -> str:
        if scene.ground == "sea":
            return f" on {place}"
        if scene.ground == "hills":
            return f" {self._lot.choice(('on', 'and'))} {place}"
        return f" in {place}"

    def _figure(self, figure: Figure, *, sized: bool = True) -> str:
        words = []
        if sized and SIZE_WORDS[figure.size] and self._says():
            words.append(self._lot.choice(SIZE_WORDS[figure.size]))
        words += self._color(figure)
        words.append(self._lot.choice(SHAPE_WORDS[figure.shape]))
        article = "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words])

    def _color(self, figure: Figure) -> list[str]:
        # A color is left out less often than the rest: it is what people ask for most.
        if self._lot.random() < self._dropped / 3:
            return []
        return [self._lot.choice(COLOR_WORDS.get(figure.color, (figure.color,)))]

    def _on_paper(self, subject: str, scene: Scene) -> str:
        assert scene.background is not None
        if not self._says():
            return subject
        word = self._lot.choice(BACKGROUND_WORDS.get(scene.background, (scene.background,)))
        article = "an" if word[0] in "aeiou" else "a"
        return self._lot.choice((f"{subject} on {article} {word} background", f"{subject}, {word} background"))

    def _style(self, scene: Scene) -> str:
        # The flat style is what comes when nothing is said.
        often = 0.25 if scene.style == "flat" else 0.8
        return f", {self._lot.choice(STYLE_WORDS[scene.style])}" if self._lot.random() < often else ""

    def _says(self) -> bool:
        return self._lot.random() >= self._dropped


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
