"""Questions about one picture, with their true answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from training.asking import Asker, Turn, fill
from training.phrasings import WORDINGS
from training.scenes import FADING, Scene, Thing, grouped
from training.smalltalk import chat
from training.words import NUMBERS, article, capital, listed, plural, quantity
from training.world import BACKGROUNDS, CATEGORIES, COLOURS, EMOJI, FOOD, NAMED, NAMES, REGION_WORDINGS, REGIONS, SHAPES

Turns = list[Turn] | None
NOTHING_KNOWN = (
    "I can't recognize anything in this picture. I only know simple drawings of objects, shapes, and short words."
)

# ---- what answers are made of


def background(scene: Scene) -> str:
    """A sentence about the background."""
    if scene.style == FADING:
        return f"The background fades from {scene.background} to {scene.background_to}."
    return f"The background is {scene.background}."


def caption(scene: Scene) -> str:
    """One sentence about the whole picture."""
    if scene.unrecognisable:
        return NOTHING_KNOWN
    behind = article(scene.background) + " background"
    if scene.style == FADING:
        behind = f"a background that fades from {scene.background} to {scene.background_to}"
    shown = _amounts(scene.objects) + ([scene.text.phrase] if scene.text else [])
    if not shown:
        return f"The picture is empty. There is only {behind}."
    return f"The picture shows {listed(shown)} on {behind}."


def detail(scene: Scene) -> str:
    """What is where."""
    if scene.unrecognisable or not scene.everything:
        return caption(scene)
    sentences = []
    groups = scene.groups()
    if groups:
        parts = [
            f"{article(name)} {REGIONS[group[0].region]}" if len(group) == 1 else quantity(len(group), name)
            for name, group in groups.items()
        ]
        verb = "is" if len(next(iter(groups.values()))) == 1 else "are"
        sentences.append(f"There {verb} {listed(parts)}.")
    if scene.text:
        sentences.append(
            f"{capital(scene.text.phrase)} is written {REGIONS[scene.text.region]} in {scene.text.colour}."
        )
    return " ".join([*sentences, background(scene)])


def count_of(count: int, singular: str, many: str) -> str:
    """``There are two dogs.``"""
    if count == 0:
        return f"There are no {many} in the picture."
    return f"There is one {singular}." if count == 1 else f"There are {NUMBERS[count]} {many}."


def absent(scene: Scene, asker: Asker) -> str | None:
    """The name of something that is not in the picture, likely of the same category or colour as something there."""
    rng = asker.rng
    names = {thing.name for thing in scene.objects}
    called = {thing.called for thing in scene.objects}
    for _ in range(20):
        drawn = rng.random()
        if drawn < 0.55:
            name = NAMES[rng.randrange(NAMED)]
            if scene.objects and drawn < 0.3:
                like = rng.choice(scene.objects)
                if like.kind == "emoji":
                    category = EMOJI[like.index].category
                    name = rng.choice([each.name for each in EMOJI[:NAMED] if each.category == category])
            if name not in names and not any(name in each or each in name for each in names):
                return name
        elif drawn < 0.8:
            name = f"{rng.choice(COLOURS)} {rng.choice(SHAPES)}"
            shapes = [thing for thing in scene.objects if thing.kind == "shape"]
            if shapes and drawn < 0.72:
                like = rng.choice(shapes)
                if rng.random() < 0.5:
                    name = f"{like.colour} {rng.choice(SHAPES)}"
                else:
                    name = f"{rng.choice(COLOURS)} {like.name}"
            if name not in called:
                return name
        else:
            name = rng.choice(SHAPES)
            if name not in names:
                return name
    return None


def nearest(scene: Scene, thing: Thing) -> Thing | None:
    """What is clearly closest to a thing."""
    others = [
        (((other.x - thing.x) ** 2 + (other.y - thing.y) ** 2) ** 0.5, other)
        for other in scene.everything
        if other is not thing
    ]
    others.sort(key=lambda each: each[0])
    if not others or (len(others) > 1 and others[1][0] < others[0][0] * 1.25 + 6):
        return None
    return others[0][1]


def _amounts(things: Sequence[Thing]) -> list[str]:
    """``a dog``, ``two stars``; text by its phrase."""
    groups = grouped(things)
    return [
        group[0].phrase if group[0].kind == "text" else quantity(len(group), name) for name, group in groups.items()
    ]


def _named_group(scene: Scene, asker: Asker) -> tuple[str, list[Thing]] | None:
    """A name and all that it fits: ``red star``, or ``star`` alone."""
    thing = asker.rng.choice(scene.objects)
    name = thing.called
    if thing.kind == "unknown":
        return None
    if thing.kind == "shape" and asker.rng.random() < 0.5:
        name = thing.name
    return name, [each for each in scene.objects if name in (each.called, each.name)]


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _missing(name: str) -> str:
    return f"There is no {name} in the picture."


def _with_own_name(scene: Scene) -> list[Thing]:
    """Coloured objects whose bare name is theirs alone."""
    return [
        thing for thing in scene.objects if thing.colour and sum(each.name == thing.name for each in scene.objects) == 1
    ]


# ---- the whole picture


def ask_caption(scene: Scene, asker: Asker) -> Turns:
    return [asker.turn("caption", asker.phrase("caption"), caption(scene))]


def ask_detail(scene: Scene, asker: Asker) -> Turns:
    return [asker.turn("detail", asker.phrase("detail"), detail(scene))]


def ask_list(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return [asker.turn("list", "What objects are there?", NOTHING_KNOWN)]
    answer = "I don't see any objects in the picture."
    if scene.objects:
        answer = f"I can see {listed(_amounts(scene.objects))}."
    return [asker.turn("list", asker.phrase("list"), answer)]


def ask_total(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    count = len(scene.objects)
    answer = count_of(count, "object", "objects")
    return [asker.turn("count_total", asker.phrase("total"), answer, NUMBERS[count] if count else "zero")]


def ask_background(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    rng = asker.rng
    if rng.random() < 0.65:
        short = scene.background if scene.style != FADING else None
        return [asker.turn("bg", asker.phrase("background"), background(scene), short)]
    if scene.style == FADING:
        return None
    colour = scene.background if rng.random() < 0.5 else rng.choice(BACKGROUNDS)
    true = colour == scene.background
    if not true and (colour in scene.background or scene.background in colour):
        return None  # dark blue is blue, too
    question = fill(asker.phrase("background_is"), c=colour)
    answer = f"{capital(_yes(true))}, the background is {scene.background}."
    return [asker.turn(f"bg_{_yes(true)}", question, answer, _yes(true))]


def ask_unusual(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique(("emoji",))
    if scene.unrecognisable or len(things) < 2:
        if asker.rng.random() >= 0.3:
            return None
        answer = NOTHING_KNOWN if scene.unrecognisable else "I don't see anything unusual in this picture."
        return [asker.turn("unusual", asker.phrase("unusual"), answer)]
    answer = f"It is unusual to see {things[0].some} and {things[1].some} together."
    return [asker.turn("unusual", asker.phrase("unusual"), answer)]


def ask_story(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if not things:
        return None
    if len(things) == 1:
        answer = (
            f"Once upon a time there was {things[0].some}. "
            f"It lived all alone in a {scene.background} world and was very happy."
        )
    else:
        answer = (
            f"Once upon a time, {things[0].some} met {things[1].some} in a {scene.background} world. "
            "They became good friends and lived happily ever after."
        )
    return [asker.turn("story", asker.phrase("story"), answer)]


def ask_title(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if not things:
        return None
    answer = " and ".join(f"the {thing.called}" for thing in things[:2])
    return [asker.turn("title", asker.phrase("title"), f"{capital(answer)}.")] if answer else None


# ---- what there is


def follow_up(scene: Scene, asker: Asker, thing: Thing, likely: float = 0.35) -> list[Turn]:
    """Further questions about the thing just spoken of, as ``it``."""
    rng, turns = asker.rng, list[Turn]()
    while rng.random() < likely and len(turns) < 3:
        drawn = rng.random()
        if drawn < 0.35:
            turn = asker.turn("f_where", asker.phrase("it_where"), f"It is {REGIONS[thing.region]}.")
        elif drawn < 0.55:
            turn = asker.turn("f_size", asker.phrase("it_size"), f"It is {thing.size}.")
        elif drawn < 0.75 and thing.colour:
            turn = asker.turn("f_color", asker.phrase("it_color"), f"It is {thing.colour}.")
        else:
            near = nearest(scene, thing)
            if not near:
                break
            turn = asker.turn("f_next", asker.phrase("it_next"), f"{capital(near.some)} is next to it.")
        if turn.kind in {each.kind for each in turns}:
            break
        turns.append(turn)
    return turns


def ask_exist(scene: Scene, asker: Asker) -> Turns:
    rng = asker.rng
    if scene.objects and rng.random() < 0.5:
        found = _named_group(scene, asker)
        if not found:
            return None
        name, group = found
        if len(group) > 1:
            answer = f"Yes, there are {NUMBERS[len(group)]} {plural(name)} in the picture."
            return [asker.turn("exist_yes", asker.whether_there_is(name), answer, "yes")]
        answer = f"Yes, there is {group[0].some} {REGIONS[group[0].region]}."
        turn = asker.turn("exist_yes", asker.whether_there_is(name), answer, "yes")
        return [turn, *follow_up(scene, asker, group[0])]
    missing = absent(scene, asker)
    if not missing:
        return None
    turns = [
        asker.turn("exist_no", asker.whether_there_is(missing), f"No, there is no {missing} in the picture.", "no")
    ]
    drawn = rng.random()
    if drawn < 0.1:
        turns.append(asker.turn("sure", asker.phrase("sure"), f"Yes, I am sure. {_missing(missing)}"))
    elif drawn < 0.2:
        turns.append(asker.turn("caption", asker.phrase("instead"), caption(scene)))
    return turns


def ask_count(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    rng, group = asker.rng, list[Thing]()
    if scene.objects and rng.random() < 0.85:
        found = _named_group(scene, asker)
        if not found:
            return None
        name, group = found
    else:
        missing = absent(scene, asker)
        if not missing:
            return None
        name = missing
    count = len(group)
    question = fill(asker.phrase("count"), p=plural(asker.alias(name)))
    short = NUMBERS[count] if count else "zero"
    turns = [asker.turn("count", question, count_of(count, name, plural(name)), short)]
    if 1 <= count <= 3 and rng.random() < 0.3:
        regions = sorted({thing.region for thing in group})
        if count == 1:
            turns.append(asker.turn("f_where", asker.phrase("one_where"), f"It is {REGIONS[regions[0]]}."))
        elif len(regions) == count:
            places = listed([REGIONS[each] for each in regions])
            turns.append(asker.turn("f_wheres", asker.phrase("they_where"), f"They are {places}."))
    return turns


def _category(thing: Thing) -> str | None:
    if thing.kind == "emoji":
        return EMOJI[thing.index].category
    return "shape" if thing.kind == "shape" else None


def ask_category(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    rng, there = asker.rng, list[str]()
    for thing in scene.objects:
        category = _category(thing)
        if category in FOOD and rng.random() < 0.5:
            category = "any food"
        if category in CATEGORIES:
            there.append(category)
    chosen = rng.choice(there) if there and rng.random() < 0.7 else rng.choice(list(CATEGORIES))
    wanted = FOOD if chosen == "any food" else {chosen}
    things = [thing for thing in scene.objects if _category(thing) in wanted]
    one, many = CATEGORIES[chosen]
    drawn = rng.random()
    if drawn < 0.4:
        key, kind, short = "category_any", "cat_exist", _yes(bool(things))
        answer = f"No, there are no {many} in the picture."
        if things:
            verb = "is" if len(next(iter(grouped(things).values()))) == 1 else "are"
            answer = f"Yes, there {verb} {listed(_amounts(things))}."
    elif drawn < 0.7:
        key, kind, short = "category_which", "cat_list", ""
        answer = f"I can see {listed(_amounts(things))}." if things else f"There are no {many} in the picture."
    else:
        key, kind, short = "category_count", "cat_count", NUMBERS[len(things)] if things else "zero"
        answer = count_of(len(things), one, many)
    return [asker.turn(kind, fill(asker.phrase(key), p=many, s=one, a=article(one)), answer, short)]


def ask_more(scene: Scene, asker: Asker) -> Turns:
    groups = {name: len(group) for name, group in scene.groups().items() if group[0].kind in ("emoji", "shape")}
    if len(groups) < 2:
        return None
    one, other = asker.rng.sample(list(groups), 2)
    question = fill(asker.phrase("more"), a=plural(one), b=plural(other))
    told = [("one " + name if groups[name] == 1 else quantity(groups[name], name)) for name in (one, other)]
    more = _yes(groups[one] > groups[other])
    verb = "is" if groups[one] == 1 else "are"
    return [asker.turn("more", question, f"{capital(more)}, there {verb} {told[0]} and {told[1]}.", more)]


# ---- places

DIRECTIONS = (("to the left of", -1, 0), ("to the right of", 1, 0), ("above", 0, -1), ("below", 0, 1))
_DIRECTION_WORDINGS = (
    ("to the left of", "left of", "on the left of", "on the left side of"),
    ("to the right of", "right of", "on the right of", "on the right side of"),
    ("above", "over", "higher than", "on top of"),
    ("below", "under", "beneath", "lower than", "underneath"),
)


def _ahead(direction: int, one: Thing, other: Thing) -> float:
    """How many pixels ``one`` is further in that direction."""
    _, across, down = DIRECTIONS[direction]
    return (one.x - other.x) * across + (one.y - other.y) * down


def ask_where(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    rng, things = asker.rng, scene.unique()
    if things and rng.random() < 0.82:
        thing = rng.choice(things)
        question = fill(asker.phrase("where"), n=asker.loosely(thing.called))
        turns = [asker.turn("where", question, _stands(thing), REGIONS[thing.region])]
        drawn = rng.random()
        if drawn < 0.25 and len(things) > 1:
            other = rng.choice([each for each in things if each is not thing])
            question = fill(asker.phrase("and_where"), n=asker.loosely(other.called))
            turns.append(asker.turn("f_and", question, _stands(other)))
        elif drawn < 0.5:
            turns += [turn for turn in follow_up(scene, asker, thing, 0.8) if turn.kind != "f_where"]
        return turns
    missing = absent(scene, asker)
    if not missing or (not things and rng.random() < 0.6):
        return None
    question = fill(asker.phrase("where"), n=asker.loosely(missing))
    return [asker.turn("false_premise", question, _missing(missing))]


def _stands(thing: Thing) -> str:
    return f"The {thing.called} is {REGIONS[thing.region]}."


def ask_whether_where(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if not things:
        return None
    rng = asker.rng
    thing = rng.choice(things)
    region = thing.region if rng.random() < 0.5 else rng.randrange(9)
    true = _yes(region == thing.region)
    question = fill(asker.trained(WORDINGS["where_is"].grammar), n=asker.loosely(thing.called))
    question = fill(question, r=rng.choice(REGION_WORDINGS[region]))
    answer = f"{capital(true)}, the {thing.called} is {REGIONS[thing.region]}."
    return [asker.turn(f"where_{true}", question, answer, true)]


def ask_region(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    rng, taken = asker.rng, [thing.region for thing in scene.everything]
    region = rng.choice(taken) if taken and rng.random() < 0.8 else rng.randrange(9)
    things = [thing for thing in scene.everything if thing.region == region]
    answer = f"There is nothing {REGIONS[region]}."
    if things:
        verb = "is" if len(next(iter(grouped(things).values()))) == 1 else "are"
        answer = f"There {verb} {listed(_amounts(things))} {REGIONS[region]}."
    question = fill(asker.phrase("region"), r=rng.choice(REGION_WORDINGS[region]))
    short = things[0].called if len(things) == 1 and things[0].kind != "text" else None
    turns = [asker.turn("at", question, answer, short)]
    if len(things) == 1 and things[0].kind in ("emoji", "shape"):
        turns += [turn for turn in follow_up(scene, asker, things[0], 0.3) if turn.kind != "f_where"]
    return turns


def ask_relation(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if len(things) < 2:
        return None
    rng = asker.rng
    one, other = rng.sample(things, 2)
    direction = rng.randrange(4)
    ahead = _ahead(direction, one, other)
    if abs(ahead) < 14:
        return None
    words = _DIRECTION_WORDINGS[direction]
    wording = words[0] if asker.held_out else rng.choice(words)
    question = asker.phrase("relation")
    question = fill(question, a=asker.loosely(one.called), b=asker.loosely(other.called), w=wording)
    true = _yes(ahead > 0)
    told = DIRECTIONS[direction if ahead > 0 else direction ^ 1][0]
    return [
        asker.turn(f"rel_{true}", question, f"{capital(true)}, the {one.called} is {told} the {other.called}.", true)
    ]


def ask_relative_place(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if len(things) < 2:
        return None
    one, other = asker.rng.sample(things, 2)
    across, down = one.x - other.x, one.y - other.y
    if 9 < abs(across) < 22 or 9 < abs(down) < 22:
        return None
    parts = []
    if abs(down) >= 22:
        parts.append("above" if down < 0 else "below")
    if abs(across) >= 22:
        parts.append("to the left of" if across < 0 else "to the right of")
    if not parts:
        return None
    question = fill(asker.phrase("relative"), a=one.called, b=other.called)
    return [asker.turn("rel_where", question, f"The {one.called} is {' and '.join(parts)} the {other.called}.")]


def ask_which_side(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if len(things) < 2:
        return None
    one, other = asker.rng.sample(things, 2)
    across = asker.rng.random() < 0.5
    ahead = one.x - other.x if across else one.y - other.y
    if abs(ahead) < 16:
        return None
    grammar = WORDINGS["left_or_right" if across else "above_or_below"].grammar
    question = fill(asker.trained(grammar), a=asker.loosely(one.called), b=asker.loosely(other.called))
    told = DIRECTIONS[(0 if across else 2) + (ahead > 0)][0]
    return [asker.turn("rel_choice", question, f"The {one.called} is {told} the {other.called}.")]


def ask_direction(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if not things or len(scene.objects) > 6:
        return None
    base, direction = asker.rng.choice(things), asker.rng.randrange(4)
    others = [thing for thing in scene.everything if thing is not base]
    if any(abs(_ahead(direction, thing, base)) < 14 for thing in others):
        return None
    ahead = [thing for thing in others if _ahead(direction, thing, base) > 0]
    ahead.sort(key=lambda thing: (thing.region, thing.x + thing.y))
    if len(grouped(ahead)) > 3:
        return None
    told = DIRECTIONS[direction][0]
    answer = f"There is nothing {told} the {base.called}."
    if ahead:
        verb = "is" if len(ahead) == 1 else "are"
        answer = f"{capital(listed(_amounts(ahead)))} {verb} {told} the {base.called}."
    question = asker.phrase("direction")
    question = fill(question, w=asker.rng.choice(_DIRECTION_WORDINGS[direction][:2]), b=base.called)
    return [asker.turn("dir_list", question, answer)]


def ask_nearest(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if not things:
        return None
    thing = asker.rng.choice(things)
    near = nearest(scene, thing)
    if not near:
        return None
    question = fill(asker.phrase("nearest"), n=thing.called)
    return [asker.turn("nearest", question, f"{capital(near.some)} is next to the {thing.called}.")]


def ask_extreme(scene: Scene, asker: Asker) -> Turns:
    if len(scene.objects) < 2:
        return None
    direction = asker.rng.randrange(4)
    _, across, down = DIRECTIONS[direction]
    things = sorted(scene.objects, key=lambda thing: thing.x * across + thing.y * down)
    if _ahead(direction, things[-1], things[-2]) < 12:
        return None
    name = ("leftmost", "rightmost", "topmost", "lowest")[direction]
    last = things[-1].called
    return [asker.turn("extreme", asker.phrase(name), f"The {name} object is the {last}.", last)]


# ---- colours, shapes, sizes


def ask_colour(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    if asker.rng.random() < 0.12:
        missing = absent(scene, asker)
        if not missing or missing.split()[0] in COLOURS:
            return None
        question = fill(asker.phrase("color"), n=asker.loosely(missing))
        return [asker.turn("false_premise", question, _missing(missing))]
    things = _with_own_name(scene)
    if not things:
        return None
    thing = asker.rng.choice(things)
    kind = "color_shape" if thing.kind == "shape" else "color_emoji"
    question = fill(asker.phrase("color"), n=thing.name)
    return [asker.turn(kind, question, f"The {thing.name} is {thing.colour}.", thing.colour)]


def ask_whether_colour(scene: Scene, asker: Asker) -> Turns:
    things = _with_own_name(scene)
    if not things:
        return None
    rng = asker.rng
    thing = rng.choice(things)
    colour = thing.colour if rng.random() < 0.5 else rng.choice(COLOURS)
    assert colour
    true = _yes(colour == thing.colour)
    question = fill(asker.trained(WORDINGS["color_is"].grammar), n=asker.loosely(thing.name), c=colour)
    return [asker.turn(f"color_{true}", question, f"{capital(true)}, the {thing.name} is {thing.colour}.", true)]


def ask_shape(scene: Scene, asker: Asker) -> Turns:
    by_colour: dict[str | None, list[Thing]] = {}
    for thing in scene.objects:
        if thing.kind == "shape":
            by_colour.setdefault(thing.colour, []).append(thing)
    things = [group[0] for group in by_colour.values() if len(group) == 1]
    if not things:
        return None
    thing = asker.rng.choice(things)
    question = fill(asker.phrase("shape"), c=str(thing.colour))
    return [asker.turn("shape_of", question, f"The {thing.colour} shape is {article(thing.name)}.", thing.name)]


def ask_bigger(scene: Scene, asker: Asker) -> Turns:
    pair = _unequal_pair(scene, asker, ("emoji", "shape", "unknown"))
    if not pair:
        return None
    one, other = pair
    bigger = asker.rng.random() < 0.6
    which = one if (one.height > other.height) == bigger else other
    word = "bigger" if bigger else "smaller"
    question = fill(asker.phrase(word), a=one.called, b=other.called)
    return [asker.turn("bigger", question, f"The {which.called} is {word}.", which.called)]


def ask_whether_bigger(scene: Scene, asker: Asker) -> Turns:
    pair = _unequal_pair(scene, asker)
    if not pair:
        return None
    one, other = pair
    asked = asker.rng.choice(["bigger", "smaller"])
    told = "bigger" if one.height > other.height else "smaller"
    question = asker.trained(WORDINGS["bigger_is"].grammar)
    question = fill(question, a=asker.loosely(one.called), b=asker.loosely(other.called))
    word = asked if asker.rng.random() < 0.6 else {"bigger": "larger", "smaller": "tinier"}[asked]
    true = _yes(asked == told)
    answer = f"{capital(true)}, the {one.called} is {told} than the {other.called}."
    return [asker.turn(f"bigger_{true}", fill(question, w=word), answer, true)]


def _unequal_pair(
    scene: Scene, asker: Asker, kinds: tuple[str, ...] = ("emoji", "shape")
) -> tuple[Thing, Thing] | None:
    """Two things, one of them clearly bigger."""
    things = scene.unique(kinds)
    if len(things) < 2:
        return None
    one, other = asker.rng.sample(things, 2)
    if max(one.height, other.height) < 1.3 * min(one.height, other.height):
        return None
    return one, other


def ask_largest(scene: Scene, asker: Asker) -> Turns:
    if len(scene.objects) < 2:
        return None
    things = sorted(scene.objects, key=lambda thing: thing.height)
    word = "largest" if asker.rng.random() < 0.6 else "smallest"
    first, second = (things[-1], things[-2]) if word == "largest" else (things[0], things[1])
    if max(first.height, second.height) < 1.2 * min(first.height, second.height):
        return None
    answer = f"The {word} object is the {first.called}."
    return [asker.turn("largest", asker.phrase(word), answer, first.called)]


def ask_size(scene: Scene, asker: Asker) -> Turns:
    things = scene.unique()
    if not things:
        return None
    thing = asker.rng.choice(things)
    question = fill(asker.phrase("size"), n=thing.called)
    return [asker.turn("size", question, f"The {thing.called} is {thing.size}.", thing.size)]


# ---- words


def ask_text(scene: Scene, asker: Asker) -> Turns:
    if scene.unrecognisable:
        return None
    rng, text = asker.rng, scene.text
    if not text and rng.random() < 0.78:
        return None
    drawn = rng.random()
    if not text:
        return [asker.turn("ocr_none", asker.phrase("text"), "There is no text in the picture.")]
    if drawn < 0.66:
        return _read(scene, asker, text)
    if drawn < 0.8:
        return [asker.turn("text_color", asker.phrase("text_color"), f"The text is {text.colour}.", text.colour)]
    return [asker.turn("text_where", asker.phrase("text_where"), f"The text is {REGIONS[text.region]}.")]


def _read(scene: Scene, asker: Asker, text: Thing) -> list[Turn]:
    extra = ("What number is shown?", "Which number do you see?") if text.name == "number" else ()
    said = f'"{scene.letters}"'
    turns = [asker.turn("ocr", asker.phrase("text", extra), f"The text says {said}.", said)]
    if asker.rng.random() < 0.35:
        if asker.rng.random() < 0.5:
            turns.append(asker.turn("f_color", asker.phrase("it_text_color"), f"It is {text.colour}."))
        else:
            turns.append(asker.turn("f_where", asker.phrase("it_text_where"), f"It is {REGIONS[text.region]}."))
    return turns


def ask_chat(scene: Scene, asker: Asker) -> Turns:
    return [chat(asker)]


# ---- all of them, by how often they are asked

_KINDS: list[tuple[Callable[[Scene, Asker], Turns], float]] = [
    (ask_caption, 6),
    (ask_detail, 6),
    (ask_list, 4),
    (ask_exist, 10),
    (ask_count, 10),
    (ask_total, 4),
    (ask_where, 8),
    (ask_relation, 10),
    (ask_relative_place, 6),
    (ask_direction, 4),
    (ask_nearest, 3),
    (ask_colour, 7),
    (ask_shape, 3),
    (ask_background, 5),
    (ask_bigger, 4),
    (ask_largest, 3),
    (ask_size, 3),
    (ask_region, 8),
    (ask_category, 7),
    (ask_text, 17),
    (ask_extreme, 4),
    (ask_more, 2),
    (ask_unusual, 1),
    (ask_story, 1),
    (ask_title, 1),
    (ask_chat, 2.5),
    (ask_whether_colour, 3.5),
    (ask_whether_where, 4),
    (ask_whether_bigger, 2.5),
    (ask_which_side, 3),
]
_ASKS = [ask for ask, _ in _KINDS]
_OFTEN = list(accumulate(weight for _, weight in _KINDS))


def ask(scene: Scene, asker: Asker) -> list[Turn]:
    """A question about the picture, and sometimes further ones that follow on it."""
    for _ in range(12):
        turns = asker.rng.choices(_ASKS, cum_weights=_OFTEN)[0](scene, asker)
        if turns:
            return turns
    return ask_caption(scene, asker) or []
