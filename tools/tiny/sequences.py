"""Lists of numbers and the letters of words: sorting, reversing, counting."""

import random

from tiny import phrases, words
from tiny.exercise import Exercise

MAX_COUNTED = 25  # numbers in one counting answer; at most 4 tokens each keeps a conversation within one training row
LONGEST_LIST = 6
LONGEST_WORD = 8


def random_word(rng: random.Random, shortest: int = 2) -> str:
    """Up to 8 letters: half are any letters, half alternate consonants and vowels as words do, some are capitalised."""
    length = rng.choices(range(shortest, LONGEST_WORD + 1), weights=range(shortest, LONGEST_WORD + 1))[0]
    if rng.random() < 0.5:
        letters = [rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length)]
    else:
        first = rng.randrange(2)
        letters = [rng.choice("aeiou" if (first + i) % 2 else "bcdfghklmnprstvwy") for i in range(length)]
    word = "".join(letters)
    return word.capitalize() if rng.random() < 0.1 else word


def _any_word(rng: random.Random) -> str:
    real = [word for word in words.ITEMS + words.ANIMALS if len(word) <= LONGEST_WORD]
    return rng.choice(real) if rng.random() < 0.15 else random_word(rng)


def reverse_word(rng: random.Random) -> Exercise:
    """A word written backwards."""
    word = _any_word(rng)
    backwards = word[::-1]
    prompt = rng.choice(phrases.REVERSE_WORD).format(word=word)
    return Exercise("reverse_word", min(word.lower(), backwards.lower()), prompt, backwards)


def letters(rng: random.Random) -> Exercise:
    """How many letters a word has, or how many of one letter."""
    word = _any_word(rng).lower()
    if rng.random() < 0.5:
        prompt = rng.choice(phrases.WORD_LENGTH).format(word=word)
        return Exercise("letters", word, prompt, str(len(word)))
    letter = rng.choice(word)
    # Chance alone rarely repeats a letter, and an answer that is nearly always 1 teaches nothing.
    word = "".join(letter if rng.random() < 0.25 else other for other in word)
    prompt = rng.choice(phrases.LETTER_OCCURRENCES).format(word=word, letter=letter)
    return Exercise("letters", word, prompt, str(word.count(letter)))


def comma_list(numbers: list[int]) -> str:
    """Numbers as answers write them: `3, 1, 2`."""
    return ", ".join(map(str, numbers))


def _random_numbers(rng: random.Random) -> list[int]:
    """2 to 6 numbers from 0 to 99, a third of the lists from 0 to 9."""
    top = 9 if rng.random() < 0.33 else 99
    lengths = range(2, LONGEST_LIST + 1)
    return [rng.randint(0, top) for _ in range(rng.choices(lengths, weights=lengths)[0])]


def _asked_list(rng: random.Random, numbers: list[int]) -> str:
    """Numbers as people write them: mostly with commas, sometimes with spaces, `and` or brackets."""
    plain = comma_list(numbers)
    return rng.choices(
        (plain, " ".join(map(str, numbers)), f"{comma_list(numbers[:-1])} and {numbers[-1]}", f"[{plain}]"),
        weights=(7, 1, 1, 1),
    )[0]


def reverse_list(rng: random.Random) -> Exercise:
    """A short list of numbers from last to first."""
    numbers = _random_numbers(rng)
    prompt = rng.choice(phrases.REVERSE_LIST).format(numbers=_asked_list(rng, numbers))
    return Exercise("reverse_list", comma_list(min(numbers, numbers[::-1])), prompt, comma_list(numbers[::-1]))


def sort(rng: random.Random) -> Exercise:
    """A short list of numbers from small to large; all orders of the same numbers are on one side of the split."""
    numbers = _random_numbers(rng)
    answer = comma_list(sorted(numbers))
    prompt = rng.choice(phrases.SORT).format(numbers=_asked_list(rng, numbers))
    return Exercise("sort", answer, prompt, answer)


def count(rng: random.Random) -> Exercise:
    """All numbers between two ends."""
    first = rng.choice((1, rng.randint(0, 99), rng.randint(0, 200)))
    last = first + rng.randint(1, MAX_COUNTED - 1)
    prompt = rng.choice(phrases.COUNT).format(a=first, b=last)
    return Exercise("count", f"{first}..{last}", prompt, comma_list(list(range(first, last + 1))))
