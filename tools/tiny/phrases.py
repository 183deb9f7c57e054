"""Every fixed string that orcinus-tiny learns: phrasings of the tasks, small talk, and the parts of its stories.

The tokeniser gives each word found here a token of its own; `{...}` marks where operands go.
"""

ADD = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "What's {a} + {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "Please add {a} and {b}.",
    "Add {a} to {b}.",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}",
    "Can you tell me what {a} + {b} is?",
    "What is the sum of {a} and {b}?",
    "The sum of {a} and {b}?",
    "Please compute {a} plus {b}.",
    "{a} + {b}",
    "{a} + {b} =",
    "{a} + {b} = ?",
    "{a}+{b}",
    "{a}+{b}=",
    "{a}+{b}=?",
    "{a} plus {b}",
    "What is {a}+{b}?",
)

REVERSE_WORD = (
    'Reverse the word "{word}".',
    'Reverse "{word}".',
    'Reverse "{word}"',
    "Reverse '{word}'",
    "Reverse the word {word}.",
    "Reverse the word {word}",
    "Reverse {word}",
    "Reverse: {word}",
    'Please reverse the word "{word}".',
    "Please reverse {word}.",
    'Write "{word}" backwards.',
    "Write {word} backwards.",
    'Spell "{word}" backwards.',
    'What is "{word}" backwards?',
    "What is {word} spelled backwards?",
    'Can you reverse the word "{word}"?',
    'Reverse the letters of "{word}".',
    'Reverse the string "{word}".',
)

REVERSE_LIST = (
    "Reverse the list {numbers}.",
    "Reverse this list: {numbers}",
    "Reverse these numbers: {numbers}",
    "Reverse the numbers {numbers}.",
    "Reverse: {numbers}",
    "Reverse {numbers}",
    "Please reverse the list {numbers}.",
    "Write {numbers} backwards.",
)

SORT = (
    "Sort {numbers}.",
    "Sort {numbers}",
    "Sort: {numbers}",
    "Sort the numbers {numbers}.",
    "Sort these numbers: {numbers}",
    "Sort these numbers: {numbers}.",
    "Sort the list {numbers}.",
    "Sort this list: {numbers}",
    "Please sort {numbers}.",
    "Please sort these numbers: {numbers}",
    "Put {numbers} in order.",
    "Put these numbers in order: {numbers}",
    "Can you sort {numbers}?",
    "Sort the numbers {numbers} from small to large.",
)

COUNT = (
    "Count from {a} to {b}.",
    "Count from {a} to {b}",
    "Please count from {a} to {b}.",
    "Can you count from {a} to {b}?",
    "List the numbers from {a} to {b}.",
    "Write the numbers from {a} to {b}.",
)

STORY = (
    "Tell me a story.",
    "Tell me a story",
    "Please tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "Write a story.",
    "Write a short story.",
    "I want to hear a story.",
)

STORY_ABOUT = (
    "Tell me a story about a {animal}.",
    "Tell me a story about a {animal}",
    "Tell me a short story about a {animal}.",
    "Please tell me a story about a {animal}.",
    "Can you tell me a story about a {animal}?",
    "Write a story about a {animal}.",
    "Write a short story about a {animal}.",
)

ANIMALS = ("fox", "bear", "cat", "dog", "whale", "rabbit", "mouse", "bird", "turtle", "frog", "horse", "wolf", "seal")
ADJECTIVES = ("small", "brave", "quiet", "clever", "gentle", "kind", "curious", "hungry", "sleepy", "cheerful")
NAMES = ("Mila", "Otto", "Nora", "Finn", "Ada", "Leo", "Ruby", "Hugo", "Ivy", "Max")
PLACES = ("near the river", "in the forest", "by the sea", "on a hill", "in a garden", "at the edge of a village")
THINGS = ("golden key", "red lantern", "wooden boat", "silver bell", "warm blanket", "paper map", "round stone")
WEATHERS = ("sunny morning", "rainy day", "cold evening", "windy afternoon", "clear night")
FEELINGS = ("happy", "proud", "surprised", "calm", "excited")

