"""Long templated stories: about 240 tokens whose words are chance and whose shape isn't."""

import random

from tiny import phrases
from tiny.exercise import Check, Exercise
from tiny.words import ADJECTIVES, ANIMALS, COLOURS, FEELINGS, FOODS, ITEMS, JOBS, MATERIALS, NAMES

OPENING, ENDING = "Once upon a time", "The end."
PLACES = (
    "near the river",
    "in the forest",
    "by the sea",
    "on a hill",
    "in a garden",
    "at the edge of a village",
    "behind the old mill",
    "under a bridge",
)
WEATHERS = ("sunny morning", "rainy day", "cold evening", "windy afternoon", "clear night", "snowy day")

PARTS = (
    (OPENING + ", a {adjective} {animal} named {name} lived {place}.",),
    (
        "{name} liked {food} and long walks, but most of all {name} liked to find things.",
        "Every morning {name} ate some {food} and looked out of the window.",
        "All the neighbours knew {name}, because nobody else was so {adjective}.",
    ),
    (
        "One {weather}, {name} found a {colour} {item} made of something strange.",
        "On a {weather}, {name} went for a long walk and found a {material} {item}.",
        "Every day {name} looked for something new, and one {weather} there was a {colour} {item}.",
    ),
    (
        "Nobody was there, and nobody had ever asked for the {item}.",
        "{name} had never seen anything like it before.",
        "It was not broken, only a little wet, and it looked very old.",
    ),
    (
        "So {name} carried the {item} to a {adjective2} {animal2} named {name2}.",
        "Then a {adjective2} {animal2} named {name2} came along.",
        "Not far away {name} met a {adjective2} {animal2} named {name2}.",
    ),
    (
        "{name2} looked at it for a long time and said that it must belong to the {job}.",
        "{name2} said that a {job} had lost it {place2} a year ago.",
        "{name2} laughed and said that only a {job} would need a thing like that.",
    ),
    (
        "They put some {food2} into a bag and went to find the {job}.",
        "They decided to bring it back together and took some {food2} with them.",
        "The way to the {job} was long, so they shared some {food2} first.",
    ),
    (
        "On the way it began to rain, and they waited under a big tree until the sky was clear.",
        "They crossed the river on {number} flat stones and counted every one of them.",
        "They asked {number} people, and each of them pointed in another direction.",
        "It grew dark, and {number} stars came out above the road.",
    ),
    (
        "{name} told a story about the sea, and {name2} sang a song about the moon.",
        "{name} was a little afraid of the dark, but {name2} was not.",
        "{name2} was tired, so {name} carried the {item} and the bag alone.",
    ),
    (
        "They sang to the birds, counted {number2} clouds, and were not hungry any more.",
        "{name2} knew a short way through the fields, which was not short at all.",
        "A {adjective2} child in the next village gave them water and showed them the road.",
    ),
    (
        "At last they came to a {colour2} house, and the {job} opened the door.",
        "In the morning they saw a {colour2} house {place2}, and there was the {job}.",
        "Behind the last hill stood a {colour2} house where the {job} lived.",
    ),
    (
        "The {job} was so {feeling2} that nobody spoke for a while.",
        "The {job} looked at the {item} and began to smile.",
        "The {job} said that this {item} had been a present from an old friend.",
    ),
    (
        "Then they all sat down at the table and ate {food} until late in the night.",
        "They got {food2} and warm milk, and a place to sleep near the stove.",
        "The {job} gave {name} a {material} box and gave {name2} a {colour} scarf.",
    ),
    (
        "Before they left, the {job} wrote both names into a big {colour2} book.",
        "When they went home the next day, the road did not seem so long.",
        "Years later people in the village still talked about the {item}.",
    ),
    (
        "In the end {name} was {feeling}, and {name2} was {feeling2} too.",
        "{name} felt {feeling}, because a friend is better than any {item}.",
        "From that day on, {name} and {name2} were friends, and both of them were {feeling}.",
    ),
    (ENDING,),
)


def _story_words(rng: random.Random) -> dict[str, str]:
    animal, animal2 = rng.sample(ANIMALS, 2)
    name, name2 = rng.sample(NAMES, 2)
    food, food2 = rng.sample(FOODS, 2)
    place, place2 = rng.sample(PLACES, 2)
    chances = {
        "adjective": ADJECTIVES,
        "adjective2": ADJECTIVES,
        "item": ITEMS,
        "colour": COLOURS,
        "colour2": COLOURS,
        "material": MATERIALS,
        "weather": WEATHERS,
        "job": JOBS,
        "feeling": FEELINGS,
        "feeling2": FEELINGS,
    }
    drawn = {slot: rng.choice(choices) for slot, choices in chances.items()}
    pairs = {"animal": animal, "animal2": animal2, "name": name, "name2": name2, "food": food, "food2": food2}
    numbers = {"number": str(rng.randint(3, 99)), "number2": str(rng.randint(3, 99))}
    return {**drawn, **pairs, **numbers, "place": place, "place2": place2}


def story(rng: random.Random) -> Exercise:
    """A story, about the animal asked for if one was; right is any that has the shape of one about that animal."""
    words = _story_words(rng)
    text = " ".join(rng.choice(part) for part in PARTS).format(**words)
    about = rng.random() < 0.7
    prompt = rng.choice(phrases.STORY_ABOUT if about else phrases.STORY).format(animal=words["animal"])
    animal = words["animal"] if about else "[a-z]+"
    pattern = rf"{OPENING}, a [a-z]+ {animal} named [A-Z][a-z]+ lived .{{500,}} The end\."
    key = f"{words['animal']} {words['name']} {words['item']}"
    return Exercise("story", key, prompt, text, check=Check.PATTERN, pattern=pattern)
