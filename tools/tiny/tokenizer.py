"""The tokeniser of orcinus-tiny: bytes, whole words of its phrases, one token a digit and a letter.

A byte-level BPE without merges: a pre-token that is in the vocabulary is one token (`ignore_merges`), any other falls
into bytes. Learnt merges would cut an unknown word into pieces whose letters the model can't see, and reversing is
about letters.
"""

import re
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tiny.phrases import all_phrases
from tiny.text import Completion, Conversation

BOS, PAD, SYSTEM, USER, ASSISTANT, END = SPECIALS = (
    "<|bos|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
)

# A word counts as one only after a space or, capitalised, at the start: letters inside quotes, answers that are
# reversed words, and digits stay single.
PRE_TOKEN = r"^[A-Z][a-z']*| [A-Za-z][a-z']*|, (?=[0-9])| ?[^\sA-Za-z0-9,]|[\s\S]"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('orcinus-tiny knows the roles system, user and assistant, not ' ~ message.role) }}"
    "{% endif %}"
    "{{ '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(PRE_TOKEN), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def vocabulary() -> dict[str, int]:
    """Ids: special tokens, then the 256 bytes, then the words of the phrases in sorted order."""
    pre_tokenizer = _pre_tokenizer()
    texts = [re.sub(r"\{\w+\}", "", phrase) for phrase in all_phrases()]
    # Each phrase also as if it stood inside a sentence, so that "Mila" has a token there too.
    words = {
        token for text in texts for form in (text, " " + text) for token, _ in pre_tokenizer.pre_tokenize_str(form)
    }
    tokens = (*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *sorted(word for word in words if len(word) > 1))
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokeniser with its chat template, ready to be saved beside the weights."""
    vocab = vocabulary()
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocab[BOS])]
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
        self._tokenizer = tokenizer
        self._id_by_special = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}

    def encode(self, document: Conversation | Completion) -> tuple[list[int], list[bool]]:
        """Token ids, and for each whether it is part of an answer."""
        match document:
            case Completion(prompt=prompt, answer=answer):
                segments = [(BOS, prompt, False), ("", answer + END, True)]
            case Conversation(system=system, exercises=exercises):
                segments = [(BOS, SYSTEM + system + END if system else "", False)]
                for exercise in exercises:
                    segments.append((USER, exercise.prompt + END, False))
                    segments.append((ASSISTANT, exercise.answer + END, True))
        ids: list[int] = []
        learnt: list[bool] = []
        for opening, text, is_answer in segments:
            body = self._tokenizer.encode(text, add_special_tokens=False)
            ids += ([self._id_by_special[opening]] if opening else []) + body
            learnt += ([False] if opening else []) + [is_answer] * len(body)
        return ids, learnt
