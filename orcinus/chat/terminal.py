"""The conversation at a terminal, and the one answer for a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from enum import Enum, auto
from io import TextIOWrapper

from rich.console import Console
from rich.text import Text

from orcinus.chat.conversation import Answer, Conversation
from orcinus.chat.display import one_line, visible
from orcinus.errors import OrcinusError

_PROMPT = "> "
_HELP = """Enter sends; the arrow keys edit, and bring back what you wrote before.
Ctrl-C    stop the answer; what came of it stays in the conversation
/reset    begin a new conversation
/help     this
/exit     leave; so does Ctrl-D, and a second Ctrl-C"""
_RETRYING = "(the connection broke; trying to go on, Ctrl-C gives up)"


class Next(Enum):
    """What a line of input leads to."""

    GO_ON = auto()
    LEAVE = auto()


class Screen:
    """Where answers and remarks go."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False)

    def remark(self, text: str) -> None:
        """A dim line that isn't part of any answer."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def complain(self, error: OrcinusError) -> None:
        """One line."""
        self._console.print(Text(one_line(f"orcinus: {error}"), style="red"), soft_wrap=True)

    def retrying(self) -> None:
        """Why nothing comes."""
        self.remark(f"\n{_RETRYING}")

    def show(self, piece: str) -> None:
        """A piece of an answer."""
        sys.stdout.write(visible(piece))
        sys.stdout.flush()

    def end_line(self) -> None:
        """After an answer, or after keys that leave the cursor where it is."""
        self.show("\n")


class Chat:
    """Reads lines, shows answers, until somebody leaves."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._screen = Screen()
        self._was_interrupted = False

    def run(self, greeting: str) -> None:
        """To the end."""
        # Importing it is what gives `input` its editing; it may write to the terminal, so only where there is one.
        import readline

        readline.set_auto_history(True)
        if isinstance(sys.stdin, TextIOWrapper):
            # Half a character, pasted or typed, is no reason to leave.
            sys.stdin.reconfigure(errors="replace")
        self._screen.remark(greeting)
        while self._turn() is Next.GO_ON:
            pass

    def _turn(self) -> Next:
        try:
            line = input(_PROMPT).strip()
        except EOFError:
            self._screen.end_line()
            return Next.LEAVE
        except KeyboardInterrupt:
            self._screen.end_line()
            return self._interrupted()
        self._was_interrupted = False
        return self._obey(line) if line.startswith("/") else self._answer(line)

    def _interrupted(self) -> Next:
        """The first Ctrl-C stops or clears something, the second in a row leaves."""
        if self._was_interrupted:
            return Next.LEAVE
        self._was_interrupted = True
        self._screen.remark("Ctrl-C again leaves")
        return Next.GO_ON

    def _obey(self, line: str) -> Next:
        match line:
            case "/exit" | "/quit":
                return Next.LEAVE
            case "/reset":
                self._conversation.reset()
                self._screen.remark("a new conversation")
            case "/help":
                self._screen.remark(_HELP)
            case _:
                self._screen.remark(f"{one_line(line)} is no command; /help lists them")
        return Next.GO_ON

    def _answer(self, line: str) -> Next:
        if not line:
            return Next.GO_ON
        answer = Answer(time.perf_counter())
        try:
            with closing(self._conversation.ask(line, answer, self._screen.retrying)) as pieces:
                for piece in pieces:
                    self._screen.show(piece)
        except KeyboardInterrupt:
            answer.was_stopped = self._was_interrupted = True
            self._end(answer)
        except OrcinusError as error:
            self._end(answer)
            self._screen.complain(error)
        else:
            self._end(answer)
        return Next.GO_ON

    def _end(self, answer: Answer) -> None:
        """What an answer took, on a line of its own."""
        if answer.text or answer.was_stopped:
            self._screen.end_line()
        if took := answer.took():
            self._screen.remark(took)


def answer_once(conversation: Conversation, question: str) -> None:
    """The plain answer on standard output; what would command a terminal is shown to it as pictures.

    Raises:
        OrcinusError: see `Endpoint.chat`.
    """
    to_terminal = sys.stdout.isatty()
    answer = Answer(time.perf_counter())
    for piece in conversation.ask(question, answer, lambda: None):
        sys.stdout.write(visible(piece) if to_terminal else piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
