"""Words of the paraphrases: what may stand for what without a change of meaning among LIBERO's forty tasks.

A `Phrase` is a text, a list of phrases to choose from, or a tuple of phrases that follow each other.
"""

from __future__ import annotations

from typing import Union

Phrase = Union[str, list["Phrase"], tuple["Phrase", ...]]  # noqa: UP007  # a string's `|` fails at run time

PICK: Phrase = ["pick up", "grab", "take", "lift", "get"]
PICK_APART = [("pick", "up"), ("lift", "up")]  # "pick the milk up"
PUT: Phrase = ["put", "place", "set"]
PUSH: Phrase = ["push", "slide"]
OPEN: Phrase = ["open", "pull open"]
CLOSE: Phrase = ["close", "shut"]
TURN_ON: Phrase = ["turn", "switch"]
AND: Phrase = ["and", "and then", ", then"]
THEN: Phrase = ["and", "and then", ", then"]
LOCATED: Phrase = ["that is", "which is", "located"]

# Where a thing lies, how it leaves, and where it goes. "from the cabinet" would hide that it was on top.
PLACES: dict[str, Phrase] = {
    "on": ["on", "on top of"],
    "in": ["in", "inside"],
    "next to": ["next to", "beside", "by", "right beside"],
    "between": ["between", "in between"],
}
FROM: dict[str, Phrase] = {
    "on": ["off", "from the top of"],
    "in": ["out of", "from"],
    "next to": ("from", ["next to", "beside"]),
}
REACHED: dict[str, Phrase] = {
    "on": ["on", "onto", "on top of"],
    "on top of": ["on top of", "on the top of", "onto the top of", "on"],
    "in": ["in", "into", "inside"],
    "to the right of": ["to the right of", "right of", "on the right of"],
    "to the front of": ["to the front of", "in front of"],
}
TABLE_CENTER: Phrase = ("the", [(["center", "middle"], "of the table"), "table's center"])

_TOP: Phrase = ["top drawer", "upper drawer", "highest drawer", "drawer at the top"]
_MIDDLE: Phrase = ["middle drawer", "central drawer", "drawer in the middle"]
_BOTTOM: Phrase = ["bottom drawer", "lowest drawer", "lower drawer", "drawer at the bottom"]
_CABINET: Phrase = ["cabinet", "cupboard"]
_WOODEN: Phrase = ["wooden cabinet", "wooden cupboard", "cabinet made of wood"]
_CREAM_CHEESE: Phrase = ["cream cheese", "cream cheese box", "box of cream cheese", "pack of cream cheese"]
_MOKA: Phrase = ["moka pot", "coffee pot", "moka coffee pot"]

# Every thing of the forty instructions, without its article.
THINGS: dict[str, Phrase] = {
    "alphabet soup": ["alphabet soup", "can of alphabet soup", "alphabet soup can"],
    "back compartment of the caddy": [
        (["back compartment", "rear compartment", "compartment at the back"], "of the caddy"),
        ("caddy's", ["back compartment", "rear compartment"]),
    ],
    "basket": "basket",
    "bbq sauce": ["bbq sauce", "barbecue sauce", "bottle of bbq sauce", "bottle of barbecue sauce"],
    "black bowl": ["black bowl", "dark bowl", "black colored bowl"],
    "book": "book",
    "bottom drawer of the cabinet": [(_BOTTOM, "of the", _CABINET), "cabinet's bottom drawer"],
    "bowl": "bowl",
    "butter": ["butter", "pack of butter", "stick of butter"],
    "cabinet": _CABINET,
    "chocolate pudding": ["chocolate pudding", "pudding", "box of chocolate pudding", "chocolate pudding box"],
    "cookie box": ["cookie box", "box of cookies", "cookies box", "cookie package"],
    "cream cheese": _CREAM_CHEESE,
    "cream cheese box": _CREAM_CHEESE,
    "ketchup": ["ketchup", "ketchup bottle", "bottle of ketchup"],
    "left plate": ["left plate", "plate on the left", "plate to the left"],
    "microwave": ["microwave", "microwave oven"],
    "middle drawer of the cabinet": [(_MIDDLE, "of the", _CABINET), "cabinet's middle drawer"],
    "milk": ["milk", "milk carton", "carton of milk"],
    "moka pot": _MOKA,
    "orange juice": ["orange juice", "juice", "carton of orange juice", "orange juice carton"],
    "plate": "plate",
    "rack": ["rack", "wine rack"],
    "ramekin": "ramekin",
    "right plate": ["right plate", "plate on the right", "plate to the right"],
    "salad dressing": ["salad dressing", "dressing", "bottle of salad dressing", "dressing for salad"],
    "stove": ["stove", "cooker", "cooktop"],
    "tomato sauce": ["tomato sauce", "can of tomato sauce", "tomato sauce can"],
    "top drawer": _TOP,
    "top drawer of the wooden cabinet": [(_TOP, "of the", _WOODEN), "wooden cabinet's top drawer"],
    "white mug": ["white mug", "white cup"],
    "wine bottle": ["wine bottle", "bottle of wine", "wine"],
    "wooden cabinet": _WOODEN,
    "yellow and white mug": (["yellow and white", "white and yellow"], ["mug", "cup"]),
}
BOTH_POTS: Phrase = (["both", "both the", "the two"], ["moka pots", "coffee pots"])

# What stands before and behind an order.
FRAMES: list[tuple[str, str]] = [
    ("please", ""),
    ("", ", please"),
    ("I want you to", ""),
    ("I would like you to", ""),
    ("I need you to", ""),
    ("your task is to", ""),
    ("you should", ""),
    ("now", ""),
    ("robot,", ""),
]
QUESTIONS: list[tuple[str, str]] = [
    ("can you", ""),
    ("could you", ""),
    ("can you please", ""),
    ("could you please", ""),
    ("would you please", ""),
    ("will you", ""),
]
# An instruction that begins with one of these is an order.
VERBS = frozenset(
    """
    bring close drop fold get grab hang insert lift move open pick place pour press pull push put remove rotate set shut
    slide stack switch take turn wipe
    """.split()  # noqa: SIM905
)
