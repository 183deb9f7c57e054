"""The tokeniser of orcinus-tiny: byte-level BPE with learnt merges, one token a digit, quoted words letter by letter.

Which letters stay single is decided before any merge: the pattern below cuts a word into one piece where it may
become a token (after a space, at the start, in JSON) and into letters everywhere else, as in `"whale"`. Tasks about
letters need to see them, and a merge would hide them.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tiny import phrases, words
from tiny.calls import CALL_CLOSE, CALL_OPEN
from tiny.text import Conversation, Plain, tool_descriptions, training_text

BOS, PAD, SYSTEM, USER, ASSISTANT, TOOL, END = SPECIALS = (
    "<|bos|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
    "<|end|>",
)
# Tokens of their own that are part of the answer: decoding keeps them.
MARKERS = ("<tools>", "</tools>", CALL_OPEN, CALL_CLOSE)
VOCABULARY = 4096
TRAINING_DOCUMENTS = 20_000
WORD_REPEATS = 3  # a word of the lists counts at least this often

PRE_TOKEN = "|".join(
    (
        r'[a-z_]+(?=":)',  # a key of JSON
        r'(?<=": "|\["|", ")(?<!answer": ")[A-Za-z][a-z_]*',  # a value of JSON; an answer may be a reversed word
        r'(?<=answer": ")[A-Z][a-z]*',
        r"^[A-Z][a-z']*",
        r" [A-Za-z][a-z']*",
        r", (?=[0-9])",
        r'[{\[]+"|": [{\[]+"|": "|": |[}\]]*, [{\[]*"|"[}\]]*, [{\[]*"|"[}\]]+',  # between the words of JSON
        r"[ ]?[^\sA-Za-z0-9,]",
        r"[\s\S]",
    )
)

TOOLS_OPENING = "You can call these tools:\n<tools>"
TOOLS_CLOSING = "\n</tools>\nTo call one, answer with its name and arguments as JSON inside <tool_call></tool_call>."

CHAT_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- if tools -%}"
    "{{- '<|system|>' -}}"
    "{%- if messages and messages[0].role == 'system' -%}{{- messages[0].content ~ '\\n\\n' -}}{%- endif -%}"
    f"{{{{- {TOOLS_OPENING!r} -}}}}"
    "{%- for tool in tools -%}{{- '\\n' ~ tool | tojson -}}{%- endfor -%}"
    f"{{{{- {TOOLS_CLOSING!r} ~ '<|end|>' -}}}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}"
    "{{- raise_exception('orcinus-tiny knows the roles system, user, assistant and tool, not ' ~ message.role) -}}"
    "{%- endif -%}"
    "{%- if not (tools and loop.first and message.role == 'system') -%}"
    "{{- '<|' ~ message.role ~ '|>' ~ (message.content or '') -}}"
    "{%- for call in message.tool_calls or [] -%}"
    "{%- set function = call.function or call -%}"
    "{{- '<tool_call>{\"name\": ' ~ function.name | tojson ~ ', \"arguments\": ' -}}"
    "{{- (function.arguments if function.arguments is string else function.arguments | tojson) ~ '}</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|end|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def system_text(system: str, tools: tuple[str, ...]) -> str:
    """The content of the system message when there are tools, as the chat template writes it."""
    if not tools:
        return system
    return (f"{system}\n\n" if system else "") + "\n".join((TOOLS_OPENING, *tools)) + TOOLS_CLOSING


def _merge_texts() -> Iterator[str]:
    """What the merges are learnt from: the training text, and every word of the lists in the forms it can have."""
    for document in itertools.islice(training_text(seed=0), TRAINING_DOCUMENTS):
        match document:
            case Plain(text=text):
                yield text
            case Conversation(system=system, exercises=exercises):
                yield system
                yield from (part for each in exercises for part in (each.prompt, each.answer))
    listed = (words.NAMES, words.CITIES, words.ITEMS, words.ANIMALS, words.ADJECTIVES, words.COLOURS, words.MATERIALS)
    listed += (words.FEELINGS, words.JOBS, words.FOODS, words.MONTHS, words.WEEKDAYS, words.COMMON)
    for word in (word for group in listed for word in group):
        yield from (f" {word} {word.capitalize()}", word.capitalize(), f'": "{word}') * WORD_REPEATS
    for text in (*phrases.small_talk_texts(), *tool_descriptions(), system_text("", ("",))):
        yield from (text,) * WORD_REPEATS


def _text_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKERS),
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_merge_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKERS])
    return tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokeniser with its chat template, ready to be saved beside the weights; the same at each call."""
    tokenizer = _text_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, the chat template inside the latter."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)


class Encoder:
    """Turns training text into token ids and says which of them the model is to learn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._id_by_special = {token: self._tokenizer.token_to_id(token) for token in SPECIALS}

    def encode(self, document: Conversation | Plain) -> tuple[list[int], list[bool]]:
        """Token ids, and for each whether it is to be learnt: answers and plain text are."""
        match document:
            case Plain(text=text):
                return self._joined([(BOS, text + END, True)])
            case Conversation(system=system, tools=tools, exercises=exercises):
                system = system_text(system, tools)
                segments = [(BOS, SYSTEM + system + END if system else "", False)]
                for exercise in exercises:
                    segments.append((USER, exercise.prompt + END, False))
                    segments.append((ASSISTANT, exercise.answer + END, True))
                    if exercise.result is not None:
                        result, said = exercise.result
                        segments += [(TOOL, result + END, False), (ASSISTANT, said + END, True)]
                return self._joined(segments)

    def _joined(self, segments: list[tuple[str, str, bool]]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        learnt: list[bool] = []
        for opening, text, is_learnt in segments:
            body = self._tokenizer.encode(text, add_special_tokens=False).ids
            ids += [self._id_by_special[opening], *body]
            learnt += [False] + [is_learnt] * len(body)
        return ids, learnt
