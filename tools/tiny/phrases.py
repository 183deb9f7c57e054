"""Every fixed sentence that orcinus-tiny learns: phrasings of the tasks, small talk, system messages.

`{...}` marks where operands go. Words to be taken apart stand in quotes: the tokeniser keeps their letters single.
"""

ADD = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "What's {a} + {b}?",
    "How much is {a} + {b}?",
    "Add {a} and {b}.",
    "Please add {a} and {b}.",
    "Calculate {a} + {b}.",
    "Compute {a} + {b}",
    "What is the sum of {a} and {b}?",
    "{a} + {b}",
    "{a} + {b} =",
    "{a}+{b}",
    "{a}+{b}=?",
    "{a} plus {b}",
    "What is {a}+{b}?",
)

SUBTRACT = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "What's {a} - {b}?",
    "How much is {a} - {b}?",
    "Subtract {b} from {a}.",
    "Please subtract {b} from {a}.",
    "Calculate {a} - {b}.",
    "Compute {a} - {b}",
    "What is the difference of {a} and {b}?",
    "{a} - {b}",
    "{a} - {b} =",
    "{a}-{b}",
    "{a} minus {b}",
    "What is {a}-{b}?",
)

MULTIPLY = (
    "What is {a} * {b}?",
    "What is {a} times {b}?",
    "What's {a} * {b}?",
    "How much is {a} times {b}?",
    "Multiply {a} by {b}.",
    "Please multiply {a} by {b}.",
    "Calculate {a} * {b}.",
    "Compute {a} x {b}",
    "What is the product of {a} and {b}?",
    "{a} * {b}",
    "{a} x {b} =",
    "{a} times {b}",
    "What is {a} x {b}?",
)

REVERSE_WORD = (
    'Reverse the word "{word}".',
    'Reverse "{word}".',
    'Reverse "{word}"',
    'Please reverse the word "{word}".',
    'Write "{word}" backwards.',
    'Spell "{word}" backwards.',
    'What is "{word}" backwards?',
    'What is "{word}" spelled backwards?',
    'Can you reverse the word "{word}"?',
    'Reverse the letters of "{word}".',
    'Reverse the string "{word}".',
)

WORD_LENGTH = (
    'How many letters are in "{word}"?',
    'How many letters does "{word}" have?',
    'How many letters are in the word "{word}"?',
    'Count the letters of "{word}".',
    'How long is the word "{word}"?',
)

LETTER_OCCURRENCES = (
    'How many times does "{letter}" occur in "{word}"?',
    'How often does the letter "{letter}" occur in "{word}"?',
    'How many times is the letter "{letter}" in "{word}"?',
    'Count the letter "{letter}" in "{word}".',
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
    "Sort the list {numbers}.",
    "Sort this list: {numbers}",
    "Please sort {numbers}.",
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

WEEKDAY = (
    "What day is {n} days {side} {day}?",
    "Which day is {n} days {side} {day}?",
    "What day of the week is {n} days {side} {day}?",
    "Which weekday comes {n} days {side} {day}?",
    "{n} days {side} {day} is which day?",
)

DATE = (
    "What date is {n} days {side} {day} {month}?",
    "Which date is {n} days {side} {day} {month}?",
    "What is the date {n} days {side} {day} {month}?",
    "Give me the date {n} days {side} {day} {month}.",
)

DAYS_BETWEEN = (
    "How many days are between {day} {month} and {last} {month}?",
    "How many days are from {day} {month} to {last} {month}?",
    "How many days is it from {day} {month} until {last} {month}?",
)

CONVERT = (
    "Convert {value} {unit} to {target}.",
    "Convert {value} {unit} to {target}",
    "Convert {value} {unit} into {target}.",
    "What is {value} {unit} in {target}?",
    "How much is {value} {unit} in {target}?",
    "{value} {unit} in {target}",
    "{value} {unit} in {target}?",
    "Please convert {value} {unit} to {target}.",
)

EXTRACT = (
    "Extract {fields} as JSON: {sentence}",
    "Extract the {fields} as JSON: {sentence}",
    "Give me the {fields} as JSON: {sentence}",
    "Find the {fields} and answer in JSON. {sentence}",
    "{sentence} Extract the {fields} as JSON.",
)

STORY = (
    "Tell me a story.",
    "Tell me a story",
    "Please tell me a story.",
    "Tell me a long story.",
    "Can you tell me a story?",
    "Write a story.",
    "Write a long story.",
    "I want to hear a story.",
)

STORY_ABOUT = (
    "Tell me a story about a {animal}.",
    "Tell me a story about a {animal}",
    "Tell me a long story about a {animal}.",
    "Please tell me a story about a {animal}.",
    "Can you tell me a story about a {animal}?",
    "Write a story about a {animal}.",
    "Write a long story about a {animal}.",
)

ABILITIES = (
    "I can calculate with small numbers, sort and reverse lists, reverse words, count, work with dates and units, "
    "extract fields as JSON, call tools, and tell stories."
)

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
        ABILITIES + " Try: What is 12 + 7?",
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
        "I was trained in an hour on two cores, from text that a script made. I am part of Orcinus.",
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


def small_talk_texts() -> tuple[str, ...]:
    """Every prompt and every answer of the small talk."""
    return tuple(text for prompts, answer in SMALL_TALK for text in (*prompts, answer))