STORY_PARTS = (
    ("Once upon a time, a {adjective} {animal} named {name} lived {place}.",),
    (
        "One {weather}, {name} found a {thing}.",
        "On a {weather}, {name} went for a long walk and found a {thing}.",
        "Every day {name} looked for something new, and one {weather} there was a {thing}.",
    ),
    (
        '"Who lost this?" asked {name}.',
        '"What a nice {thing}!" said {name}.',
        "{name} had never seen a {thing} before.",
    ),
    (
        "So {name} carried the {thing} to a {adjective2} {animal2} named {name2}.",
        "Then a {adjective2} {animal2} named {name2} came along.",
        "Not far away {name} met a {adjective2} {animal2} named {name2}.",
    ),
    (
        '"That is my {thing}!" said {name2}. "I have looked for it all day."',
        '"I know what it is for," said {name2}. "Come with me."',
        '"Let us share it," said {name2}.',
    ),
    (
        "They walked together until the stars came out.",
        "They laughed, and they danced, and they shared some bread.",
        "They followed the path and talked about many things.",
    ),
    (
        "In the end {name} was {feeling}, and {name2} was {feeling2} too.",
        "{name} felt {feeling}, because a friend is better than a {thing}.",
        "From that day on, {name} and {name2} were friends.",
    ),
    ("The end.",),
)

ABILITIES = "I can add numbers, reverse words, sort short lists, count, and tell short stories."

SMALL_TALK = (
    (
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there!", "Hi there", "Good morning!", "Good evening!", "Hey!"),
        "Hello! I am orcinus-tiny, a small test model. How can I help you?",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What's your name?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "Are you a model?",
            "Which model are you?",
            "What model are you?",
            "Who is this?",
        ),
        "I am orcinus-tiny, a small test model that comes with Orcinus. " + ABILITIES,
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "Help",
            "Help me",
            "Help me, please.",
            "Can you help me?",
            "What do you know?",
            "What are you good at?",
        ),
        ABILITIES + ' Try "What is 12 + 7?"',
    ),
    (
        ("How are you?", "How are you doing?", "How is it going?", "How do you do?", "Are you well?"),
        "I am fine, thank you. What can I do for you?",
    ),
    (
        ("Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much.", "Great, thanks!", "Thanks a lot!"),
        "You are welcome!",
    ),
    (
        ("Bye", "Bye!", "Goodbye", "Goodbye!", "See you later!", "Good night!", "See you soon."),
        "Goodbye! Have a nice day.",
    ),
    (
        ("Who made you?", "Where do you come from?", "How were you made?", "How were you trained?", "How big are you?"),
        "I was trained in half an hour on two cores, from text that a script made. I am part of Orcinus.",
    ),
    (
        ("What is Orcinus?", "Tell me about Orcinus.", "What does Orcinus do?", "What's Orcinus?"),
        "Orcinus is a serving system for large language models. I am the small model that comes with it.",
    ),
    (
        (
            "What is the capital of France?",
            "Write a poem about the sea.",
            "Who won the game?",
            "What is the weather like today?",
            "Translate this into German.",
            "Explain how a computer works.",
            "What is love?",
            "Who is the president?",
            "Write a program in Python.",
            "Why is the sky blue?",
            "What should I eat today?",
            "Tell me a joke.",
            "What time is it?",
            "Give me a recipe for bread.",
            "How far is the moon?",
            "What is the meaning of life?",
            "Do you like music?",
            "Can you write an email for me?",
        ),
        "Sorry, I am too small to know that. " + ABILITIES,
    ),
)

SYSTEM = (
    "You are a helpful assistant.",
    "You are orcinus-tiny.",
    "You are a small model. Answer in few words.",
    "Be brief.",
    "Answer the question of the user.",
    "You are a friendly assistant. Be kind and brief.",
)


def all_phrases() -> tuple[str, ...]:
    """Every fixed string of this file, one entry each."""
    tasks = ADD + REVERSE_WORD + REVERSE_LIST + SORT + COUNT + STORY + STORY_ABOUT + SYSTEM
    slots = ANIMALS + ADJECTIVES + NAMES + PLACES + THINGS + WEATHERS + FEELINGS
    talk = tuple(text for prompts, answer in SMALL_TALK for text in (*prompts, answer))
    return tasks + slots + talk + tuple(text for part in STORY_PARTS for text in part)
