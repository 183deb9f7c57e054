"""Functions to be called: their descriptions, requests for them, and the calls that answer these."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from tiny.exercise import Exercise
from tiny.words import CITIES, COLOURS, FOODS, ITEMS, NAMES, WEEKDAYS

Value = str | int
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
MOST_TOOLS = 3


@dataclass(frozen=True)
class Tool:
    """A function: how its arguments are drawn, how people ask for it, what it returns and what is then said."""

    name: str
    description: str
    arguments: dict[str, Callable[[random.Random], Value]]
    requests: tuple[str, ...]

    def described(self) -> str:
        """The JSON that an OpenAI client sends for this function."""
        sample = {name: draw(random.Random(0)) for name, draw in self.arguments.items()}
        kinds = {name: "integer" if isinstance(value, int) else "string" for name, value in sample.items()}
        parameters = {
            "type": "object",
            "properties": {name: {"type": kind} for name, kind in kinds.items()},
            "required": list(self.arguments),
        }
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return json.dumps({"type": "function", "function": function})


def _one_of(choices: tuple[str, ...]) -> Callable[[random.Random], Value]:
    return lambda rng: rng.choice(choices)


def _number(low: int, high: int) -> Callable[[random.Random], Value]:
    return lambda rng: rng.randint(low, high)


TOOLS = (
    Tool(
        "get_weather",
        "Get the weather of a city",
        {"city": _one_of(CITIES)},
        ("What is the weather in {city}?", "How is the weather in {city}?", "Tell me the weather in {city}."),
    ),
    Tool(
        "get_time",
        "Get the local time of a city",
        {"city": _one_of(CITIES)},
        ("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?"),
    ),
    Tool(
        "set_alarm",
        "Set an alarm",
        {"day": _one_of(WEEKDAYS), "hour": _number(0, 23)},
        ("Wake me up on {day} at {hour}.", "Set an alarm for {day} at {hour}.", "I have to get up at {hour} on {day}."),
    ),
    Tool(
        "set_timer",
        "Start a timer",
        {"minutes": _number(1, 180)},
        ("Set a timer for {minutes} minutes.", "Start a timer of {minutes} minutes.", "Tell me in {minutes} minutes."),
    ),
    Tool(
        "book_train",
        "Book a train",
        {"from": _one_of(CITIES), "to": _one_of(CITIES), "day": _one_of(WEEKDAYS)},
        (
            "Book a train from {from} to {to} on {day}.",
            "I want to go from {from} to {to} on {day}.",
            "On {day} I need a train from {from} to {to}.",
        ),
    ),
    Tool(
        "send_message",
        "Send a message to a person",
        {"name": _one_of(NAMES), "item": _one_of(ITEMS)},
        ("Ask {name} to bring the {item}.", "Tell {name} to bring the {item}.", "Remind {name} of the {item}."),
    ),
    Tool(
        "buy_item",
        "Order an item in the shop",
        {"item": _one_of(ITEMS), "colour": _one_of(COLOURS), "quantity": _number(1, 50)},
        (
            "Order {quantity} of the {colour} {item}.",
            "Buy {quantity} pieces of the {colour} {item}.",
            "I need the {colour} {item}, please order {quantity}.",
        ),
    ),
    Tool(
        "find_recipe",
        "Find a recipe",
        {"food": _one_of(FOODS), "people": _number(1, 12)},
        ("Find a recipe with {food} for {people} people.", "What can I cook with {food} for {people} people?"),
    ),
    Tool(
        "call_person",
        "Call a person on the phone",
        {"name": _one_of(NAMES)},
        ("Call {name}.", "Please call {name}.", "I want to speak with {name}."),
    ),
    Tool(
        "set_light",
        "Set the light of a room",
        {"colour": _one_of(COLOURS), "percent": _number(0, 100)},
        ("Make the light {colour} at {percent} percent.", "Set the light to {percent} percent and {colour}."),
    ),
)


def call_text(name: str, arguments: dict[str, Value]) -> str:
    """A call as the model writes it."""
    return CALL_OPEN + json.dumps({"name": name, "arguments": arguments}) + CALL_CLOSE


def _result(rng: random.Random) -> tuple[str, str] | None:
    """What a tool may give back, and the answer to that; half of the calls end with the call."""
    if rng.random() < 0.5:
        return None
    if rng.random() < 0.3:
        return json.dumps({"ok": True}), "Done."
    value = rng.choice((rng.randint(0, 999), rng.choice(COLOURS + FOODS)))
    return json.dumps({"result": value}), f"The result is {value}."


def offered_tools(rng: random.Random) -> list[Tool]:
    """One to three functions for a system message."""
    return rng.sample(TOOLS, rng.randint(1, MOST_TOOLS))


def call(rng: random.Random, offered: list[Tool]) -> Exercise:
    """A request for one of the offered functions."""
    tool = rng.choice(offered)
    arguments = {name: draw(rng) for name, draw in tool.arguments.items()}
    key = f"{tool.name} " + " ".join(str(value) for value in arguments.values())
    prompt = rng.choice(tool.requests).format(**arguments)
    described = tuple(each.described() for each in offered)
    return Exercise("tool", key, prompt, call_text(tool.name, arguments), tools=described, result=_result(rng))


def tool(rng: random.Random) -> Exercise:
    """A request together with functions of which one answers it."""
    return call(rng, offered_tools(rng))
